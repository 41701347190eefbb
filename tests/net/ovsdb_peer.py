# SPDX-License-Identifier: Apache-2.0
"""An ovsdb-server with the bridge br0. It is honest, or lies: `lie` gets each message and returns the bytes to send in
place of the answer, None for the honest one.

Imports nothing from netback, so that it is an independent witness of the wire.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

Row = dict[str, Any]
Lie = Callable[[Row], bytes | None]
EMPTY: list[Any] = ["set", []]
BRIDGE = "b0000000-0000-0000-0000-000000000000"


def honest(request: Row) -> bytes | None:
    return None


def answer(request: Row, result: object) -> bytes:
    return json.dumps({"id": request["id"], "result": result, "error": None}).encode()


class OvsdbPeer:
    """`requests` has every request so far. `datapath`: the bridge's datapath_type."""

    def __init__(self, path: Path, lie: Lie = honest, *, datapath: str = "", ofport: object = 1) -> None:
        self.path, self.lie, self._ofport = path, lie, ofport
        self.requests: list[Row] = []
        self.rows: dict[str, dict[str, Row]] = {
            "Bridge": {BRIDGE: {"name": "br0", "datapath_type": datapath, "ports": EMPTY}},
            "Port": {},
            "Interface": {},
        }
        self._count = 0
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._connection = connection
                with suppress(OSError):
                    self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        decoder, text = json.JSONDecoder(), ""
        while data := connection.recv(65536):
            text += data.decode()
            while text:
                try:
                    request, end = decoder.raw_decode(text)
                except ValueError:
                    break
                text = text[end:]
                with self._lock:
                    self.requests.append(request)
                    lie = self.lie(request)
                    if lie is None and "method" in request:
                        lie = self._honest(request)
                    connection.sendall(lie or b"")

    def _honest(self, request: Row) -> bytes:
        if request["method"] == "monitor":
            assert request["params"][0] == "Open_vSwitch"
            return answer(request, self._changes({table: list(rows) for table, rows in self.rows.items()}))
        if request["method"] == "echo":
            return answer(request, request["params"])
        changed: dict[str, list[str]] = {"Bridge": [], "Port": [], "Interface": []}
        names: dict[str, str] = {}
        results = [self._apply(operation, changed, names) for operation in request["params"][1:]]
        notice = {"id": None, "method": "update", "params": [None, self._changes(changed)]}
        return json.dumps(notice).encode() + answer(request, results)

    def _changes(self, changed: dict[str, list[str]]) -> Row:
        """Tables of rows, as `monitor` and `update` have them: a row that is gone has no "new"."""
        return {
            table: {key: {"new": self.rows[table][key]} if key in self.rows[table] else {} for key in keys}
            for table, keys in changed.items()
            if keys
        }

    def _apply(self, operation: Row, changed: dict[str, list[str]], names: dict[str, str]) -> Row:
        if operation["op"] == "comment":
            return {}
        table = operation["table"]
        if operation["op"] == "insert":
            self._count += 1
            key = f"{table.lower()}-{self._count}"
            defaults = {
                "Port": {"tag": EMPTY, "trunks": EMPTY, "vlan_mode": EMPTY, "external_ids": ["map", []]},
                "Interface": {
                    "type": "",
                    "external_ids": ["map", []],
                    "ofport": self._ofport,
                    "error": EMPTY,
                },
            }[table]
            self.rows[table][key] = defaults | operation["row"]
            names[operation["uuid-name"]] = key
            changed[table].append(key)
            return {"uuid": ["uuid", key]}
        ((_, _, (_, key)),) = operation["where"]
        changed[table].append(key)
        if operation["op"] == "update":
            self.rows[table][key] |= operation["row"]
            return {"count": 1}
        for column, mutator, value in operation["mutations"]:
            if table == "Bridge":
                ports = [port for _, port in self.rows[table][key]["ports"][1]]
                given = [names.get(port, port) for _, port in value[1]]
                kept = [port for port in ports if port not in given]
                for port in set(ports) & set(given) if mutator == "delete" else ():
                    name = self.rows["Port"].pop(port)["name"]
                    gone = next(k for k, row in self.rows["Interface"].items() if row["name"] == name)
                    del self.rows["Interface"][gone]
                    changed["Port"].append(port)
                    changed["Interface"].append(gone)
                new = kept if mutator == "delete" else ports + given
                self.rows[table][key] = self.rows[table][key] | {
                    column: ["set", [["uuid", port] for port in new]]
                }
            else:
                ids = dict(self.rows[table][key][column][1])
                if mutator == "delete":
                    ids = {k: v for k, v in ids.items() if k not in value[1]}
                else:
                    ids = dict(value[1]) | ids
                self.rows[table][key] = self.rows[table][key] | {column: ["map", list(ids.items())]}
        return {"count": 1}

    # ---- for tests

    def port(self, name: str) -> Row | None:
        """The port of this name on br0, with its interface's columns under "interface"."""
        with self._lock:
            for _, key in self.rows["Bridge"][BRIDGE]["ports"][1]:
                row = self.rows["Port"][key]
                if row["name"] == name:
                    return row | {
                        "interface": next(r for r in self.rows["Interface"].values() if r["name"] == name)
                    }
        return None

    def change(self, table: str, key: str, **columns: object) -> None:
        """Change a row, as another client would."""
        with self._lock:
            self.rows[table][key] |= columns
            self.send(json.dumps(self.update({table: [key]})).encode())

    def update(self, changed: dict[str, list[str]]) -> Row:
        """The notification of these rows."""
        return {"id": None, "method": "update", "params": [None, self._changes(changed)]}

    def send(self, data: bytes) -> None:
        """Send anything over the present connection."""
        assert self._connection is not None
        self._connection.sendall(data)

    def drop(self) -> None:
        """End the present connection."""
        if self._connection is not None and self._connection.fileno() >= 0:
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End, as if killed: the path stays."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
