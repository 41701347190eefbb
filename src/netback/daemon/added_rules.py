# SPDX-License-Identifier: Apache-2.0
"""The drop-in with the rules that `netback add` made: netback writes it, and reads it like any other."""

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from netback.daemon.config import DeviceRule
from netback.errors import ConfigError

_HEAD = "# Made by `netback add`; `netback remove NAME` removes a rule.\n"


def save_rules(path: Path, rules: Iterable[DeviceRule]) -> None:
    """Replace the file in one step, so that a killed netback leaves the old one or the new one; no rules, no file.

    ConfigError: it cannot be written; it is unchanged then.
    """
    text = "".join(map(_render, rules))
    try:
        if not text:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, made = tempfile.mkstemp(prefix=".", dir=path.parent)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(_HEAD + text)
                os.fchmod(fd, 0o644)
                file.flush()
                os.fsync(fd)
            Path(made).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(made).unlink()
            raise
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written: {error.strerror}; write the rule into it by hand"
        ) from error


def place_rules(
    rules: Iterable[DeviceRule], path: Path, added: Iterable[DeviceRule]
) -> tuple[DeviceRule, ...]:
    """All rules in their order, those of the drop-in `path` replaced by `added`."""
    rest = [rule for rule in rules if rule.file != str(path)]
    before = [rule for rule in rest if Path(rule.file).parent == path.parent and rule.file < str(path)]
    return (*before, *added, *(rule for rule in rest if rule not in before))


def free_name(rules: Iterable[DeviceRule]) -> str:
    """A name that no rule has: "added-1", ..."""
    taken = {rule.name for rule in rules}
    number = 1
    while (name := f"added-{number}") in taken:
        number += 1
    return name


def check_new(rule: DeviceRule, earlier: Iterable[DeviceRule]) -> None:
    """ConfigError: an earlier rule decides for every device that the new one fits, so it would never apply."""
    for other in earlier:
        if other.decides_for(rule):
            what = f"rule {other.name!r}" if other.name else f"a rule for net {other.net!r}"
            raise ConfigError(
                f"{what} in {other.file} comes before and decides for all its devices: remove that first"
            )


def _render(rule: DeviceRule) -> str:
    lines = ["", "[[device]]"]
    for key, value in msgspec.structs.asdict(rule).items():
        if key == "file" or value is None or value is False:
            continue
        if isinstance(value, tuple):
            text = f"[{', '.join(map(_quote, value))}]"
        else:
            text = _quote(value) if isinstance(value, str) else str(value).lower()
        lines.append(f"{key} = {text}")
    return "\n".join([*lines, ""])


def _quote(text: str) -> str:
    """A basic string of TOML: quotes, backslashes and what is not printable are escaped."""
    escaped = (
        f"\\{character}"
        if character in '"\\'
        else character
        if character.isprintable()
        else f"\\U{ord(character):08x}"
        for character in text
    )
    return f'"{"".join(escaped)}"'
