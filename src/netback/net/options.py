# SPDX-License-Identifier: Apache-2.0
"""Options of a spec, as in `tap:web0,mtu=9000`: each kind of network has a table of those that it takes.

A value is text without a comma, unless it is the rest of the text. Each value has one spelling, so a spec that was
parsed is written the same.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from netback.errors import ConfigError
from netback.net.link_names import link_name_fault

_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a kind of network."""

    value: str
    """What its value is, as in "a number from 68 to 65521"; empty for a flag, which has none."""
    read: Callable[[str], Any]
    """The value of a text, which is empty for a flag. ValueError: it is not what `value` says; its text may say why."""
    many: bool = False
    """Whether it may be given several times: its value is then a tuple."""
    rest: bool = False
    """Whether its value is the rest of the text, with its commas: such an option stands last."""


Options = Mapping[str, Option]
"""The options of one kind, by name: with underscores, names of keyword arguments of the kind's network."""

FLAG = Option("", lambda _: True)


def integer(least: int, most: int) -> Option:
    """A decimal number without leading zeros, both ends included."""

    def read(text: str) -> int:
        if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
            raise ValueError
        return int(text)

    return Option(f"a number from {least} to {most}", read)


def link_name(text: str) -> str:
    """The value of an option that names a link. ValueError: no link can have the name."""
    if fault := link_name_fault(text):
        raise ValueError(fault)
    return text


def choice(*words: str) -> Option:
    """One of these words."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return Option(f"{', '.join(words[:-1])} or {words[-1]}", read)


def split_options(text: str, table: Options | None = None) -> tuple[tuple[str, str | None], ...]:
    """The options of a spec after its first comma, each with its text; None if it has no equals sign.

    `table` says whose value is the rest.
    """
    given: list[tuple[str, str | None]] = []
    rest: str | None = text
    while rest is not None:
        option, comma, following = rest.partition(",")
        name, equals, value = option.partition("=")
        rest = following if comma else None
        if equals and table is not None and name in table and table[name].rest:
            value, rest = f"{value}{comma}{following}", None
        given.append((name, value if equals else None))
    return tuple(given)


def read_options(kind: str, table: Options, given: tuple[tuple[str, str | None], ...]) -> dict[str, Any]:
    """The value of each option that was given, as keyword arguments. ConfigError names the mistake."""
    values: dict[str, Any] = {}
    for name, text in given:
        value, key = _read(kind, table, name, text), name.replace("-", "_")
        if table[name].many:
            value = (*values.get(key, ()), value)
        elif key in values:
            raise ConfigError(f"option {name} is given twice")
        values[key] = value
    return values


def _read(kind: str, table: Options, name: str, text: str | None) -> Any:
    if name not in table:
        known = f"options: {', '.join(table)}" if table else "it takes none"
        raise ConfigError(f"{kind} has no option {name!a} ({known})")
    option = table[name]
    if not option.value and text is not None:
        raise ConfigError(f"option {name} takes no value")
    if option.value and not text:
        raise ConfigError(f"option {name} needs a value: {option.value}")
    try:
        return option.read(text or "")
    except ValueError as error:
        raise ConfigError(
            f"{name}={text!a} is not {option.value}{f': {error}' * bool(str(error))}"
        ) from error
