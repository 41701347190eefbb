# SPDX-License-Identifier: Apache-2.0
"""The public client of a running backend: one method for each of the control socket's, typed, without an event loop."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from netback.control import rpc, schema
from netback.control.connection import Connection, ControlError
from netback.directory import check_trusted
from netback.observe.choice import MAX_FRAME, Direction, RecordMode

if TYPE_CHECKING:
    from netback.control.capture import Capture

ANSWER_SECONDS = 10.0
"""Seconds to wait for an answer, beside the time for which a method waits for a guest."""
DEFAULT_DIRECTORY = Path("/run/netback")
"""The runtime directory of a backend on real Xen."""
_JOIN_SECONDS = 3.0
"""Seconds for which `attach` waits for its guest."""

R = TypeVar("R", bound=schema.Result)


class Subscription(Generic[R]):
    """The events of a topic, one after another, until it is closed. A ControlError of iteration: the backend ended, or
    ended the subscription.
    """

    def __init__(self, connection: Connection, wanted: type[R]) -> None:
        self.lost = 0
        """Events (of statistics: snapshots) that were lost so far, since this process read too slowly."""
        self._connection = connection
        self._wanted: type[list[R]] = list[wanted]  # type: ignore[valid-type]
        self._events: deque[R] = deque()
        self._more = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[R]:
        while True:
            while self._events:
                yield self._events.popleft()
            self._receive()

    def moments(self) -> Iterator[list[R]]:
        """The events, each list those of one moment: a snapshot of statistics, or what happened since the last list."""
        while True:
            self._receive()
            if not self._more:
                yield [*self._events]
                self._events.clear()

    def close(self) -> None:
        """End the subscription; may be called again."""
        self._connection.close()

    def _receive(self) -> None:
        received = self._connection.event(None)
        self.lost += received.lost
        self._more = received.more
        self._events += self._connection.decode(received.events, self._wanted)


class Client:
    """A connection to the backend whose runtime directory is `directory`.

    with Client() as netback:
        for device in netback.devices():
            print(device.device, device.backend)

    `seconds` is how long to wait for each answer. Every error is a ControlError: NoBackend if none listens, Refused if
    a request is wrong. ConfigError: the directory does not belong to root or to this user, or others may write to it.
    """

    def __init__(self, directory: Path = DEFAULT_DIRECTORY, *, seconds: float = ANSWER_SECONDS) -> None:
        check_trusted(directory)
        self._path = directory / rpc.SOCKET
        self._seconds = seconds
        self._connection = Connection(self._path, seconds)
        self.backend = self._greet(self._connection)
        """The backend as it was when the connection was made."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; may be called again."""
        self._connection.close()

    def info(self) -> schema.Info:
        """Which backend listens."""
        return self._call("info", schema.NoParameters(), schema.Info)

    def devices(self, device: str | None = None) -> list[schema.DeviceStatus]:
        """Every device in the store, or the one of that name."""
        return self._call("list", schema.ListRequest(device=device), schema.Devices).devices

    def find(self, guest: str, *, type: schema.DeviceType | None = None, index: int | None = None) -> str:
        """The name of a guest's device."""
        request = schema.FindRequest(guest=guest, type=type, index=index)
        return self._call("find", request, schema.DeviceName).device

    def show(self, device: str) -> schema.Details:
        """Everything of a device but the slots of its rings."""
        return self._call("show", schema.DeviceRequest(device=device), schema.Details)

    def rings(self, device: str) -> schema.Rings:
        """All rings of a device, slot by slot."""
        return self._call("rings", schema.DeviceRequest(device=device), schema.Rings)

    def explain(self, device: str, *, seconds: float = 1.0) -> schema.Explanation:
        """Why a device is not connected, or slow, or loses frames. `seconds`, 8 at most: between two readings."""
        request = schema.ExplainRequest(device=device, seconds=seconds)
        return self._call("explain", request, schema.Explanation, seconds)

    def set(
        self,
        device: str,
        *,
        tx_rate: str | None = None,
        rx_rate: str | None = None,
        carrier: bool | None = None,
        link: bool | None = None,
        mtu: int | None = None,
        filters: Sequence[str] | None = None,
        pcap: str | None = None,
        record: RecordMode | None = None,
    ) -> schema.Settings:
        """Change a device; None: no change."""
        request = schema.SetRequest(
            device=device,
            tx_rate=tx_rate,
            rx_rate=rx_rate,
            carrier=carrier,
            link=link,
            mtu=mtu,
            filters=None if filters is None else tuple(filters),
            pcap=pcap,
            record=record,
        )
        return self._call("set", request, schema.Settings)

    def record(self, device: str, file: str) -> schema.Recorded:
        """Have the backend save what a device's recorder has, in a file that does not exist yet."""
        return self._call("record", schema.RecordRequest(device=device, file=file), schema.Recorded)

    def attach(self, request: schema.AttachRequest) -> str:
        """Give a guest a device, and return the device's name."""
        return self._call("attach", request, schema.DeviceName, _JOIN_SECONDS).device

    def detach(self, device: str, *, seconds: float = 10.0) -> bool:
        """Take a device from its guest. Returns False if the guest did not answer within `seconds`: it was forced."""
        request = schema.DetachRequest(device=device, seconds=seconds)
        return self._call("detach", request, schema.Detached, seconds).answered

    def rules(self) -> list[schema.Rule]:
        """The configuration's rules in force, in their order."""
        return self._call("rules", schema.NoParameters(), schema.Rules).rules

    def add(self, request: schema.AddRequest) -> schema.Added:
        """Add a rule, apply it at once and keep it over restarts."""
        return self._call("add", request, schema.Added)

    def remove(self, name: str, *, detach: bool = False, seconds: float = 10.0) -> list[schema.Detached]:
        """Remove a rule that was added; `detach`: also the devices that it attached, which are returned."""
        request = schema.RemoveRequest(name=name, detach=detach, seconds=seconds)
        return self._call("remove", request, schema.Removed, seconds if detach else 0.0).detached

    # ---- subscriptions, each on a connection of its own

    def states(self, device: str | None = None) -> Subscription[schema.DeviceState]:
        """The present state of each device, then each change."""
        return self._subscribe(schema.SubscribeRequest(topic="states", device=device), schema.DeviceState)

    def notices(self, device: str | None = None) -> Subscription[schema.DeviceNotice]:
        """What happens to the data path of each device."""
        return self._subscribe(schema.SubscribeRequest(topic="notices", device=device), schema.DeviceNotice)

    def statistics(
        self, interval: float = 1.0, *, device: str | None = None, queues: bool = False
    ) -> Subscription[schema.DeviceStatistics]:
        """The counters of each device, now and every `interval` seconds; `queues`: those of each queue, too."""
        request = schema.SubscribeRequest(topic="statistics", device=device, interval=interval, queues=queues)
        return self._subscribe(request, schema.DeviceStatistics)

    def trace(self, *points: str, device: str | None = None) -> Subscription[schema.TraceEvent]:
        """The trace points of these names or globs; without one all but those of slots, which slow a device down."""
        request = schema.SubscribeRequest(topic="trace", device=device, points=points)
        return self._subscribe(request, schema.TraceEvent)

    def capture(
        self,
        *devices: str,
        direction: Direction = "both",
        queue: int | None = None,
        snaplen: int = MAX_FRAME,
    ) -> "Capture":
        """The frames of these devices, or of all and of those that come later, from now on: the first `snaplen` bytes
        of each. `direction` "tx" is what guests send. See `Capture`.
        """
        from netback.control.capture import (
            Capture,  # loads the native reader, which other requests do not need
        )

        request = schema.SubscribeRequest(
            topic="frames", devices=devices, direction=direction, queue=queue, snaplen=snaplen
        )
        connection = self._begin(request)
        try:
            connection.event(time.monotonic() + self._seconds)
        except BaseException:
            connection.close()
            raise
        return Capture(connection, direction, snaplen)

    def _call(self, method: str, params: schema.Request, wanted: type[R], further: float = 0.0) -> R:
        return self._connection.call(method, params, wanted, further)

    def _subscribe(self, request: schema.SubscribeRequest, wanted: type[R]) -> Subscription[R]:
        return Subscription(self._begin(request), wanted)

    def _begin(self, request: schema.SubscribeRequest) -> Connection:
        """A connection with this subscription."""
        connection = Connection(self._path, self._seconds)
        try:
            connection.call("subscribe", request, schema.Subscribed)
        except BaseException:
            connection.close()
            raise
        return connection

    def _greet(self, connection: Connection) -> schema.Info:
        """ControlError: the backend speaks another major version."""
        try:
            info = connection.call("info", schema.NoParameters(), schema.Info)
            ours, theirs = (version.partition(".")[0] for version in (schema.VERSION, info.protocol))
            if ours != theirs:
                raise ControlError(
                    f"{self._path}: netback {info.netback} speaks version {info.protocol} of the protocol, "
                    f"this one {schema.VERSION}: use the netback of one version"
                )
        except BaseException:
            connection.close()
            raise
        return info
