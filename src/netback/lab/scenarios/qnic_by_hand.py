# SPDX-License-Identifier: Apache-2.0
"""qnic nodes written by hand get the network that the configuration names; online=0 and state=5 remove the device.

A node whose name is no number and one without a MAC address give one log line each and affect no other device.
"""

from netback.lab.host import DOM0, Guest, Lab

INDEX = 1
MAC = "00:16:3e:55:00:01"
TAP = "byhand"
CONFIG = f"""
[[device]]
guest = "g1"
type = "qnic"
index = {INDEX}
net = "tap:{TAP}"
"""


async def run(lab: Lab) -> None:
    guest = await lab.create("g1", vif=())
    (lab.machine.directory / "by-hand.toml").write_text(CONFIG)
    lab.netback.options = "--config /lab/by-hand.toml"
    await again(lab)
    try:
        await made(lab, guest)
        await refused(lab, guest, "x1", "failed to parse name 'x1'", mac=MAC)
        await refused(lab, guest, "2", "no MAC address found")
        await refused(lab, guest, "3", "failed to parse MAC address", mac="00:16:3e")
        await lab.dom0(f"ping -c 3 {guest.address}")
        await removed(lab, guest)
    finally:
        lab.netback.options = ""
        await again(lab)


async def again(lab: Lab) -> None:
    """Restart netback with its present options."""
    await lab.netback.stop()
    await lab.netback.start()


def backend(guest: Guest, number: str | int = INDEX) -> str:
    return f"/local/domain/0/backend/qnic/{guest.domid}/{number}"


def frontend(guest: Guest, number: str | int = INDEX) -> str:
    return f"/local/domain/{guest.domid}/device/vif/{number}"


async def write(lab: Lab, guest: Guest, number: str | int, **more: str) -> None:
    """Write what a toolstack writes: the guest's directory, then the backend's, with its state last."""
    theirs, ours = frontend(guest, number), backend(guest, number)
    nodes = {
        theirs: {"backend": ours, "backend-id": "0", "state": "1"},
        ours: {"frontend": theirs, "frontend-id": str(guest.domid), "online": "1", **more, "state": "1"},
    }
    for path, perms in ((theirs, f"n{guest.domid} r0"), (ours, f"n0 r{guest.domid}")):
        await lab.dom0(f"xenstore-write {path} '' && xenstore-chmod {path} {perms}")
    for path, keys in nodes.items():
        words = " ".join(f"{path}/{key} '{value}'" for key, value in keys.items())
        await lab.dom0(f"xenstore-write {words}")


async def made(lab: Lab, guest: Guest) -> None:
    await write(lab, guest, INDEX, mac=MAC)
    await lab.until(lambda: lab.succeeds(f"ip link set {TAP} master xenbr0 up"), f"the tap {TAP} is there")
    await guest.up()
    await guest.reachable()
    await guest(f"ping -c 3 -s 4000 {DOM0}")
    assert MAC in await guest("cat /sys/class/net/eth0/address")
    (device,) = await lab.netback.list()
    assert (device["type"], device["network"], device["backend"]) == ("qnic", TAP, "Connected"), device


async def refused(lab: Lab, guest: Guest, number: str, reason: str, **keys: str) -> None:
    """Write bad nodes: one log line, and nothing is left once they are removed."""
    await write(lab, guest, number, **keys)
    line = f"qnic{guest.domid}.{number}: {reason}"
    await lab.until(lambda: logged(lab, line), f"netback says {line!r}", seconds=20)
    for path in (backend(guest, number), frontend(guest, number)):
        await lab.dom0(f"xenstore-rm {path}")
    assert lab.netback.log.count(line) == 1, f"{lab.netback.log.count(line)} times: {line}"


async def logged(lab: Lab, line: str) -> bool:
    return line in lab.netback.log


async def removed(lab: Lab, guest: Guest) -> None:
    """Remove the device as a toolstack does."""
    ours = backend(guest)
    await lab.dom0(f"xenstore-write {ours}/online 0 {ours}/state 5")
    await lab.until(lambda: lab.succeeds(f'test "$(xenstore-read {ours}/state)" = 6'), "our state is Closed")
    await lab.until(lambda: lab.succeeds(f"! ip link show {TAP} 2>/dev/null"), "the tap goes")
    for path in (ours, frontend(guest)):
        await lab.dom0(f"xenstore-rm -t {path}")
    await lab.until(lambda: nothing(lab), "netback knows no device")
    left = await lab.dom0("xenstore-ls -f | grep -i 'qnic\\|error/backend/'", check=False)
    assert not left, f"left behind:\n{left}"


async def nothing(lab: Lab) -> bool:
    return not await lab.netback.list()
