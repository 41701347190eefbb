# SPDX-License-Identifier: Apache-2.0
"""Queries a running backend over its control socket."""

import asyncio
from pathlib import Path
from typing import TypeVar

from netback.control import protocol
from netback.control.protocol import ControlError

Result = TypeVar("Result")


async def ask(
    directory: Path, domid: int, question: str, wanted: type[Result], argument: object = None
) -> Result | None:
    """The backend's answer as `wanted`, or None if no backend listens.

    `directory` is the backend's runtime directory, `domid` the domain that it serves. ControlError: a process listens
    but does not answer within `protocol.ANSWER_SECONDS`, ends while it answers, refuses, or answers nonsense.
    """
    path = directory / protocol.socket_name(domid)
    try:
        async with asyncio.timeout(protocol.ANSWER_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(path), limit=protocol.MAX_ANSWER)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return None
    except (OSError, TimeoutError) as error:
        raise ControlError(f"{path}: {_reason(error)}") from error
    try:
        async with asyncio.timeout(protocol.ANSWER_SECONDS):
            writer.write(protocol.encode_question(question, argument))
            await writer.drain()
            line = await reader.readline()
        return protocol.decode_answer(line, wanted)
    except ControlError as error:
        raise ControlError(f"{path}: {error}") from error
    except (OSError, TimeoutError, ValueError) as error:
        raise ControlError(f"{path}: {_reason(error)}") from error
    finally:
        writer.close()


def _reason(error: Exception) -> str:
    match error:
        case TimeoutError():
            return f"no answer within {protocol.ANSWER_SECONDS:.0f} s"
        case OSError():
            return error.strerror or str(error)
        case _:
            return "the answer is too long"
