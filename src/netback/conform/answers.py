# SPDX-License-Identifier: Apache-2.0
"""What was seen of one run of a backend: its offer, its states, and its answers to each question. Pure values."""

import msgspec


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """TX slots that the frontend posted, and what the backend made of them."""

    name: str
    requests: list[bytes]
    responses: list[bytes]
    """The slots up to rsp_prod, whole."""
    ahead: int
    """How far rsp_prod went beyond the last request, 0 if it did not."""
    asked: bool
    """Whether rsp_event asked for an event with the last response."""
    notified: bool
    in_use: int
    """Grants of the requests that the backend still had mapped when the responses were there; -1: not known."""
    armed: int
    """How far req_event is ahead of the last request, when all was answered and still."""
    alive: bool
    """Whether the backend stayed Connected."""


class Received(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """RX responses of one frame, with the requests that lay in the same slots."""

    requests: list[bytes]
    responses: list[bytes]
    in_use: int
    """Grants of the slots that the backend still had mapped; -1: not known."""
    asked: bool
    """Whether rsp_event asked for an event with this frame's first response."""
    notified: bool


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A control request, and its response: "" if none came."""

    request: bytes
    response: bytes


class BackendSeen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run: the keys of the backend's directory at InitWait and after, and all that it did."""

    platform: str
    offer: dict[str, str]
    later: dict[str, str]
    """The same keys at the end of the connection."""
    states: list[str]
    """The backend's states in their order, repetitions left out."""
    connected: bool
    keys: dict[str, str]
    """The frontend's keys."""
    cases: list[Case]
    received: list[Received]
    rx_ahead: int
    """How far the RX ring's rsp_prod ever went beyond its req_prod, 0 if it did not."""
    questions: list[Question]
    closed: bool
    """The backend reached Closed after the frontend's Closing and Closed."""
    rings_in_use: int
    """Ring pages that the backend had mapped then; -1: not known."""
    returned: bool
    """It was in InitWait again after the frontend's Initialising."""
    fatal: list[str]
    """Of the chains that no backend can serve: "closed" or "alive" after each, with its name before a colon."""
