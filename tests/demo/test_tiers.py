# SPDX-License-Identifier: Apache-2.0
"""Each tier end to end, and which one is taken: as root, unprivileged, and where no namespace may be made."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from .harness import HANG_SECONDS, Place, finish, run

STATES = [
    ("Initialising", "Initialising"),
    ("InitWait", "Initialising"),
    ("InitWait", "Connected"),
    ("Connected", "Connected"),
]
MTU_FRAME = 1514


def check_everything(data: dict[str, Any]) -> None:
    """Check the results of a whole demo."""
    steps = data["timeline"]
    check_handshake([(step["backend"], step["frontend"]) for step in steps])
    assert [step["milliseconds"] for step in steps] == sorted(step["milliseconds"] for step in steps)
    ping = data["ping"]
    assert ping["received"] == ping["sent"] > 0
    assert 0 < ping["least"] <= ping["median"] <= ping["most"]
    kinds = [(flow["direction"], flow["segmentation"]) for flow in data["throughput"]]
    both = ("guest to host", "host to guest")
    assert kinds == [(way, True) for way in both] + [(way, False) for way in both]
    for flow in data["throughput"]:
        check_flow(flow)
    assert data["lost_flags"] is None
    assert data["restart"] is None


def check_handshake(steps: list[tuple[str, str]]) -> None:
    """The states are in order; on a busy machine a watch event may come after a state that lasts a millisecond."""
    first = steps[: steps.index(STATES[-1]) + 1]
    assert len(first) >= 2
    assert first == [state for state in STATES if state in first]


def check_flow(flow: dict[str, Any]) -> None:
    """The ring carried frames as large as the guest had agreed to."""
    crossing, per = flow["crossing"], flow["per_notification"]
    assert flow["gbit_s"] > 0
    assert flow["tool"] == "built in"
    assert crossing["slots"] >= crossing["frames"] > 0
    assert crossing["notifications"] > 0
    assert per["bytes"] == pytest.approx(crossing["bytes"] / crossing["notifications"])
    mean = crossing["bytes"] / crossing["frames"]
    if flow["segmentation"]:
        assert mean > 2 * MTU_FRAME
        assert crossing["slots"] > 2 * crossing["frames"]
    else:
        assert mean <= MTU_FRAME
        assert crossing["slots"] == crossing["frames"]


def tshark(path: str, *words: str) -> list[str]:
    """tshark's output, a line for each frame."""
    command = ["tshark", "-r", path, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.parametrize("tier", ["taps", "veth", "python"])
def test_tier_as_root(place: Place, tier: str) -> None:
    ended = run(place, "--tier", tier, "--json")
    assert ended.code == 0, ended.err
    data = ended.data
    assert data["chosen"]["tier"] == tier
    check_everything(data)
    check_capture(place, data["capture"])


def check_capture(place: Place, capture: dict[str, Any]) -> None:
    """tshark reads every frame, both protocols, both rings, and a comment for each frame."""
    assert capture["path"] == str(place.cwd / "netback-demo.pcapng")
    fields = ("-e", "frame.protocols", "-e", "frame.interface_name", "-e", "frame.comment")
    lines = tshark(capture["path"], "-T", "fields", *fields)
    assert len(lines) == capture["frames"] > 10
    protocols, interfaces, comments = zip(*(line.split("\t") for line in lines), strict=True)
    assert any("icmp" in protocol for protocol in protocols)
    assert any("tcp" in protocol for protocol in protocols)
    assert len(set(interfaces)) == 2
    assert all("ring slot" in comment for comment in comments)
    assert any("GSO" in comment for comment in comments)


@pytest.mark.parametrize(
    ("user", "tier", "why"),
    [
        ("root", "taps", "root, and /dev/net/tun is there"),
        ("nobody", "veth", "namespaces are allowed; no taps: not root"),
        ("nobody without namespaces", "python", "works everywhere; no taps: not root; no veth: "),
    ],
)
def test_the_best_tier_is_taken(place: Place, user: str, tier: str, why: str) -> None:
    ended = run(place, "--json", user=user)
    assert ended.code == 0, ended.err
    assert ended.data["chosen"]["tier"] == tier
    assert ended.data["chosen"]["reason"].startswith(why)
    check_everything(ended.data)


@pytest.mark.parametrize(
    ("user", "tier", "why"),
    [
        ("nobody", "taps", "not root"),
        ("nobody without namespaces", "veth", "user namespaces are refused here"),
    ],
)
def test_a_tier_that_cannot_be(place: Place, user: str, tier: str, why: str) -> None:
    ended = run(place, "--tier", tier, user=user)
    assert ended.code == 2
    assert ended.out == ""
    assert len(ended.err.splitlines()) == 1
    assert f"tier {tier} is not possible here: {why}" in ended.err


def test_errors_are_json_as_well(place: Place) -> None:
    ended = run(place, "--tier", "taps", "--json", user="nobody")
    assert ended.code == 2
    assert "not root" in ended.data["error"]


def test_a_directory_that_cannot_be_written(place: Place) -> None:
    """The capture is written elsewhere, and the output names the place."""
    process = place.start("--tier", "python", user="nobody", cwd=Path("/proc"))
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, err
    (capture,) = place.tmp.glob("*/netback-demo.pcapng")
    assert str(capture) in out
    assert tshark(str(capture))


def test_iperf3_measures_where_there_is_time_for_it(place: Place) -> None:
    ended = finish(place.start("--tier", "veth", "--json", seconds=1.0))
    assert ended.code == 0, ended.err
    assert {flow["tool"] for flow in ended.data["throughput"]} == {"iperf3"}
    assert all(flow["gbit_s"] > 0 for flow in ended.data["throughput"])
    assert place.left("netback-demo.pcapng") == []
