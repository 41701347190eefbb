# SPDX-License-Identifier: Apache-2.0
"""The configuration: a file and its drop-ins, TOML parsed into frozen structs. Each mistake gives one line with file,
key and reason.

Drop-ins are the files *.toml in the directory conf.d beside the file, in the order of their names. A later one's key
replaces an earlier one's and the file's. Rules of drop-ins come before the file's, and the first that fits applies.
"""

import difflib
import grp
import os
import re
import stat
import textwrap
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import msgspec
from msgspec import Meta

from netback.abi.xen import DOMID_FIRST_RESERVED
from netback.control.schema import HotplugBy
from netback.directory import Access
from netback.errors import ConfigError
from netback.net.filters import parse_filters
from netback.net.spec import parse_spec
from netback.observe.choice import RecordMode
from netback.observe.trace import Tracer
from netback.vif.features import MAX_QUEUES, DeviceType, WaitTimes, parse_mac
from netback.vif.rate import Rates, parse_rate
from netback.xenbus.scripts import DIRECTORIES, SECONDS, HotplugConfig

DEFAULT = Path("/etc/netback/netback.toml")
DROP_INS = "conf.d"
"""The directory of drop-ins, beside the file."""
ADDED = "50-added.toml"
"""The drop-in with the rules that `netback add` made."""
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
_RULE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CONTROL_MODE = re.compile(r"0?6[046][046]")
_DEEP_KEY = re.compile(r"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){4}")

_PLACE = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)


class DeviceRule(msgspec.Struct, frozen=True):
    """One `[[device]]` rule. It applies to devices that match every key it has."""

    net: str
    """The devices' network."""
    name: str | None = None
    """The rule's name, which only one may have: letters, digits and `._-`."""
    guest: str | None = None
    """Devices of this guest: its name or UUID, whatever its domid is after a reboot, a restore or a migration."""
    domid: Annotated[int, Meta(ge=0, lt=DOMID_FIRST_RESERVED)] | None = None
    """Devices of this domain."""
    type: DeviceType | None = None
    """Devices of this type."""
    index: Annotated[int, Meta(ge=0, lt=(1 << 31) - 1)] | None = None
    """The devices of guests with this number, 0 for a guest's first."""
    mac: str | None = None
    """The device with this address."""
    attach: bool = False
    """Attach the device whenever the guest appears; needs `guest` and `index`."""
    tx_rate: str | None = None
    """A limit of what the guest sends, as in `10Mb/s`; a reload applies it to existing devices."""
    rx_rate: str | None = None
    """A limit of what the guest receives, likewise."""
    filters: tuple[str, ...] | None = None
    """Their filters, in place of those of all devices; `[]` for no filter."""
    file: str = ""
    """The file that it is in; no key."""

    def __post_init__(self) -> None:
        _check_net(self.net)
        if self.name is not None and not _RULE_NAME.fullmatch(self.name):
            raise ValueError(
                f"name: {self.name!r}: at most 64 letters, digits and ._- that begin with no sign"
            )
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

    def decides_for(self, other: Self) -> bool:
        """Whether it fits every device that `other` fits, so that `other` never applies after it."""
        keys = ("guest", "domid", "type", "index", "mac")
        return all(getattr(self, key) in (None, getattr(other, key)) for key in keys)

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
    """The configuration's contents."""

    net: str | None = None
    """The network of a device that names none (Networks); without the key a tap."""
    workers: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """Worker threads; without the key one for each core."""
    queues: Annotated[int, Meta(ge=1, le=MAX_QUEUES)] | None = None
    """The most queues of a vif; a guest that is connected keeps its own. Without the key one for each core, at most 8.
    """
    trace: tuple[str, ...] = ()
    """Trace points to log, names or globs such as `xen_netdev_*`."""
    rx_drain_seconds: Annotated[float, Meta(ge=0.03, le=3600)] = WaitTimes().drain
    """How long frames wait for a guest before they are dropped ([decisions.md](decisions.md))."""
    rx_stall_seconds: Annotated[float, Meta(ge=0, le=86400)] = WaitTimes().stall
    """After how long a guest that takes no frames loses its link's carrier; 0: never."""
    hotplug: HotplugBy = "toolstack"
    """What runs the devices' hotplug scripts."""
    hotplug_seconds: Annotated[float, Meta(ge=0.1, le=3600)] = SECONDS
    """How long a hotplug script may take."""
    hotplug_directories: tuple[str, ...] = DIRECTORIES
    """Where hotplug scripts may be, or below."""
    control_mode: str = "0600"
    """The mode of the control socket: `0660` admits its group, `0666` everybody, to all that netback can do."""
    control_group: str | None = None
    """The group of the control socket; without the key netback's. In systemd's unit, which may give files to no other
    group, set `Group=` instead.
    """
    filters: tuple[str, ...] = ()
    """Filters of every device, as in `antispoof` (Filters); a reload applies them to existing devices."""
    record: RecordMode = "off"
    """Whether what guests do is recorded ([record.md](record.md)), `payload` with all bytes of frames; a reload applies
    it to existing devices.
    """
    device: tuple[DeviceRule, ...] = ()
    """Rules, each a table `[[device]]`; the first that matches a device decides."""
    files: tuple[str, ...] = ()
    """The files that it was read from; no key."""
    rules_file: str | None = None
    """The drop-in for rules that are added; no key."""

    def __post_init__(self) -> None:
        if self.net is not None:
            _check_net(self.net)
        _check_filters(self.filters)
        try:
            check_trace(self.trace)
        except ConfigError as error:
            raise ValueError(f"trace: {error}") from error
        for directory in self.hotplug_directories:
            if not Path(directory).is_absolute():
                raise ValueError(f"hotplug_directories: {directory!r} is no absolute path")
        if not _CONTROL_MODE.fullmatch(self.control_mode):
            raise ValueError(
                f'control_mode: {self.control_mode!r} is no mode of a socket that its owner may use: as in "0660"'
            )
        _ = self.access

    def overruled(
        self,
        *,
        net: str | None,
        trace: tuple[str, ...],
        workers: int | None,
        queues: int | None = None,
        hotplug: HotplugBy | None = None,
        record: RecordMode | None = None,
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
            hotplug=self.hotplug if hotplug is None else hotplug,
            record=self.record if record is None else record,
            trace=self.trace + trace,
        )

    @property
    def scripts(self) -> HotplugConfig | None:
        """How netback runs hotplug scripts; None: a toolstack does."""
        if self.hotplug == "toolstack":
            return None
        return HotplugConfig(self.hotplug_seconds, self.hotplug_directories)

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


def load_config(path: Path | None = None, *, optional: bool = False) -> Config:
    """Read a file, netback's default one for None, and the drop-ins. The default one may be missing, another if it is
    `optional`. ConfigError names file and mistake.
    """
    main = path or DEFAULT
    base: dict[Path, dict[str, Any]] = {}
    try:
        base[main] = _load(main)
    except FileNotFoundError as error:
        if path is not None and not optional:
            raise ConfigError(f"{main}: there is no such file") from error
    dropped = {file: _load(file) for file in drop_ins(main.parent / DROP_INS)}
    found = dropped | base
    tables = (*base.values(), *dropped.values())
    merged = {key: value for table in tables for key, value in table.items() if key != "device"}
    rules = tuple(
        msgspec.structs.replace(rule, file=str(file))
        for file, table in found.items()
        for rule in _config(table).device
    )
    check_names(rules)
    return msgspec.structs.replace(
        _config(merged),
        device=rules,
        files=tuple(map(str, found)),
        rules_file=str(main.parent / DROP_INS / ADDED),
    )


def load_rules(path: Path) -> tuple[DeviceRule, ...]:
    """The rules of one drop-in; none if it does not exist. ConfigError names file and mistake."""
    try:
        rules = _config(_load(path)).device
    except FileNotFoundError:
        return ()
    return tuple(msgspec.structs.replace(rule, file=str(path)) for rule in rules)


def drop_ins(directory: Path) -> list[Path]:
    """The drop-ins of a directory, in order; none if it does not exist. ConfigError: it cannot be read."""
    try:
        names = [entry for entry in directory.iterdir() if entry.suffix == ".toml" and entry.name[0] != "."]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be read: {error.strerror}") from error
    return sorted(names)


def check_names(rules: Iterable[DeviceRule]) -> None:
    """ConfigError: two rules have the same name."""
    seen: dict[str, str] = {}
    for rule in rules:
        if rule.name is not None and rule.name in seen:
            raise ConfigError(f"{rule.file}: device.name: {seen[rule.name]} has a rule {rule.name!r}, too")
        if rule.name is not None:
            seen[rule.name] = rule.file


def _load(path: Path) -> dict[str, Any]:
    """A file's table, without a mistake. FileNotFoundError: there is no file; ConfigError names it and the mistake."""
    try:
        text = _read(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    try:
        table = _parse(text)
        _config(table)
    except ValueError as error:
        raise ConfigError(
            f"{path}: {textwrap.shorten(str(error), _MAX_REASON, placeholder='...')}"
        ) from error
    return table


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
    """Parse one file's TOML. ValueError names key and reason."""
    return _config(_parse(text))


def _parse(text: str) -> dict[str, Any]:
    try:
        _check_depth(text)
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error


def _config(table: Mapping[str, Any]) -> Config:
    """A table as a configuration. ValueError names key and reason."""
    _check_keys(table, Config, "")
    for number, rule in enumerate(_tables(table.get("device"))):
        _check_keys(rule, DeviceRule, f"device[{number}].")
    try:
        return msgspec.convert(table, Config)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    except msgspec.ValidationError as error:
        raise ValueError(_reason(error)) from error


def make_rule(keys: Mapping[str, Any]) -> DeviceRule:
    """A rule from its keys. ConfigError names key and reason."""
    try:
        return msgspec.convert(keys, DeviceRule)
    except msgspec.ValidationError as error:
        raise ConfigError(_reason(error)) from error


def _reason(error: msgspec.ValidationError) -> str:
    reason, place = match.groups() if (match := _PLACE.fullmatch(str(error))) else (str(error), "")
    return f"{place}: {_plain(reason)}" if place else _plain(reason)


def _check_depth(text: str) -> None:
    """Refuse dotted keys with many parts: tomllib's memory is quadratic in them, 40 GB for one of 100000
    parts.
    """
    if _DEEP_KEY.search(_OPAQUE.sub("_", text)):
        raise ValueError(_TOO_DEEP)


def _tables(value: object) -> list[Mapping[str, Any]]:
    return [table for table in value if isinstance(table, dict)] if isinstance(value, list) else []


def _check_keys(table: Mapping[str, Any], struct: type[msgspec.Struct], where: str) -> None:
    known = [field for field in struct.__struct_fields__ if field not in NO_KEYS]
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


NO_KEYS = {"file", "files", "rules_file"}
"""Fields that no file sets."""
_WORDS = {"array": "list", "object": "table", "int": "whole number", "str": "string", "bool": "boolean"}


def _plain(reason: str) -> str:
    """Translate msgspec's type names into TOML's."""

    def translate(match: re.Match[str]) -> str:
        kind = match.group(1).removesuffix(" | null")
        return "a " + _WORDS.get(kind, kind)

    return re.sub(r"`([a-z]+(?: \| null)?)`", translate, reason)
