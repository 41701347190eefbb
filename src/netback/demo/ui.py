# SPDX-License-Identifier: Apache-2.0
"""Shows a demo's results, and its progress if the console is a terminal. `Ui` itself shows nothing, for `--json`."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.progress import Progress as Live
from rich.progress import ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar

from netback.demo.report import CaptureFile, Chosen, Flow, LostFlags, Ping, Restart, Step

STATE_WIDTH = 14
ARROWS = {"guest to host": "guest → host", "host to guest": "host → guest"}


class Progress:
    """A phase in progress; `say` shows a short text beside its title."""

    def say(self, text: str) -> None: ...


class Ui:
    """Where a run reports its phases and results."""

    def phase(self, title: str, seconds: float = 0.0) -> AbstractContextManager[Progress]:
        """Begin a phase; `seconds` is its expected duration if known."""
        return nullcontext(Progress())

    def show(self, result: object) -> None:
        """Show a value of report.py."""


class _Clock(ProgressColumn):
    """The elapsed part of the expected time."""

    def render(self, task: Task) -> ProgressBar:
        return ProgressBar(task.total, min(task.elapsed or 0.0, task.total or 0.0), width=30)


class _Line(Progress):
    """A line with a spinner, and a bar if the time is known."""

    def __init__(self, live: Live, task: TaskID) -> None:
        self._live = live
        self._task = task

    def say(self, text: str) -> None:
        self._live.update(self._task, said=text)


class Terminal(Ui):
    """Prints a heading for each kind of result, and lines under it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._heading = ""
        self._handshaken = False
        self._renderers: dict[type, Callable[[Any], None]] = {
            Chosen: self._chosen,
            Step: self._step,
            Ping: self._ping,
            Flow: self._flow,
            CaptureFile: self._capture,
            LostFlags: self._lost_flags,
            Restart: self._restart,
        }

    def phase(self, title: str, seconds: float = 0.0) -> AbstractContextManager[Progress]:
        return self._live(title, seconds) if self._console.is_terminal else super().phase(title)

    @contextmanager
    def _live(self, title: str, seconds: float) -> Iterator[Progress]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            *([_Clock()] if seconds else []),
            TextColumn("{task.fields[said]}"),
        )
        with Live(*columns, TimeElapsedColumn(), console=self._console, transient=True) as live:
            yield _Line(live, live.add_task(title, total=seconds or None, said=""))

    def show(self, result: object) -> None:
        self._renderers[type(result)](result)

    def next(self, commands: list[tuple[str, str]]) -> None:
        """Commands to try next, with their purpose."""
        self._head("next")
        width = max(len(command) for command, _ in commands)
        for command, why in commands:
            self._line(f"[bold]{command:{width}}[/]  [dim]{why}[/]")

    def _head(self, title: str) -> None:
        if title != self._heading:
            self._console.print(f"\n[bold cyan]{title}[/]")
        self._heading = title

    def _line(self, text: str) -> None:
        self._console.print(f"  {text}", highlight=False, soft_wrap=True)

    def _chosen(self, chosen: Chosen) -> None:
        self._console.print(
            f"[bold]tier {chosen.tier}[/]: {chosen.means} ({chosen.reason})", highlight=False, soft_wrap=True
        )

    def _step(self, step: Step) -> None:
        """Show only the first handshake: later ones would interrupt other results."""
        if self._handshaken:
            return
        if self._heading != "xenbus":
            self._head("xenbus")
            self._line(f"[dim]{'ms':>8}  {'backend':{STATE_WIDTH}}  frontend[/]")
        self._line(f"{step.milliseconds:8.1f}  {step.backend:{STATE_WIDTH}}  {step.frontend}")
        self._handshaken = step.backend == step.frontend == "Connected"

    def _ping(self, ping: Ping) -> None:
        self._head("ping")
        self._line(_ping_words(ping))

    def _flow(self, flow: Flow) -> None:
        if self._heading != "TCP":
            self._head("TCP")
            columns = f"{'segmentation':14}{'':14}{'Gbit/s':>8}{'frames':>10}{'slots':>10}"
            self._line(f"[dim]{columns}   a notification: frames  slots    bytes[/]")
        crossing = flow.crossing
        frames, slots, size = crossing.per_notification
        self._line(
            f"{'offload' if flow.segmentation else 'none':14}{ARROWS[flow.direction]:14}[bold]{flow.gbit_s:8.2f}[/]"
            f"{crossing.frames:10}{crossing.slots:10}{frames:25.1f}{slots:7.1f}{size:9.0f}  [dim]{flow.tool}[/]"
        )

    def _capture(self, capture: CaptureFile) -> None:
        self._head("capture")
        self._line(f"{capture.path}: {capture.frames} frames, each with a comment on how it crossed its ring")

    def _lost_flags(self, lost: LostFlags) -> None:
        self._head("with checksum flags")
        self._line(f"ping  {_ping_words(lost.ping_before)}")
        self._line(f"TCP   [bold green]works[/]: {lost.gbit_s_before:.2f} Gbit/s")
        self._head("without them")
        self._line(f"ping  {_ping_words(lost.ping_after)}")
        self._line(f"TCP   [bold red]fails[/]: connecting {lost.tcp_after}")
        self._line(f"      the host's stack dropped {lost.checksum_errors} segments: wrong checksum")
        self._line(
            "[dim]A stack leaves TCP checksums to its link and marks the frame. ICMP it completes itself. "
            "Lose the mark, and ping works while TCP does not.[/]"
        )

    def _restart(self, restart: Restart) -> None:
        self._head("kill -9 of the backend, in the middle of two transfers")
        self._line(
            f"process {restart.killed_pid} killed, {restart.new_pid} served the rings {restart.down_ms:.0f} ms later"
        )
        self._line(f"xenbus: backend {restart.states[0]}, frontend {restart.states[1]}, as before")
        for transfer in restart.transfers:
            self._line(
                f"{ARROWS[transfer.direction]}  {transfer.bytes / 1e6:.0f} MB, stalled {transfer.stall_ms:.0f} ms, "
                f"SHA-256 {'[bold green]equal[/]' if transfer.intact else '[bold red]differs[/]'} at both ends"
            )


def _ping_words(ping: Ping) -> str:
    lost = ping.sent - ping.received
    return (
        f"{ping.received} of {ping.sent} came back{f' ({lost} lost)' if lost else ''}: "
        f"[bold]{ping.median:.0f}[/] µs (from {ping.least:.0f} to {ping.most:.0f})"
    )
