# SPDX-License-Identifier: Apache-2.0
"""One question and one answer for each connection: the question's name and a newline, then one line of JSON.

The answer is `{"result": ...}` or `{"error": "reason"}`. Both ends bound what they read and how long they wait. What a
question means, and the type of its result, is the caller's affair.
"""

from typing import TypeVar

import msgspec

from netback.errors import NetbackError

STATUS = "status"
"""Every device that the backend serves: a list of DeviceStatus."""
OFFER = "offer"
"""The features that the backend can serve: netif.h's backend keys and their values."""

MAX_QUESTION = 64
"""Bytes of a question with its newline."""
MAX_ANSWER = 64 << 20
"""Bytes of an answer with its newline: a thousand devices take about a megabyte."""
ANSWER_SECONDS = 2.0
"""How long either end waits for the other."""

Result = TypeVar("Result")


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One answer; `result` is JSON that only the asker can type."""

    result: msgspec.Raw = msgspec.Raw()
    error: str = ""


class ControlError(NetbackError):
    """The process at the control socket gave no usable answer."""


def socket_name(domid: int) -> str:
    """The control socket of the backend that serves a domain's devices, in its runtime directory."""
    return f"backend-{domid}.sock"


def encode_result(result: object) -> bytes:
    """An answer's line."""
    return msgspec.json.encode(Answer(result=msgspec.Raw(msgspec.json.encode(result)))) + b"\n"


def encode_error(reason: str) -> bytes:
    """A refusal's line."""
    return msgspec.json.encode(Answer(error=reason)) + b"\n"


def decode_answer(line: bytes, wanted: type[Result]) -> Result:
    """The result of an answer; ControlError where the line is cut, is no such JSON, or is a refusal."""
    if not line.endswith(b"\n"):
        raise ControlError("the answer ends in the middle")
    try:
        answer = msgspec.json.decode(line, type=Answer)
        if answer.error:
            raise ControlError(answer.error)
        return msgspec.json.decode(answer.result, type=wanted)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ControlError(f"the answer is malformed: {error}") from error
