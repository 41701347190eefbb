# SPDX-License-Identifier: Apache-2.0
"""The configuration file: TOML to frozen structs, and for each mistake one line that names file, key and reason.

Knows what may be written and what it means, not who acts on it.
"""

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import msgspec
from msgspec import Meta

from netback.errors import ConfigError
from netback.net.spec import parse_spec
from netback.observe.trace import Tracer
from netback.vif.features import DeviceType, parse_mac

DEFAULT = Path("/etc/netback/netback.toml")

_PLACE = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)


class DeviceRule(msgspec.Struct, frozen=True):
    """One `[[device]]`: for devices that fit everything it names."""

    net: str
    guest: str | None = None
    domid: Annotated[int, Meta(ge=0)] | None = None
    type: DeviceType | None = None
    index: Annotated[int, Meta(ge=0, lt=1 << 31)] | None = None
    mac: str | None = None
    attach: bool = False

    def __post_init__(self) -> None:
        _check_net(self.net)
        if self.mac is not None:
            parse_mac(self.mac)
        if self.attach and (self.guest is None or self.index is None):
            raise ValueError(
                "attach needs guest and index, so that a guest that comes again gets the same device"
            )
        if self.attach and self.domid is not None:
            raise ValueError("attach goes by guest: a guest that comes again has another domid")

    def fits(
        self, *, guest: Collection[str], domid: int, type: DeviceType, index: int, mac: str | None
    ) -> bool:
        """Whether this is such a device; `guest` holds what the guest may be called."""
        return (
            (self.guest is None or self.guest in guest)
            and self.domid in (None, domid)
            and self.type in (None, type)
            and self.index in (None, index)
            and (self.mac is None or parse_mac(self.mac) == mac)
        )


class Config(msgspec.Struct, frozen=True):
    """The file."""

    net: str | None = None
    workers: Annotated[int, Meta(ge=1, le=1024)] | None = None
    trace: tuple[str, ...] = ()
    device: tuple[DeviceRule, ...] = ()

    def __post_init__(self) -> None:
        if self.net is not None:
            _check_net(self.net)
        try:
            _check_trace(self.trace)
        except ConfigError as error:
            raise ValueError(f"trace: {error}") from error

    def overruled(self, *, net: str | None, trace: tuple[str, ...], workers: int | None) -> Self:
        """With what a command line says instead; trace points are added."""
        if net is not None:
            parse_spec(net)
        _check_trace(trace)
        return type(self)(
            net=self.net if net is None else net,
            workers=self.workers if workers is None else workers,
            trace=self.trace + trace,
            device=self.device,
        )


def load_config(path: Path | None = None) -> Config:
    """Read a file; without one, netback's own where that exists. ConfigError says what is wrong with it."""
    chosen = path or DEFAULT
    try:
        text = chosen.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if path is None:
            return Config()
        raise ConfigError(f"{chosen}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{chosen}: cannot be read: {error}") from error
    try:
        return parse_config(text)
    except ValueError as error:
        raise ConfigError(f"{chosen}: {error}") from error


def parse_config(text: str) -> Config:
    """Read TOML; ValueError names key and reason."""
    data = tomllib.loads(text)
    _check_keys(data, Config, "")
    for number, table in enumerate(_tables(data.get("device"))):
        _check_keys(table, DeviceRule, f"device[{number}].")
    try:
        return msgspec.convert(data, Config)
    except msgspec.ValidationError as error:
        reason, place = match.groups() if (match := _PLACE.fullmatch(str(error))) else (str(error), "")
        raise ValueError(f"{place}: {_plain(reason)}" if place else _plain(reason)) from error


def _tables(value: object) -> list[Mapping[str, Any]]:
    return [table for table in value if isinstance(table, dict)] if isinstance(value, list) else []


def _check_keys(table: Mapping[str, Any], struct: type[msgspec.Struct], where: str) -> None:
    known = struct.__struct_fields__
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"{where}{key}: unknown key; {hint}")


def _check_net(net: str) -> None:
    try:
        parse_spec(net)
    except ConfigError as error:
        raise ValueError(f"net: {error}") from error


def _check_trace(patterns: tuple[str, ...]) -> None:
    tracer = Tracer()
    for pattern in patterns:
        tracer.select(pattern)


_WORDS = {"array": "list", "object": "table", "int": "whole number", "str": "string", "bool": "true or false"}


def _plain(reason: str) -> str:
    """msgspec's words, in TOML's."""

    def said(match: re.Match[str]) -> str:
        kind = match.group(1).removesuffix(" | null")
        return "a " + _WORDS.get(kind, kind)

    return re.sub(r"`([a-z]+(?: \| null)?)`", said, reason)
