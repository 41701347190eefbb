# SPDX-License-Identifier: Apache-2.0
"""One end of a TCP connection, without I/O: segments and the time are arguments.

It has no congestion control, because a ring loses frames only at a restart: everything that is not acknowledged within
RESEND_SECONDS is sent again.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from netback.net.sandbox.packets import MTU, TCP, Flag, ip_size

SEGMENTS = 44
"""MSS times this plus the headers stays below 64 KiB."""
WINDOW_SHIFT = 7
MAX_SHIFT = 14
"""RFC 7323, 2.3."""
MIN_MSS = 88
"""tcp_min_snd_mss of Linux: the smallest that the far end can ask for."""
RESEND_SECONDS = 0.2
LINGER_SECONDS = 2.0
"""A connection that has ended still answers repeated segments for so long."""
MAX_SENT = 128
"""Segments that wait for their acknowledgement: a bound on their number, which one on their bytes is not."""
OPTION_MSS, OPTION_SHIFT = 2, 3
WORD = 1 << 32
HALF = 1 << 31


def syn_options(mss: int, *, shift: bool) -> bytes:
    """The options of a SYN, to a far end that scales windows, or may."""
    head = bytes((OPTION_MSS, 4)) + mss.to_bytes(2, "big")
    return head + (bytes((OPTION_SHIFT, 3, WINDOW_SHIFT, 0)) if shift else b"")


def read_options(options: bytes) -> dict[int, bytes]:
    """TCP's options by their kind, up to the first malformed one."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(options) and options[at]:
        if options[at] == 1:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > len(options):
            break
        found[options[at]] = options[at + 2 : at + length]
        at += length
    return found


class Sender(Protocol):
    """What a connection needs of its host (tcpip.py)."""

    segmentation: bool
    in_flight: int
    patience: float | None

    def send_tcp(self, source: bytes, to: bytes, head: bytes, payload: bytes, mss: int) -> None:
        """Send a segment, whose checksum is blank in `head`."""


class Connection:
    """Data both ways: what comes goes to `on_data`, which takes up to `room()` bytes; what is sent comes from
    `on_room`.

    `changed` is set whenever `established`, `received_all` or `sent_all` may have changed. Sequence numbers are kept
    modulo 2**32, as on the wire.
    """

    def __init__(self, host: Sender, port: int) -> None:
        self.port = port
        self.near = b""
        self.far = (b"", 0)
        self.established = self.received_all = self.sent_all = False
        self.dropped = False
        """The far end reset it, or acknowledged nothing for the host's `patience`."""
        self.changed = asyncio.Event()
        self.on_data: Callable[[bytes], object] = lambda data: None
        self.on_room: Callable[[], bytes | None] | None = None
        """Returns the next bytes to send, none if there are none now, None at the end."""
        self.room: Callable[[], int] = lambda: 0xFFFF << WINDOW_SHIFT
        self._host = host
        self._next = self._oldest = 0
        self._expected = 0
        self._shift, self._scaled = 0, True
        self._mss = MIN_MSS
        self._window = MIN_MSS
        self._unacknowledged: deque[tuple[int, Flag, bytes]] = deque()
        self._rest = b""
        self._synchronised = self._ended = self._owes = False
        self._since: float | None = None
        self._silent: float | None = None
        self._offered = 0

    def open(self) -> None:
        """Send SYN."""
        self._mss = self._own_mss
        self._put(Flag.SYN, b"", syn_options(self._mss, shift=True))

    @property
    def unsent(self) -> int:
        """Bytes that `on_room` gave and that were not sent yet."""
        return len(self._rest)

    @property
    def _own_mss(self) -> int:
        return MTU - ip_size(self.far[0]) - TCP.size

    # ---- out

    def pump(self) -> None:
        """Send as much as the far end's window allows."""
        while self.on_room and not self._ended and self._may_send:
            if not self._rest:
                piece = self.on_room()
                if piece is None:
                    self._ended = True
                    self._put(Flag.FIN | Flag.ACK)
                    return
                self._rest = piece
            if not self._rest:
                return
            most = self._mss * (SEGMENTS if self._host.segmentation else 1)
            piece, self._rest = self._rest[:most], self._rest[most:]
            self._put(Flag.PSH | Flag.ACK, piece)

    @property
    def _may_send(self) -> bool:
        return self.established and (
            self._in_flight < min(self._window, self._host.in_flight) and len(self._unacknowledged) < MAX_SENT
        )

    @property
    def _in_flight(self) -> int:
        return (self._next - self._oldest) % WORD

    def _put(self, flags: Flag, payload: bytes = b"", options: bytes = b"") -> None:
        """Send a segment, and keep it until it is acknowledged."""
        self._unacknowledged.append((self._next, flags, payload or options))
        self._emit(self._next, flags, payload or options)
        self._next = (self._next + len(payload) + bool(flags & (Flag.SYN | Flag.FIN))) % WORD

    def _emit(self, sequence: int, flags: Flag, payload: bytes) -> None:
        options, data = (payload, b"") if flags & Flag.SYN else (b"", payload)
        words = (TCP.size + len(options)) // 4
        self._offered = self.room()
        window = min(self._offered >> (WINDOW_SHIFT if self._scaled and not flags & Flag.SYN else 0), 0xFFFF)
        head = TCP.pack(self.port, self.far[1], sequence, self._expected, words << 4, flags, window, 0, 0)
        self._host.send_tcp(self.near, self.far[0], head + options, data, self._mss)
        self._owes = False

    def acknowledge(self) -> None:
        """Send an ACK if one is owed, or if there is room again after a window of none."""
        if self._owes or (self._synchronised and self._offered < self._mss <= self.room()):
            self._emit(self._next, Flag.ACK, b"")

    def tick(self, now: float) -> None:
        """Send every unacknowledged segment again after RESEND_SECONDS without progress."""
        if self._silent is None:
            self._silent = now
        patience = LINGER_SECONDS if self.received_all and self.sent_all else self._host.patience
        if patience is not None and now - self._silent >= patience:
            self.drop()
        if not self._unacknowledged:
            self._since = None
        elif self._since is None:
            self._since = now
        elif now - self._since >= RESEND_SECONDS:
            self._since = now
            for sequence, flags, payload in self._unacknowledged:
                self._emit(sequence, flags, payload)

    def drop(self) -> None:
        """Forget the connection: nothing is sent or taken any more."""
        self.dropped = True
        self._unacknowledged.clear()
        self._owes = False
        self.changed.set()

    # ---- in

    def receive(
        self, flags: Flag, sequence: int, acknowledged: int, window: int, payload: bytes, options: bytes = b""
    ) -> None:
        """Handle a segment of this connection."""
        self._silent = None
        if flags & Flag.RST:
            if not self._synchronised or (sequence - self._expected) % WORD <= self._offered:
                self.drop()
            return
        if flags & Flag.SYN:
            self._receive_syn(flags, sequence, options)
        if flags & Flag.ACK:
            self._receive_ack(acknowledged, window << (0 if flags & Flag.SYN else self._shift))
        if payload or flags & Flag.FIN:
            self._receive_data(flags, sequence, payload)
        self.pump()

    def _receive_syn(self, flags: Flag, sequence: int, options: bytes) -> None:
        self._owes = True
        if self._synchronised:  # a repeated one
            return
        self._synchronised = True
        self._expected = (sequence + 1) % WORD
        found = read_options(options)
        wanted = int.from_bytes(found.get(OPTION_MSS, b"")[:2], "big") or MIN_MSS
        self._mss = max(MIN_MSS, min(self._own_mss, wanted))
        self._scaled = OPTION_SHIFT in found
        self._shift = min(int.from_bytes(found.get(OPTION_SHIFT, b"")[:1], "big"), MAX_SHIFT)
        if not flags & Flag.ACK and not self._unacknowledged:
            self._put(Flag.SYN | Flag.ACK, b"", syn_options(self._own_mss, shift=self._scaled))

    def _receive_ack(self, acknowledged: int, window: int) -> None:
        if (acknowledged - self._oldest) % WORD > self._in_flight:  # old, or of what was never sent
            return
        self._window = window
        if acknowledged != self._oldest:
            self._since = None
        self._oldest = acknowledged
        while self._unacknowledged and self._end_of(self._unacknowledged[0]) <= 0:
            self._unacknowledged.popleft()
        self.established = True
        self.sent_all = self._ended and not self._unacknowledged
        self.changed.set()

    def _end_of(self, sent: tuple[int, Flag, bytes]) -> int:
        """Bytes from the oldest unacknowledged sequence number to the segment's end; signed."""
        sequence, flags, payload = sent
        length = 1 if flags & Flag.SYN else len(payload) + bool(flags & Flag.FIN)
        return (sequence + length - self._oldest + HALF) % WORD - HALF

    def _receive_data(self, flags: Flag, sequence: int, payload: bytes) -> None:
        """Deliver data in order, each byte once, as much as there is room for; the sender repeats what came too early
        or found no room.
        """
        known = (self._expected - sequence) % WORD
        self._owes = True
        if known >= HALF or known > len(payload) or self.received_all:
            return
        taken = payload[known : known + self.room()]
        if taken:
            self.on_data(taken)
        self.received_all = bool(flags & Flag.FIN) and known + len(taken) == len(payload)
        self._expected = (self._expected + len(taken) + self.received_all) % WORD
        self.changed.set()
