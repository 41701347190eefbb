# SPDX-License-Identifier: Apache-2.0
"""`netback rings`: the picture of a seeded ring is golden text and a readable image; the command shows it live."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from xml.etree import ElementTree

import pytest

from netback.abi.netif import RX_REQUEST, RX_RESPONSE, RX_SLOT, TX_REQUEST, TX_RESPONSE, TX_SLOT
from netback.cli import ring_text
from netback.cli.ring_svg import render_svg
from netback.dataplane.states import State
from netback.observe.owners import Ages, Cell, Owner, owners
from netback.observe.rings import decode_queue
from netback.observe.slots import Ring
from tests.cli.commands import run, running, start
from tests.observe.test_rings import page
from tests.vif.guest import FRAME, Guest, join

RSP_EVENT = 12
"""The offset of rsp_event in the page."""
SVG = "{http://www.w3.org/2000/svg}"


def seeded(pending: int = 40) -> list[Ring]:
    """A TX ring with 100 responses, of which the guest has not taken the last ten, and requests that the network does
    not take; an RX ring with buffers and no frames.
    """
    responses = [TX_RESPONSE.pack(index % 256, -1 if index == 3 else 0) for index in range(100)]
    tx = bytearray(page(TX_SLOT, 300, responses, [TX_REQUEST.pack(11, 0, 0, 7, 60)] * pending))
    rx = bytearray(page(RX_SLOT, 0, [RX_RESPONSE.pack(1, 0, 0, 60)] * 20, [RX_REQUEST.pack(1, 0, 4)] * 200))
    struct.pack_into("<I", tx, RSP_EVENT, 391)
    struct.pack_into("<I", rx, RSP_EVENT, 21)
    copies = {"tx": (bytes(tx), True, 1_500_000_000), "rx": (bytes(rx), True, 0)}
    return decode_queue("", (State.PEER_FULL, State.PEER_IDLE), copies, 0, 0)


GOLDEN = """\
tx: 60 of 256 pending; no response for 1.5 s; PEER_FULL: EAGAIN: the peer is
  full; what it did not accept stays in the ring
    Q req_prod 460, P rsp_prod 400, E req_event 7, V rsp_event 391
           E
  0 ................ ................ ...............! ................
 64 ................ ................ ................ ................
           V         P
128 ......OOOOOOOOOO WWWWWWWWWWWWWWWW WWWWWWWWWWWWWWWW WWWWWWWWwwwwwwww
                Q
192 wwwwwwwwwwww.... ................ ................ ................

rx: 200 of 256 pending; no response for 0.0 s; PEER_IDLE: the peer is drained
    Q req_prod 220, P rsp_prod 20, E req_event 7, V rsp_event 21
           E             PV
  0 ................ ....RRRRRRRRRRRR RRRRRRRRRRRRRRRR RRRRRRRRRRRRRRRR
 64 RRRRRRRRRRRRRRRR RRRRRRRRRRRRRRRR RRRRRRRRRRRRRRRR RRRRRRRRRRRRRRRR
128 RRRRRRRRRRRRRRRR RRRRRRRRRRRRRRRR RRRRRRRRRRRRRRRR RRRRRRRRRRRRRRRR
                                 Q
192 RRRRRRRRRRRRRRRR RRRRRRRRRRRR.... ................ ................
"""
"""After 12 seconds, in which the guest sent 20 more."""


def grown() -> tuple[list[Ring], list[list[Cell]]]:
    ages = Ages()
    ages.measure(seeded(), 100.0)
    rings = seeded(60)
    return rings, ages.measure(rings, 112.0)


def test_the_picture_of_a_ring() -> None:
    pictures = ["\n".join(ring_text.draw(ring, cells)) for ring, cells in zip(*grown(), strict=True)]
    assert "\n\n".join(pictures) + "\n" == GOLDEN


def test_colours_do_not_change_the_picture() -> None:
    for ring, cells in zip(*grown(), strict=True):
        plain, coloured = ("\n".join(ring_text.draw(ring, cells, colour=on)) for on in (False, True))
        assert "\x1b[" in coloured
        assert re.sub(r"\x1b\[\d*m", "", coloured) == plain
        assert max(map(len, plain.splitlines())) <= 80
    for line in ring_text.legend(colour=False, blocks=False):
        assert len(line) <= 80


def test_marks_at_one_slot_stand_above_each_other() -> None:
    """A new ring: two indices are 0, two are 1."""
    made = bytearray(page(TX_SLOT, 0, [], []))
    struct.pack_into("<IIII", made, 0, 0, 1, 0, 1)
    copies = {"tx": (bytes(made), True, 0), "rx": (bytes(made), True, 0)}
    ring, _ = decode_queue("", (State.RING_IDLE, State.PEER_IDLE), copies, 0, 0)
    lines = [*ring_text.draw(ring, owners(ring))]
    assert lines[-6:-3] == ["    PV", "    QE", "  0 " + " ".join(["." * 16] * 4)]


def test_whose_a_slot_is() -> None:
    tx, rx = seeded()
    assert [owners(tx)[index % 256].owner for index in (389, 390, 399, 400, 439, 440)] == [
        Owner.FREE, Owner.RESPONSE, Owner.RESPONSE, Owner.WORK, Owner.WORK, Owner.FREE,
    ]  # fmt: skip
    assert owners(tx)[303 % 256].failed
    assert owners(tx)[0].index is None or owners(tx)[0].owner is Owner.FREE
    assert {cell.owner for cell in owners(rx)[20:220]} == {Owner.REQUEST}
    broken = bytearray(page(TX_SLOT, 0, [], []))
    struct.pack_into("<I", broken, 0, 300)
    copies = {"tx": (bytes(broken), True, 0), "rx": (bytes(broken), True, 0)}
    impossible, _ = decode_queue("", (State.BROKEN, State.BROKEN), copies, 0, 0)
    assert owners(impossible) == []
    assert next(ring_text.draw(impossible, [])).startswith("tx: req_prod is impossible")


def test_an_age_ends_when_a_slot_changes_hands() -> None:
    ages = Ages()
    ages.measure(seeded(), 0.0)
    first, _ = ages.measure(seeded(), 5.0)
    assert first[400 % 256].age == 5.0
    assert first[389 % 256].age == 0.0  # free
    later, _ = ages.measure(seeded(50), 6.0)
    assert (later[400 % 256].age, later[449 % 256].age) == (6.0, 0.0)


def test_the_image() -> None:
    rings, cells = grown()
    root = ElementTree.fromstring(render_svg('vif3.0 <"&', [*zip(rings, cells, strict=True)]))
    assert (root.tag, root.get("role")) == (f"{SVG}svg", "img")
    title, desc = (root.find(f"{SVG}{name}") for name in ("title", "desc"))
    assert title is not None
    assert desc is not None
    assert title.text == 'The rings of vif3.0 <"&'
    assert root.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"
    assert "60 of 256 pending" in (desc.text or "")
    slots = root.findall(f"{SVG}g")
    assert len(slots) == 512
    titles = [slot.findtext(f"{SVG}title") for slot in slots]
    assert titles[400 % 256] == "slot 144: held by the backend, index 400, for 12.0 s"
    assert titles[303 % 256] == "slot 47: free, index 303, failed"
    style = root.findtext(f"{SVG}style") or ""
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    for name in (".paper", ".request", ".work", ".response", ".frame", "text"):
        assert f"{name}" in light
        assert f"{name}" in dark
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for element in root.iter():
        assert 0 <= float(element.get("x", 0)) < width
        assert 0 <= float(element.get("y", 0)) < height


async def sends(guest: Guest) -> None:
    assert await guest.answer(guest.send(FRAME)) == 0


async def test_rings(xen: Path, tmp_path: Path) -> None:
    async with running("serving domain 0", "run", "--dir", xen), join(xen, domid=1) as guest:
        await run("attach", "1", "--net", "null", "--dir", xen)
        await guest.connect()
        await sends(guest)
        code, out, err = await run("rings", "vif1.0", "--dir", xen)
        assert (code, err) == (0, "")
        assert out.startswith("tx: 0 of 256 pending; ")
        assert len(re.findall(r"^ *(?:0|64|128|192) [.owr]{16} ", out, re.M)) == 8
        assert max(map(len, out.splitlines())) <= 80
        image = tmp_path / "ring.svg"
        assert (await run("rings", "1", "--svg", image, "--dir", xen))[:2] == (0, "")
        assert ElementTree.parse(image).getroot().tag == f"{SVG}svg"
        out = (await run("rings", "1", "--svg", "-", "--dir", xen))[1]
        assert ElementTree.fromstring(out).tag == f"{SVG}svg"
        out = (await run("rings", "1", "--all", "--dir", xen))[1]
        assert re.search(r"^tx: req_prod 1, .*0 of 256 pending; .*RING_IDLE", out)
        assert re.search(r"^0 +response +0 +OKAY$", out, re.M)
        watching = await start("rings", "1", "--watch", "--interval", "0.1", "--json", "--dir", xen)
        assert watching.stdout is not None
        for _ in range(2):
            assert [ring["ring"] for ring in json.loads(await watching.stdout.readline())] == ["tx", "rx"]
        watching.terminate()
        await watching.communicate()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--json", "--svg", "x.svg"), "--json, --slots or --all, and --svg exclude each other: choose one"),
        (("--svg", "/nonexistent/x.svg"), "--svg: /nonexistent/x.svg: No such file or directory"),
        (("--svg", "/"), "Invalid value for '--svg': File '/' is a directory; see netback rings --help"),
        (("--interval", "0"), "Invalid value for '--interval': "),
    ],
)
async def test_one_line_for_each_mistake(xen: Path, words: tuple[str, ...], reason: str) -> None:
    async with running("serving domain 0", "run", "--dir", xen), join(xen, domid=1) as guest:
        await run("attach", "1", "--net", "null", "--dir", xen)
        await guest.connect()
        code, out, err = await run("rings", "1", *words, "--dir", xen)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"netback: {reason}")
