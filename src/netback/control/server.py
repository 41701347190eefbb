# SPDX-License-Identifier: Apache-2.0
"""Answers questions on the control socket.

This module transports questions and answers; the backend supplies a table of functions that compute the
answers.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress

from netback.control import protocol
from netback.directory import Directory
from netback.errors import NetbackError, printable
from netback.observe.trace import LogBudget

log = logging.getLogger("netback.control")

_MAX_CONNECTIONS = 32
"""Connections served at the same time; one more is closed without an answer."""


Answers = Mapping[str, Callable[[bytes], Awaitable[object]]]
"""A coroutine for each question: from the argument's JSON, empty without one, to the result. A NetbackError that it
raises is the answer."""


@asynccontextmanager
async def serve_control(directory: Directory, domid: int, answers: Answers) -> AsyncIterator[None]:
    """Answer while the context lasts. The caller holds the backend's lock, so an existing socket is a dead process's.

    Each of the `answers` runs in the loop's thread, as long as the asker waits. ConfigError: the socket cannot be made.
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
                    writer.write(await _answer(await reader.readline(), answers, budget))
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


async def _answer(question: bytes, answers: Answers, budget: LogBudget) -> bytes:
    word, _, argument = question.strip().partition(b" ")
    name = word.decode(errors="replace")
    if name not in answers:
        return protocol.encode_error(f"unknown question {name!a}; there are {', '.join(answers)}")
    try:
        return protocol.encode_result(await answers[name](argument))
    except NetbackError as error:
        return protocol.encode_error(printable(str(error)))
    except Exception as error:  # a bug in one answer must not end the backend
        budget.warn(log, f"cannot answer {name}: {error!r}")
        return protocol.encode_error(f"cannot answer {name}: {error!r}")
