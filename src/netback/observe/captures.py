# SPDX-License-Identifier: Apache-2.0
"""The captures of one backend: which frames each wants, and the sinks by which a queue's worker passes them on.

A capture is memory that the workers fill and one reader empties (dataplane/capture.pxd): a client of the control
socket, or a thread that keeps a file. A reader that is too slow loses frames, which are counted; it cannot hold up a
worker.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from netback.dataplane.capture import MIN_RING, CaptureMemory, Sink
from netback.observe.choice import Choice

CAPTURE_BYTES = 16 << 20
"""Bytes of a capture's rings together, unless each worker's would be smaller than MIN_RING."""

_DIRECTIONS = {"tx": 1, "rx": 2, "both": 3}
"""The values of dataplane/capture.pxd."""


class Capture:
    """One capture: its memory, and the sinks that it has given to queues."""

    def __init__(self, choice: Choice, rings: int, size: int) -> None:
        self.choice = choice
        self.memory = CaptureMemory(rings, _ring_bytes(size, rings))
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Why it cannot go on."""
        self.ended = False
        """No queue passes frames to it after it is watched again."""
        self._sinks: dict[tuple[str, int, int], Sink] = {}

    def sink(self, device: str, queue: int, ring: int) -> Sink | None:
        """What passes on the frames of a queue that this worker serves. The same object every time, since it counts
        what is lost.
        """
        if self.ended or not self.choice.takes(device, queue):
            return None
        key = (device, queue, ring)
        if key not in self._sinks:
            try:
                self._sinks[key] = Sink(
                    self.memory,
                    device,
                    queue,
                    ring=ring,
                    directions=_DIRECTIONS[self.choice.direction],
                    snaplen=self.choice.snaplen,
                )
            except KeyError:
                if not self.failed.done():
                    self.failed.set_result(
                        "the capture has seen as many devices as it can name: begin another"
                    )
                return None
        return self._sinks[key]


class Captures:
    """All captures of a backend with so many workers. For the event loop's thread."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._running: list[Capture] = []

    @contextmanager
    def begun(self, choice: Choice, size: int = CAPTURE_BYTES) -> Iterator[Capture]:
        """A capture with rings of `size` bytes together. The caller has the queues watched (`Vif.watch`) after its
        beginning, and once it has `ended`. OSError: there is no memory.
        """
        capture = Capture(choice, self._workers, size)
        self._running.append(capture)
        try:
            yield capture
        finally:
            self._running.remove(capture)
            capture.ended = True

    def sinks(self, device: str, queue: int, worker: int) -> tuple[Sink, ...]:
        """What a queue's frames are passed to at present. `worker` is the number of the one that serves the queue."""
        found = [capture.sink(device, queue, worker) for capture in self._running]
        return tuple(sink for sink in found if sink is not None)


def _ring_bytes(size: int, rings: int) -> int:
    """The greatest power of two that gives no more than `size` in all."""
    return max(MIN_RING, 1 << (size // rings).bit_length() - 1)
