# SPDX-License-Identifier: Apache-2.0
"""The native end of a control ring: indices, and a process killed at each step of an answer."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from pathlib import Path

import pytest

from netback.abi.netif_control import CTRL_REQUEST, CTRL_RESPONSE, CTRL_SLOT, CTRL_SLOTS
from netback.abi.ring import PAGE_SIZE, SRING
from netback.dataplane.control_ring import ControlRing
from netback.dataplane.front.queue import RingPage
from netback.dataplane.journal import arm_kill
from netback.errors import GuestError

NAME, STATE = 0x900000005, 8
START = 2**32 - 2
"""A ring that wraps in this test."""


class Page:
    """A control ring's page that this process shares with its forks, and its frontend."""

    def __init__(self, start: int = START) -> None:
        self.memory = mmap.mmap(-1, PAGE_SIZE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        SRING.pack_into(self.memory, 0, start, start + 1, start, start + 1)
        self.front = RingPage(self.address, CTRL_SLOT)

    def post(self, ident: int) -> None:
        index = self.front.req_prod
        self.front.put(index, request(ident))
        self.front.push((index + 1) % 2**32)


def request(ident: int) -> bytes:
    return CTRL_REQUEST.pack(ident, 2, ident, 0, 0)


def response(ident: int) -> bytes:
    return CTRL_RESPONSE.pack(ident, 2, 0, ident)


def state(ident: int) -> bytes:
    return ident.to_bytes(STATE, "little")


def open_ring(page: Page, path: Path | None = None, **options: bool) -> ControlRing:
    return ControlRing(page.address, NAME, STATE, path and str(path), **options)


def serve(ring: ControlRing) -> None:
    """Answer each request; the state is the id of the last one."""
    while ring.pending():
        ident = CTRL_REQUEST.unpack(ring.take())[0]
        ring.commit(response(ident), state(ident))


def test_requests_are_answered_in_their_slots_across_the_wrap() -> None:
    page = Page()
    ring = open_ring(page)
    for ident in range(5):
        page.post(ident)
    assert ring.pending() == 5
    serve(ring)
    assert [page.front.get((START + i) % 2**32) for i in range(5)] == [response(i) for i in range(5)]
    assert ring.indices["rsp_prod"] == ring.indices["private"] == (START + 5) % 2**32
    assert ring.arm() == 0
    assert ring.indices["req_event"] == (START + 6) % 2**32
    page.post(7)
    assert ring.arm() == 1


def test_the_guest_is_notified_if_it_asked() -> None:
    page = Page(0)
    ring = open_ring(page)
    page.front.rsp_event = 2
    for ident in range(2):
        page.post(ident)
    assert [ring.commit(response(ident), state(ident)) for ident in range(2)] == [False, True]


def test_a_whole_ring_and_one_request_too_many() -> None:
    page = Page(0)
    ring = open_ring(page)
    page.front.req_prod = CTRL_SLOTS
    assert ring.pending() == CTRL_SLOTS
    for prod in (CTRL_SLOTS + 1, 2**31, 2**32 - 1):
        page.front.req_prod = prod
        for call in (ring.pending, ring.arm, lambda: open_ring(page)):
            with pytest.raises(GuestError, match="req_prod is impossible"):
                call()


def test_lengths_are_checked() -> None:
    ring = open_ring(Page())
    for answer, after in ((b"", state(1)), (response(1), b"")):
        with pytest.raises(ValueError, match="16 bytes, the state 8"):
            ring.commit(answer, after)


def test_only_the_same_ring_is_adopted(tmp_path: Path) -> None:
    """A new connection clears what an earlier one set, although its ring may have the same name."""
    page, path = Page(), tmp_path / "ctrl"
    page.post(3)
    serve(open_ring(page, path))
    assert open_ring(page, path, adopt=True).state == state(3)
    other = ControlRing(page.address, NAME + 1, STATE, str(path), adopt=True)
    assert other.state == b""
    page.post(4)
    serve(open_ring(page, path, adopt=True))
    assert open_ring(page, path, adopt=True).state == state(4)
    assert ControlRing(page.address, NAME, 2 * STATE, str(path), adopt=True).state == b"", "another version's"
    assert open_ring(page, path).state == b""


def killed(page: Page, path: Path, after: int) -> bool:
    """Answer all requests in a process that is killed at its `after`-th kill point; whether it came that far."""
    child = os.fork()
    if child == 0:
        arm_kill(after)
        serve(open_ring(page, path, adopt=True))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def test_after_any_kill_each_request_is_answered_once_and_the_state_is_the_last_answers(
    tmp_path: Path,
) -> None:
    """The second process has only the page and the file. Its state leads to exactly the published responses."""
    points = 0
    for after in range(1, 100):
        page, path = Page(), tmp_path / str(after)
        for ident in range(3):
            page.post(ident)
        if not killed(page, path, after):
            break
        points = after
        ring = open_ring(page, path, adopt=True)
        done = (ring.indices["rsp_prod"] - START) % 2**32
        assert ring.state == (state(done - 1) if done else b""), f"killed at point {after}"
        assert CTRL_REQUEST.unpack(ring.take())[0] == done or done == 3, f"killed at point {after}"
        serve(ring)
        assert [page.front.get((START + i) % 2**32) for i in range(3)] == [response(i) for i in range(3)]
        assert ring.state == state(2)
    assert points == 15, "five kill points in each of three answers"


def test_a_guest_that_moves_rsp_prod_back_gets_the_same_answer(tmp_path: Path) -> None:
    """netback publishes the committed response again, and none if nothing is requested."""
    page, path = Page(0), tmp_path / "ctrl"
    page.post(1)
    serve(open_ring(page, path))
    page.front.rsp_prod = 0
    again = open_ring(page, path, adopt=True)
    assert (again.indices["rsp_prod"], again.pending()) == (1, 0)
    page.front.rsp_prod = 0
    page.front.req_prod = 0
    assert open_ring(page, path, adopt=True).indices["rsp_prod"] == 0
