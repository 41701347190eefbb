# SPDX-License-Identifier: Apache-2.0
"""Split event channels: each port is judged by its own ring, backs off alone, and carries its own notifications."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netback.abi.netif import RX_REQUEST, TX_REQUEST
from netback.abi.ring import PAGE_SIZE, slot_offset
from tests.dataplane.harness import FAR_PORT, FAR_RX_PORT, PORT, RING_PAGES, RX_PORT, Bench

TX_PAGE, RX_PAGE = RING_PAGES
FREE_EVENTS = 4
"""Spurious events without a delay (worker.pyx)."""


class Rig(Bench):
    """A queue whose worker runs in this thread, one round at a time."""

    def __init__(self, *, split: bool) -> None:
        super().__init__(split=split)
        self.posted = {TX_PAGE: 0, RX_PAGE: 0}
        self.round()
        self.notified()

    def round(self) -> None:
        """Take the pending events, and poll until nothing is left to do."""
        self.worker.wake()
        self.worker.run()

    def post(self, page: int) -> None:
        """Publish one request: a frame of 60 bytes, or a buffer."""
        at = self.posted[page]
        gref = (10 if page == TX_PAGE else 260) + at % 200
        self.grant(gref, gref)
        slot = (
            TX_REQUEST.pack(gref, 0, 0, at % 256, 60)
            if page == TX_PAGE
            else RX_REQUEST.pack(at % 256, 0, gref)
        )
        self.write(page, slot_offset(at, len(slot)), slot)
        self.posted[page] += 1
        self.memory[page * PAGE_SIZE : page * PAGE_SIZE + 4] = self.posted[page].to_bytes(4, "little")

    def fire(self, port: int, page: int | None = None) -> None:
        """The guest sends an event, after publishing a request in the ring `page`."""
        if page is not None:
            self.post(page)
        self.ring_the_bell(port)
        self.round()

    @property
    def backs_off(self) -> set[str]:
        return {name.removeprefix("unmask_") for name in self.worker.waits(self.queue)[1] if "unmask" in name}


@pytest.fixture
def split() -> Iterator[Rig]:
    rig = Rig(split=True)
    yield rig
    rig.close()


@pytest.fixture
def shared() -> Iterator[Rig]:
    rig = Rig(split=False)
    yield rig
    rig.close()


PORTS = {"tx": (PORT, RX_PORT, RX_PAGE, "ring_to_peer"), "rx": (RX_PORT, PORT, TX_PAGE, "peer_to_ring")}
"""Of a storm on one ring's port: the port, the other port, the other ring, the direction that backs off."""


@pytest.mark.parametrize("ring", PORTS)
def test_work_in_the_other_ring_does_not_excuse_a_storm(split: Rig, ring: str) -> None:
    """The fault: a guest that posts buffers sends empty events for the other ring at any rate."""
    port, _, page, direction = PORTS[ring]
    for _ in range(FREE_EVENTS):
        split.post(page)
        split.fire(port)
        assert not split.backs_off
        assert not split.is_masked(port)
    split.post(page)
    split.fire(port)
    assert split.backs_off == {direction}
    assert split.is_masked(port)
    assert split.queue.counters["events_empty"] == FREE_EVENTS + 1


@pytest.mark.parametrize("ring", PORTS)
def test_back_off_masks_only_its_port(split: Rig, ring: str) -> None:
    port, other, page, direction = PORTS[ring]
    for _ in range(FREE_EVENTS + 1):
        split.fire(port)
    for _ in range(20):
        split.fire(other, page)
        assert not split.is_masked(other)
    assert split.backs_off <= {direction}
    assert split.queue.counters["events_empty"] == FREE_EVENTS + 1


def test_a_shared_port_is_judged_by_both_rings(shared: Rig) -> None:
    for number in range(40):
        shared.fire(PORT, RING_PAGES[number % 2])
    assert shared.queue.counters["events_empty"] == 0
    for _ in range(FREE_EVENTS + 1):
        shared.fire(PORT)
    assert shared.backs_off == {"ring_to_peer"}
    assert shared.is_masked(PORT)


def test_an_event_with_work_ends_the_back_off_of_its_port(split: Rig) -> None:
    """Its count begins again: what came before is forgotten."""
    for _ in range(FREE_EVENTS):
        split.fire(PORT)
    split.fire(PORT, TX_PAGE)
    for _ in range(FREE_EVENTS):
        split.fire(PORT)
    assert not split.backs_off
    assert len(split.sent()) == 1


def test_each_ring_notifies_its_own_port(split: Rig) -> None:
    assert split.peer_end is not None
    split.fire(PORT, TX_PAGE)
    assert split.notified_ports() == {FAR_PORT}
    split.fire(RX_PORT, RX_PAGE)
    assert split.notified_ports() == set()
    split.peer_end.send(bytes(10 + 60))
    split.round()
    assert split.notified_ports() == {FAR_RX_PORT}


def test_both_ports_are_notified_once_when_a_queue_is_added(split: Rig) -> None:
    """A killed predecessor's pending notification would be lost."""
    split.worker.remove(split.queue)
    split.attach()
    assert split.notified_ports() == {FAR_PORT, FAR_RX_PORT}


def test_a_removed_queue_is_not_found_by_either_port(split: Rig) -> None:
    split.worker.remove(split.queue)
    for port in (PORT, RX_PORT):
        split.ring_the_bell(port)
        split.round()
    assert split.queue.counters["events"] == 0
    split.worker.add(split.queue)
