# SPDX-License-Identifier: Apache-2.0
"""A guest's netfront: the xenbus handshake, and the queue that exists between Connected and Closing.

This module has the states and keys of one device; the queue handles frames.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from netback.abi.netif import Status
from netback.abi.netif_control import CtrlType, HashAlgorithm
from netback.abi.netif_keys import Key
from netback.abi.xenbus import XenbusState
from netback.abi.xs_wire import Errno
from netback.dataplane.front.queue import FrontQueue
from netback.dataplane.notices import Notice
from netback.dataplane.peers.peer import Peer
from netback.dataplane.toeplitz import Toeplitz
from netback.dataplane.worker import Worker
from netback.errors import NetbackError
from netback.frontend.config import (
    FEATURE_KEYS,
    BackFeatures,
    FrontConfig,
    Handshake,
    HashConfig,
    parse_mtu,
)
from netback.frontend.control import ControlError, FrontControl
from netback.frontend.guest import Guest
from netback.frontend.rings import Rings
from netback.net.base import Network
from netback.net.python import PythonNetwork
from netback.platforms.base import Domain
from netback.vif.features import parse_mac
from netback.vif.steering import duplicate_peer
from netback.xenstore.aio import Store, StoreError

T = TypeVar("T")

_CLOSE_SECONDS = 5.0
"""Seconds that a closing guest waits for its backend, which may have ended."""
_ANSWERS = {
    XenbusState.CLOSING: {XenbusState.CLOSING, XenbusState.CLOSED, XenbusState.UNKNOWN},
    XenbusState.CLOSED: {XenbusState.CLOSED, XenbusState.UNKNOWN},
    XenbusState.INITIALISING: {XenbusState.INIT_WAIT, XenbusState.UNKNOWN},
}
"""For each state of a frontend that leaves: the backend's states that answer it."""
_ANSWER_SECONDS = 0.001
"""Seconds between two looks for the response to a change of the multicast list: no event announces it."""


class BackendError(NetbackError):
    """The backend lacks a feature that this frontend requires."""


class Frontend:
    """One vif of a guest, as Linux's netfront drives it.

    `where` is a Guest, or an argument for one of its own: the directory of an emulated Xen, or a domain of a real one.
    Once `device/vif/INDEX` exists the handshake runs by itself: the frontend follows a backend that closes, connects
    again when one offers, and does not notice one that restarts.

    async with Frontend(directory, name="guest") as vif:
        await backend.attach(vif.guest.domid, net="null")
        await vif.connected()
        await vif.network.send(frame)

    Without a `network` the caller is the guest's stack: `network` is then a PythonNetwork with virtio_net_hdr.
    `handshake` is the order of its keys and states, by default Linux's.
    `on_state(side, state)` is called for each state that is written or read; `side` is "frontend" or "backend".
    `on_notice(number, notice)` is called when the condition of a queue changes. Other arguments are Guest's.
    """

    guest: Guest

    def __init__(
        self,
        where: Guest | Domain | Path | str,
        network: Network | None = None,
        *,
        index: int = 0,
        config: FrontConfig = FrontConfig(),  # noqa: B008 (frozen)
        handshake: Handshake = Handshake(),  # noqa: B008 (frozen)
        on_state: Callable[[str, XenbusState], None] = lambda _side, _state: None,
        on_notice: Callable[[int, Notice], None] = lambda _number, _notice: None,
        domid: int | None = None,
        name: str = "",
        cpu: int | None = None,
    ) -> None:
        self._own = None if isinstance(where, Guest) else Guest(where, domid=domid, name=name, cpu=cpu)
        if isinstance(where, Guest):
            self.guest = where
        self._made = [] if network is not None else [PythonNetwork("guest", vnet_hdr=True)]
        self.network: Network = network if network is not None else self._made[0]
        self.index = index
        self.config = config
        self.handshake = handshake
        self.path = f"device/vif/{index}"
        self.backend_path = ""
        self.state = XenbusState.UNKNOWN
        self.backend_state = XenbusState.UNKNOWN
        self.carrier = True
        """Whether the backend's link is up."""
        self._mtu = ""
        self.features: BackFeatures | None = None
        self._rings: list[Rings] = []
        self.queues: list[FrontQueue] = []
        """The queues in their order; empty without a connection."""
        self.control: FrontControl | None = None
        """The connection's control ring, if the backend offers one."""
        self.hash: HashConfig | None = None
        """The hash in force: frames of either direction go with it."""
        self.staged = False
        """All buffers are staged."""
        self._on_state, self._on_notice = on_state, on_notice
        self._serving = False
        self._leaving = False
        self._failure: BaseException | None = None
        self._listed: set[bytes] = set()
        """The addresses in the backend's multicast list."""
        self._listing = asyncio.Lock()
        self._settling: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._acting = asyncio.Lock()
        self._duplicates = ExitStack()
        self._undo = AsyncExitStack()
        self._react: dict[XenbusState, Callable[[], Awaitable[None]]] = {
            XenbusState.INITIALISING: self._connect_early,
            XenbusState.INIT_WAIT: self._connect,
            XenbusState.CONNECTED: self._start,
            XenbusState.CLOSING: self._follow_close,
            XenbusState.CLOSED: self._follow_close,
            XenbusState.UNKNOWN: self._follow_close,
        }

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as undo:
            if self._own is not None:
                self.guest = await undo.enter_async_context(self._own)
            self.guest.domain.claim(self.path)
            for network in self._made:
                undo.callback(network.remove)
            task = asyncio.get_running_loop().create_task(self._follow_device())
            task.add_done_callback(self._ended)
            undo.push_async_callback(_cancel, task)
            self._undo = undo.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def rings(self) -> Rings | None:
        """The rings of queue 0."""
        return self._rings[0] if self._rings else None

    @property
    def queue(self) -> FrontQueue | None:
        """Queue 0, the only one unless `config` asks for more."""
        return self.queues[0] if self.queues else None

    @property
    def store(self) -> Store:
        """The guest's store connection."""
        return self.guest.store

    @property
    def broken(self) -> str | None:
        """How the backend broke the protocol; a queue on which it did is stopped. None otherwise."""
        return next((queue.broken for queue in self.queues if queue.broken), None)

    @property
    def mtu(self) -> int:
        """The MTU that its link has, if that is a tap of netback's."""
        return parse_mtu(self._mtu, sg=self.features is not None and self.features.sg and self.config.sg)

    async def connected(self) -> None:
        """Wait until frames can pass. BackendError: the backend cannot serve this frontend; PlatformError: no store."""
        await self.until(lambda: self._serving)

    async def disconnected(self) -> None:
        """Wait until the rings are gone. Errors are those of `until`."""
        await self.until(lambda: self.rings is None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` is true, testing it after each change of this device or its queue.

        Raises the error that ended the device's task: BackendError, or PlatformError if the store is gone.
        """
        while not condition():
            if self._failure is not None:
                raise self._failure
            self._news.clear()
            await self._news.wait()

    async def set_multicast(self, addresses: frozenset[bytes] | None) -> frozenset[bytes]:
        """Receive multicast frames of these addresses only, each 6 bytes; None: of all. Returns those that the backend
        refused, since its list is full.

        For a connected vif. BackendError: the backend does not filter, or the vif is closing.
        """
        if self.features is None or not self.features.multicast:
            raise BackendError(f"{self.backend_path}: the backend has no {Key.MULTICAST}")
        self.config = replace(self.config, multicast=addresses)
        refused = await self._list_multicast()
        await self.store.write(f"{self.path}/{Key.REQUEST_MULTICAST}", str(int(addresses is not None)))
        return refused

    async def set_xdp_headroom(self, headroom: int) -> None:
        """Ask for this many bytes before each received frame, in the order in which Linux's netfront does when it
        attaches an XDP program: Reconfiguring, the key, wait for Reconfigured, Connected.

        For a connected vif. BackendError: the backend has no such feature.
        """
        if self.features is None or not self.features.xdp:
            raise BackendError(f"{self.backend_path}: the backend has no {Key.XDP}")
        self.config = replace(self.config, xdp_headroom=headroom)
        await self._set_state(XenbusState.RECONFIGURING)
        await self.store.write(f"{self.path}/{Key.XDP_HEADROOM}", str(headroom))
        await self.until(lambda: self.backend_state is XenbusState.RECONFIGURED)
        await self._set_state(XenbusState.CONNECTED)

    async def reload(self) -> None:
        """Close in order and write Initialising again, as a reloaded driver does."""
        await self._leave()
        self._leaving = False
        if self.state is XenbusState.INITIALISING:
            await self._act()
        else:
            await self._set_state(XenbusState.INITIALISING)

    async def stage(self) -> None:
        """Have the backend keep all buffers mapped: frames then take no grant operation. ControlError: it refuses."""
        control = self._need_control()
        for number, rings in enumerate(self._rings):
            await control.stage(number, rings.tx_buffers, readonly=True)
            await control.stage(number, rings.rx_buffers, readonly=False)
        self.staged = True
        self._news.set()

    async def set_hash(self, hash: HashConfig | None) -> None:
        """Select the hash that goes with frames of both directions, or none; with several queues the backend also
        steers frames by it, to each queue in turn.

        For a connected vif. BackendError: it has no control ring; ControlError: the backend refuses.
        """
        control = self._need_control()
        await self._use_hash(None)
        if hash is None or len(self.queues) < hash.min_queues:
            await control.require(CtrlType.SET_HASH_ALGORITHM, HashAlgorithm.NONE)
            return
        size = await control.require(CtrlType.GET_HASH_MAPPING_SIZE)
        mapping = [entry % len(self.queues) for entry in range(size)]
        await control.set_hash(hash.types, hash.key, mapping)
        await self._use_hash(hash)

    async def close(self) -> None:
        """Close in order, and end a guest that was created here. The network stays open. May be called again."""
        try:
            if self.rings is not None and self._failure is None:
                await self._leave()
        finally:
            await self._disconnect()
            await self._undo.aclose()

    # ---- following the device

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and self._failure is None:
            self._failure = task.exception()
        self._news.set()

    async def _follow_device(self) -> None:
        """Follow `backend`: the device may appear late, vanish, and appear again with another backend."""
        following: asyncio.Task[None] | None = None
        try:
            async with await self.store.watch(f"{self.path}/backend") as watch:
                async for _ in watch:
                    backend = await self.store.read_or(f"{self.path}/backend", "") or ""
                    if backend == self.backend_path:
                        continue
                    await _cancel(following)
                    self.backend_path = backend
                    following = asyncio.get_running_loop().create_task(self._follow_backend(backend))
                    following.add_done_callback(self._ended)
        finally:
            await _cancel(following)

    async def _follow_backend(self, backend: str) -> None:
        if not backend:
            await self._see(XenbusState.UNKNOWN)
            return
        loop = asyncio.get_running_loop()
        followers = (
            self._follow_carrier(f"{backend}/{Key.CARRIER}"),
            self._follow_mtu(f"{self.path}/{Key.MTU}"),
        )
        tasks = [loop.create_task(follower) for follower in followers]
        for task in tasks:
            task.add_done_callback(self._ended)
        try:
            async with await self.store.watch(f"{backend}/state") as watch:
                async for _ in watch:
                    await self._see(await self._read_state(f"{backend}/state"))
        finally:
            await _cancel(*tasks)

    async def _follow_carrier(self, path: str) -> None:
        """Follow the backend's `carrier`; a node that is missing or may not be read means that the link is up."""
        async with await self.store.watch(path) as watch:
            async for _ in watch:
                self.carrier = await self._read(path) != "0"
                if self._serving:
                    self.network.carrier(self.carrier)
                self._news.set()

    async def _follow_mtu(self, path: str) -> None:
        """Follow the key that gives the link its MTU."""
        async with await self.store.watch(path) as watch:
            async for _ in watch:
                self._mtu = await self._read(path)
                if self._serving:
                    self.network.set_mtu(self.mtu)
                self._news.set()

    async def _see(self, state: XenbusState) -> None:
        if state != self.backend_state:
            self.backend_state = state
            self._on_state("backend", state)
        await self._act()
        self._news.set()

    async def _act(self) -> None:
        """React to the backend's state, unless this frontend is on its way down."""
        async with self._acting:
            react = self._react.get(self.backend_state)
            if react is not None and (not self._leaving or self.backend_state is XenbusState.UNKNOWN):
                await react()

    async def _read_state(self, path: str) -> XenbusState:
        return XenbusState.parse(await self._read(path))

    async def _read(self, path: str) -> str:
        """A node of the backend's directory, empty if it is missing. Any refusal but EIO (the end of the store) counts
        as that: for a removed directory the store may answer EACCES.
        """
        try:
            return await self.store.read(path)
        except StoreError as error:
            if error.errno == Errno.EIO:
                raise
            return ""

    async def _set_state(self, state: XenbusState) -> None:
        await self.store.write(f"{self.path}/state", str(state.value))
        self._reached(state)

    def _reached(self, state: XenbusState) -> None:
        self.state = state
        self._on_state("frontend", state)
        self._news.set()

    # ---- actions by the backend's state

    async def _connect_early(self) -> None:
        if not self.handshake.waits:
            await self._connect()

    async def _connect(self) -> None:
        """InitWait: the offer is complete. Create rings, write their keys, then Connected."""
        if self.rings is not None:
            return
        self.features = await self._read_features()
        if not self.features.rx_copy:
            raise BackendError(f"{self.backend_path}: the backend has no feature-rx-copy")
        with suppress(ValueError):  # no address, or an invalid one: the link keeps its own
            self.network.set_address(parse_mac(await self.store.read_or(f"{self.path}/mac")))
        backend = int(await self.store.read(f"{self.path}/backend-id"))
        split = self.config.split and self.features.split
        count = min(self.config.queues, self.features.queues)
        for _ in range(count):
            self._rings.append(Rings(self.guest.domain, self.guest.domain.events, backend, split=split))
        if not self.handshake.posts_late:
            self._open_queues(self.features)
        nodes = {
            f"{path}{key}": value for path, rings in self._paths() for key, value in rings.nodes().items()
        }
        if count > 1:
            nodes[Key.QUEUES] = str(count)
        if self.config.uses_control and self.features.control:
            self.control = FrontControl(self.guest.domain, backend)
            nodes |= self.control.nodes()
        await self._publish(self.handshake.sort(nodes | self.config.nodes(), self.features.keys))

    async def _start(self) -> None:
        """Connected: the worker starts both rings, posts buffers, and notifies the backend once."""
        if self.rings is None or self.features is None or self._serving:
            return
        if not self.queues:
            self._open_queues(self.features)
        self.network.offloads(self.features.caps & self.config.tx)
        self.network.set_mtu(self.mtu)
        self.network.carrier(self.carrier)
        for number, queue in enumerate(self.queues):
            receives = number < len(self.network.peers)
            await self.guest.serve(queue, partial(self._noticed, number), receives=receives)
        self._serving = True
        self._settling = asyncio.get_running_loop().create_task(self._settle(self.features))
        self._settling.add_done_callback(self._ended)

    def _noticed(self, number: int, notice: Notice) -> None:
        self._on_notice(number, notice)
        self._news.set()

    async def _settle(self, features: BackFeatures) -> None:
        """Ask for what this guest wants beside its keys. It does without what the backend refuses."""
        if self.control is not None:
            with suppress(ControlError):
                if self.config.stage:
                    await self.stage()
            with suppress(ControlError, BackendError):
                if self.config.hash is not None:
                    await self.set_hash(self.config.hash)
        if self.config.multicast and features.multicast:
            with suppress(BackendError):  # the vif closes, and the list ends with it
                await self._list_multicast()

    def _need_control(self) -> FrontControl:
        if self.control is None:
            raise BackendError(f"{self.path}: the vif has no control ring")
        return self.control

    async def _use_hash(self, hash: HashConfig | None) -> None:
        """Have each queue send the hash of its frames, and compare those that come; or neither."""
        made = None if hash is None else Toeplitz(hash.key, int(hash.types))
        for queue in self.queues:
            await self.guest.submit(partial(_call, lambda queue: queue.set_hash(made), queue))
        self.hash = hash
        self._news.set()

    async def _list_multicast(self) -> frozenset[bytes]:
        """Make the backend's list that of the configuration; returns the addresses that it refused."""
        async with self._listing:
            wanted = self.config.multicast or frozenset()
            for address in self._listed - wanted:
                await self._change_multicast(address, add=False)
            refused = [
                one for one in wanted - self._listed if not await self._change_multicast(one, add=True)
            ]
            return frozenset(refused)

    async def _change_multicast(self, address: bytes, *, add: bool) -> bool:
        """Change the backend's list by one address; False: it refused."""
        await self._ask_queue(lambda queue: queue.change_multicast(address, add=add) or None)
        status = await self._ask_queue(lambda queue: queue.multicast_changed)
        if status == Status.OKAY:
            (self._listed.add if add else self._listed.discard)(address)
        return status == Status.OKAY

    async def _ask_queue(self, call: Callable[[FrontQueue], T | None]) -> T:
        """Run `call` in the worker's thread until it returns a value. BackendError: the queue is gone."""
        while (queue := self.queue) is not None and not queue.broken:
            answer = await self.guest.submit(partial(_call, call, queue))
            if answer is not None:
                return answer
            await asyncio.sleep(_ANSWER_SECONDS)
        raise BackendError(f"{self.path}: the vif is closing")

    async def _follow_close(self) -> None:
        """Closing or gone: revoke everything that the backend could use, then write Closed."""
        if not self.handshake.follows and self.backend_state is not XenbusState.UNKNOWN:
            return
        await self._disconnect()
        if self.backend_state is not XenbusState.UNKNOWN and self.state is not XenbusState.CLOSED:
            await self._set_state(XenbusState.CLOSED)

    async def _disconnect(self) -> None:
        """Take the queues from the worker, then free the rings. Can be called at any time, any number of times."""
        queues, rings, control = self.queues, self._rings, self.control
        self.queues, self._rings, self.control = [], [], None
        self._serving = False
        self.hash, self.staged = None, False
        settling, self._settling = self._settling, None
        self._listed.clear()
        try:
            await _cancel(settling)
            if queues:
                self.network.carrier(False)
            for queue in queues:
                await self.guest.release(queue)
        finally:
            self._duplicates.close()
            for each in rings:
                each.close()
            if control is not None:
                control.close()
            self._news.set()

    async def _leave(self) -> None:
        """Write the handshake's last states and wait for the backend after each, for at most 5 s; free the rings."""
        async with self._acting:
            self._leaving = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                for state in self.handshake.leaves:
                    await self._set_state(state)
                    await self._answered(_ANSWERS[state])
        await self._disconnect()
        for key in self.handshake.removes:
            await self.store.rm(f"{self.path}/{key}", missing_ok=True)

    async def _answered(self, states: Collection[XenbusState]) -> None:
        await self.until(lambda: self.backend_state in states)

    # ---- keys

    async def _read_features(self) -> BackFeatures:
        return BackFeatures.of(
            {key: await self.store.read_or(f"{self.backend_path}/{key}") for key in FEATURE_KEYS}
        )

    async def _publish(self, nodes: dict[str, str]) -> None:
        """Write all keys, then Connected, in as many steps as the handshake has."""
        state = XenbusState.CONNECTED
        first = {key: nodes.pop(key) for key in self.handshake.first if key in nodes}
        for key, value in first.items():
            await self.store.write(f"{self.path}/{key}", value)
        if self.handshake.transaction:
            last = {"state": str(state.value)} if self.handshake.state_with_keys else {}
            await self.store.transact(lambda tx: self._write(nodes | last, tx))
        else:
            await self._write(nodes)
        if self.handshake.state_with_keys:
            self._reached(state)
        else:
            await self._set_state(state)

    async def _write(self, nodes: dict[str, str], tx: int | None = None) -> None:
        """Remove the keys of an earlier connection that this one has not, and write these."""
        stale = _ALL_KEYS - {*nodes, *self.handshake.first}
        for key in await self.store.directory(self.path, tx):
            if key in stale or key.startswith("queue-"):
                await self.store.rm(f"{self.path}/{key}", tx)
        for key, value in nodes.items():
            await self.store.write(f"{self.path}/{key}", value, tx)

    def _paths(self) -> list[tuple[str, Rings]]:
        """The directory of each queue's keys: one queue has them beside the others (netif.h)."""
        if len(self._rings) == 1:
            return [("", self._rings[0])]
        return [(f"queue-{number}/", rings) for number, rings in enumerate(self._rings)]

    def _open_queues(self, features: BackFeatures) -> None:
        self.network.set_queues(len(self._rings))
        peers = list(self.network.peers)
        while len(peers) < len(self._rings):
            peers.append(duplicate_peer(peers[0], self._duplicates))
        self.queues = [
            self._open_queue(rings, peer, features) for rings, peer in zip(self._rings, peers, strict=True)
        ]

    def _open_queue(self, rings: Rings, peer: Peer, features: BackFeatures) -> FrontQueue:
        return FrontQueue(
            self.guest.domain.events.native,
            peer,
            tx_ring=rings.tx.address,
            rx_ring=rings.rx.address,
            tx_pages=[(granted.address, granted.gref) for granted in rings.tx_buffers],
            rx_pages=[(granted.address, granted.gref) for granted in rings.rx_buffers],
            tx_port=rings.tx_port,
            rx_port=rings.rx_port,
            caps=features.caps & self.config.tx,
            sg=features.sg and self.config.sg,
            tx_slots=self.config.tx_slots,
            rx_slots=self.config.rx_slots,
            rx_notify=self.config.rx_notify,
            keep=rings,
        )


_ALL_KEYS = {
    Key.QUEUES,
    *FrontConfig(csum4=False, multicast=frozenset(), xdp_headroom=1).nodes(),
    Key.TX_RING_REF,
    Key.RX_RING_REF,
    Key.EVENT_CHANNEL,
    Key.CTRL_RING_REF,
    Key.EVENT_CHANNEL_CTRL,
    Key.EVENT_CHANNEL_TX,
    Key.EVENT_CHANNEL_RX,
}


def _call(call: Callable[[FrontQueue], T], queue: FrontQueue, _worker: Worker) -> T:
    return call(queue)


async def _cancel(*tasks: "asyncio.Task[Any] | None") -> None:
    """Cancel tasks and wait for all of them, even if the caller is cancelled meanwhile. `_ended` keeps their errors."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    cancelled: asyncio.CancelledError | None = None
    while any(not task.done() for task in running):
        try:
            await asyncio.wait(running)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
