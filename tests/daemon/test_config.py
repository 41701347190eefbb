# SPDX-License-Identifier: Apache-2.0
"""The configuration file: its meaning, and one line for each mistake."""

import os
import re
from pathlib import Path

import pytest

from netback.daemon.config import Config, DeviceRule, load_config, parse_config
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
    ("text", "message"),
    [
        ("nett = 'tap'", "nett: unknown key; did you mean net"),
        ("zzz = 1", "zzz: unknown key; there are net"),
        ("net = 5", "net: .*string"),
        ("net = 'nonsense'", "network 'nonsense'"),
        ("workers = 0", "workers: .*>= 1"),
        ("workers = 'two'", "workers: .*whole number"),
        ("hotplug = 'xl'", "hotplug: .*'xl'"),
        ("record = 'all'", "record: .*'all'"),
        ("record = true", "record: .*string"),
        ("hotplug_seconds = 0", "hotplug_seconds: .*>= 0.1"),
        ("hotplug_seconds = nan", "hotplug_seconds: .*"),
        ("hotplug_directories = ['scripts']", "hotplug_directories: 'scripts' is no absolute path"),
        ("hotplug_directories = '/etc/xen/scripts'", "hotplug_directories: .*list"),
        ("trace = ['none_such']", "trace: .*none_such"),
        ("[[device]]\nguest = 'a'", "device.*net"),
        ("[[device]]\nnet = 'tap'\nindexx = 1", r"device\[0\].indexx: unknown key; did you mean index"),
        ("[[device]]\nnet = 'tap'\nattach = true", "attach needs guest and index"),
        (
            "[[device]]\nnet = 'tap'\nguest = 'a'\nindex = 0\nattach = true\ndomid = 3",
            "attach needs guest, not domid",
        ),
        ("[[device]]\nnet = 'tap'\nmac = 'xx'", "MAC"),
        ("[[device]]\nnet = 'tap'\nmac = '01:00:5e:00:00:01'", "multicast"),
        ("device = 3", "device: "),
        ("net = [", "at end of document"),
        ("net = 'null'\nnet = 'tap'", "Cannot overwrite a value"),
        ("[device]\nnet = 'tap'", "device: Expected a list, got a table"),
        ("[[device]]\nnet = 'tap'\n[device]\nnet = 'tap'", "device"),
        ("[[device]]\nnet = 'tap'\ndomid = 32752", "domid: .*<= 32751"),
        ("[[device]]\nnet = 'tap'\nindex = 2147483647", "index: "),
        ("workers = " + "9" * 5000, "limit"),
        (f"net = '{'x' * 5000}'", r"net: network.*\.\.\.$"),
        ("device = " + "[" * 100_000, "nested too deeply"),
        ("device = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("device = " + "{a = " * 5000 + "1" + "}" * 5000, "nested too deeply"),
        (".".join(["a"] * 100_000) + " = 1", "nested too deeply"),
        ("[" + " . ".join(["'a'"] * 100_000) + "]", "nested too deeply"),
        ("[[device]]\n" * 80_000, "device"),
        ("#" * (1 << 20) + "\n", "larger than 1048576 bytes"),
        ("a" * ((1 << 20) - 1), "Expected '='"),
        ('"""\\' * 200_000, "Illegal|Unescaped|Unterminated|Expected"),
    ],
    ids=lambda value: value[:24],
)
def test_each_mistake_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "netback.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as refused:
        load_config(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


WRONG = (
    "1",
    "-1",
    "true",
    "1.5",
    "nan",
    "''",
    "'x'",
    '"\\u001b"',
    "[]",
    "['a', 1]",
    "[[1]]",
    "{}",
    "{a = 1}",
    "1979-05-27",
)


@pytest.mark.parametrize("key", Config.__struct_fields__ + DeviceRule.__struct_fields__)
def test_each_key_with_each_type(tmp_path: Path, key: str) -> None:
    """Any value is either accepted or refused; a refusal is one short line about this key."""
    path = tmp_path / "netback.toml"
    rule = "" if key in Config.__struct_fields__ else "[[device]]\n" + "net = 'null'\n" * (key != "net")
    for value in WRONG:
        path.write_text(f"{rule}{key} = {value}")
        if (message := mistake(path)) is not None:
            assert re.match(rf"{re.escape(str(path))}: .*\b{key}\b", message)
            assert "\n" not in message
            assert len(message) < len(str(path)) + 400


def mistake(path: Path) -> str | None:
    try:
        load_config(path)
    except ConfigError as error:
        return str(error)
    return None


def test_dots_in_strings_and_comments_part_no_keys() -> None:
    text = """# a.b.c.d.e.f = 1, and "an open string
trace = ['xen_netdev_connect']  # ...........
[[device]]
guest = "a.b.c.d.e.f"
net = 'tap:a.b.c.d.e.f'
"""
    assert parse_config(text).device[0].guest == "a.b.c.d.e.f"


def test_a_file_that_is_none(tmp_path: Path) -> None:
    """A pipe without a writer would block the daemon for ever."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ConfigError, match=r"cannot be read: (not a regular file|Is a directory)"):
            load_config(path)
    (tmp_path / "latin").write_bytes(b"net = '\xe4'")
    with pytest.raises(ConfigError, match="cannot be read: 'utf-8'"):
        load_config(tmp_path / "latin")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        load_config(tmp_path / "none.toml")


def test_the_command_line_wins() -> None:
    config = parse_config(GOOD).overruled(net="null", trace=("xen_netdev_tx",), workers=None)
    assert (config.net, config.workers, config.trace) == ("null", 2, ("xen_netdev_connect", "xen_netdev_tx"))
    with pytest.raises(ConfigError):
        Config().overruled(net="nonsense", trace=(), workers=None)
