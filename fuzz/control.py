# SPDX-License-Identifier: Apache-2.0
"""For any control requests, the answers and the state are those of a plain model, and the state survives as bytes."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from tests.control_oracle import ENTRY, KEY, MAPPING, PAGE, Control

from netback.vif.control_messages import ControlState, Request, Scope, handle, state_bytes

GREFS = range(8, 14)
EDGES = (0, 1, 2, 15, 16, KEY, KEY + 1, MAPPING - 1, MAPPING, MAPPING + 1, 512, 513, 2**31, 2**32 - 1)


@dataclass(frozen=True, slots=True)
class Case:
    queues: int
    pages: tuple[int, ...]
    """The seed of each granted page; 0: it is not granted."""
    ops: tuple[tuple[int, int, int, int], ...]
    """Type and data of each request."""


WORDS = (Case,)


def grefs_of(rng: random.Random) -> bytes:
    """A list of grefs, with few that repeat and few with odd flags."""
    few = rng.random() < 0.5
    grefs = rng.choices(range(40), k=512) if few else rng.sample(range(40, 5000), 512)
    flags = [rng.choice((0, 1, 2)), *rng.choices((0, 1), k=511)]
    return b"".join(ENTRY.pack(gref, flag, 7) for gref, flag in zip(grefs, flags, strict=True))


def page_of(seed: int, queues: int) -> bytes:
    """A key, a list of grefs, or a table of which one entry in eight pages names no queue."""
    rng = random.Random(seed)
    if seed % 4 == 2:
        return grefs_of(rng)
    entries = [rng.randrange(queues) for _ in range(PAGE // 4)]
    if seed % 8 == 1:
        entries[rng.randrange(MAPPING)] = rng.choice((queues, 2**31, 2**32 - 1))
    return struct.pack(f"<{len(entries)}I", *entries) if seed % 2 else rng.randbytes(PAGE)


def number(rng: random.Random) -> int:
    return rng.choice((rng.choice(GREFS), rng.choice(EDGES), rng.randrange(140), rng.getrandbits(32)))


def make(rng: random.Random) -> Case:
    pages = tuple(rng.choice((0, *range(1, 200))) for _ in GREFS)
    ops = [
        (rng.choice((*range(12), rng.getrandbits(16))), number(rng), number(rng), number(rng))
        for _ in range(60)
    ]
    return Case(rng.choice((1, 2, 8)), pages, tuple(ops))


def same(state: ControlState, model: Control) -> None:
    """The same state, also once it was written and read."""
    assert (state.algorithm, state.types) == (model.algorithm, model.types)
    assert (state.key, state.mapping) == (bytes(model.key), tuple(model.mapping))
    assert {page.gref: (page.queue, page.readonly) for page in state.staged} == model.staged
    assert len({page.gref for page in state.staged}) == len(state.staged)
    encoded = state.encode(model.queues)
    assert len(encoded) == state_bytes(model.queues)
    assert ControlState.decode(encoded) == state


def guest(pages: dict[int, bytes], queues: int) -> Scope:
    """A guest that grants these pages."""

    def write(gref: int, data: bytes) -> bool:
        if gref in pages:
            pages[gref] = data + pages[gref][len(data) :]
        return gref in pages

    return Scope(queues, lambda gref, size: pages[gref][:size] if gref in pages else None, write)


def play(case: Case) -> int:
    pages = {gref: page_of(seed, case.queues) for gref, seed in zip(GREFS, case.pages, strict=True) if seed}
    scope = guest(pages, case.queues)
    state, model = ControlState(), Control(case.queues, dict(pages))
    for kind, first, second, third in case.ops:
        answer, state = handle(state, Request(7, kind, (first, second, third)), scope)
        assert (answer.status, answer.data) == model.answer(kind, first, second, third)
        assert pages == model.pages
        same(state, model)
    return len(case.ops)
