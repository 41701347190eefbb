# SPDX-License-Identifier: Apache-2.0
"""The backends that can serve a guest in the lab, and how each gets a vif and gives it back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from netback.lab.host import BRIDGE, Guest, Lab

_QNIC_TAP = "qnic0"
_QEMU = "/usr/libexec/xen-qemu-system-i386"
_MAC = "00:16:3e:77:00:00"


@asynccontextmanager
async def _attached(guest: Guest) -> AsyncIterator[None]:
    """A vif attached by xl for the length of the context; the running backend of `backend/vif` serves it."""
    lab = guest.lab
    await lab.dom0(f"xl network-attach {guest.name} mac={_MAC} bridge={BRIDGE}", seconds=90)
    try:
        await _up(guest)
        yield
    finally:
        await lab.dom0(f"xl network-detach {guest.name} {_MAC}", seconds=90)
        await lab.until(lambda: lab.succeeds("! ls /sys/class/net | grep -q ^vif"), "the vif is gone")


async def _up(guest: Guest) -> None:
    link = "$(ls /sys/class/net | grep -v lo | head -1)"
    await guest(
        "i=0; while [ $(ls /sys/class/net | wc -l) -lt 2 ] && [ $i -lt 100 ]; do sleep 0.2; i=$((i+1)); done"
    )
    await guest(f"ip link set {link} up && ip addr add {guest.address}/24 dev {link}")
    await guest.reachable()


class LabBackend:
    """A backend; `serving` attaches one of its vifs to the guest."""

    name = ""

    @asynccontextmanager
    async def serving(self, guest: Guest) -> AsyncIterator[None]:
        yield


@dataclass(frozen=True, slots=True)
class _Kernel(LabBackend):
    """Linux's xen-netback, a module, which claims every vif."""

    name: str = "kernel"

    @asynccontextmanager
    async def serving(self, guest: Guest) -> AsyncIterator[None]:
        await guest.lab.dom0("modprobe xen-netback")
        try:
            async with _attached(guest):
                yield
        finally:
            await guest.lab.dom0("modprobe -r xen-netback")


@dataclass(frozen=True, slots=True)
class _Netback(LabBackend):
    name: str = "netback"

    @asynccontextmanager
    async def serving(self, guest: Guest) -> AsyncIterator[None]:
        await guest.lab.netback.start()
        try:
            async with _attached(guest):
                yield
        finally:
            await guest.lab.netback.stop()


@dataclass(frozen=True, slots=True)
class _Qnic(LabBackend):
    """QEMU's qnic, which writes its own nodes and leaves them behind."""

    name: str = "qnic"

    @asynccontextmanager
    async def serving(self, guest: Guest) -> AsyncIterator[None]:
        lab = guest.lab
        await lab.dom0(f"ip tuntap add {_QNIC_TAP} mode tap && ip link set {_QNIC_TAP} master {BRIDGE} up")
        try:
            await lab.dom0(
                f"setsid {_QEMU} -M xenpv -xen-domid {guest.domid} -xen-attach -nodefaults -display none -monitor none"
                f" -serial none -netdev tap,id=n0,ifname={_QNIC_TAP},script=no,downscript=no"
                f" -device xen-net-device,netdev=n0,mac={_MAC},idx=0"
                " >>/lab/qnic.log 2>&1 </dev/null & echo $! >/run/qnic.pid"
            )
            await _up(guest)
            yield
        finally:
            await self._end(lab, guest)

    async def _end(self, lab: Lab, guest: Guest) -> None:
        await lab.dom0("kill -9 $(cat /run/qnic.pid)", check=False)
        vifs = f"/local/domain/{guest.domid}/device/vif"
        await lab.dom0(f"for i in $(xenstore-list {vifs}); do xenstore-rm {vifs}/$i; done", check=False)
        await lab.dom0("xenstore-rm /local/domain/0/backend/qnic", check=False)
        await lab.dom0(f"ip link del {_QNIC_TAP}", check=False)
        await lab.until(lambda: _quiet(guest), "the guest lets go of qnic's device", seconds=60)


async def _quiet(guest: Guest) -> bool:
    return (await guest("ls /sys/class/net | wc -l")).strip() == "1"


NETBACK = _Netback()
BACKENDS: tuple[LabBackend, ...] = (_Kernel(), _Qnic(), NETBACK)
