# SPDX-License-Identifier: Apache-2.0
"""A booted Xen host with a backend, and guests: what scenarios use.

Drives `xl` and Linux's tools by their commands. How a machine boots is in machine.py.
"""

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import netback.lab
from netback.errors import ConfigError
from netback.lab import image as images
from netback.lab import initramfs, install
from netback.lab.image import Say
from netback.lab.machine import Done, LabError, Machine, Options

BRIDGE = "xenbr0"
DOM0 = "10.0.0.1"
DOM0_6 = "fd00::1"
GUEST_SECONDS = 90.0
_BULK = ("vmlinux*", "guest*.img", "custom.kernel", "custom.initrd")
"""Large files of a lab, removed at its end."""

BackendName = Literal["netback", "kernel", "none"]


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest that runs one of the lab's Linux kernels."""

    lab: "Lab"
    name: str
    number: int
    domid: int

    @property
    def address(self) -> str:
        return f"10.0.0.{10 + self.number}"

    @property
    def address6(self) -> str:
        return f"fd00::{10 + self.number}"

    @property
    def vif(self) -> str:
        """The link of the guest's first vif in dom0."""
        return f"vif{self.domid}.0"

    async def __call__(self, command: str, *, seconds: float = 60, check: bool = True) -> str:
        """Run a command in the guest and return its output; LabError if it fails."""
        return _checked(
            await self.lab.machine.run(command, seconds=seconds, domid=self.domid), check, self.name
        )

    async def up(self, link: str = "eth0", address: str | None = None) -> None:
        """Wait for the link, then give it its addresses."""
        await self(
            f"i=0; while [ ! -e /sys/class/net/{link} ] && [ $i -lt 100 ]; do sleep 0.2; i=$((i+1)); done"
        )
        await self(f"ip link set {link} up && ip addr add {address or self.address}/24 dev {link}")
        if address is None:
            await self(f"ip addr add {self.address6}/64 dev {link}")

    async def reachable(self, address: str | None = None) -> None:
        """Wait until the guest answers to ping."""
        target = address or self.address
        await self.lab.until(
            lambda: self.lab.succeeds(f"ping -c1 -W1 {target}"), f"{self.name} answers to ping"
        )

    async def destroy(self) -> None:
        await self.lab.dom0(f"xl destroy {self.name}", seconds=90)


class Netback:
    """The netback that runs in dom0."""

    def __init__(self, lab: "Lab") -> None:
        self._lab = lab
        self.options = ""
        self.environment = ""
        """Words KEY=VALUE, quoted for a shell, as `options` are."""

    async def start(self) -> None:
        """Start netback and wait until its control socket exists; LabError if it ends before."""
        dom0, serves = self._lab.dom0, "test -S /run/netback/control.sock"
        await dom0(
            f"setsid env {self.environment} netback run {self.options} >>/lab/netback.log 2>&1"
            " </dev/null & echo $! >/run/nb.pid"
        )
        try:
            await self._lab.until(
                lambda: self._lab.succeeds(f"{serves} || ! kill -0 $(cat /run/nb.pid)"), "netback serves"
            )
            if not await self._lab.succeeds(serves):
                raise LabError(f"netback ended: {await dom0('tail -n 1 /lab/netback.log')}".rstrip())
        except LabError:
            await self.stop("KILL")
            raise

    async def stop(self, sig: str = "TERM") -> None:
        """Send it a signal and wait until it ends."""
        await self._lab.dom0(
            f"kill -{sig} $(cat /run/nb.pid); while kill -0 $(cat /run/nb.pid) 2>/dev/null; do sleep 0.05; done"
        )
        await self._lab.dom0("rm -f /run/netback/control.sock")

    async def __call__(self, arguments: str, *, seconds: float = 60) -> str:
        """Run another netback command, such as `list`, and return its output."""
        return await self._lab.dom0(f"netback {arguments}", seconds=seconds)

    async def list(self) -> list[dict[str, Any]]:
        """The devices that `netback list --json` prints."""
        devices: list[dict[str, Any]] = json.loads(await self("list --json"))
        return devices

    async def memory(self) -> int:
        """Resident memory in KiB."""
        return int(await self._lab.dom0("awk '/^VmRSS/ {print $2}' /proc/$(cat /run/nb.pid)/status"))

    @property
    def log(self) -> str:
        path = self._lab.machine.directory / "netback.log"
        return path.read_text(errors="replace") if path.exists() else ""


class Lab:
    """What a scenario works with: `dom0("command")`, `create("g1")`, `netback.stop()`."""

    def __init__(self, machine: Machine, backend: BackendName) -> None:
        self.machine = machine
        self.backend = backend
        self.netback = Netback(self)
        self._numbers = 0

    async def dom0(self, command: str, *, seconds: float = 60, check: bool = True) -> str:
        """Run a command in dom0 and return its output; LabError if it fails."""
        return _checked(await self.machine.run(command, seconds=seconds), check, "dom0")

    async def succeeds(self, command: str) -> bool:
        """Whether a command in dom0 exits with 0."""
        return (await self.machine.run(command)).code == 0

    async def until(
        self, true: Callable[[], Awaitable[bool]], what: str, seconds: float = GUEST_SECONDS
    ) -> None:
        """Poll `true` until it holds; LabError after `seconds`, naming `what`."""
        end = time.monotonic() + seconds
        while not await true():
            if time.monotonic() > end:
                raise LabError(f"not in {seconds:.0f} s: {what}")
            await asyncio.sleep(0.3)

    async def create(
        self,
        name: str,
        *,
        vif: tuple[str, ...] = (f"bridge={BRIDGE}",),
        kind: str = "pv",
        memory: int | None = None,
        vcpus: int = 1,
        kernel: str = "",
        python: bool = False,
        up: bool = True,
        more: str = "",
    ) -> Guest:
        """Create a Linux guest with `xl create`; with `up`, wait until its first vif answers to ping.

        `python` adds Python, netback's package and Xen's devices. `more` is appended to the kernel's command
        line; the word `netback.nofront` there keeps Linux's netfront out, so that netback's frontend can take the vifs.
        """
        self._numbers += 1
        number = self._numbers
        kernel_file, ramdisk = await asyncio.to_thread(self._files, kernel, python)
        vifs = [f"mac=00:16:3e:00:{number:02x}:{index:02x},{one}" for index, one in enumerate(vif)]
        config = f"""
name="{name}"
type="{kind}"
kernel="/lab/{kernel_file}"
ramdisk="/lab/{ramdisk}"
extra="console=hvc0 quiet mitigations=off net.ifnames=0 {more}"
memory={memory or (512 if python else 256)}
vcpus={vcpus}
vif={vifs!r}
"""
        (self.machine.directory / f"{name}.cfg").write_text(config)
        await self.dom0(f"xl create /lab/{name}.cfg", seconds=120)
        return await self.find(name, number, up=up and bool(vif))

    async def find(self, name: str, number: int, *, up: bool = False) -> Guest:
        """Wait until a started guest takes commands."""
        guest = Guest(self, name, number, int(await self.dom0(f"xl domid {name}")))
        console = f"xenstore-exists /local/domain/{guest.domid}/console/tty"
        await self.until(lambda: self.succeeds(console), f"{name} has a console")
        await guest("true", seconds=GUEST_SECONDS)
        if up:
            await guest.up()
            await guest.reachable()
        return guest

    async def reset(self) -> None:
        """Destroy every guest and wait until no link and no backend node of one is left."""
        for domid in (await self.dom0("xl list | awk 'NR>1 && $2>0 {print $2}'")).split():
            await self.dom0(f"xl destroy {domid}", seconds=90, check=False)
        await self.until(self._clean, "nothing is left of the guests: no vif link, no backend node")

    async def _clean(self) -> bool:
        nodes = "xenstore-ls -f /local/domain/0/backend/$kind 2>/dev/null"
        ours = "grep -v /backend/qnic/0"  # the QEMU that Debian's xen.service starts has a device of its own for dom0
        left = await self.dom0(
            f"for kind in vif qnic; do {nodes} | {ours}; done; ls /sys/class/net | grep ^vif", check=False
        )
        return not left.strip()

    def _files(self, kernel: str, python: bool) -> tuple[str, str]:
        """Put a kernel and an initramfs into the shared directory and return their names there."""
        image, directory = self.machine.image, self.machine.directory
        vmlinux, base = (
            (image.guest_kernel, image.guest) if kernel in ("", "6.12") else images.old_kernel(lambda _: None)
        )
        names = f"vmlinux{kernel}", f"guest{kernel}{'-python' * python}.img"
        if not (directory / names[0]).exists():
            (directory / names[0]).write_bytes(vmlinux.read_bytes())
        if not (directory / names[1]).exists():
            init = (Path(netback.lab.__file__).parent / "init" / "guest").read_bytes()
            parts = [base.read_bytes(), initramfs.guest_init(init)]
            if python:
                parts.append(initramfs.guest_python(image.root, self.machine.medium.files))
            (directory / names[1]).write_bytes(b"".join(parts))
        return names


def _checked(done: Done, check: bool, where: str) -> str:
    if check and done.code:
        raise LabError(f"{where}: {done}")
    return done.out


@asynccontextmanager
async def open_lab(
    directory: Path,
    say: Say,
    *,
    options: Options = Options(),  # noqa: B008 (frozen)
    backend: BackendName = "netback",
) -> AsyncIterator[Lab]:
    """Boot a Xen host on which `backend` serves the guests' vifs."""
    _check_empty(directory)
    image = await asyncio.to_thread(images.build, say)
    try:
        medium = await asyncio.to_thread(install.build, image, directory / "medium", say)
        say("Xen and dom0 boot")
        async with Machine(image, medium, directory, options) as machine:
            lab = Lab(machine, backend)
            if backend == "kernel":
                await lab.dom0("modprobe xen-netback")
            elif backend == "netback":
                await lab.netback.start()
            yield lab
    finally:
        await asyncio.to_thread(clean_up, directory)


def _check_empty(directory: Path) -> None:
    """Refuse a directory in use: an earlier lab's files would pass for this one's."""
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty: consoles and logs go to a directory of their own")


def clean_up(directory: Path) -> None:
    """Remove large files; keep consoles, logs and guest configurations."""
    shutil.rmtree(directory / "medium", ignore_errors=True)
    for path in [one for pattern in _BULK for one in directory.glob(pattern)]:
        path.unlink()
