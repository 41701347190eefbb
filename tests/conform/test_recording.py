# SPDX-License-Identifier: Apache-2.0
"""A recording gives the same verdicts again; one that was cut or edited is refused in one line."""

from __future__ import annotations

import asyncio
import stat
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from netback.conform import recording
from netback.conform.observation import Observation
from netback.conform.report import Judged, render
from netback.conform.rules import RULES
from netback.conform.view import View
from netback.errors import ConfigError
from netback.xenstore.aio import StoreError
from tests.conform.deeds import DEEDS
from tests.conform.scripted import Honest
from tests.conform.test_rules import PATIENT, run


@pytest.fixture(scope="module")
def seen() -> Observation:
    return asyncio.run(run(DEEDS["tx.min-size"]))


def test_a_replay_has_the_same_verdicts(seen: Observation, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    recording.save(path, "frontend", [seen, seen])
    again = recording.load(path, "frontend", Observation)
    assert again == [seen, seen]
    assert RULES.judge(View(again[1])) == RULES.judge(View(seen))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"", "line 1: no recording"),
        (lambda data: data[:100], "the recording is cut: 2 lines of 3"),
        (lambda data: data[:-5], "the recording is cut"),
        (lambda data: data + b"{}\n", "the recording is cut: 4 lines of 3"),
        (lambda data: data.replace(b'"size', b'"sise', 1).replace(b"Frame", b"Freme", 1), "was edited"),
        (lambda data: data.replace(b'"netback-conform":1', b'"netback-conform":2'), "version 2, not 1"),
        (
            lambda data: data.replace(b'"side":"frontend"', b'"side":"backend"'),
            "of a backend, not of a frontend",
        ),
        (lambda data: b"\xff\x00" * 100, "line 1: no recording"),
        (lambda data: b"[" * 100000, "line 1: no recording"),
    ],
)
def test_a_bad_recording_is_refused(seen: Observation, tmp_path: Path, change: object, reason: str) -> None:
    path = tmp_path / "runs"
    recording.save(path, "frontend", [seen])
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ConfigError, match=reason) as refused:
        recording.load(path, "frontend", Observation)
    assert "\n" not in str(refused.value)


def test_a_forged_digest_does_not_help(seen: Observation, tmp_path: Path) -> None:
    """Values that no run can have are refused by their types."""
    import hashlib

    path = tmp_path / "runs"
    recording.save(path, "frontend", [seen])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"queue":0', b'"queue":"none"', 1)
    lines[2] = b'{"sha256":"%s"}\n' % hashlib.sha256(b"".join(lines[:2])).hexdigest().encode()
    path.write_bytes(b"".join(lines))
    with pytest.raises(ConfigError, match="line 2: Expected `int`"):
        recording.load(path, "frontend", Observation)


def test_a_file_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        recording.load(tmp_path / "none", "frontend", Observation)
    with pytest.raises(ConfigError, match=r"the recording .*: is no regular file"):
        recording.save(tmp_path, "frontend", [])


def test_bytes_that_are_no_text_can_be_recorded(tmp_path: Path) -> None:
    async def writes(guest: Honest) -> None:
        await guest.script.write("feature-odd", "\udcff\x1b[31m")
        with suppress(StoreError):
            await guest.script.guest.store.write("data/\udcfe", "1")

    deed = replace(
        DEEDS["keys.booleans"], nodes=lambda nodes: nodes | {"feature-odd": "\udcff\x1b"}, connected=writes
    )
    seen = asyncio.run(run(deed))
    recording.save(tmp_path / "runs", "frontend", [seen])
    (again,) = recording.load(tmp_path / "runs", "frontend", Observation)
    found = {verdict.rule: verdict.evidence for verdict in RULES.judge(View(again)) if verdict.broken}
    assert {*found} == {"keys.booleans", "store.valid-requests"}, found
    assert "\x1b" not in render("x", RULES.rows, [Judged("strict", RULES.judge(View(again)))])


def test_a_seed_gives_the_same_frames() -> None:
    async def frames(seed: int) -> list[bytes]:
        from netback.conform.observation import Frame
        from netback.conform.profiles import find_profile
        from netback.conform.session import Setting, observe
        from tests.conform.test_rules import bring

        deed = DEEDS["keys.booleans"]
        profile = replace(find_profile("strict"), forms=("echo", "udp-blank"))
        found = await observe(profile, Setting(seed=seed, limits=PATIENT), partial(bring, deed))
        return [event.data for event in found.events if isinstance(event, Frame)]

    first, again, other = (asyncio.run(frames(seed)) for seed in (1, 1, 2))
    assert first == again != other
