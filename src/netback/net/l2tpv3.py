# SPDX-License-Identifier: Apache-2.0
"""A static L2TPv3 session, as `ip l2tp` and QEMU's `-netdev l2tpv3` have it: each frame behind a short header in a UDP
datagram or an IP packet (RFC 3931, data messages; no control messages).

Nothing is negotiated and nothing encrypted: both ends are told addresses, sessions and cookies. A cookie keeps others
from putting in frames as long as they do not read it on its way.
"""

import ipaddress
import re
import socket
from collections.abc import Mapping
from typing import Any

from netback.dataplane.peers.l2tpv3 import L2tpv3Peer
from netback.dataplane.peers.peer import Peer
from netback.dataplane.peers.socket import SocketPeer
from netback.errors import ConfigError, printable
from netback.net.dgram import DgramNetwork
from netback.net.endpoints import HostPort, read_host_port
from netback.net.options import Option, Options, choice, integer

IPPROTO_L2TP = 115
"""linux/l2tp.h: L2TP over IP."""
_COOKIE = re.compile(r"(?:[0-9a-f]{8}){1,2}", re.ASCII)


def read_end(text: str) -> HostPort:
    """An address with a port for UDP, or one alone, whose port is 0, for IP. ValueError says what is wrong."""
    try:
        return HostPort(str(ipaddress.ip_address(text)), 0)
    except ValueError:
        if ":" not in text:
            raise ValueError(f"{text!a} is neither ADDRESS nor ADDRESS:PORT, in numbers") from None
        return read_host_port(text)


def read_cookie(text: str) -> bytes:
    """A cookie in hexadecimal digits. ValueError: it is none."""
    if not _COOKIE.fullmatch(text):
        raise ValueError
    return bytes.fromhex(text)


SESSION = integer(1, 0xFFFFFFFF)
COOKIE = Option("8 or 16 hexadecimal digits, in lower case", read_cookie)
OPTIONS: Options = {
    "local": Option("ADDRESS:PORT of this host for UDP, ADDRESS for IP", read_end),
    "session": SESSION,
    "rx_session": SESSION,
    "cookie": COOKIE,
    "rx_cookie": COOKIE,
    "counter": choice("on", "pin"),
}
"""Options of its spec."""


def misfit(where: str, options: Mapping[str, Any]) -> str | None:
    """Why the ends and the options do not go together; None if they do."""
    there, here = read_end(where), options.get("local")
    if here is None:
        return "it needs an address of this host: local=ADDRESS:PORT for UDP, local=ADDRESS for IP"
    if here.family != there.family or bool(here.port) != bool(there.port):
        return "both ends need the same: addresses of one version, with ports for UDP or without for IP"
    if "session" not in options:
        return "it needs the session's number: session=NUMBER"
    return None


class L2tpv3Network(DgramNetwork):
    """A session with the host `where`, received at `local` (`read_end`).

    `session`, `cookie`: of frames both ways; `rx_session`, `rx_cookie`: of those that come, if they differ. `counter`:
    a word follows, which Linux calls l2spec_type default: "on" counts the frames, "pin" leaves it 0; it is not read.
    ConfigError: the arguments do not go together, or this process may not. PeerError: the address cannot be had.
    """

    def __init__(
        self,
        where: str,
        *,
        local: HostPort | None = None,
        session: int = 0,
        rx_session: int | None = None,
        cookie: bytes = b"",
        rx_cookie: bytes | None = None,
        counter: str | None = None,
    ) -> None:
        given = {"local": local} | ({"session": session} if session else {})
        if fault := misfit(where, given):
            raise ConfigError(f"l2tpv3:{printable(where)}: {fault}")
        assert local is not None
        self._there, self._here = read_end(where), local
        self._sends = session.to_bytes(4, "big") + cookie
        takes = session if rx_session is None else rx_session
        self._takes = takes.to_bytes(4, "big") + (cookie if rx_cookie is None else rx_cookie)
        self._counter = counter
        self._begin(f"l2tpv3:{printable(where)}", self._there)

    @property
    def _is_udp(self) -> bool:
        return self._here.port != 0

    def _open(self) -> socket.socket:
        kind, protocol = (socket.SOCK_DGRAM, 0) if self._is_udp else (socket.SOCK_RAW, IPPROTO_L2TP)
        flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            sock = self._undo.enter_context(socket.socket(self._here.family, kind | flags, protocol))
        except PermissionError as error:
            raise ConfigError(
                "L2TP over IP needs CAP_NET_RAW: be root, or use UDP, by ports at both ends"
            ) from error
        sock.bind(self._here.address)
        sock.connect(self._there.address)
        return sock

    def _make_peer(self) -> L2tpv3Peer:
        return L2tpv3Peer(
            SocketPeer(self._socket.fileno(), owner=self._socket),
            takes=self._takes,
            sends=self._sends,
            udp=self._is_udp,
            ipv4_header=not self._is_udp and self._here.family == socket.AF_INET,
            counter=self._counter is not None,
            pinned=self._counter == "pin",
        )

    @property
    def peers(self) -> tuple[Peer, ...]:
        return (self._peer,)

    def drops(self) -> dict[str, int]:
        """Frames dropped because the socket's buffer was full, and messages that were not of this session."""
        assert isinstance(self._peer, L2tpv3Peer)
        return super().drops() | {"rx_wrong_session": self._peer.strangers}
