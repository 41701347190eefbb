# SPDX-License-Identifier: Apache-2.0
"""Rules that are added and removed while a backend runs, the drop-in that keeps them, and other drop-ins."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from netback.daemon import Backend, BackendConfig
from netback.daemon.added_rules import place_rules, save_rules
from netback.daemon.config import ADDED, DROP_INS, DeviceRule, load_config, load_rules, make_rule
from netback.errors import ConfigError
from netback.net.python import PythonNetwork
from netback.platforms.emulated import EmulatedDomain, EmulatedPlatform
from netback.xenbus.names import DeviceName
from tests.vif.guest import Guest, until
from tests.xenbus.toolstack import add

MAIN = 'net = "null"\nqueues = 2\n[[device]]\nnet = "tap:main"\nname = "main"\n'
WEB = {"net": "null", "guest": "web", "index": 0, "attach": True}


def drop_in(path: Path, name: str, text: str) -> Path:
    file = path / DROP_INS / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


@pytest.fixture
def main(tmp_path: Path) -> Path:
    path = tmp_path / "netback.toml"
    path.write_text(MAIN)
    return path


@asynccontextmanager
async def configured(xen: Path, main: Path, **more: object) -> AsyncIterator[Backend]:
    """A backend with the file's rules, as `netback run` has them."""
    found = load_config(main)
    config = BackendConfig(
        xen, workers=1, net=found.net, rules=found.device, rules_file=Path(found.rules_file or ""), **more
    )
    with EmulatedPlatform(xen) as platform:
        async with Backend(platform, config) as backend:
            yield backend


# ---- drop-ins


def test_drop_ins_in_their_order(main: Path, tmp_path: Path) -> None:
    """Keys of later ones count; rules of drop-ins come first; other files are nothing."""
    drop_in(tmp_path, "20-b.toml", 'queues = 4\nworkers = 3\n[[device]]\nnet = "tap:b"\n')
    drop_in(tmp_path, "10-a.toml", 'queues = 3\n[[device]]\nnet = "tap:a"\n')
    for name in (".hidden.toml", "30-c.toml~", "README"):
        drop_in(tmp_path, name, "nonsense")
    config = load_config(main)
    assert (config.net, config.queues, config.workers) == ("null", 4, 3)
    assert [rule.net for rule in config.device] == ["tap:a", "tap:b", "tap:main"]
    assert [Path(rule.file).name for rule in config.device] == ["10-a.toml", "20-b.toml", "netback.toml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nett = 1", "conf.d/10-a.toml: nett: unknown key; did you mean net"),
        ("[[device]]\nnet = 'tap'\nfile = 'x'", r"10-a.toml: device\[0\].file: unknown key"),
        ("files = []", "10-a.toml: files: unknown key"),
        ("[[device]]\nnet = 'tap'\nname = 'main'", "10-a.toml has a rule 'main', too"),
        ("[[device]]\nnet = 'tap'\nname = '-x y'", "10-a.toml: .*name: '-x y'"),
    ],
)
def test_a_mistake_in_a_drop_in(main: Path, tmp_path: Path, text: str, message: str) -> None:
    drop_in(tmp_path, "10-a.toml", text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(main)
    assert "\n" not in str(error.value)


def test_a_drop_in_that_cannot_be_read(main: Path, tmp_path: Path) -> None:
    (tmp_path / DROP_INS / "10-a.toml").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"10-a\.toml: cannot be read"):
        load_config(main)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / DROP_INS).write_text("")
    (tmp_path / "other" / "netback.toml").write_text("")
    with pytest.raises(ConfigError, match=r"conf\.d: cannot be read: Not a directory"):
        load_config(tmp_path / "other" / "netback.toml")


# ---- the file of added rules


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """Any name of a guest: quotes, escapes, control characters, any plane of Unicode."""
    path, rng = tmp_path / ADDED, random.Random(5)
    characters = [
        *map(chr, range(1, 0x180)),
        "\u2028",
        "\ud7ff",
        "\ue000",
        "\uffff",
        "\U0001f600",
        '"',
        "\\",
        "'",
        "#",
    ]
    rules = tuple(
        DeviceRule(
            net=rng.choice(["null", "tap:web0"]),
            name=f"r{number}",
            guest="".join(rng.choices(characters, k=rng.randrange(1, 30))),
            index=rng.choice([0, 7]),
            type=rng.choice([None, "vif", "qnic"]),
            attach=rng.random() < 0.5,
            tx_rate=rng.choice([None, "10Mb/s"]),
            filters=rng.choice([None, (), ("antispoof", "vlan,access=10")]),
            file=str(path),
        )
        for number in range(300)
    )
    save_rules(path, rules)
    assert load_rules(path) == rules
    save_rules(path, ())
    assert not path.exists()
    assert load_rules(path) == ()
    assert list(tmp_path.iterdir()) == []


def test_the_place_of_added_rules(tmp_path: Path) -> None:
    """Between the drop-ins before and after theirs, and before the file's."""
    conf, path = tmp_path / DROP_INS, tmp_path / DROP_INS / ADDED
    files = [conf / "10-a.toml", conf / "90-b.toml", tmp_path / "netback.toml"]
    rules = [DeviceRule(net="null", file=str(file)) for file in files]
    added = DeviceRule(net="null", name="x", file=str(path))
    assert place_rules(rules, path, (added,)) == (rules[0], added, rules[1], rules[2])
    assert place_rules((rules[0], added, rules[1]), path, ()) == (rules[0], rules[1])


# ---- while a backend runs


async def test_a_rule_applies_at_once_and_after_a_restart(xen: Path, main: Path) -> None:
    with EmulatedDomain.join(xen, domid=1, name="web"):
        async with configured(xen, main) as backend:
            rule, attached, failed = await backend.add_rule(make_rule(WEB))
            assert (rule.name, [str(name) for name in attached], failed) == ("added-1", ["vif1.0"], [])
            await until(backend.store, "/local/domain/0/backend/vif/1/0/state", lambda state: state == "2")
            assert [rule.name for rule in backend.rules] == ["added-1", "main"]
    async with configured(xen, main) as backend:
        assert [rule.name for rule in backend.rules] == ["added-1", "main"]
        with EmulatedDomain.join(xen, domid=2, name="web"):
            await until(backend.store, "/local/domain/0/backend/vif/2/0/state", lambda state: state == "2")
            name = DeviceName("vif", 0, 2, "0")
            assert await backend.remove_rule("added-1", detach=True) == [(name, True)]
            assert await backend.store.read_or(f"{name.backend}/state") is None
    assert [rule.name for rule in load_config(main).device] == ["main"]


async def test_a_removed_rule_leaves_devices_that_it_did_not_attach(xen: Path, main: Path) -> None:
    """One that stays on request, and one of the same index that an operator attached."""
    with EmulatedDomain.join(xen, domid=1, name="web"):
        async with configured(xen, main) as backend:
            await backend.add_rule(make_rule(WEB | {"name": "web"}))
            assert await backend.remove_rule("web") == []
            path = "/local/domain/0/backend/vif/1/0"
            await until(backend.store, f"{path}/state", lambda state: state == "2")
            await backend.detach(DeviceName("vif", 0, 1, "0"))
            by_hand = await backend.attach(1, "null", index=0)
            assert (await backend.add_rule(make_rule(WEB)))[1:] == ([], [])
            assert await backend.remove_rule("added-1", detach=True) == []
            assert by_hand in backend.devices


async def test_an_operator_s_detach_lasts(xen: Path, main: Path) -> None:
    """Neither another rule nor another guest makes netback attach again what was detached by hand."""
    with EmulatedDomain.join(xen, domid=1, name="web"):
        async with configured(xen, main) as backend:
            for _ in range(20):  # until it has looked for guests, when no rule attached any
                await backend.store.read("/local/domain/0/name")
            await backend.add_rule(make_rule(WEB))
            await backend.detach(DeviceName("vif", 0, 1, "0"))
            _, attached, _ = await backend.add_rule(make_rule(WEB | {"index": 1}))
            assert [str(name) for name in attached] == ["vif1.1"]
            await backend.add_rule(make_rule(WEB | {"guest": "db"}))
            with EmulatedDomain.join(xen, domid=2, name="db"):
                await until(
                    backend.store, "/local/domain/0/backend/vif/2/0/state", lambda state: state == "2"
                )
            assert await backend.store.read_or("/local/domain/0/backend/vif/1/0/state") is None


async def test_limits_and_filters_of_an_added_rule(xen: Path, main: Path, network: PythonNetwork) -> None:
    """Devices that exist get them at once, and lose them with the rule."""
    async with configured(xen, main, networks={"python:lan": network}) as backend:
        with EmulatedDomain.join(xen, domid=1, pages=64, grant_pages=1) as domain:
            guest = Guest(domain, await domain.open_store())
            name = await add(backend.store, 1)
            await guest.connect()
            await backend.add_rule(
                make_rule(
                    {
                        "net": "null",
                        "index": 0,
                        "tx_rate": "10Mb/s",
                        "filters": ["antispoof"],
                        "name": "slow",
                    }
                )
            )
            device = backend.devices[name]
            assert device.vif is not None
            vif = await device.apply_settings()
            assert (str(vif.rates.tx), [str(each) for each in vif.filters.specs]) == ("10Mb/s", ["antispoof"])
            await backend.remove_rule("slow")
            vif = await device.apply_settings()
            assert (vif.rates.tx, vif.filters.specs) == (None, ())
            await guest.store.close()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "main"}, "has a rule 'main', too"),
        ({"name": "first"}, "has a rule 'first', too"),
        ({"guest": "web"}, r"rule 'first' in .*/conf\.d/50-added\.toml comes before and decides"),
        (
            {"guest": "db", "domid": 3},
            r"a rule for net 'tap:early' in .*10-early\.toml comes before and decides",
        ),
    ],
)
async def test_a_rule_that_is_refused(
    xen: Path, main: Path, tmp_path: Path, keys: dict[str, object], message: str
) -> None:
    """Nothing has changed then, in the file either."""
    drop_in(tmp_path, "10-early.toml", '[[device]]\nnet = "tap:early"\ndomid = 3\n')
    async with configured(xen, main) as backend:
        await backend.add_rule(make_rule({"net": "null", "guest": "web", "name": "first"}))
        before, text = backend.rules, (tmp_path / DROP_INS / ADDED).read_text()
        with pytest.raises(ConfigError, match=message):
            await backend.add_rule(make_rule({"net": "null", **keys}))
        assert (backend.rules, (tmp_path / DROP_INS / ADDED).read_text()) == (before, text)


async def test_a_file_that_cannot_be_written(xen: Path, main: Path, tmp_path: Path) -> None:
    async with configured(xen, main) as backend:
        before = backend.rules
        (tmp_path / DROP_INS).write_text("")
        with pytest.raises(
            ConfigError, match=r"conf\.d.*: (cannot be written|cannot be read): Not a directory"
        ):
            await backend.add_rule(make_rule(WEB))
        assert backend.rules == before


async def test_an_added_file_with_a_mistake_is_not_overwritten(xen: Path, main: Path, tmp_path: Path) -> None:
    async with configured(xen, main) as backend:
        file = drop_in(tmp_path, ADDED, "[[device]]\nnett = 1\n")
        with pytest.raises(ConfigError, match=r"50-added\.toml: device\[0\]\.nett: unknown key"):
            await backend.add_rule(make_rule(WEB))
        assert "nett" in file.read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense\x1b", r"there is no rule nonsense\\x1b: netback rules"),
        ("main", r"rule main is in .*/netback\.toml: remove it there, and reload netback"),
    ],
)
async def test_a_removal_that_is_refused(xen: Path, main: Path, name: str, message: str) -> None:
    async with configured(xen, main) as backend:
        with pytest.raises(ConfigError, match=message):
            await backend.remove_rule(name)


async def test_a_device_that_cannot_be_attached(xen: Path, main: Path) -> None:
    """The rule is kept, and the reason is told."""
    with EmulatedDomain.join(xen, domid=1, name="web"):
        async with configured(xen, main) as backend:
            await backend.attach(1, "null", kind="qnic", index=0)
            rule, attached, failed = await backend.add_rule(make_rule(WEB))
            assert (attached, rule in backend.rules) == ([], True)
            (reason,) = failed
            assert reason.startswith("vif1.0: cannot attach it to guest web: domain 1 has a device 0 already")


async def test_without_a_file(xen: Path) -> None:
    with EmulatedPlatform(xen) as platform:
        async with Backend(platform, BackendConfig(xen, workers=1)) as backend:
            with pytest.raises(ConfigError, match="no configuration file beside which a rule could be kept"):
                await backend.add_rule(make_rule(WEB))
