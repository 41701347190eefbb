# SPDX-License-Identifier: Apache-2.0
"""The filter `pcap` of one device: its frames, kept in a file as a node of the backend's directory says."""

import asyncio
from contextlib import ExitStack

from netback.errors import ConfigError
from netback.observe.captures import Captures
from netback.observe.choice import Choice
from netback.observe.pcap import RING_BYTES, PcapFile, PcapSpec, PcapState, parse_pcap
from netback.vif.vif import Vif


class PcapFilter:
    """Off until `apply`. An error of it is its own: the device goes on without it."""

    def __init__(self, name: str, captures: Captures) -> None:
        self._name, self._captures = name, captures
        self._file: PcapFile | None = None
        self._undo = ExitStack()
        self._changing = asyncio.Lock()
        self._text = ""
        self.error = ""
        """Why it is off, though it was asked for."""

    @property
    def state(self) -> PcapState | None:
        """How it does; None if it is off."""
        if self._file is not None:
            return self._file.state
        return PcapState(self._text, 0, 0, self.error) if self.error else None

    async def apply(self, text: str, vif: Vif) -> None:
        """Keep the frames of a vif as `text` says (`parse_pcap`), none if it is empty. Any task may call this."""
        async with self._changing:
            spec, self._text, self.error = None, text, ""
            try:
                spec = parse_pcap(text) if text else None
            except ConfigError as error:
                self.error = str(error)
            if spec == (None if self._file is None else self._file.spec):
                return
            await self._end(vif)
            if spec is not None:
                await self._begin(spec, vif)

    async def close(self) -> None:
        """End it: the vif is released. It begins again with `apply`."""
        async with self._changing:
            await self._end(None)

    async def _begin(self, spec: PcapSpec, vif: Vif) -> None:
        choice = Choice(frozenset({self._name}), snaplen=spec.snaplen)
        with ExitStack() as undo:
            try:
                capture = undo.enter_context(self._captures.begun(choice, RING_BYTES))
                self._file = PcapFile(self._name, spec, capture)
            except OSError as error:
                self.error = f"pcap: {error.strerror or error}"
                return
            self._undo = undo.pop_all()
        await vif.watch()

    async def _end(self, vif: Vif | None) -> None:
        if (file := self._file) is None:
            return
        self._file = None
        try:
            self._undo.close()  # no queue gets a sink of it any more
            if vif is not None:
                await vif.watch()
        finally:
            file.stop()
            await asyncio.to_thread(file.join)
