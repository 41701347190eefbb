# SPDX-License-Identifier: Apache-2.0
"""`netback replay`: play a recording by the backend's own code, step by step."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options, ring_text
from netback.errors import ConfigError, printable

if TYPE_CHECKING:
    from netback.observe.recording import Header, Note
    from netback.observe.replay import Step

_SECOND = 1_000_000_000


@click.command
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--step", "waits", is_flag=True, help="Wait for Enter after each step.")
@click.option("--to", "last", type=click.IntRange(min=1), help="End after so many steps.")
@click.option("--brief", is_flag=True, help="A line for each step, without the pictures of the rings.")
@options.json
def replay(file: Path, waits: bool, last: int | None, brief: bool, json: bool) -> None:
    """Play a recording of netback record, or of a fault that a backend saved: the backend's own code is given all that
    it read then, poll by poll. Each step is a line and a picture of its ring. The last line says whether the code did
    the same again, and how it ended; the exit code is 1 if it did not.

    FILE: the recording. No backend and no Xen is needed, and nothing is sent anywhere.
    """
    from netback.observe.recording import Note, read
    from netback.observe.replay import play

    if waits and (json or not sys.stdin.isatty()):
        raise ConfigError("--step waits for Enter on a terminal, and prints no JSON")
    recording = read(file)
    begin = min(
        [poll.time for polls in recording.queues for poll in polls]
        + [note.time for note in recording.header.notes],
        default=recording.header.clock,
    )
    if not json:
        click.echo(printable(_title(recording.header)))
    steps = 0
    differs = final = None
    for each in play(recording):
        if isinstance(each, Note):
            _show_note(each, begin, json)
            continue
        steps, final = steps + 1, each
        differs = differs or (each if each.differs else None)
        _show(each, begin, json=json, brief=brief)
        if differs or steps == last or (waits and not sys.stdin.readline()):
            break
    result = _result(steps, differs, final, recording.header)
    if json:
        options.echo_json({"result": result, "same": differs is None}, indent=0)
    else:
        click.echo(printable(result))
    if differs:
        sys.exit(1)


def _title(header: "Header") -> str:
    from netback.observe.recording import ALL
    from netback.observe.replay import count

    polls = sum(queue.polls for queue in header.queues)
    earlier = sum(queue.recorded - queue.polls for queue in header.queues)
    said = f"{count(polls, 'poll')} of {count(len(header.queues), 'queue')}"
    parts = [f"{header.device}, recorded by netback {header.netback}: {said}"]
    parts += [f"{earlier} earlier were not kept"] if earlier > 0 else []
    parts += (
        [f"the first {header.snaplen} bytes of frames, the rest as zeros"] if header.snaplen < ALL else []
    )
    parts += [f"the guest broke the protocol: {header.reason}"] if header.reason else []
    return "; ".join(parts)


def _show_note(note: "Note", begin: int, json: bool) -> None:
    if json:
        options.echo_json({"time": note.time - begin, "note": note.what}, indent=0)
    else:
        click.echo(printable(f"      {_time(note.time, begin)}  store  {note.what}"))


def _show(step: "Step", begin: int, *, json: bool, brief: bool) -> None:
    from netback.observe.replay import describe

    what = describe(step.poll)
    if json:
        options.echo_json(
            {
                "step": step.number,
                "time": step.time - begin,
                "queue": step.queue,
                "what": what,
                "differs": step.differs or None,
                "broken": step.broken,
                "ring": step.ring,
            },
            indent=0,
        )
        return
    click.echo(f"{step.number:5} {_time(step.time, begin)}  {step.ring.ring:5}  {what}")
    if step.differs:
        click.echo(f"      differs: {step.differs}")
    if not brief:
        for line in _picture(step):
            click.echo(line)
        click.echo()


def _time(time: int, begin: int) -> str:
    return f"{(time - begin) / _SECOND:+12.6f}"


def _picture(step: "Step") -> Iterator[str]:
    from netback.observe.owners import owners

    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    yield from ring_text.draw(
        step.ring, owners(step.ring), colour=colour, blocks=colour and ring_text.shows_blocks()
    )


def _result(steps: int, differs: "Step | None", final: "Step | None", header: "Header") -> str:
    from netback.observe.replay import count

    if differs is not None:
        return f"step {differs.number} differs: {differs.differs}"
    parts = [f"replayed {count(steps, 'step')}: the same responses"]
    if final is not None and final.broken:
        parts.append(f"ends BROKEN: {final.broken}")
    elif header.reason and final is None:
        parts.append(f"the guest broke the protocol before any poll: {header.reason}")
    elif final is not None:
        parts.append(f"ends {final.ring.state}")
    return ", ".join(parts)
