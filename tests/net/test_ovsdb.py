# SPDX-License-Identifier: Apache-2.0
"""The wire of an OVSDB: how a stream is cut into messages, and the notation of values."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netback.errors import PeerError
from netback.net import ovsdb
from netback.net.ovs_switch import MONITORED, Replica
from netback.net.ovsdb import Message, Splitter, as_map, as_set, numbers, pairs, references, refusal, texts

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab"\\{}[]:,\u20ac\n'),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='a"\\{}'), inner, max_size=3)
    ),
    max_leaves=10,
)
MESSAGES = st.lists(st.dictionaries(st.text(alphabet='a"\\{}'), VALUES, max_size=3), max_size=5)


@given(MESSAGES, st.booleans(), st.lists(st.integers(1, 20), min_size=1), st.sampled_from(["", "\n", " \t"]))
def test_messages_are_cut_wherever_they_are_torn(
    messages: list[dict[str, object]], ascii_only: bool, cuts: list[int], between: str
) -> None:
    stream = between.join(json.dumps(m, ensure_ascii=ascii_only) for m in messages).encode()
    splitter, got, at = Splitter(), [], 0
    for n in range(len(stream) + 1):
        size = cuts[n % len(cuts)]
        got += [json.loads(text) for text in splitter.feed(stream[at : at + size])]
        at += size
    assert got == messages


@pytest.mark.parametrize(
    "data",
    [b"hello", b"}", b"[1]", b'{"a":1}}', b'{"a":1} x', b"\xff\xff", b'{"a":' * 70, b'"' * 3],
)
def test_what_is_no_object(data: bytes) -> None:
    with pytest.raises(PeerError, match="it sends what is no JSON-RPC"):
        list(Splitter().feed(data))


def test_a_message_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ovsdb, "MAX_MESSAGE", 1000)
    splitter = Splitter()
    assert list(splitter.feed(b'{"a":"' + b"x" * 900)) == []
    with pytest.raises(PeerError, match="it sends a message of more than 1000 bytes"):
        list(splitter.feed(b"x" * 100))


@pytest.mark.parametrize(
    ("read", "value", "found"),
    [
        (texts, "a", ["a"]),
        (texts, ["set", []], []),
        (texts, ["set", ["a", "b"]], ["a", "b"]),
        (numbers, 5, [5]),
        (numbers, ["set", [1, 2]], [1, 2]),
        (pairs, ["map", [["a", "b"]]], {"a": "b"}),
        (references, ["uuid", "r"], frozenset({"r"})),
        (references, ["set", [["uuid", "r"], ["uuid", "s"]]], frozenset({"r", "s"})),
        (references, ["set", []], frozenset()),
    ],
)
def test_values(read: object, value: object, found: object) -> None:
    assert callable(read)
    assert read(value) == found


@pytest.mark.parametrize("read", [texts, numbers, pairs, references])
@pytest.mark.parametrize(
    "value",
    [None, 1.5, {}, ["map", 5], ["set", 5], ["set", [None]], ["set", [["set", []], {}]], ["uuid", 5], [[]]],
)
def test_values_that_are_wrong(read: object, value: object) -> None:
    assert callable(read)
    with pytest.raises((ValueError, TypeError)):
        read(value)


def test_values_are_written_as_they_are_read() -> None:
    assert texts(as_set(["a", "b"])) == ["a", "b"]
    assert pairs(as_map({"a": "b"})) == {"a": "b"}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Message(result=[{}, {"count": 1}]), None),
        (Message(result={}), None),
        (Message(error="unknown database"), "unknown database"),
        (Message(error={"error": "syntax error", "details": "a\x1b[2J"}), r"syntax error: a\x1b[2J"),
        (Message(result=[{}, {"error": "constraint violation"}, None]), "constraint violation"),
        (Message(error="x" * 5000), "x" * 200),
    ],
)
def test_refusals(message: Message, reason: str | None) -> None:
    assert refusal(message) == reason


CELLS = VALUES | st.sampled_from([["set", []], ["map", []], ["uuid", "r"], ["set", [["uuid", "r"]]], "x", 1])
COLUMNS = sorted({column for columns in MONITORED.values() for column in columns})
ROWS = st.dictionaries(st.sampled_from(COLUMNS), CELLS) | VALUES
CHANGES = st.dictionaries(
    st.sampled_from(["r", "s"]), st.fixed_dictionaries({"new": ROWS}) | VALUES, max_size=2
)


@given(st.lists(st.dictionaries(st.sampled_from(sorted(MONITORED)), CHANGES | VALUES) | VALUES, max_size=4))
def test_any_rows_are_taken_or_refused(updates: list[object]) -> None:
    replica = Replica()
    for tables in updates:
        try:
            concerned = replica.update(tables)
        except PeerError:
            continue
        for name in concerned or ():
            for table in MONITORED:
                row = replica.row(table, name)
                assert row is None or row.name == name
