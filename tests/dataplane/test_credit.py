# SPDX-License-Identifier: Apache-2.0
"""The credit alone, with the time as an argument: its bound in every window, its rate, and its line."""

import random
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netback.dataplane.credit import Allowance, Credit

SECOND = 10**9
MIN_BURST = 131072


class Sender:
    """A queue that always has frames, of sizes drawn in advance."""

    def __init__(self, credit: Credit, sizes: list[int]) -> None:
        self.own = Allowance(credit)
        self.sizes = sizes
        self.sent = 0

    def head(self, count: int = 8) -> list[int]:
        return [self.sizes[(self.sent + i) % len(self.sizes)] for i in range(count)]

    def poll(self, now: int, taken: int | None = None) -> int:
        """Move what the credit allows, at most `taken` frames (a peer that is full); returns the bytes."""
        frames = self.head()
        allowed = self.own.claim(now, frames)
        moved = allowed if taken is None else min(allowed, taken)
        self.sent += moved
        self.own.settle(sum(frames[:moved]))
        return sum(frames[:moved])


def within(log: list[tuple[int, int]], size: int, period: int) -> bool:
    """Whether the bytes of every window of the log [(ns, bytes)] are at most rate * T + burst.

    For a window that ends at the i-th entry the worst beginning is the one with the least total(before) - rate * t.
    """
    burst, lowest = max(size, MIN_BURST), float("inf")
    total = [0, *accumulate(count for _, count in log)]
    for i, (now, _) in enumerate(log):
        grown = now * size / period
        lowest = min(lowest, total[i] - grown)
        if total[i + 1] - grown - lowest > burst + 1e-3:
            return False
    return True


RATES = st.tuples(st.integers(1, 10**8), st.sampled_from([1000, 50_000_000, SECOND, 7 * SECOND]))
SIZES = st.lists(st.integers(14, 65535), min_size=1, max_size=8)
STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.one_of(st.integers(0, 1000), st.integers(0, SECOND), st.integers(0, 100 * SECOND)),
        st.one_of(st.none(), st.integers(0, 5)),
    ),
    max_size=80,
)


@given(RATES, st.lists(SIZES, min_size=3, max_size=3), STEPS)
def test_no_window_has_more(
    rate: tuple[int, int], sizes: list[list[int]], steps: list[tuple[int, int, int | None]]
) -> None:
    """Whatever the queues send, when they are polled, and how much of it their peers take."""
    credit, now = Credit(*rate, now=1), 1
    senders = [Sender(credit, each) for each in sizes]
    log = []
    for who, later, taken in steps:
        now += later
        log.append((now, senders[who].poll(now, taken)))
    assert within(log, *rate)
    for sender in senders:
        sender.own.leave()
    assert credit.idle


def run(senders: list[Sender], until: int) -> dict[int, int]:
    """Poll each sender when it is due, as a worker's timers do; returns the bytes of each by its index."""
    moved = dict.fromkeys(range(len(senders)), 0)
    now = 1
    while now < until:
        for i, sender in enumerate(senders):
            if sender.own.due is None or now >= sender.own.due:
                moved[i] += sender.poll(now)
        now = min(sender.own.due or now for sender in senders)
    return moved


@pytest.mark.parametrize("queues", [1, 2, 8])
@pytest.mark.parametrize(
    ("rate", "largest", "ns"),
    [
        ((62_500, 50_000_000), 1514, 10 * SECOND),
        ((125, SECOND), 1514, 2400 * SECOND),
        ((62_500_000, 50_000_000), 65535, SECOND // 10),
        ((10**6, 10**6), 65535, SECOND // 10),
    ],
)
def test_the_rate_is_used(rate: tuple[int, int], largest: int, ns: int, queues: int) -> None:
    """Over ten seconds, or what bounds the frames to some thousands: 2 % at most are lost, on any number of queues."""
    rng = random.Random(queues)
    credit = Credit(*rate, now=1)
    senders = [Sender(credit, [rng.randint(60, largest) for _ in range(97)]) for _ in range(queues)]
    moved = sum(run(senders, ns).values())
    expected = rate[0] * ns / rate[1]
    assert 0.98 * expected <= moved <= expected + max(rate[0], MIN_BURST)


def test_a_large_frame_is_not_starved_by_small_ones() -> None:
    """The fault of a plain bucket: small frames take each byte as it comes, and a GSO frame never finds enough."""
    credit = Credit(62_500, 50_000_000, now=1)
    small, large = Sender(credit, [60]), Sender(credit, [65535])
    run([small, large], 20 * SECOND)
    assert 7 * small.sent // 8 >= large.sent > 0.9 * 20 * 1_250_000 // 65535


def test_queues_share_the_bytes() -> None:
    credit = Credit(62_500, 50_000_000, now=1)
    senders = [Sender(credit, [1514]), Sender(credit, [65535]), Sender(credit, [9000])]
    moved = run(senders, 20 * SECOND)
    assert min(moved.values()) > 0.1 * sum(moved.values())


def test_a_queue_that_waits_for_something_else_leaves_the_line() -> None:
    credit = Credit(1000, SECOND, now=1)
    first, second = Allowance(credit), Allowance(credit)
    assert first.claim(1, [60_000]) == 0
    assert second.claim(1, [500]) == 0, "it stands behind the first"
    second.leave()
    first.leave()
    assert second.claim(1, [500]) == 1


def test_a_claim_counts_until_it_is_settled() -> None:
    credit = Credit(1000, SECOND, now=1)
    first, second = Allowance(credit), Allowance(credit)
    assert first.claim(1, [800]) == 1
    assert second.claim(1, [800]) == 0
    second.leave()
    first.settle(100)
    assert second.claim(1, [800]) == 1


def test_any_frame_passes_at_any_rate() -> None:
    """A rate below a frame; a frame above the burst, which leaves debt."""
    credit, now = Credit(1, 7 * SECOND, now=1), 1
    own = Allowance(credit)
    for size in (1514, 65535, 500_000):
        assert own.claim(now, [size]) == 0
        assert own.due is not None
        now = own.due
        assert own.claim(now - 1, [size]) == 0
        assert own.claim(now, [size]) == 1
        own.settle(size)
    assert own.claim(now, [60]) == 0
    assert own.due is not None
    assert own.due - now > (500_000 - MIN_BURST) * 7 * SECOND


def test_what_costs_nothing_waits_for_debt_alone() -> None:
    """A malformed frame, which is answered ERROR, has no bytes."""
    credit = Credit(1000, SECOND, now=1)
    own = Allowance(credit)
    assert own.claim(1, [0, 1000, 0, 1]) == 3
