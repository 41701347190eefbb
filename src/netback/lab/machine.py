# SPDX-License-Identifier: Apache-2.0
"""QEMU with Xen and dom0 in it, and commands in dom0. Does not deal with guests or netback."""

import asyncio
import json
import os
import subprocess
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from netback.errors import ConfigError, NetbackError
from netback.lab.image import Image
from netback.lab.install import Medium
from netback.process import die_with

BOOT_SECONDS = 300.0
_TRIAL_SECONDS = 20.0
ACCELERATORS = ("kvm", "tcg")
_TAIL = 30


class LabError(NetbackError):
    """A step of the lab failed."""


@dataclass(frozen=True, slots=True)
class Done:
    """A finished command."""

    command: str
    code: int
    out: str
    err: str = ""

    def __str__(self) -> str:
        return f"`{self.command}` ended with {self.code}\n{self.out}{self.err}".rstrip()


@dataclass(frozen=True, slots=True)
class Options:
    """The machine's options."""

    accel: str = "auto"
    """"kvm", "tcg", or "auto": KVM only if a trial boot of Xen prints its banner."""
    memory: str = "6G"
    cpus: int = 2
    dom0: str = "dom0_mem=2G,max:2G dom0_max_vcpus=2"
    host: str = "dom0"
    """The script of `init/` that dom0 starts."""


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The flags in /proc/cpuinfo."""
    lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")]
    return set(lines[0].partition(":")[2].split()) if lines else set()


def choose_accel(image: Image, wanted: str) -> str:
    """Choose "kvm" or "tcg". A /dev/kvm that opens proves nothing: the processor must have vmx or svm, and a trial boot
    must print Xen's banner."""
    if wanted not in ("auto", *ACCELERATORS):
        raise ConfigError(f"no acceleration is called {wanted!r}: auto, {', '.join(ACCELERATORS)}")
    if wanted != "auto":
        return wanted
    if not processor_flags() & {"vmx", "svm"} or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    command = ["qemu-system-x86_64", *_accel("kvm"), "-m", "512M", "-nographic", "-nodefaults", "-no-reboot"]
    command += ["-serial", "stdio", "-kernel", str(image.xen), "-append", "console=com1 com1=115200,8n1"]
    with suppress(subprocess.TimeoutExpired, OSError):
        tried = subprocess.run(command, capture_output=True, timeout=_TRIAL_SECONDS, check=False)
        return "kvm" if b"Xen version" in tried.stdout else "tcg"
    return "tcg"


def _accel(accel: str) -> list[str]:
    if accel == "kvm":
        return ["-M", "q35", "-accel", "kvm", "-cpu", "host"]
    # Every processor since 2012 has FSGSBASE; without it a PV domain makes hypercalls at each switch of threads.
    return ["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "qemu64,+svm,+npt,+fsgsbase"]


class Machine:
    """A Xen host from its boot to its end; `directory` is shared with dom0 as /lab and keeps the consoles.

    async with Machine(image, medium, directory) as machine:
        done = await machine.run("xl info")
    """

    def __init__(self, image: Image, medium: Medium, directory: Path, options: Options = Options()) -> None:
        self.image = image
        self.medium = medium
        self.directory = directory
        self.options = options
        self._last = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ready = asyncio.Event()
        self._writer: asyncio.StreamWriter
        self._reading: asyncio.Task[None]
        self._undo = AsyncExitStack()

    @property
    def console(self) -> Path:
        """The file of everything that Xen and dom0 printed."""
        return self.directory / "dom0.console"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as undo:
            (self.directory / "consoles").mkdir(parents=True, exist_ok=True)
            process = await self._start()
            undo.push_async_callback(_end, process)
            self._reading = reading = asyncio.create_task(self._read(process))
            undo.push_async_callback(_cancel, reading)
            ready = asyncio.create_task(self._ready.wait())
            await asyncio.wait((ready, reading), timeout=BOOT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            if reading.done():
                raise LabError(f"the machine ended before dom0 was up. {self._complaint()}\n{self.tail()}")
            if not self._ready.is_set():
                raise LabError(f"dom0 did not come up in {BOOT_SECONDS:.0f} s:\n{self.tail()}")
            self._undo = undo.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._undo.aclose()

    async def run(self, command: str, *, seconds: float = 60, domid: int | None = None) -> Done:
        """Run a shell command in dom0, or in a guest through its console; LabError if dom0 does not answer in time."""
        if self._reading.done():
            raise LabError(f"the machine ended. {self._complaint()}")
        self._last += 1
        asked: dict[str, Any] = {"id": self._last, "run": command, "seconds": seconds}
        if domid is not None:
            asked["domid"] = domid
        future = self._waiting[self._last] = asyncio.get_running_loop().create_future()
        self._writer.write(json.dumps(asked).encode() + b"\n")
        try:
            async with asyncio.timeout(seconds + 30):
                answer = await future
        except TimeoutError:
            raise LabError(f"dom0 does not answer to `{command}`:\n{self.tail()}") from None
        finally:
            self._waiting.pop(asked["id"], None)
        return Done(command, answer["code"], answer["out"], answer["err"])

    def tail(self) -> str:
        """The last lines of dom0's console, indented."""
        with suppress(OSError):
            lines = self.console.read_text(errors="replace").splitlines()
            return "\n".join(f"  | {line}" for line in lines[-_TAIL:])
        return "  | (nothing on the console)"

    async def _start(self) -> asyncio.subprocess.Process:
        image, options = self.image, self.options
        linux = (
            f"{image.kernel} root=/dev/vda rw console=hvc0 init=/lab-init quiet net.ifnames=0 mitigations=off"
        )
        command = [
            *("qemu-system-x86_64", *_accel(choose_accel(image, options.accel))),
            *(
                "-smp",
                str(options.cpus),
                "-m",
                options.memory,
                "-display",
                "none",
                "-no-reboot",
                "-nodefaults",
            ),
            *("-snapshot", "-serial", f"file:{self.console}"),
            *("-kernel", str(image.xen)),
            *("-append", f"console=com1 com1=115200,8n1 sched=credit bootscrub=0 {options.dom0}"),
            *("-initrd", f"{linux} -- {options.host},{image.initrd}"),
            *("-drive", f"file={image.disk},if=virtio,format=raw"),
            *("-drive", f"file={self.medium.disk},if=virtio,format=raw"),
            *("-drive", f"file={image.disk},if=virtio,format=raw"),  # a second copy, for a driver domain
            *("-virtfs", f"local,path={self.directory},mount_tag=lab,security_model=none"),
            *("-device", "virtio-serial-pci"),
            *(
                "-chardev",
                "stdio,id=agent,signal=off",
                "-device",
                "virtserialport,chardev=agent,name=netback.agent",
            ),
        ]
        try:
            with (self.directory / "qemu.err").open("wb") as errors:
                return await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=errors,
                    limit=1 << 26,
                    start_new_session=True,
                    preexec_fn=die_with(os.getpid()),
                )
        except FileNotFoundError as error:
            raise ConfigError("the lab needs qemu-system-x86: apt install qemu-system-x86") from error

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Deliver answers until the machine ends, then fail every waiting command."""
        assert process.stdin is not None
        assert process.stdout is not None
        self._writer = process.stdin
        async for line in process.stdout:
            answer = json.loads(line)
            self._ready.set()
            future = self._waiting.get(answer["id"])
            if future is not None and not future.done():
                future.set_result(answer)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(LabError(f"the machine ended. {self._complaint()}\n{self.tail()}"))

    def _complaint(self) -> str:
        """What QEMU printed on standard error."""
        return (self.directory / "qemu.err").read_text(errors="replace").strip()


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
