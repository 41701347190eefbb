# SPDX-License-Identifier: Apache-2.0
"""Connections without a request: any user of the machine can open them, so they must not use up what the server has.

uvicorn counts every connection towards its limit, and waits without end for a first request.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 5.0
"""A connection that has sent no whole request after so long is closed."""
MAX_WAITING = 64
"""Connections without a request at once; one more closes the one that has waited longest."""


class PromptProtocol(H11Protocol):
    """HTTP for clients that send their requests promptly."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        self._expect_request()
        waiting = [each for each in self.connections if isinstance(each, PromptProtocol) and each.waits]
        if len(waiting) > MAX_WAITING:
            min(waiting, key=PromptProtocol.deadline).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._expect_request()
        super().on_response_complete()

    @property
    def waits(self) -> bool:
        """It is open, and no request is being answered."""
        answering = self.cycle is not None and not self.cycle.response_complete
        return not answering and not self.transport.is_closing()

    def deadline(self) -> float:
        """When its next request must have come, in the loop's time."""
        return self._deadline.when() if self._deadline is not None else 0.0

    def _expect_request(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._close_if_waiting)

    def _close_if_waiting(self) -> None:
        if self.waits:
            self.transport.abort()  # what is left to write must not keep it open
