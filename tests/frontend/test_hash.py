# SPDX-License-Identifier: Apache-2.0
"""The hash of frames, both ways: what netback's frontend sends with its own, and how it compares those it gets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from netback.abi.netif import RX_RESPONSE, RxFlag
from netback.abi.netif_control import CtrlStatus, CtrlType, HashType
from netback.daemon import Backend, BackendConfig
from netback.dataplane.toeplitz import Toeplitz
from netback.frontend import FrontConfig, Frontend, HashConfig
from netback.frontend.profiles import WINDOWS
from netback.net.python import PythonNetwork
from netback.platforms.emulated import EmulatedPlatform
from netback.vif import control_ring, features
from netback.vif.control_messages import Answer, ControlState, Outcome, Request, Scope, handle
from tests.frontend import frames
from tests.frontend.frames import all_on_the_wire
from tests.frontend.pair import Pair, connected, counters, passes
from tests.hash_oracle import TOEPLITZ, flow_hash
from tests.oracle import EXTRA_INFO, EXTRA_MORE, HASH, HASH_EXTRA, MORE_DATA, TX_REQUEST
from tests.vif.guest import SECONDS, serving

HASHED = HashConfig()
IP = (*frames.BLANK4, *frames.BLANK6, *frames.GSO4, *frames.GSO6, *frames.TAGGED)
HASHES = len(IP) - 1 + len(frames.on_the_wire(frames.TAGGED[2]))
"""A tagged GSO frame goes in segments."""
OTHERS = (*frames.ONE_SLOT, *frames.MANY_SLOTS)


async def until_hashed(vif: Frontend) -> None:
    async with asyncio.timeout(SECONDS):
        await vif.connected()
        await vif.until(lambda: vif.hash is not None)


async def of_the_backend(backend: Backend) -> dict[str, int]:
    """The counters of the backend's only vif, after the worker's burst."""
    await backend.respond()
    (device,) = backend.devices.values()
    assert device.vif is not None
    return device.vif.counters


async def test_every_frame_goes_with_its_hash(xen: Path) -> None:
    """Both ends count the same frames, and the guest finds no hash wrong: those of both ends are of one key."""
    far = PythonNetwork(vnet_hdr=True)
    async with serving(xen, far) as backend, Frontend(xen, config=FrontConfig(hash=HASHED)) as vif:
        await backend.attach(vif.guest.domid, "python:lan")
        await until_hashed(vif)
        assert isinstance(vif.network, PythonNetwork)
        await passes(vif.network, far, [*IP, *OTHERS])
        await passes(far, vif.network, [*IP, *OTHERS])
        ours, theirs = await counters(vif), await of_the_backend(backend)
        assert [ours[key] for key in ("tx_hashed", "rx_hashed", "rx_hash_wrong")] == [HASHES, HASHES, 0]
        assert (theirs["tx_hashed"], theirs["rx_hashed"]) == (HASHES, HASHES)
        await vif.set_hash(None)
        await passes(vif.network, far, IP)
        await passes(far, vif.network, IP)
        ours = await counters(vif)
        assert (ours["tx_hashed"], ours["rx_hashed"]) == (HASHES, HASHES)
    far.remove()


async def test_another_key_and_fewer_types(xen: Path) -> None:
    """Of a frame that is of no selected type there is no hash, in either direction."""
    chosen = HashConfig(types=HashType.IPV4, key=b"\x80" + bytes(39))
    far = PythonNetwork(vnet_hdr=True)
    async with serving(xen, far) as backend, Frontend(xen, config=FrontConfig(hash=HASHED)) as vif:
        await backend.attach(vif.guest.domid, "python:lan")
        await until_hashed(vif)
        assert isinstance(vif.network, PythonNetwork)
        await vif.set_hash(chosen)
        assert vif.hash == chosen
        version4 = (*frames.BLANK4, *frames.GSO4)
        await passes(vif.network, far, [*version4, *frames.BLANK6])
        await passes(far, vif.network, [*version4, *frames.BLANK6])
        counted = await counters(vif)
        assert counted["tx_hashed"] == counted["rx_hashed"] == len(version4)
        assert counted["rx_hash_wrong"] == 0
    far.remove()


# ---- TX, slot by slot


def sent(pair: Pair) -> Iterator[tuple[bytes, bytes]]:
    """The frames in the TX ring, each with its hash extra or none."""
    assert pair.back.tx is not None
    assert pair.vif.rings is not None
    pages = {page.gref: page for page in pair.vif.rings.tx_buffers}
    slots = iter([pair.back.tx.get(index) for index in range(pair.back.tx.req_prod)])
    for slot in slots:
        gref, offset, flags, _, total = TX_REQUEST.unpack(slot)
        extras, pieces, more = [], [], flags & EXTRA_INFO
        while more:
            extras.append(next(slots)[:8])
            more = extras[-1][1] & EXTRA_MORE
        while flags & MORE_DATA:
            further, at, flags, _, size = TX_REQUEST.unpack(next(slots))
            pieces.append(pages[further].read(at, size))
        rest = b"".join(pieces)
        yield (
            pages[gref].read(offset, total - len(rest)) + rest,
            next((e for e in extras if e[0] == HASH), b""),
        )


PLAIN_OFFER = features.offer(features.Limits())
OFFERS = {
    "everything": PLAIN_OFFER,
    "no segmentation": PLAIN_OFFER | {"feature-gso-tcpv4": "0", "feature-gso-tcpv6": "0"},
    "one slot": PLAIN_OFFER | {"feature-sg": "0"},
}


@pytest.mark.parametrize("name", OFFERS)
async def test_the_hash_is_netif_s(xen: Path, name: str) -> None:
    """Of whole frames and of segments, in pages and through private memory: its bytes are the model's."""
    rng, hashed = random.Random(name), 0
    async with connected(xen, offer=OFFERS[name], serve=False) as pair:
        assert pair.vif.queue is not None
        queue = pair.vif.queue
        await pair.vif.guest.submit(lambda _: queue.set_hash(Toeplitz(HASHED.key, int(HASHED.types))))
        messages = [*frames.BLANK4, *frames.TAGGED[:2], *frames.BLANK6, frames.GSO4[1], frames.GSO6[1]]
        rng.shuffle(messages)
        for message in messages:
            await pair.guest_net.send(message)
        bytes_on_the_wire = sum(len(data) for message in messages for data in frames.on_the_wire(message))
        whole = sum(len(message) - 10 for message in messages)
        while sum(len(data) for data, _ in sent(pair)) not in (bytes_on_the_wire, whole):
            assert await pair.vif.guest.submit(lambda _: True)
        for data, extra in sent(pair):
            flow = flow_hash(data, int(HASHED.types), HASHED.key)
            assert flow is not None
            assert extra == HASH_EXTRA.pack(HASH, 0, flow[0], TOEPLITZ, flow[1])
            hashed += 1
        assert (await counters(pair.vif))["tx_hashed"] == hashed >= len(messages)


async def test_a_ring_without_room_for_the_extra(xen: Path) -> None:
    """The fault: with a single slot no frame would ever fit beside its hash. It goes without."""
    far = PythonNetwork(vnet_hdr=True)
    config = FrontConfig(hash=HASHED, tx_slots=1)
    async with serving(xen, far) as backend, Frontend(xen, config=config) as vif:
        await backend.attach(vif.guest.domid, "python:lan")
        await until_hashed(vif)
        assert isinstance(vif.network, PythonNetwork)
        await passes(vif.network, far, [*frames.BLANK4, *frames.BLANK6])
        assert (await counters(vif))["tx_hashed"] == 0
    far.remove()


# ---- RX


@pytest.mark.parametrize("spoilt", [None, 2, 4, 7])
async def test_a_hash_that_is_wrong_is_counted(xen: Path, spoilt: int | None) -> None:
    """Another type or value; the frame passes, since the hash is only a hint."""
    message = frames.BLANK4[0]
    kind, value = flow_hash(message[10:], int(HASHED.types), HASHED.key) or (0, 0)
    extra = bytearray(HASH_EXTRA.pack(HASH, 0, kind, TOEPLITZ, value))
    if spoilt is not None:
        extra[spoilt] ^= 1
    async with connected(xen, serve=False) as pair:
        back, queue, rings = pair.back, pair.vif.queue, pair.vif.rings
        assert back.rx is not None
        assert queue is not None
        assert rings is not None
        await pair.vif.guest.submit(lambda _: queue.set_hash(Toeplitz(HASHED.key, int(HASHED.types))))
        data = message[10:]
        rings.rx_buffers[0].write(64, data)
        flags = RxFlag.EXTRA_INFO | RxFlag.CSUM_BLANK | RxFlag.DATA_VALIDATED
        back.rx.put(0, RX_RESPONSE.pack(0, 64, flags, len(data)))
        back.rx.put(1, bytes(extra))
        back.rx.rsp_prod = 2
        back.notify()
        assert await asyncio.wait_for(pair.guest_net.recv(), SECONDS) == message
        counted = await counters(pair.vif)
        assert (counted["rx_hashed"], counted["rx_hash_wrong"]) == (1, spoilt is not None)
        assert pair.vif.broken is None


# ---- the control ring


async def test_a_guest_with_too_few_queues_selects_none(xen: Path, network: PythonNetwork) -> None:
    """As Windows does with a single queue: one message, and no hash."""
    config = FrontConfig(hash=HashConfig(min_queues=2))
    async with serving(xen, network) as backend, Frontend(xen, config=config) as vif:
        await backend.attach(vif.guest.domid, "python:lan")
        async with asyncio.timeout(SECONDS):
            await vif.connected()
            assert vif.control is not None
            assert await vif.control.request(CtrlType.GET_HASH_FLAGS) == (CtrlStatus.NOT_SUPPORTED, 0)
            while (await of_the_backend(backend))["ctrl_requests"] < 2:
                pass
        assert (await of_the_backend(backend))["ctrl_requests"] == 2
        assert vif.hash is None


async def test_windows_with_two_queues(xen: Path) -> None:
    """It selects the hash by itself; frames come by either queue, each with its hash, and go with theirs."""
    far = PythonNetwork("python:lan", vnet_hdr=True)
    config = BackendConfig(xen, networks={"python:lan": far}, queues=2, workers=1)
    wanted = replace(WINDOWS.config, queues=2, multicast=None)
    with EmulatedPlatform(xen) as platform:
        async with (
            Backend(platform, config) as backend,
            Frontend(xen, config=wanted, handshake=WINDOWS.handshake) as vif,
        ):
            await backend.attach(vif.guest.domid, "python:lan")
            await until_hashed(vif)
            assert isinstance(vif.network, PythonNetwork)
            for sender, receiver in ((far, vif.network), (vif.network, far)):
                for message in IP:
                    await sender.send(message)
                sent, came = all_on_the_wire(IP), list[bytes]()
                async with asyncio.timeout(SECONDS):
                    while len(came) < len(sent):
                        came += all_on_the_wire([await receiver.recv()])
                assert sorted(came) == sorted(sent), "frames of different flows may change places"
            ours = [await vif.guest.submit(lambda _, queue=queue: queue.counters) for queue in vif.queues]
            for key, count in (("tx_hashed", HASHES), ("rx_hashed", HASHES), ("rx_hash_wrong", 0)):
                assert sum(counted[key] for counted in ours) == count
            assert (await of_the_backend(backend))["tx_hashed"] == HASHES
    far.remove()


async def test_a_backend_without_a_control_ring(xen: Path) -> None:
    async with connected(
        xen, FrontConfig(hash=HASHED, stage=True), offer=PLAIN_OFFER | {"feature-ctrl-ring": "0"}
    ) as pair:
        await pair.both_ways(frames.BLANK4)
        assert pair.vif.hash is None
        with pytest.raises(Exception, match="the vif has no control ring"):
            await pair.vif.set_hash(HASHED)


@pytest.mark.parametrize("queues", [1, 2])
async def test_buffers_that_are_staged_from_the_beginning(
    xen: Path, network: PythonNetwork, queues: int
) -> None:
    """Of every queue."""
    config = FrontConfig(stage=True, queues=queues)
    async with serving(xen, network) as backend, Frontend(xen, config=config) as vif:
        await backend.attach(vif.guest.domid, "python:lan")
        async with asyncio.timeout(SECONDS):
            await vif.until(lambda: vif.staged)
        pages = [page for rings in vif._rings for page in (*rings.tx_buffers, *rings.rx_buffers)]
        assert len(pages) == 512 * len(vif.queues)
        assert all(vif.guest.domain.still_in_use(page.gref) for page in pages)
        await network.send(bytes(60))
        await vif.network.recv()
        assert (await of_the_backend(backend))["rx_copies"] == 0


def recorded(monkeypatch: pytest.MonkeyPatch, refuse: CtrlType | None = None) -> list[Request]:
    """The requests that backends get from now on; those of one type are refused."""
    requests: list[Request] = []

    def record(state: ControlState, request: Request, scope: Scope) -> Outcome:
        requests.append(request)
        if request.type == refuse:
            return Answer(CtrlStatus.INVALID_PARAMETER), state
        return handle(state, request, scope)

    monkeypatch.setattr(control_ring, "handle", record)
    return requests


async def test_the_hash_is_selected_as_windows_does(
    xen: Path, network: PythonNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """xenvif, frontend.c, __FrontendUpdateHash: the types come last, so that no frame has a hash of half a setting."""
    requests = recorded(monkeypatch)
    async with serving(xen, network) as backend, Frontend(xen, config=FrontConfig(hash=HASHED)) as vif:
        await backend.attach(vif.guest.domid, "python:lan")
        await until_hashed(vif)
        granted = len(vif.guest.domain._granted)
        await vif.set_hash(HASHED)
        assert len(vif.guest.domain._granted) == granted, "the pages of messages are taken back"
    assert [request.type for request in requests[:6]] == [
        CtrlType.GET_HASH_MAPPING_SIZE,
        CtrlType.SET_HASH_ALGORITHM,
        CtrlType.SET_HASH_MAPPING_SIZE,
        CtrlType.SET_HASH_MAPPING,
        CtrlType.SET_HASH_KEY,
        CtrlType.SET_HASH_FLAGS,
    ]


@pytest.mark.parametrize(
    "refused", [CtrlType.SET_HASH_ALGORITHM, CtrlType.SET_HASH_KEY, CtrlType.SET_HASH_FLAGS]
)
async def test_a_guest_does_without_what_is_refused(
    xen: Path, network: PythonNetwork, monkeypatch: pytest.MonkeyPatch, refused: CtrlType
) -> None:
    """Its multicast list comes after that, and its frames pass."""
    requests = recorded(monkeypatch, refused)
    config = FrontConfig(hash=HASHED, multicast=frozenset({bytes.fromhex("01005e000001")}))
    async with serving(xen, network) as backend, Frontend(xen, config=config) as vif:
        await backend.attach(vif.guest.domid, "python:lan")
        async with asyncio.timeout(SECONDS):
            await vif.connected()
            while not (await of_the_backend(backend))["tx_multicast"]:
                await backend.store.read("/local/domain/0/name")
            assert vif.hash is None
            assert requests[-1].type == refused
            await network.send(frames.BLANK4[0][10:])
            await vif.network.recv()
        assert (await counters(vif))["rx_hashed"] == 0
