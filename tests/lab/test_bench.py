# SPDX-License-Identifier: Apache-2.0
"""The lab's bench without a machine: columns, ratios, and runs on hosts that answer and die as a test says."""

import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from netback.errors import ConfigError
from netback.lab.bench import results
from netback.lab.bench.backends import BACKENDS, LabBackend, Netback, choose_backends, parse_variant
from netback.lab.bench.report import command, evaluate, page, render
from netback.lab.bench.results import Plan, Results
from netback.lab.bench.rows import ROWS, Row, Sample
from netback.lab.bench.run import FILE, bench, given_up, in_turn
from netback.lab.host import Guest, Lab
from netback.lab.machine import Done, LabError


def test_ratios_are_taken_within_a_round_and_a_crash_is_no_win() -> None:
    row, ping = ROWS[0], ROWS[-1]
    backends = (*BACKENDS, Netback("fast"))
    samples = []
    for number, (kernel, ours, fast) in enumerate(
        ((100.0, 50.0, 100.0), (200.0, 150.0, 150.0), (400.0, 400.0, 200.0))
    ):
        samples += [
            Sample(row.name, "kernel", 0, number, kernel, 1.0),
            Sample(row.name, "netback", 0, number, ours, 2.0),
            Sample(row.name, "fast", 0, number, fast, 2.0),
        ]
        samples.append(Sample(row.name, "qnic", 0, number, fault="crashed"))
        samples += [
            Sample(ping.name, "kernel", 0, number, 1.0, 1.0),
            Sample(ping.name, "netback", 0, number, 2.0, 1.0),
        ]
    lines = {line.row.name: line for line in evaluate(samples, backends)}
    assert lines[row.name].ratios["netback", "kernel"] == 0.75
    assert lines[row.name].ratios["fast", "netback"] == 1.0
    assert math.isnan(lines[row.name].ratios["netback", "qnic"])
    assert "qnic" not in lines[row.name].medians
    assert lines[ping.name].ratios["netback", "kernel"] == 0.5  # less is better
    head, _, first, *_ = render(list(lines.values()), backends).splitlines()
    shown = dict(zip(head.split(" | "), first.split(" | "), strict=True))
    assert shown["netback to kernel (wanted)"] == "0.75 (0.85)"
    assert (shown["fast"], shown["fast to netback (wanted) |"]) == ("150 (100-200)", "1 |")
    assert (shown["qnic"], shown["netback to qnic (wanted)"]) == ("n/a", "n/a")


def test_a_variant_is_netback_with_more_words() -> None:
    variant = parse_variant("a.b=KEY='x y' B=2 --net 'tap' --workers 1")
    assert variant == Netback("a.b", ("KEY=x y", "B=2"), ("--net", "tap", "--workers", "1"))
    assert parse_variant("plain=").options == ()
    assert [backend.name for backend in choose_backends(["qnic"], ["a=", "b="])] == [
        "kernel",
        "netback",
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    ("words", "script"),
    [
        ("", "vif-bridge"),
        ("--net tap,vhost=off --workers 1", "vif-bridge"),
        ("--workers 1 --net packet:cable,ring=0", "vif-netback"),
        ("--net=switch:lan", "vif-netback"),
    ],
)
def test_a_variant_names_the_script_that_its_network_needs(words: str, script: str) -> None:
    assert parse_variant(f"a={words}").script == script


@pytest.mark.parametrize(
    ("without", "variants", "message"),
    [
        (["netback"], [], "--without 'netback': not one of kernel, qnic"),
        ([], ["no name"], "variant 'no name': not NAME=WORDS"),
        ([], ["a|b="], r"variant 'a\|b=': not NAME=WORDS"),
        ([], ["a='"], 'variant "a=\'": No closing quotation'),
        ([], ["qnic="], "variant 'qnic': another column has this name"),
        (["qnic"], ["a=", "a="], "variant 'a': another column has this name"),
        ([], ["a=--nope"], "variant 'a=--nope': netback: No such option"),
        ([], ["a=--net none:x"], "variant 'a=--net none:x': netback: network 'none:x'"),
    ],
)
def test_a_column_that_cannot_be_is_one_line(without: list[str], variants: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        choose_backends(without, variants)
    assert "\n" not in str(caught.value)


def test_every_second_round_goes_backwards() -> None:
    assert [in_turn(BACKENDS, (1, number)) for number in range(3)] == [BACKENDS, BACKENDS[::-1], BACKENDS]


def test_a_row_that_failed_twice_running_is_not_tried_again_in_that_boot() -> None:
    samples: list[Sample] = []
    for number, fault in enumerate(("stalled", "", "stalled", "crashed")):
        assert given_up(samples, "UDP", "qnic", (0, number)) is None
        samples.append(Sample("UDP", "qnic", 0, number, 1.0, 1.0, fault))
        samples.append(Sample("UDP", "kernel", 0, number, 1.0, 1.0))
    for number in (4, 5):
        skipped = given_up(samples, "UDP", "qnic", (0, number))
        assert skipped is not None
        assert (skipped.round, skipped.fault, skipped.value) == (number, "crashed", None)
        samples.append(skipped)
    assert given_up(samples, "UDP", "kernel", (0, 6)) is given_up(samples, "TCP", "qnic", (0, 6)) is None


PLAN = Plan(2, 2, 1, "tcg", ("kernel", "netback"))


@dataclass(frozen=True)
class Idle(LabBackend):
    """A backend that needs nothing."""

    name: str
    baseline: bool


PAIR = (Idle("kernel", True), Idle("netback", False))


class Host:
    """Machines: each measures as often as `lives` says, then ends. One of -1 lives does not come up."""

    def __init__(self, *lives: int, end: BaseException | None = None) -> None:
        self.lives = list(lives)
        self.end = end or LabError("the machine ended")
        self.left = 0
        self.measured = 0
        self.places: list[str] = []

    async def run(self, _command: str, **_options: object) -> Done:
        if self.left < 0:
            raise self.end
        return Done("", 0, "1.0")

    @asynccontextmanager
    async def open(self, place: Path, *_: object, **_options: object) -> AsyncIterator[Lab]:
        place.mkdir()  # noqa: ASYNC240
        self.places.append(place.name)
        self.left = self.lives.pop(0)
        yield Fake(self, "none")  # type: ignore[arg-type]

    async def measure(self, guest: Guest, _seconds: int) -> tuple[float, float]:
        self.left -= 1
        await guest.lab.dom0("measure")
        self.measured += 1
        return 100.0, 1.0

    async def bench(
        self,
        directory: Path,
        *,
        resume: bool = False,
        plan: Plan = PLAN,
        backends: Sequence[LabBackend] = PAIR,
    ) -> Results:
        rows = [Row(name, "Mbit/s", self.measure, "GB", {}) for name in ("one", "two")]
        return await bench(
            directory, lambda _: None, plan, backends, resume=resume, rows=rows, open_host=self.open
        )


class Fake(Lab):
    async def create(self, name: str, **_options: object) -> Guest:  # type: ignore[override]
        return Guest(self, name, 1, 1)


MANY = 1000


async def test_a_run_that_is_cut_off_goes_on_at_the_next_round(tmp_path: Path) -> None:
    cut = Host(6, end=KeyboardInterrupt())  # in its second round
    with pytest.raises(KeyboardInterrupt):
        await cut.bench(tmp_path)
    kept = results.load(tmp_path / FILE)
    assert kept.left() == [(0, 1), (1, 0), (1, 1)]
    goes_on = Host(MANY, MANY)
    done = await goes_on.bench(tmp_path, resume=True)
    assert goes_on.places == ["machine-2", "machine-3"]  # one for each boot that lacks rounds
    assert goes_on.measured == 12
    assert done.samples[:4] == kept.samples
    assert all(one.value == 100.0 for one in done.samples)
    assert done.left() == []
    assert json.loads((tmp_path / FILE).read_text())["rows"][0]["ratios"] == {"netback to kernel": 1.0}
    assert (tmp_path / "bench.png").stat().st_size > 1000
    again = Host()
    assert await again.bench(tmp_path, resume=True) == results.load(tmp_path / FILE)
    assert again.places == []


async def test_a_machine_that_dies_costs_the_rest_of_one_round(tmp_path: Path) -> None:
    host = Host(1, MANY, MANY)
    done = await host.bench(tmp_path)
    assert host.places == ["machine-1", "machine-2", "machine-3"]
    assert [one.value for one in done.samples] == [100.0, None, None, None] + 12 * [100.0]
    assert {one.fault for one in done.samples[1:4]} == {"the machine ended"}
    assert "two with kernel 1, one with netback 1, two with netback 1" in page(done, PAIR)


@pytest.mark.parametrize(("times", "lost"), [(1, 0), (2, 1)])
async def test_a_time_that_xl_does_not_print_is_asked_for_again(
    tmp_path: Path, times: int, lost: int
) -> None:
    """An emulated dom0's kernel killed the shell before xl, and the bench ended with a ValueError."""
    silent = iter(range(times))

    class Silent(Host):
        async def run(self, command: str, **options: object) -> Done:
            done = await super().run(command, **options)
            return (
                Done("", 0, "") if command.startswith("xl list") and next(silent, None) is not None else done
            )

    done = await Silent(MANY, MANY).bench(tmp_path)
    assert [one.fault for one in done.samples if one.fault] == lost * ["dom0: xl list printed '' as a time"]


async def test_a_machine_that_dies_between_two_rounds_costs_nothing(tmp_path: Path) -> None:
    host = Host(MANY, MANY, MANY)

    class Last(Idle):
        @asynccontextmanager
        async def serving(self, guest: Guest) -> AsyncIterator[None]:
            yield
            if host.measured == 4:  # the end of the first round
                host.left = -1

    done = await host.bench(tmp_path, backends=(PAIR[0], Last("netback", False)))
    assert host.places == ["machine-1", "machine-2", "machine-3"]
    assert [one.value for one in done.samples] == 16 * [100.0]


async def test_machines_that_do_not_come_up_end_the_run(tmp_path: Path) -> None:
    host = Host(4, -1, -1, MANY)
    with pytest.raises(LabError, match="the machine ended"):
        await host.bench(tmp_path)
    assert len(host.places) == 3
    assert results.load(tmp_path / FILE).left() == [(1, 0), (1, 1)]


async def test_results_are_continued_only_as_they_were_begun(tmp_path: Path) -> None:
    await Host(MANY, MANY).bench(tmp_path)
    path = tmp_path / FILE
    with pytest.raises(ConfigError, match="has results: continue them with --resume"):
        await Host().bench(tmp_path)
    other = msgspec.structs.replace(PLAN, seconds=4)
    with pytest.raises(ConfigError, match="measured with other options: seconds 1, not 4"):
        await Host().bench(tmp_path, resume=True, plan=other)
    found = results.load(path)
    results.save(msgspec.structs.replace(found, source="0", commit="abc"), path)
    with pytest.raises(ConfigError, match=r"other source code \(commit abc, this is "):
        await Host().bench(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "or damaged: Input data was truncated"),
        (lambda data: data.replace(b"100.0", b"200.0", 1), "changed since the bench wrote it"),
        (lambda data: data.replace(b"100.0", b"-1.0", 1), "or damaged: Expected"),
        (lambda data: data.replace(b'"samples"', b'"sample"', 1), "unknown field `sample`"),
        (lambda _: b"", "or damaged"),
        (lambda _: b"[" * 100_000, "or damaged"),
        (lambda _: b'{"a\nb": 1}', "or damaged"),
        (lambda _: bytes(1 << 25), "larger than"),
    ],
)
async def test_a_damaged_file_is_one_line(
    tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    await Host(MANY, MANY).bench(tmp_path)
    path = tmp_path / FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=message) as caught:
        await Host().bench(tmp_path, resume=True)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_the_page_names_its_command() -> None:
    columns = tuple(backend.column for backend in choose_backends(["qnic"], ["a=K='x y' --workers 1"]))
    assert command(Plan(3, 5, 2, "auto", columns)) == (
        "netback lab bench --boots 3 --rounds 5 --seconds 2 --without qnic"
        " --variant 'a='\"'\"'K=x y'\"'\"' --workers 1'"
    )


def test_the_source_code_s_digest(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    digest = results.source_digest(tmp_path)
    (tmp_path / "a.so").write_text("compiled")
    assert results.source_digest(tmp_path) == digest
    (tmp_path / "a.py").write_text("2")
    assert results.source_digest(tmp_path) != digest
    assert results.commit(tmp_path).startswith("version ")  # no repository
