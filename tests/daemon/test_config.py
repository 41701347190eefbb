# SPDX-License-Identifier: Apache-2.0
"""The configuration file: what it means, and one line for each mistake."""

from pathlib import Path

import pytest

from netback.daemon.config import Config, load_config, parse_config
from netback.errors import ConfigError

GOOD = """
net = "tap"
workers = 2
trace = ["xen_netdev_connect"]

[[device]]
guest = "web"
index = 0
net = "tap:web0"
attach = true
"""


def test_a_good_file() -> None:
    config = parse_config(GOOD)
    assert (config.net, config.workers, config.trace) == ("tap", 2, ("xen_netdev_connect",))
    (rule,) = config.device
    assert rule.fits(guest={"web"}, domid=4, type="vif", index=0, mac=None)
    assert not rule.fits(guest={"web"}, domid=4, type="vif", index=1, mac=None)
    assert not rule.fits(guest={"db"}, domid=4, type="vif", index=0, mac=None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nett = 'tap'", "nett: unknown key; did you mean net"),
        ("zzz = 1", "zzz: unknown key; there are net"),
        ("net = 5", "net: .*string"),
        ("net = 'nonsense'", "network 'nonsense'"),
        ("workers = 0", "workers: .*>= 1"),
        ("workers = 'two'", "workers: .*whole number"),
        ("trace = ['none_such']", "trace: .*none_such"),
        ("[[device]]\nguest = 'a'", "device.*net"),
        ("[[device]]\nnet = 'tap'\nindexx = 1", r"device\[0\].indexx: unknown key; did you mean index"),
        ("[[device]]\nnet = 'tap'\nattach = true", "attach needs guest and index"),
        ("[[device]]\nnet = 'tap'\nguest = 'a'\nindex = 0\nattach = true\ndomid = 3", "attach goes by guest"),
        ("[[device]]\nnet = 'tap'\nmac = 'xx'", "MAC"),
        ("device = 3", "device: "),
        ("net = [", "at end of document"),
    ],
)
def test_each_mistake_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "netback.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as refused:
        load_config(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        load_config(tmp_path / "none.toml")


def test_the_command_line_wins() -> None:
    told = parse_config(GOOD).overruled(net="null", trace=("xen_netdev_tx",), workers=None)
    assert (told.net, told.workers, told.trace) == ("null", 2, ("xen_netdev_connect", "xen_netdev_tx"))
    with pytest.raises(ConfigError):
        Config().overruled(net="nonsense", trace=(), workers=None)
