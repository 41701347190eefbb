# SPDX-License-Identifier: Apache-2.0
"""Sends or receives some bytes by TCP, as any program: `tcp_talk.py receive|send ADDRESS`."""

from __future__ import annotations

import socket
import sys
import time

PORT = 5000
DATA = bytes(range(256)) * 4096


def receive(address: str) -> None:
    with socket.create_server((address, PORT)) as server:
        connection, _ = server.accept()
        got = b""
        with connection:
            while len(got) < len(DATA):
                part = connection.recv(1 << 16)
                assert part
                got += part
        assert got == DATA


def send(address: str) -> None:
    while True:
        try:
            connection = socket.create_connection((address, PORT))
        except ConnectionRefusedError:
            time.sleep(0.01)  # the receiver has not started
        else:
            break
    with connection:
        connection.sendall(DATA)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)


if __name__ == "__main__":
    {"receive": receive, "send": send}[sys.argv[1]](sys.argv[2])
