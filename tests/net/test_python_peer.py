# SPDX-License-Identifier: Apache-2.0
"""The example of a network in Python: it runs unchanged, and no frame from a guest ends it."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

EXAMPLE = Path(__file__).parents[2] / "examples" / "python_peer.py"
MAC, ADDRESS = b"\x02\0\0\0\0\x01", bytes([10, 0, 0, 1])


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("python_peer", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


peer = load()


def test_it_runs() -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLE)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[0] == "10.0.0.1 is at 02:00:00:00:00:01"
    assert done.stdout.count("came back") == 3
    assert done.stderr == ""


heads = st.sampled_from([peer.ARP_TYPE, peer.IPV4_TYPE, 0x86DD]).map(
    lambda kind: peer.ETHERNET.pack(MAC, b"\x00\x16\x3e\0\0\x02", kind)
)
pings = st.builds(
    lambda head, end, body: head + bytes([10, 0, 0, 2]) + end + body,
    st.builds(
        lambda length: b"\x45\0" + length.to_bytes(2, "big") + bytes(5) + b"\x01" + bytes(2),
        st.integers(0, 80),
    ),
    st.just(ADDRESS),
    st.binary(max_size=40),
)


@given(heads, st.binary(max_size=80) | pings)
def test_any_frame_is_answered_or_ignored(head: bytes, rest: bytes) -> None:
    peer.Host(MAC, ADDRESS).answer(head + rest)


@pytest.mark.parametrize(("wanted", "answered"), [(ADDRESS, True), (bytes([10, 0, 0, 9]), False)])
def test_it_answers_for_itself_alone(wanted: bytes, answered: bool) -> None:
    question = peer.ARP.pack(
        1, 0x800, 6, 4, 1, b"\x00\x16\x3e\0\0\x02", bytes([10, 0, 0, 2]), bytes(6), wanted
    )
    frame = peer.ETHERNET.pack(b"\xff" * 6, b"\x00\x16\x3e\0\0\x02", peer.ARP_TYPE) + question
    assert (peer.Host(MAC, ADDRESS).answer(frame) is not None) == answered
