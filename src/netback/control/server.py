# SPDX-License-Identifier: Apache-2.0
"""Answers questions on the control socket.

This module transports questions and answers; the backend supplies a table of functions that compute the
answers.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

from netback.control import protocol
from netback.directory import Directory
from netback.observe.trace import LogBudget

log = logging.getLogger("netback.control")

_MAX_CONNECTIONS = 32
"""Connections served at the same time; one more is closed without an answer."""


@asynccontextmanager
async def serve_control(
    directory: Directory, domid: int, answers: Mapping[str, Callable[[], object]]
) -> AsyncIterator[None]:
    """Answer while the context lasts. The caller holds the backend's lock, so an existing socket is a dead process's.

    `answers` has a function for each question; each is called in the loop's thread. ConfigError: the socket cannot be
    made.
    """
    answering: set[asyncio.Task[None]] = set()
    budget = LogBudget()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        answering.add(task)
        try:
            if len(answering) <= _MAX_CONNECTIONS:
                async with asyncio.timeout(protocol.ANSWER_SECONDS):
                    writer.write(_answer(await reader.readline(), answers, budget))
                    await writer.drain()
        except (OSError, TimeoutError, ValueError):  # ValueError: the question is longer than the limit
            pass
        finally:
            answering.discard(task)
            writer.close()

    name = protocol.socket_name(domid)
    server = await asyncio.start_unix_server(
        answer, sock=directory.listen(name), limit=protocol.MAX_QUESTION, backlog=_MAX_CONNECTIONS
    )
    try:
        yield
    finally:
        server.close()
        directory.unlink(name)
        for task in tuple(answering):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*answering, return_exceptions=True)


def _answer(question: bytes, answers: Mapping[str, Callable[[], object]], budget: LogBudget) -> bytes:
    name = question.decode(errors="replace").strip()
    if name not in answers:
        return protocol.encode_error(f"unknown question {name!a}; there are {', '.join(answers)}")
    try:
        return protocol.encode_result(answers[name]())
    except Exception as error:  # a bug in one answer must not end the backend
        budget.warn(log, f"cannot answer {name}: {error!r}")
        return protocol.encode_error(f"cannot answer {name}: {error!r}")
