# SPDX-License-Identifier: Apache-2.0
"""Every control message: the one status of each wrong use, and the plain Python model on any sequence of requests."""

from __future__ import annotations

import itertools
import struct
from dataclasses import replace
from typing import Any

import pytest
from fuzz import control
from hypothesis import given
from hypothesis import strategies as st

from netback.abi.netif_control import CtrlStatus, CtrlType, HashAlgorithm, HashType
from netback.vif.control_messages import (
    MAX_KEY,
    MAX_MAPPING,
    Answer,
    ControlState,
    Request,
    Scope,
    StagedPage,
    handle,
    state_bytes,
)
from tests import control_oracle

SUCCESS, NOT_SUPPORTED, INVALID, OVERFLOW = CtrlStatus
KEY_GREF, TABLE_GREF, BAD_TABLE_GREF, NO_GREF, LIST_GREF, TWICE_GREF, FLAGS_GREF = range(8, 15)
QUEUES = 4
PAGES = {
    KEY_GREF: bytes(range(1, 101)).ljust(4096, b"\xee"),
    TABLE_GREF: struct.pack("<128I", *(i % QUEUES for i in range(128))).ljust(4096, b"\xee"),
    LIST_GREF: b"".join(struct.pack("<IHH", 100 + i, i % 2, 9) for i in range(512)),
    TWICE_GREF: struct.pack("<IHHIHHIHH", 100, 0, 9, 7, 0, 9, 100, 1, 9).ljust(4096, b"\xee"),
    FLAGS_GREF: struct.pack("<IHHIHH", 100, 1, 9, 101, 2, 9).ljust(4096, b"\xee"),
    BAD_TABLE_GREF: struct.pack("<4I", 0, 1, QUEUES, 3).ljust(4096, b"\xee"),
}
TOEPLITZ = ControlState(HashAlgorithm.TOEPLITZ)
SIZED = ControlState(mapping=(0,) * 8)
STAGED = ControlState(staged=(StagedPage(0, 100, False), StagedPage(1, 101, True)))
MAX = 2**32 - 1


def ask(state: ControlState, kind: int, *data: int) -> tuple[Answer, ControlState]:
    numbers: Any = (*data, 0, 0, 0)[:3]
    return handle(state, Request(1, kind, numbers), control.guest(dict(PAGES), QUEUES))


@pytest.mark.parametrize(
    ("state", "kind", "data", "status", "value"),
    [
        (TOEPLITZ, CtrlType.INVALID, (), NOT_SUPPORTED, 0),
        (TOEPLITZ, 11, (1, 2, 3), NOT_SUPPORTED, 0),
        (TOEPLITZ, 0xFFFF, (), NOT_SUPPORTED, 0),
        (ControlState(), CtrlType.SET_HASH_ALGORITHM, (0,), SUCCESS, 0),
        (ControlState(), CtrlType.SET_HASH_ALGORITHM, (1,), SUCCESS, 0),
        (ControlState(), CtrlType.SET_HASH_ALGORITHM, (2,), INVALID, 0),
        (TOEPLITZ, CtrlType.SET_HASH_ALGORITHM, (MAX,), INVALID, 0),
        (ControlState(), CtrlType.GET_HASH_FLAGS, (), NOT_SUPPORTED, 0),
        (TOEPLITZ, CtrlType.GET_HASH_FLAGS, (), SUCCESS, 15),
        (ControlState(), CtrlType.SET_HASH_FLAGS, (1,), INVALID, 0),
        (ControlState(), CtrlType.SET_HASH_FLAGS, (0,), INVALID, 0),
        (TOEPLITZ, CtrlType.SET_HASH_FLAGS, (0,), SUCCESS, 0),
        (TOEPLITZ, CtrlType.SET_HASH_FLAGS, (15,), SUCCESS, 0),
        (TOEPLITZ, CtrlType.SET_HASH_FLAGS, (16,), INVALID, 0),
        (TOEPLITZ, CtrlType.SET_HASH_FLAGS, (MAX,), INVALID, 0),
        (TOEPLITZ, CtrlType.SET_HASH_KEY, (KEY_GREF, MAX_KEY), SUCCESS, 0),
        (ControlState(), CtrlType.SET_HASH_KEY, (KEY_GREF, 16), SUCCESS, 0),
        (TOEPLITZ, CtrlType.SET_HASH_KEY, (NO_GREF, 0), SUCCESS, 0),
        (TOEPLITZ, CtrlType.SET_HASH_KEY, (NO_GREF, 1), INVALID, 0),
        (TOEPLITZ, CtrlType.SET_HASH_KEY, (KEY_GREF, MAX_KEY + 1), OVERFLOW, 0),
        (TOEPLITZ, CtrlType.SET_HASH_KEY, (NO_GREF, MAX), OVERFLOW, 0),
        (ControlState(), CtrlType.GET_HASH_MAPPING_SIZE, (), SUCCESS, MAX_MAPPING),
        (ControlState(), CtrlType.SET_HASH_MAPPING_SIZE, (MAX_MAPPING,), SUCCESS, 0),
        (ControlState(), CtrlType.SET_HASH_MAPPING_SIZE, (MAX_MAPPING + 1,), INVALID, 0),
        (ControlState(), CtrlType.SET_HASH_MAPPING_SIZE, (MAX,), INVALID, 0),
        (SIZED, CtrlType.SET_HASH_MAPPING, (TABLE_GREF, 8, 0), SUCCESS, 0),
        (SIZED, CtrlType.SET_HASH_MAPPING, (TABLE_GREF, 1, 7), SUCCESS, 0),
        (SIZED, CtrlType.SET_HASH_MAPPING, (NO_GREF, 0, 8), SUCCESS, 0),
        (SIZED, CtrlType.SET_HASH_MAPPING, (NO_GREF, 0, 9), INVALID, 0),
        (SIZED, CtrlType.SET_HASH_MAPPING, (TABLE_GREF, 9, 0), INVALID, 0),
        (SIZED, CtrlType.SET_HASH_MAPPING, (TABLE_GREF, 1, 8), INVALID, 0),
        (SIZED, CtrlType.SET_HASH_MAPPING, (TABLE_GREF, 2, MAX), INVALID, 0),
        (SIZED, CtrlType.SET_HASH_MAPPING, (TABLE_GREF, 1, MAX), INVALID, 0),
        (SIZED, CtrlType.SET_HASH_MAPPING, (TABLE_GREF, MAX_MAPPING + 1, 0), OVERFLOW, 0),
        (SIZED, CtrlType.SET_HASH_MAPPING, (TABLE_GREF, MAX, 2), OVERFLOW, 0),
        (SIZED, CtrlType.SET_HASH_MAPPING, (BAD_TABLE_GREF, 2, 0), SUCCESS, 0),
        (SIZED, CtrlType.SET_HASH_MAPPING, (BAD_TABLE_GREF, 3, 0), INVALID, 0),
        (SIZED, CtrlType.SET_HASH_MAPPING, (NO_GREF, 1, 0), INVALID, 0),
        (ControlState(), CtrlType.SET_HASH_MAPPING, (TABLE_GREF, 1, 0), INVALID, 0),
        (ControlState(), CtrlType.GET_GREF_MAPPING_SIZE, (QUEUES - 1,), SUCCESS, 512),
        (ControlState(), CtrlType.GET_GREF_MAPPING_SIZE, (QUEUES,), INVALID, 0),
        (ControlState(), CtrlType.ADD_GREF_MAPPING, (0, LIST_GREF, 512), SUCCESS, 0),
        (ControlState(), CtrlType.ADD_GREF_MAPPING, (0, NO_GREF, 0), SUCCESS, 0),
        (ControlState(), CtrlType.ADD_GREF_MAPPING, (QUEUES, LIST_GREF, 1), INVALID, 0),
        (ControlState(), CtrlType.ADD_GREF_MAPPING, (0, NO_GREF, 1), INVALID, 0),
        (ControlState(), CtrlType.ADD_GREF_MAPPING, (0, LIST_GREF, 513), INVALID, 0),
        (ControlState(), CtrlType.ADD_GREF_MAPPING, (0, LIST_GREF, MAX), INVALID, 0),
        (ControlState(), CtrlType.ADD_GREF_MAPPING, (0, TWICE_GREF, 2), SUCCESS, 0),
        (ControlState(), CtrlType.ADD_GREF_MAPPING, (0, TWICE_GREF, 3), INVALID, 0),
        (ControlState(), CtrlType.ADD_GREF_MAPPING, (0, FLAGS_GREF, 2), INVALID, 0),
        (STAGED, CtrlType.ADD_GREF_MAPPING, (0, LIST_GREF, 1), INVALID, 0),
        (STAGED, CtrlType.ADD_GREF_MAPPING, (1, LIST_GREF, 1), INVALID, 0),
        (STAGED, CtrlType.DEL_GREF_MAPPING, (0, LIST_GREF, 2), SUCCESS, 1),
        (STAGED, CtrlType.DEL_GREF_MAPPING, (2, LIST_GREF, 512), SUCCESS, 0),
        (STAGED, CtrlType.DEL_GREF_MAPPING, (QUEUES, LIST_GREF, 1), INVALID, 0),
        (STAGED, CtrlType.DEL_GREF_MAPPING, (0, NO_GREF, 1), INVALID, 0),
        (STAGED, CtrlType.DEL_GREF_MAPPING, (0, LIST_GREF, 513), INVALID, 0),
    ],
)
def test_each_use_has_its_status(
    state: ControlState, kind: int, data: tuple[int, ...], status: CtrlStatus, value: int
) -> None:
    """What is refused changes nothing (XSA-270)."""
    answer, after = ask(state, kind, *data)
    assert answer == Answer(status, value)
    assert status is SUCCESS or after == state


def test_what_is_set() -> None:
    """A new key ends the old one, a part of the mapping leaves the rest, and a new size is all zeros."""
    state = TOEPLITZ
    for kind, *data in (
        (CtrlType.SET_HASH_FLAGS, 5),
        (CtrlType.SET_HASH_KEY, KEY_GREF, 40),
        (CtrlType.SET_HASH_KEY, KEY_GREF, 3),
        (CtrlType.SET_HASH_MAPPING_SIZE, 8),
        (CtrlType.SET_HASH_MAPPING, TABLE_GREF, 4, 3),
    ):
        answer, state = ask(state, kind, *data)
        assert answer.status is SUCCESS
    assert state == ControlState(
        HashAlgorithm.TOEPLITZ,
        HashType.IPV4 | HashType.IPV6,
        b"\1\2\3" + bytes(37),
        (0, 0, 0, 0, 1, 2, 3, 0),
    )
    assert state.active
    assert ask(state, CtrlType.SET_HASH_MAPPING_SIZE, 4)[1].mapping == (0, 0, 0, 0)
    off = ask(state, CtrlType.SET_HASH_ALGORITHM, 0)[1]
    assert (off.active, off.types) == (False, state.types)


def test_a_queue_has_512_staged_pages() -> None:
    _, full = ask(ControlState(), CtrlType.ADD_GREF_MAPPING, 0, LIST_GREF, 512)
    pages = dict(PAGES) | {LIST_GREF: struct.pack("<IHH", 7, 0, 0).ljust(4096, b"\0")}
    for queue, status in ((0, INVALID), (1, SUCCESS)):
        request = Request(1, CtrlType.ADD_GREF_MAPPING, (queue, LIST_GREF, 1))
        assert handle(full, request, control.guest(pages, QUEUES))[0] == Answer(status)


def test_each_entry_of_a_list_to_remove_has_its_status() -> None:
    """A gref twice in the list was staged the first time only; the rest of an entry stays as it is."""
    pages = dict(PAGES)
    request = Request(1, CtrlType.DEL_GREF_MAPPING, (0, TWICE_GREF, 3))
    answer, state = handle(STAGED, request, control.guest(pages, QUEUES))
    assert answer == Answer(SUCCESS, 1)
    assert pages[TWICE_GREF][:24] == struct.pack("<IHHIHHIHH", 100, 0, 0, 7, 0, 2, 100, 1, 2)
    assert pages[TWICE_GREF][24:] == PAGES[TWICE_GREF][24:]
    assert state.staged == STAGED.staged[1:]


def test_a_list_that_cannot_be_written_removes_nothing() -> None:
    scope = Scope(QUEUES, lambda _gref, size: PAGES[LIST_GREF][:size], lambda _gref, _data: False)
    request = Request(1, CtrlType.DEL_GREF_MAPPING, (0, LIST_GREF, 1))
    assert handle(STAGED, request, scope) == (Answer(INVALID), STAGED)


def test_every_request_leads_where_the_model_leads() -> None:
    """Each type, with every mixture of values at and beside each bound, in every state that decides about it."""
    values = (0, 1, 3, 4, 15, 16, 40, 41, 128, 129, *range(KEY_GREF, FLAGS_GREF + 1), 2**31, MAX)
    sizes = (0, 1, 3, 124, 128, 512, 513, MAX)
    for algorithm, size in ((0, 0), (0, 128), (1, 4)):
        for kind, first, second, third in itertools.product(range(12), values, values, sizes):
            model = control_oracle.Control(QUEUES, dict(PAGES), algorithm, mapping=[0] * size)
            state = ControlState(HashAlgorithm(algorithm), mapping=(0,) * size)
            answer, state = ask(state, kind, first, second, third)
            assert (answer.status, answer.data) == model.answer(kind, first, second, third), (
                kind,
                first,
                second,
            )
            control.same(state, model)


@given(st.randoms(use_true_random=False))
def test_any_sequence_leads_where_the_model_leads(rng: Any) -> None:
    control.play(control.make(rng))


@given(st.binary(min_size=16, max_size=16))
def test_a_response_is_a_whole_slot_with_the_id_and_type_of_its_request(slot: bytes) -> None:
    """XSA-216: the bytes that a response does not use are zero."""
    request = Request.decode(slot)
    encoded = Answer(CtrlStatus.BUFFER_OVERFLOW, 7).encode(request)
    assert encoded == slot[:4] + struct.pack("<II", 3, 7) + bytes(4)


def test_a_state_is_its_bytes_and_back() -> None:
    state = ControlState(HashAlgorithm.TOEPLITZ, HashType.IPV6_TCP, bytes(range(40)), tuple(range(128)))
    state = replace(state, staged=(StagedPage(1, 7, True), StagedPage(0, 2**32 - 1, False)))
    assert len(state.encode(2)) == state_bytes(2)
    assert ControlState.decode(state.encode(2)) == state
    assert ControlState.decode(b"") == ControlState()
    assert ControlState.decode(b"\xff" + state.encode(2)[1:]) == ControlState(), "another version's bytes"
