# SPDX-License-Identifier: Apache-2.0
"""A learning switch in plain Python, from docs/decisions.md alone. It imports nothing of netback.

It has no bound on the table: a test gives it fewer addresses than a set holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Known:
    port: int
    seen: int
    """Second of the last frame."""


class SwitchOracle:
    """Ports are numbers; `send` returns which of them get a frame."""

    def __init__(self, ports: Iterable[int], *, ageing: int, limit: int, learns: bool = True) -> None:
        self._ports = set(ports)
        self._open: set[int] = set()
        self._ageing, self._limit, self._learns = ageing, limit, learns
        self._known: dict[bytes, Known] = {}
        self._purged: dict[int, int] = {}

    def open(self, port: int, on: bool) -> None:
        if on:
            self._open.add(port)
        else:
            self._open.discard(port)
            self._known = {address: known for address, known in self._known.items() if known.port != port}

    def send(self, port: int, frame: bytes, now: int) -> set[int]:
        to, sender = frame[:6], frame[6:12]
        if self._learns and not sender[0] & 1:
            self._see(sender, port, now)
        others = self._open - {port}
        known = self._known.get(to)
        if not self._learns or to[0] & 1 or known is None or self._aged(known, now):
            return others
        return others & {known.port}

    def addresses(self, now: int) -> dict[bytes, int]:
        return {address: known.port for address, known in self._known.items() if not self._aged(known, now)}

    def _aged(self, known: Known, now: int) -> bool:
        return now - known.seen >= self._ageing

    def _see(self, address: bytes, port: int, now: int) -> None:
        known = self._known.get(address)
        if known is not None and known.port == port:
            known.seen = now
        elif port in self._open and self._has_room(port, now):
            self._known[address] = Known(port, now)

    def _has_room(self, port: int, now: int) -> bool:
        """A full port's aged addresses are freed, at most once a second."""
        if self._count(port) >= self._limit and self._purged.get(port) != now:
            self._purged[port] = now
            self._known = {
                address: known
                for address, known in self._known.items()
                if known.port != port or not self._aged(known, now)
            }
        return self._count(port) < self._limit

    def _count(self, port: int) -> int:
        return sum(known.port == port for known in self._known.values())
