# SPDX-License-Identifier: Apache-2.0
"""One question and one answer per connection: the question's name, for some questions a space and an argument in JSON,
and a newline; then one line of JSON.

The answer is `{"result": ...}` or `{"error": "reason"}`. Both ends limit what they read and how long they
wait. The caller defines what a question means and the type of its result.
"""

from typing import TypeVar

import msgspec

from netback.errors import NetbackError

STATUS = "status"
"""Every device that the backend serves: a list of DeviceStatus."""
OFFER = "offer"
"""The features that the backend can serve: netif.h's backend keys and their values."""
LIMIT = "limit"
"""Limit a device: a LimitRequest as argument, a LimitAnswer as result."""
RINGS = "rings"
"""All rings of a device, slot by slot: a RingsRequest as argument, a RingsAnswer as result."""

MAX_QUESTION = 4096
"""Maximum bytes of a question, argument and newline included."""
MAX_ANSWER = 64 << 20
"""Maximum bytes of an answer, newline included: a thousand devices take about a megabyte."""
ANSWER_SECONDS = 2.0
"""Seconds that either end waits for the other."""

Result = TypeVar("Result")


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One answer. `result` stays raw JSON: only the caller knows its type."""

    result: msgspec.Raw = msgspec.Raw()
    error: str = ""


class ControlError(NetbackError):
    """The other process at the control socket gave no valid answer, or asked no valid question."""


def socket_name(domid: int) -> str:
    """The path of the control socket, in the runtime directory, of the backend that serves a domain's
    devices.
    """
    return f"backend-{domid}.sock"


def encode_question(name: str, argument: object = None) -> bytes:
    """Encode a question as a line; None: it has no argument."""
    return name.encode() + (b" " + msgspec.json.encode(argument) if argument is not None else b"") + b"\n"


def decode_argument(argument: bytes, wanted: type[Result]) -> Result:
    """Decode a question's argument. ControlError: it is none of that type."""
    try:
        return msgspec.json.decode(argument, type=wanted)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ControlError(f"the argument is malformed: {error}") from error


def encode_result(result: object) -> bytes:
    """Encode an answer as a line."""
    return msgspec.json.encode(Answer(result=msgspec.Raw(msgspec.json.encode(result)))) + b"\n"


def encode_error(reason: str) -> bytes:
    """Encode a refusal as a line."""
    return msgspec.json.encode(Answer(error=reason)) + b"\n"


def decode_answer(line: bytes, wanted: type[Result]) -> Result:
    """Decode an answer's result. ControlError: the line is truncated, is not such JSON, or is a refusal."""
    if not line.endswith(b"\n"):
        raise ControlError("the answer ends in the middle")
    try:
        answer = msgspec.json.decode(line, type=Answer)
        if answer.error:
            raise ControlError(answer.error)
        return msgspec.json.decode(answer.result, type=wanted)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ControlError(f"the answer is malformed: {error}") from error
