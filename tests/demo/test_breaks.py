# SPDX-License-Identifier: Apache-2.0
"""What `--break` breaks and what holds, and how the demo ends when a process of it dies or hangs."""

from __future__ import annotations

import os
import signal

import pytest

from .harness import Place, finish, run, wait_until

TIERS = ["taps", "veth", "python"]


@pytest.mark.parametrize("tier", TIERS)
def test_without_checksum_flags_ping_works_and_tcp_fails(place: Place, tier: str) -> None:
    ended = run(place, "--tier", tier, "--break", "csum", "--json")
    assert ended.code == 0, ended.err
    lost = ended.data["lost_flags"]
    assert lost["ping_before"]["received"] > 0
    assert lost["gbit_s_before"] > 0
    assert lost["ping_after"]["received"] > 0
    assert "timed out" in lost["tcp_after"]
    assert lost["checksum_errors"] > 0
    assert "netback demo --break csum" not in ended.data["next"]


@pytest.mark.parametrize("tier", TIERS)
def test_transfers_survive_kill_9_of_the_backend(place: Place, tier: str) -> None:
    ended = run(place, "--tier", tier, "--break", "restart", "--json")
    assert ended.code == 0, ended.err
    restart = ended.data["restart"]
    assert restart["killed_pid"] != restart["new_pid"]
    assert restart["states"] == ["Connected", "Connected"]
    connected = [step["backend"] == step["frontend"] == "Connected" for step in ended.data["timeline"]]
    assert connected.index(True) == len(connected) - 1, "no state changed after the handshake"
    assert {transfer["direction"] for transfer in restart["transfers"]} == {"guest to host", "host to guest"}
    for transfer in restart["transfers"]:
        assert transfer["intact"]
        assert transfer["bytes"] > 0
        assert transfer["stall_ms"] > 0


@pytest.mark.parametrize("broken", ["csum", "restart"])
def test_a_terminal_shows_it(place: Place, broken: str) -> None:
    ended = run(place, "--tier", "veth", "--break", broken)
    assert ended.code == 0, ended.err
    words = {"csum": ("works", "fails", "wrong checksum"), "restart": ("killed", "stalled", "SHA-256 equal")}
    for word in words[broken]:
        assert word in ended.out


@pytest.mark.parametrize("role", ["xen", "kernel stack", "backend", "netfront"])
def test_a_process_that_ends_ends_the_demo_with_one_line(place: Place, role: str) -> None:
    process = place.start("--tier", "veth")
    assert wait_until(lambda: place.child("netfront") is not None)
    victim = place.child(role)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    ended = finish(process)
    assert ended.code == 1
    assert len(ended.err.splitlines()) == 1
    assert place.left() == []


def test_a_process_that_hangs_ends_the_demo(place: Place) -> None:
    process = place.start("--tier", "python", "--seconds", "8")
    assert wait_until(lambda: place.child("netfront") is not None)
    victim = place.child("netfront")
    assert victim is not None
    os.kill(victim, signal.SIGSTOP)
    ended = finish(process)
    assert ended.code == 1
    assert "not done within 8 seconds" in ended.err
    assert place.left() == []
