# SPDX-License-Identifier: Apache-2.0
"""The backends that can serve a guest in the lab, and how each gets a vif and gives it back.

A variant is netback once more, with other options of `netback run` or another environment, under a name of its own.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from netback.errors import ConfigError, printable
from netback.lab.host import BRIDGE, Guest, Lab
from netback.net.spec import parse_spec

QNIC_TAP = "qnic0"
QNIC_PID = "/run/qnic.pid"
NETBACK_PID = "/run/nb.pid"
"""Files in dom0 with the numbers of their processes."""
QEMU = "/usr/libexec/xen-qemu-system-i386"
_MAC = "00:16:3e:77:00:00"


@asynccontextmanager
async def _attached(guest: Guest, link: bool, script: str = "vif-bridge") -> AsyncIterator[None]:
    """A vif attached by xl for the length of the context; the running backend of `backend/vif` serves it."""
    lab = guest.lab
    vif = f"mac={_MAC} bridge={BRIDGE} script={script}"
    await lab.dom0(f"xl network-attach {guest.name} {vif}", seconds=90)
    try:
        if link:
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
    """A backend; `serving` attaches one of its vifs to the guest and waits until the guest's link of it answers.

    Without `link` the guest's frontend is a program that makes no link, and nothing is waited for.
    """

    name = ""
    baseline = True
    """Whether netback is compared with it."""

    @property
    def column(self) -> str:
        """What names it in a command: a variant as NAME=WORDS."""
        return self.name

    @asynccontextmanager
    async def serving(self, guest: Guest, *, link: bool = True) -> AsyncIterator[None]:
        yield


@dataclass(frozen=True, slots=True)
class _Kernel(LabBackend):
    """Linux's xen-netback, a module, which claims every vif."""

    name: str = "kernel"

    @asynccontextmanager
    async def serving(self, guest: Guest, *, link: bool = True) -> AsyncIterator[None]:
        await guest.lab.dom0("modprobe xen-netback")
        try:
            async with _attached(guest, link):
                yield
        finally:
            await guest.lab.dom0("modprobe -r xen-netback")


@dataclass(frozen=True, slots=True)
class Netback(LabBackend):
    """netback, run with these words KEY=VALUE and these options of `netback run`."""

    name: str = "netback"
    environment: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    baseline = False

    @property
    def column(self) -> str:
        if self == NETBACK:
            return self.name
        return f"{self.name}={shlex.join((*self.environment, *self.options))}"

    @property
    def script(self) -> str:
        """The vif's hotplug script: vif-bridge finds a tap by the vif's name, and nothing else."""
        return "vif-bridge" if parse_spec(_network(self.options)).kind == "tap" else "vif-netback"

    @asynccontextmanager
    async def serving(self, guest: Guest, *, link: bool = True) -> AsyncIterator[None]:
        netback = guest.lab.netback
        netback.environment, netback.options = shlex.join(self.environment), shlex.join(self.options)
        await netback.start()
        try:
            async with _attached(guest, link, self.script):
                yield
        finally:
            await netback.stop()


def _network(options: Sequence[str]) -> str:
    """What these options of `netback run` say of --net."""
    words = iter(options)
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--net":
            return value if equals else next(words, "")
    return "tap"


@dataclass(frozen=True, slots=True)
class _Qnic(LabBackend):
    """QEMU's qnic, which writes its own nodes and leaves them behind."""

    name: str = "qnic"

    @asynccontextmanager
    async def serving(self, guest: Guest, *, link: bool = True) -> AsyncIterator[None]:
        lab = guest.lab
        await lab.dom0(f"ip tuntap add {QNIC_TAP} mode tap && ip link set {QNIC_TAP} master {BRIDGE} up")
        try:
            await lab.dom0(
                f"setsid {QEMU} -M xenpv -xen-domid {guest.domid} -xen-attach -nodefaults -display none -monitor none"
                f" -serial none -netdev tap,id=n0,ifname={QNIC_TAP},script=no,downscript=no"
                f" -device xen-net-device,netdev=n0,mac={_MAC},idx=0"
                f" >>/lab/qnic.log 2>&1 </dev/null & echo $! >{QNIC_PID}"
            )
            if link:
                await _up(guest)
            yield
        finally:
            await self._end(lab, guest)

    async def _end(self, lab: Lab, guest: Guest) -> None:
        await lab.dom0(f"kill -9 $(cat {QNIC_PID})", check=False)
        vifs = f"/local/domain/{guest.domid}/device/vif"
        await lab.dom0(f"for i in $(xenstore-list {vifs}); do xenstore-rm {vifs}/$i; done", check=False)
        await lab.dom0("xenstore-rm /local/domain/0/backend/qnic", check=False)
        await lab.dom0(f"ip link del {QNIC_TAP}", check=False)
        await lab.until(lambda: _quiet(guest), "the guest lets go of qnic's device", seconds=60)


async def _quiet(guest: Guest) -> bool:
    return (await guest("ls /sys/class/net | wc -l")).strip() == "1"


KERNEL, QNIC, NETBACK = _Kernel(), _Qnic(), Netback()
BACKENDS: tuple[LabBackend, ...] = (KERNEL, QNIC, NETBACK)

_VARIANT = re.compile(r"([\w.+-]{1,20})=(.*)", re.ASCII | re.DOTALL)
_SETTING = re.compile(r"[A-Za-z_]\w*=", re.ASCII)


def parse_variant(text: str) -> Netback:
    """Parse NAME=WORDS, split as a shell does: words KEY=VALUE for the environment, then options of `netback run`.

    ConfigError names the mistake. What `netback run --check` refuses on this machine is a mistake as well.
    """
    found = _VARIANT.fullmatch(text)
    try:
        words = shlex.split(found[2]) if found else []
    except ValueError as error:
        raise ConfigError(f"variant {text!r}: {error}") from error
    if found is None:
        raise ConfigError(f"variant {text!r}: not NAME=WORDS, as in 'one=--workers 1' or 'a=KEY=1 --net tap'")
    count = next((at for at, word in enumerate(words) if not _SETTING.match(word)), len(words))
    variant = Netback(found[1], tuple(words[:count]), tuple(words[count:]))
    if fault := _refused(variant):
        raise ConfigError(f"variant {text!r}: {fault}")
    return variant


def _refused(variant: Netback) -> str:
    """Why `netback run` would refuse the variant's options, one line; "" if it would not."""
    settings = dict(word.split("=", 1) for word in variant.environment)
    command = [sys.executable, "-P", "-m", "netback", "run", "--check", *variant.options]
    checked = subprocess.run(
        command,
        env=os.environ | settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    lines = checked.stderr.strip().splitlines() or [f"netback run --check ended with {checked.returncode}"]
    return printable(lines[-1]) if checked.returncode else ""


def choose_backends(without: Sequence[str], variants: Sequence[str]) -> tuple[LabBackend, ...]:
    """The bench's columns, in the order in which they take turns; ConfigError names a mistake."""
    known = {backend.name for backend in BACKENDS if backend.baseline}
    if unknown := sorted(set(without) - known):
        raise ConfigError(f"--without {unknown[0]!r}: not one of {', '.join(sorted(known))}")
    chosen = [backend for backend in BACKENDS if backend.name not in without]
    for variant in map(parse_variant, variants):
        if any(variant.name == other.name for other in (*BACKENDS, *chosen)):
            raise ConfigError(f"variant {variant.name!r}: another column has this name")
        chosen.append(variant)
    return tuple(chosen)
