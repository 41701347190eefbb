# SPDX-License-Identifier: Apache-2.0
"""What a page gets that opens late, reads slowly, or outlives its backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from netback.web.hub import BACKLOG, REMEMBERED, Hub, Reader

BACKEND = {"pid": 1}


def state(device: str, backend: str = "Connected", *, gone: bool = False) -> dict[str, Any]:
    return {"device": device, "backend": backend, "frontend": "Connected", "gone": gone}


async def events(reader: Reader, count: int) -> list[tuple[str, Any]]:
    """The next `count` events."""
    taken: list[tuple[str, Any]] = []
    async for event in reader:
        taken.append(event)
        if len(taken) == count:
            break
    return taken


async def test_a_late_page_has_the_state_of_quiet_vifs(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    hub.take("backend", BACKEND, 1.0)
    hub.take("devices", [state("vif1.0"), state("vif2.0")], 2.0)
    hub.take("state", [state("vif3.0", "InitWait")], 3.0)
    hub.take("state", [state("vif3.0")], 4.0)
    hub.take("state", [state("vif2.0", gone=True)], 5.0)
    hub.take("trace", [{"point": str(number)} for number in range(REMEMBERED)], 6.0)
    with hub.reader() as reader:
        present = await events(reader, 2)
    assert present == [("backend", BACKEND), ("devices", [state("vif1.0"), state("vif3.0")])]


async def test_entries_have_the_time_at_which_the_hub_got_them(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    hub.take("backend", BACKEND, 1.0)
    hub.take("devices", [state("vif1.0")], 2.0)
    hub.take("notice", [{"device": "vif1.0", "notice": "stalled"}], 3.0)
    hub.take("backend", None, 4.0)
    hub.take("backend", None, 5.0)
    with hub.reader() as reader:
        kind, entries = (await events(reader, 3))[2]
    assert kind == "timeline"
    times = [(entry["time"], entry["kind"]) for entry in entries]
    assert times == [(1.0, "backend"), (2.0, "state"), (3.0, "notice"), (4.0, "backend")]


async def test_a_new_backend_begins_with_a_clean_slate(tmp_path: Path) -> None:
    """The device was removed while no backend ran, so that none said that it is gone."""
    hub = Hub(tmp_path)
    hub.take("devices", [state("vif1.0"), state("vif2.0")], 1.0)
    with hub.reader() as reader:
        await events(reader, 3)
        hub.take("devices", [state("vif2.0")], 2.0)
        later = await events(reader, 2)
        assert later[0] == ("devices", [state("vif2.0")])
        assert [entry["event"] for entry in later[1][1]] == [{"device": "vif1.0", "gone": True}]


async def test_a_page_that_lost_events_gets_what_is(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    with hub.reader() as reader:
        hub.take("devices", [state("vif1.0")], 1.0)
        hub.take("state", [state("vif1.0", gone=True)], 2.0)
        for _ in range(BACKLOG):
            hub.take("statistics", [], 3.0)
        kind, count = (await events(reader, 1))[0]
        assert (kind, count) == ("lost", 7)
    with hub.reader() as reader:
        for _ in range(BACKLOG):
            hub.take("statistics", [], 3.0)
        assert (await events(reader, 3))[1:] == [("backend", None), ("devices", [])]
