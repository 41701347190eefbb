# SPDX-License-Identifier: Apache-2.0
"""Devices that the configuration gives to guests when they appear."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from netback.abi.xs_wire import Op
from netback.daemon import Backend, BackendConfig
from netback.daemon.config import DeviceRule
from netback.platforms.emulated import EmulatedDomain, EmulatedPlatform
from netback.xenbus.names import DeviceName
from netback.xenstore.aio import Store
from tests.vif.guest import until
from tests.xenbus.refusals import Refusal, RefusingPlatform

FIRST = DeviceRule(net="null", guest="web", index=0, attach=True)
SECOND = DeviceRule(net="null", guest="db", index=3, attach=True)


async def test_the_device_follows_its_guest(xen: Path) -> None:
    """Each life of the guest has another domid; one that arrives by migration is renamed later."""
    addresses = set()
    with EmulatedPlatform(xen) as platform:
        config = BackendConfig(xen, workers=1, rules=(FIRST,))
        async with Backend(platform, config), await Store.connect(xen / "xenstored.sock") as store:
            for domid, called in ((1, "web"), (2, "web"), (3, "web--incoming")):
                name = DeviceName("vif", 0, domid, "0")
                with EmulatedDomain.join(xen, domid=domid, name=called):
                    await until(store, f"{name.backend}/state", lambda state: state == "2")
                    addresses.add(await store.read(f"{name.frontend}/mac"))
                await until(store, f"{name.backend}/state", lambda state: state is None)
    assert len(addresses) == 1


@pytest.mark.parametrize(
    ("op", "path"),
    [
        (Op.DIRECTORY, "/local/domain"),
        (Op.READ, "/1/name"),
        (Op.WRITE, "vif/1/0/state"),
        (Op.TRANSACTION_END, "commit"),
    ],
)
@pytest.mark.parametrize("errno", ["ENOSPC", "EINVAL"])
async def test_what_the_store_refuses_is_tried_again(
    xen: Path, monkeypatch: pytest.MonkeyPatch, op: Op, path: str, errno: str
) -> None:
    """The guest beside it has its device, and no other guest has to appear for the retry."""
    monkeypatch.setattr("netback.daemon.auto_attach.AGAIN_SECONDS", 0.05)
    with RefusingPlatform(xen) as platform, ExitStack() as undo:
        platform.refusals = (Refusal(op, path, errno, times=2),)
        config = BackendConfig(xen, workers=1, rules=(FIRST, SECOND))
        async with Backend(platform, config), await Store.connect(xen / "xenstored.sock") as store:
            for domid, rule in ((1, FIRST), (2, SECOND)):
                undo.enter_context(EmulatedDomain.join(xen, domid=domid, name=rule.guest or ""))
                name = DeviceName("vif", 0, domid, str(rule.index))
                await until(store, f"{name.backend}/state", lambda state: state == "2")
