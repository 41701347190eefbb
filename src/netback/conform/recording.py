# SPDX-License-Identifier: Apache-2.0
"""Observations as a file of JSON lines: a header, the runs, a digest. A file that was cut or edited is refused.

{"netback-conform": 1, "side": "frontend", "runs": 2}
{"profile": "strict", ..., "events": [...]}
{"sha256": "..."}
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from netback.errors import ConfigError
from netback.output import private_output

VERSION = 1
MAX_BYTES = 256 << 20
"""Bytes of a file that is read: a run takes about one megabyte."""
T = TypeVar("T", bound=msgspec.Struct)
Side = Literal["frontend", "backend"]


class _Header(msgspec.Struct, frozen=True, rename={"version": "netback-conform"}, forbid_unknown_fields=True):
    version: int
    side: Side
    runs: int


class _End(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str


def encode(side: Side, runs: Sequence[msgspec.Struct]) -> bytes:
    """A recording's bytes."""
    lines = [msgspec.json.encode(_Header(VERSION, side, len(runs))), *map(msgspec.json.encode, runs)]
    body = b"".join(line + b"\n" for line in lines)
    return body + msgspec.json.encode(_End(hashlib.sha256(body).hexdigest())) + b"\n"


def save(path: Path, side: Side, runs: Sequence[msgspec.Struct]) -> None:
    """Write a recording for its owner alone, since it holds the guest's frames. ConfigError: it cannot be written."""
    with private_output(path, "the recording") as write:
        write(encode(side, runs))


def load(path: Path, side: Side, kind: type[T]) -> list[T]:
    """The runs of a recording. ConfigError names what is wrong with the file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: more than {MAX_BYTES >> 20} MiB: no recording of `netback conform`")
    lines = data.splitlines(keepends=True)
    try:
        header = msgspec.json.decode(lines[0] if lines else b"", type=_Header)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: line 1: no recording of `netback conform`") from error
    if header.version != VERSION:
        raise ConfigError(f"{path}: a recording of version {header.version}, not {VERSION}")
    if header.side != side:
        raise ConfigError(f"{path}: a recording of a {header.side}, not of a {side}")
    if len(lines) != header.runs + 2 or not lines[-1].endswith(b"\n"):
        raise ConfigError(f"{path}: the recording is cut: {len(lines)} lines of {header.runs + 2}")
    try:
        digest = msgspec.json.decode(lines[-1], type=_End).sha256
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: line {len(lines)}: the recording does not end with its digest") from error
    if digest != hashlib.sha256(b"".join(lines[:-1])).hexdigest():
        raise ConfigError(f"{path}: the recording was edited: its digest is another")
    return [_run(path, number, line, kind) for number, line in enumerate(lines[1:-1], 2)]


def _run(path: Path, number: int, line: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: line {number}: {error}") from error
