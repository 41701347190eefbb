# SPDX-License-Identifier: Apache-2.0
"""From the counts of `netback lab profile --json` and published prices to a frame's time on other machines. Pure.

A price list is TOML: tables `[[machine]]` with a `name`, and under `machine.prices` one table for each count of
profile.COUNTS, with `ns` (of bytes: for each KiB) and `source`. What has no count or no price is left out of a sum
and named beside it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from netback.errors import ConfigError
from netback.lab.bench.profile import COUNTS, Account, Profile

BASELINE = "kernel"
PRICES = Path(__file__).with_name("prices.toml")
"""The price list that netback brings."""
_KIB = 1024
_SHARES = 3
"""Parts of a sum that a table names."""


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nanoseconds of one of a count; of bytes, for each KiB."""

    ns: Annotated[float, Meta(ge=0, le=1e12)]
    source: Annotated[str, Meta(min_length=1)]


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one kind of machine asks; `prices` by the names of COUNTS."""

    name: Annotated[str, Meta(min_length=1)]
    prices: dict[str, Price]


class PriceList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    machine: Annotated[list[Machine], Meta(min_length=1)]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A frame's time on a machine."""

    account: Account
    machine: str
    parts: Mapping[str, float]
    """Nanoseconds by the names of COUNTS."""
    without: Sequence[str]
    """Counts that are left out: not counted, or without a price."""

    @property
    def ns(self) -> float:
        """Of one frame of either direction."""
        return sum(self.parts.values())

    @property
    def rate(self) -> float:
        """Frames per second of one busy processor."""
        return 1e9 / self.ns if self.ns else 0.0

    @property
    def gbits(self) -> float:
        """Gbit/s of the direction that carries more, of one busy processor."""
        size = max(self.account.bytes_to_guest, self.account.bytes_from_guest)
        return self.rate * size * 8 / 1e9


def read_prices(path: Path) -> list[Machine]:
    """The machines of a price list; ConfigError names what is wrong, and where."""
    try:
        machines = msgspec.toml.decode(_read(path), type=PriceList).machine
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    for machine in machines:
        unknown = sorted(set(machine.prices) - set(COUNTS))
        if unknown:
            raise ConfigError(
                f"{path}: {machine.name}: nothing is counted as {unknown[0]!r}, only {', '.join(COUNTS)}"
            )
    return machines


def read_profile(path: Path) -> Profile:
    """What `netback lab profile --json` printed; ConfigError if it is something else."""
    try:
        return msgspec.json.decode(_read(path), type=Profile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not what `netback lab profile --json` prints: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def estimate(account: Account, machine: Machine) -> Estimate:
    """Multiply each count by its price."""
    parts, without = {}, []
    for name in COUNTS:
        count, price = account.counts.get(name), machine.prices.get(name)
        if count is None or price is None:
            without.append(name)
            continue
        parts[name] = count * price.ns / (_KIB if name.startswith("bytes_") else 1)
    return Estimate(account, machine.name, parts, without)


def render(result: Profile, machines: Sequence[Machine]) -> str:
    """A Markdown table for each machine, then what each left out."""
    text = [f"Counts: {result.made}."]
    for machine in machines:
        found = {(one.row, one.backend): estimate(one, machine) for one in result.accounts if not one.fault}
        text += ["", f"**{machine.name}**", ""]
        text += ["| | | us a frame | k frames/s | Gbit/s | to xen-netback | made of |"]
        text += ["|---|---|---|---|---|---|---|"]
        for account in result.accounts:
            one = found.get((account.row, account.backend))
            text.append(_line(account, one, found.get((account.row, BASELINE))))
        text += ["", *_left_out(found.values())]
    return "\n".join(text)


def _line(account: Account, one: Estimate | None, baseline: Estimate | None) -> str:
    if one is None:
        return f"| {account.row} | {account.backend} | n/a | n/a | n/a | n/a | {account.fault} |"
    largest = sorted(one.parts.items(), key=lambda item: -item[1])[:_SHARES]
    made_of = ", ".join(f"{COUNTS[name]} {ns / one.ns:.0%}" for name, ns in largest if ns) if one.ns else ""
    ratio = f"{one.gbits / baseline.gbits:.2f}" if baseline is not None and baseline.gbits else "n/a"
    return (
        f"| {account.row} | {account.backend} | {one.ns / 1000:.2f} | {one.rate / 1000:.0f}"
        f" | {one.gbits:.2f} | {ratio} | {made_of} |"
    )


def _left_out(estimates: Iterable[Estimate]) -> list[str]:
    """What the sums of a table are without: one line for each backend."""
    lines: dict[str, set[str]] = {}
    for one in estimates:
        lines.setdefault(one.account.backend, set()).update(one.without)
    return [
        f"Without, {backend}: {', '.join(COUNTS[name] for name in COUNTS if name in names)}."
        for backend, names in lines.items()
        if names
    ]
