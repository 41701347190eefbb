# SPDX-License-Identifier: Apache-2.0
"""Limits how often a device acts: growing delays after an error, and few rounds per second for a device that
never rests.

A *round* is one reading of a device's nodes and the action that follows. Time is an argument.
"""

import asyncio
import time
from collections.abc import Callable

RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before a failed device is tried again; the last value repeats."""

FREE_ROUNDS = 128
"""Rounds that a device may do without waiting. A guest that reloads its driver causes about nine."""
FREE_ROUNDS_PER_SECOND = 10.0
"""Rounds regained per second: enough for one reload every second."""
LANE_SECONDS = 0.01
"""Seconds between two rounds of devices without allowance, all together: about a sixth of a core."""


class Backoff:
    """Calls `wake` once after each `fail`, later each time, until `reset`."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._failures = 0
        self._timer: asyncio.TimerHandle | None = None

    def fail(self) -> None:
        """Wake after the next delay."""
        self.stop()
        delay = RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS) - 1)]
        self._failures += 1
        self._timer = asyncio.get_running_loop().call_later(delay, self._wake)

    def reset(self) -> None:
        """Success: cancel the wake-up and start with the shortest delay next time."""
        self._failures = 0
        self.stop()

    def stop(self) -> None:
        """Cancel the wake-up."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Allowance:
    """The rounds that one device may do without waiting."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left = float(FREE_ROUNDS)
        self._at = clock()

    def take(self) -> bool:
        """Spend one round; False if none is left."""
        now = self._clock()
        self._left = min(FREE_ROUNDS, self._left + (now - self._at) * FREE_ROUNDS_PER_SECOND)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Pace:
    """Admits devices to their rounds: at once while they have an allowance, else one after another in a slow
    lane.

    The lane is shared. However many devices flap, together they take the same part of the event loop, and a
    device that does not flap never waits for them.
    """

    def __init__(self) -> None:
        self._lane = asyncio.Lock()

    async def admit(self, allowance: Allowance) -> None:
        """Return when a device with this allowance may do a round."""
        if not allowance.take():
            await self._lane.acquire()
            asyncio.get_running_loop().call_later(LANE_SECONDS, self._lane.release)
