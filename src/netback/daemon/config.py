# SPDX-License-Identifier: Apache-2.0
"""The configuration file: parses TOML into frozen structs. Each mistake gives one line with file, key and
reason.
"""

import difflib
import grp
import os
import re
import stat
import textwrap
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import msgspec
from msgspec import Meta

from netback.abi.xen import DOMID_FIRST_RESERVED
from netback.directory import Access
from netback.errors import ConfigError
from netback.net.filters import parse_filters
from netback.net.spec import parse_spec
from netback.observe.trace import Tracer
from netback.vif.features import MAX_QUEUES, DeviceType, WaitTimes, parse_mac
from netback.vif.rate import Rates, parse_rate

DEFAULT = Path("/etc/netback/netback.toml")
_MAX_SIZE = 1 << 20
"""Maximum bytes of a configuration file. A rule takes about a hundred."""
_MAX_REASON = 300
"""Maximum characters of an error: it may quote the file."""

_TOO_DEEP = "nested too deeply: [[device]] tables are all that a configuration nests"
_OPAQUE = re.compile(
    r"""
    "{3} (?:[^\\]|\\.)*? (?:"{3}|\Z) | '{3} .*? (?:'{3}|\Z) |
    " (?:[^"\\\n]|\\.)*+ "? | ' [^'\n]*+ '? | \# [^\n]*+
    """,
    re.DOTALL | re.VERBOSE,
)
"""TOML's strings and comments, in which dots separate no keys. An unterminated one extends to the end of its
line or of the file."""
_CONTROL_MODE = re.compile(r"0?6[046][046]")
_DEEP_KEY = re.compile(r"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){4}")

_PLACE = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)


class DeviceRule(msgspec.Struct, frozen=True):
    """One `[[device]]` rule. It applies to devices that match every key it has."""

    net: str
    guest: str | None = None
    domid: Annotated[int, Meta(ge=0, lt=DOMID_FIRST_RESERVED)] | None = None
    type: DeviceType | None = None
    index: Annotated[int, Meta(ge=0, lt=(1 << 31) - 1)] | None = None
    mac: str | None = None
    attach: bool = False
    tx_rate: str | None = None
    rx_rate: str | None = None
    filters: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_net(self.net)
        for key, rate in (("tx_rate", self.tx_rate), ("rx_rate", self.rx_rate)):
            _check_rate(key, rate)
        _check_filters(self.filters or ())
        if self.mac is not None:
            _check_mac(self.mac)
        if self.attach and (self.guest is None or self.index is None):
            raise ValueError(
                "attach needs guest and index, so that a guest that restarts gets the same device"
            )
        if self.attach and self.domid is not None:
            raise ValueError("attach needs guest, not domid: a guest that restarts has another domid")

    @property
    def rates(self) -> Rates:
        """The limits of the devices that it applies to."""
        tx, rx = (None if rate is None else parse_rate(rate) for rate in (self.tx_rate, self.rx_rate))
        return Rates(tx, rx)

    def fits(
        self, *, guest: Collection[str], domid: int, type: DeviceType, index: int, mac: str | None
    ) -> bool:
        """Whether the rule matches this device; `guest` is the guest's name and UUID."""
        return (
            (self.guest is None or self.guest in guest)
            and self.domid in (None, domid)
            and self.type in (None, type)
            and self.index in (None, index)
            and (self.mac is None or parse_mac(self.mac) == mac)
        )


class Config(msgspec.Struct, frozen=True):
    """The configuration file's contents."""

    net: str | None = None
    workers: Annotated[int, Meta(ge=1, le=1024)] | None = None
    queues: Annotated[int, Meta(ge=1, le=MAX_QUEUES)] | None = None
    trace: tuple[str, ...] = ()
    rx_drain_seconds: Annotated[float, Meta(ge=0.03, le=3600)] = WaitTimes().drain
    rx_stall_seconds: Annotated[float, Meta(ge=0, le=86400)] = WaitTimes().stall
    control_mode: str = "0600"
    control_group: str | None = None
    filters: tuple[str, ...] = ()
    device: tuple[DeviceRule, ...] = ()

    def __post_init__(self) -> None:
        if self.net is not None:
            _check_net(self.net)
        _check_filters(self.filters)
        try:
            check_trace(self.trace)
        except ConfigError as error:
            raise ValueError(f"trace: {error}") from error
        if not _CONTROL_MODE.fullmatch(self.control_mode):
            raise ValueError(
                f'control_mode: {self.control_mode!r} is no mode of a socket that its owner may use: as in "0660"'
            )
        _ = self.access

    def overruled(
        self, *, net: str | None, trace: tuple[str, ...], workers: int | None, queues: int | None = None
    ) -> Self:
        """This configuration, overridden by the command line's values; trace points are added.

        ConfigError names an invalid value.
        """
        if net is not None:
            parse_spec(net)
        check_trace(trace)
        return msgspec.structs.replace(
            self,
            net=self.net if net is None else net,
            workers=self.workers if workers is None else workers,
            queues=self.queues if queues is None else queues,
            trace=self.trace + trace,
        )

    @property
    def access(self) -> Access:
        """Who may use the control socket. ValueError: there is no such group."""
        try:
            group = None if self.control_group is None else grp.getgrnam(self.control_group).gr_gid
        except (KeyError, ValueError) as error:
            raise ValueError(f"control_group: there is no group {self.control_group!r}") from error
        return Access(int(self.control_mode, 8), group)

    @property
    def times(self) -> WaitTimes:
        """How long frames may wait for a guest."""
        return WaitTimes(self.rx_drain_seconds, self.rx_stall_seconds)


def load_config(path: Path | None = None) -> Config:
    """Read a file, or netback's default file if it exists. ConfigError names the mistake."""
    chosen = path or DEFAULT
    try:
        text = _read(chosen)
    except FileNotFoundError as error:
        if path is None:
            return Config()
        raise ConfigError(f"{chosen}: there is no such file") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"{chosen}: cannot be read: {reason}") from error
    try:
        return parse_config(text)
    except ValueError as error:
        raise ConfigError(
            f"{chosen}: {textwrap.shorten(str(error), _MAX_REASON, placeholder='...')}"
        ) from error


def _read(path: Path) -> str:
    """A regular file's text. Other files are refused: a pipe could block the daemon for ever, or be empty
    when read again.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("not a regular file")
        data = file.read(_MAX_SIZE + 1)
    if len(data) > _MAX_SIZE:
        raise ValueError(f"larger than {_MAX_SIZE} bytes")
    return data.decode()


def parse_config(text: str) -> Config:
    """Parse TOML. ValueError names key and reason."""
    try:
        _check_depth(text)
        data = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    _check_keys(data, Config, "")
    for number, table in enumerate(_tables(data.get("device"))):
        _check_keys(table, DeviceRule, f"device[{number}].")
    try:
        return msgspec.convert(data, Config)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    except msgspec.ValidationError as error:
        reason, place = match.groups() if (match := _PLACE.fullmatch(str(error))) else (str(error), "")
        raise ValueError(f"{place}: {_plain(reason)}" if place else _plain(reason)) from error


def _check_depth(text: str) -> None:
    """Refuse dotted keys with many parts: tomllib's memory is quadratic in them, 40 GB for one of 100000
    parts.
    """
    if _DEEP_KEY.search(_OPAQUE.sub("_", text)):
        raise ValueError(_TOO_DEEP)


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


def _check_rate(key: str, rate: str | None) -> None:
    try:
        if rate is not None:
            parse_rate(rate)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _check_filters(texts: tuple[str, ...]) -> None:
    try:
        parse_filters(texts)
    except ConfigError as error:
        raise ValueError(f"filters: {error}") from error


def _check_mac(mac: str) -> None:
    try:
        parse_mac(mac)
    except ValueError as error:
        raise ValueError(f"mac: {error}: {mac!r}") from error


def check_trace(patterns: tuple[str, ...]) -> None:
    """ConfigError names a pattern that matches no trace point."""
    tracer = Tracer()
    for pattern in patterns:
        tracer.select(pattern)


_WORDS = {"array": "list", "object": "table", "int": "whole number", "str": "string", "bool": "boolean"}


def _plain(reason: str) -> str:
    """Translate msgspec's type names into TOML's."""

    def translate(match: re.Match[str]) -> str:
        kind = match.group(1).removesuffix(" | null")
        return "a " + _WORDS.get(kind, kind)

    return re.sub(r"`([a-z]+(?: \| null)?)`", translate, reason)
