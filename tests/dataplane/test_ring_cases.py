# SPDX-License-Identifier: Apache-2.0
"""The cases for comparing oracle and native code: they reach every rule, and the oracle keeps its invariants."""

import random
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.dataplane.ring_cases import FATAL, PAGES, TX, Case, Deliver, Guest, Post, Send, case, truthful
from tests.oracle import INDEX, PAGE, SLOTS, Oracle

SEEDS = range(150)


def index(memory: bytearray, page: int, at: int) -> int:
    return int(INDEX.unpack_from(memory, page * PAGE + at)[0])


def play(case: Case) -> Counter[str]:
    """Play a case on the oracle and check what must hold after any burst; returns counts of the events."""
    memory, seen = bytearray(PAGES * PAGE), Counter[str]()
    guest = Guest(memory, case)
    oracle = Oracle(memory, case.config)
    for op in case.ops:
        seen[type(op).__name__] += 1
        if not isinstance(op, Send | Deliver):
            guest.apply(op)
            continue
        page = case.config.tx_page if isinstance(op, Send) else case.config.rx_page
        grants, old = memory[:PAGE], index(memory, page, 8)
        burst = oracle.tx() if isinstance(op, Send) else oracle.rx([spec.frame() for spec in op.specs])
        answered = (index(memory, page, 8) - old) % 2**32
        assert memory[:PAGE] == grants
        assert answered <= SLOTS
        assert not burst.notify or answered
        assert all(14 <= len(frame.data) <= 65535 for frame in burst.sent)
        seen.update(
            at=answered,
            sent=len(burst.sent),
            notify=burst.notify,
            damaged=burst.damaged,
            dropped=burst.dropped,
        )
        seen.update(truthful=sum(truthful(frame.data) for frame in burst.sent))
        if isinstance(op, Send) and not burst.fatal:
            assert index(memory, page, 8) == guest.prod[TX]
            assert index(memory, page, 4) == (guest.prod[TX] + 1) % 2**32
            for i in range(answered):
                slot = memory[page * PAGE + 64 + (old + i) % SLOTS * 12 :][:12]
                seen[f"status {int.from_bytes(slot[2:4], 'little', signed=True)}"] += 1
                assert slot[4:] == bytes(8)
        if burst.fatal:
            seen[f"fatal {burst.fatal.rstrip('0123456789')}"] += 1
            break
    return seen


def test_cases_reach_every_rule() -> None:
    total = sum((play(case(random.Random(seed))) for seed in SEEDS), Counter())
    for name in (
        "Grant",
        "Fill",
        "Post",
        "Listen",
        "Scribble",
        "Send",
        "Deliver",
        "notify",
        "damaged",
        "dropped",
    ):
        assert total[name], name
    for name in ("truthful", "status -1", "status 0", "status 1"):
        assert total[name] > 100, name
    fatal = " ".join(name for name in total if name.startswith("fatal"))
    for cause in ("data slots", "past req_prod", "extra of type", "GSO of size", "requests ahead"):
        assert cause in fatal, cause


def test_a_seed_is_a_case() -> None:
    assert case(random.Random(7)) == case(random.Random(7))
    assert case(random.Random(7)) != case(random.Random(8))


def test_each_fatal_kind_is_fatal() -> None:
    for kind in FATAL:
        for seed in range(30):
            memory = bytearray(PAGES * PAGE)
            guest = Guest(memory, empty := Case(case(random.Random(seed)).config, seed, ()))
            oracle = Oracle(memory, empty.config)
            guest.apply(Post(TX, kind(random.Random(seed))))
            assert oracle.tx().fatal, kind.__name__


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_invariants(rng: random.Random) -> None:
    play(case(rng, scenes=4))
