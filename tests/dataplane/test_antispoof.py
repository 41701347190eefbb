# SPDX-License-Identifier: Apache-2.0
"""`antispoof` by its rules, one by one; beside the oracle; and in front of a ring whose guest lies about its frames."""

from __future__ import annotations

import random

import pytest
from fuzz import antispoof as fuzzing

from netback.abi.netif import EXTRA_GSO, TX_REQUEST, TX_SLOT, ExtraType, GsoType, TxFlag
from netback.abi.ring import slot_offset
from netback.abi.virtio_net import HEADER
from netback.dataplane.peers.antispoof import AntispoofPeer
from netback.dataplane.peers.null import NullPeer
from netback.dataplane.peers.socket import SocketPeer
from tests.antispoof_oracle import Oracle
from tests.dataplane import offload_frames
from tests.dataplane import spoof_frames as f
from tests.dataplane.harness import RING_PAGES, Bench
from tests.offload_oracle import TCP

OWN = ("192.0.2.1", "2001:db8::1")
ETH_IP, ETH_ARP, ETH_RARP, ETH_IP6 = 0x0800, 0x0806, 0x8035, 0x86DD
SOLICITED = bytes.fromhex("ff0200000000000000000001ff000001")
SLAAC = f.option(1), f.option(1, f.OTHER)
TARGET_LINK = f.option(2), f.option(2, f.OTHER)


def arp(**fields: bytes | int) -> bytes:
    return f.ethernet(ETH_ARP, f.arp(**fields))  # type: ignore[arg-type]


def rarp(**fields: bytes | int) -> bytes:
    return f.ethernet(ETH_RARP, f.arp(**fields))  # type: ignore[arg-type]


def ip4(*words: bytes, **fields: bytes | int) -> bytes:
    return f.ethernet(ETH_IP, f.ipv4(*words, **fields))  # type: ignore[arg-type]


def ip6(*words: bytes, **fields: object) -> bytes:
    return f.ethernet(ETH_IP6, f.ipv6(*words, **fields))  # type: ignore[arg-type]


PASSES = None
RULES = {
    # Ethernet
    "own": (ip4(), PASSES),
    "another source": (f.ethernet(ETH_IP, f.ipv4(), source=f.OTHER), "mac"),
    "a broadcast source": (f.ethernet(ETH_IP, f.ipv4(), source=f.BROADCAST), "mac"),
    "a multicast source": (f.ethernet(ETH_IP, f.ipv4(), source=b"\1" + f.MAC[1:]), "mac"),
    "too short": (f.ethernet(ETH_IP, b"")[:13], "headers"),
    "another protocol": (f.ethernet(0x88CC, bytes(40)), PASSES),
    "spanning tree": (f.ethernet(38, bytes.fromhex("424203") + bytes(35)), PASSES),
    # tags and SNAP
    "tagged": (f.ethernet(ETH_IP, f.ipv4(), tags=f.C_TAG), PASSES),
    "a lie in a tag": (f.ethernet(ETH_IP, f.ipv4(f.OTHER4), tags=f.C_TAG), "ipv4"),
    "a lie in two tags": (f.ethernet(ETH_ARP, f.arp(sender=f.OTHER), tags=f.S_TAG + f.C_TAG), "arp"),
    "three tags": (f.ethernet(ETH_IP, f.ipv4(), tags=f.C_TAG * 3), "headers"),
    "a tag without an end": (f.ethernet(0x8100, b"\0"), "headers"),
    "a lie in SNAP": (f.snap(ETH_IP, f.ipv4(f.OTHER4)), "ipv4"),
    "a lie in an 802.1H tunnel": (f.snap(ETH_ARP, f.arp(ip=f.OTHER4), oui=b"\0\0\xf8"), "arp"),
    "SNAP of another organisation": (f.snap(ETH_IP, f.ipv4(f.OTHER4), oui=b"\0\0\x0c"), PASSES),
    # ARP
    "ARP": (arp(), PASSES),
    "ARP by another hardware address": (arp(sender=f.OTHER), "arp"),
    "ARP for another address": (arp(ip=f.OTHER4, operation=2), "arp"),
    "a probe": (arp(ip=f.NONE4, target_ip=f.OWN4), PASSES),
    "a probe of another address": (arp(ip=f.NONE4), "arp"),
    "an answer from nobody": (arp(ip=f.NONE4, target_ip=f.OWN4, operation=2), "arp"),
    "truncated ARP": (arp()[:41], "headers"),
    "ARP of another format": (f.ethernet(ETH_ARP, b"\0\6" + f.arp()[2:]), "arp"),
    "RARP, as after a migration": (rarp(ip=f.NONE4, operation=3, target=f.MAC, target_ip=f.NONE4), PASSES),
    "RARP for another": (rarp(ip=f.NONE4, operation=3, target=f.OTHER), "arp"),
    "a RARP server": (rarp(ip=f.OTHER4, operation=4), "arp"),
    # IPv4
    "another IPv4 source": (ip4(f.OTHER4), "ipv4"),
    "a broadcast IPv4 source": (ip4(f.EVERYONE4), "ipv4"),
    "a fragment": (ip4(fragment=0x2005), PASSES),
    "a fragment of another": (ip4(f.OTHER4, fragment=0x2005), "ipv4"),
    "DHCP": (ip4(f.NONE4, f.EVERYONE4, body=f.dhcp()), PASSES),
    "DHCP with options": (ip4(f.NONE4, f.EVERYONE4, body=f.dhcp(), options=bytes(8)), PASSES),
    "DHCP to one server": (ip4(f.NONE4, f.OTHER4, body=f.dhcp()), "ipv4"),
    "a DHCP server from nobody": (ip4(f.NONE4, f.EVERYONE4, body=f.dhcp(ports=(67, 68))), "ipv4"),
    "DHCP in fragments": (ip4(f.NONE4, f.EVERYONE4, body=f.dhcp(), fragment=0x2000), "ipv4"),
    "no source": (ip4(f.NONE4), "ipv4"),
    "IPv4 that is IPv6": (f.ethernet(ETH_IP, f.ipv6()), "headers"),
    "truncated IPv4": (ip4()[:33], "headers"),
    "an IPv4 header of 16 bytes": (f.ethernet(ETH_IP, b"\x44" + f.ipv4()[1:]), "headers"),
    # IPv6
    "IPv6": (ip6(), PASSES),
    "its link-local address": (ip6(f.LINK6), PASSES),
    "another link-local address": (ip6(f.OTHER_LINK6), "ipv6"),
    "another IPv6 source": (ip6(f.OTHER6), "ipv6"),
    "a multicast IPv6 source": (ip6(f.ALL_NODES6), "ipv6"),
    "a later fragment": (ip6(chain=(f.fragment(3),)), PASSES),
    "a later fragment of another": (ip6(f.OTHER6, chain=(f.fragment(3),)), "ipv6"),
    "truncated IPv6": (ip6()[:53], "headers"),
    "ICMPv6 without a type": (ip6(body=b""), "headers"),
    "a long chain": (ip6(protocol=f.UDP, chain=(f.extension(f.DESTINATION),) * 15), PASSES),
    "a longer chain": (ip6(protocol=f.UDP, chain=(f.extension(f.DESTINATION),) * 16), "headers"),
    "a chain without an end": (ip6(body=b"", protocol=f.DESTINATION), "headers"),
    "a chain beyond the packet": (ip6(chain=(f.extension(f.DESTINATION, 24),), size=16), "headers"),
    "a chain beyond the frame": (ip6(chain=((f.ROUTING, b"\0\xff" + bytes(6)),)), "headers"),
    "a report of MLD from nobody": (ip6(f.NONE6, body=bytes([143]) + bytes(7)), PASSES),
    "the same to one": (ip6(f.NONE6, f.OTHER6, body=bytes([143]) + bytes(7)), "ipv6"),
    "an echo from nobody": (ip6(f.NONE6, body=bytes([128]) + bytes(7)), "ipv6"),
    "UDP from nobody": (ip6(f.NONE6, protocol=f.UDP), "ipv6"),
    # ND
    "a solicitation": (ip6(body=f.nd(135, target=f.OTHER6, options=SLAAC[0])), PASSES),
    "a solicitation by another": (ip6(body=f.nd(135, target=f.OTHER6, options=SLAAC[1])), "nd"),
    "duplicate address detection": (ip6(f.NONE6, SOLICITED, body=f.nd(135)), PASSES),
    "that of the link-local address": (ip6(f.NONE6, SOLICITED, body=f.nd(135, target=f.LINK6)), PASSES),
    "that of another address": (ip6(f.NONE6, SOLICITED, body=f.nd(135, target=f.OTHER6)), "nd"),
    "an advertisement": (ip6(body=f.nd(136, options=TARGET_LINK[0])), PASSES),
    "one with another hardware address": (ip6(body=f.nd(136, options=TARGET_LINK[1])), "nd"),
    "one of another address": (ip6(body=f.nd(136, target=f.OTHER6)), "nd"),
    "one behind extensions": (ip6(body=f.nd(136, target=f.OTHER6), chain=(f.extension(f.HOP_BY_HOP),)), "nd"),
    "one behind an AH": (ip6(body=f.nd(136, target=f.OTHER6), chain=(f.extension(f.AUTHENTICATION, 24),)), "nd"),
    "ND in a fragment": (ip6(body=f.nd(136), chain=(f.fragment(),)), "nd"),
    "ND in an atomic fragment": (ip6(body=f.nd(136), chain=(f.fragment(more=False),)), "nd"),
    "a truncated advertisement": (ip6(body=f.nd(136)[:23]), "headers"),
    "an option of no length": (ip6(body=f.nd(136, options=bytes(8))), "nd"),
    "an option beyond the packet": (ip6(body=f.nd(136, options=b"\5\2" + bytes(6))), "nd"),
    "a hidden second option": (ip6(body=f.nd(136, options=f.option(14) + TARGET_LINK[1])), "nd"),
    "too many options": (ip6(body=f.nd(136, options=f.option(14) * 65)), "nd"),
    "a router solicitation from nobody": (ip6(f.NONE6, body=f.nd(133)), PASSES),
    "a router advertisement": (ip6(f.LINK6, body=f.nd(134, options=SLAAC[0])), PASSES),
    "one from another": (ip6(f.OTHER_LINK6, body=f.nd(134)), "ipv6"),
    "one by another": (ip6(f.LINK6, body=f.nd(134, options=SLAAC[1])), "nd"),
    "padding after ND": (ip6(body=f.nd(136)) + bytes(9), PASSES),
}  # fmt: skip
"""A frame, and the reason for which it is dropped from a guest with the addresses OWN."""

BY_IP = {
    *(name for name, (_, reason) in RULES.items() if reason in ("ipv4", "ipv6")),
    "a lie in an 802.1H tunnel", "ARP for another address", "a probe of another address", "an answer from nobody",
    "a RARP server", "IPv4 that is IPv6", "truncated IPv4", "an IPv4 header of 16 bytes",
    "that of another address", "one of another address", "one behind extensions", "one behind an AH",
}  # fmt: skip
"""Those that pass where the guest's IP addresses are unknown."""


def peer(ips: tuple[str, ...] | None) -> AntispoofPeer:
    return fuzzing.peer(ips)


def verdict(filtering: AntispoofPeer, frame: bytes) -> str | None:
    before = filtering.counters
    assert filtering.send([bytes(HEADER.size) + frame]) == (1, 0)
    grown = [name for name, value in filtering.counters.items() if value != before[name]]
    assert len(grown) <= 1
    return grown[0].removeprefix("tx_antispoof_") if grown else None


@pytest.mark.parametrize("name", RULES)
def test_a_rule(name: str) -> None:
    frame, reason = RULES[name]
    assert verdict(peer(OWN), frame) == reason
    assert Oracle(f.MAC, OWN).judge(frame) == reason


@pytest.mark.parametrize("name", RULES)
def test_a_guest_whose_ip_is_unknown(name: str) -> None:
    """MAC and the hardware addresses of ARP and ND alone."""
    frame, reason = RULES[name]
    expected = PASSES if name in BY_IP else reason
    assert verdict(peer(None), frame) == Oracle(f.MAC, None).judge(frame) == expected


@pytest.mark.parametrize("name", [name for name, (_, reason) in RULES.items() if reason is None])
def test_every_truncation_of_what_passes_agrees_with_the_oracle(name: str) -> None:
    frame, _ = RULES[name]
    filtering, oracle = peer(OWN), Oracle(f.MAC, OWN)
    for end in range(1, len(frame)):
        assert verdict(filtering, frame[:end]) == oracle.judge(frame[:end])


@pytest.mark.parametrize("seed", range(40))
def test_random_frames_agree_with_the_oracle(seed: int) -> None:
    fuzzing.play(fuzzing.make(random.Random(seed)))


def test_a_network_of_addresses() -> None:
    filtering = peer(("192.0.2.0/25", "2001:db8:7::/48"))
    assert verdict(filtering, ip4(bytes([192, 0, 2, 127]))) is None
    assert verdict(filtering, ip4(bytes([192, 0, 2, 128]))) == "ipv4"
    assert verdict(filtering, ip6(bytes.fromhex("20010db80007ffff") + bytes(8))) is None
    assert verdict(filtering, ip6(bytes.fromhex("20010db80008ffff") + bytes(8))) == "ipv6"


def test_as_many_addresses_as_it_takes() -> None:
    many = [bytes([10, 0, 0, n]) for n in range(32)], [bytes([n] * 16) for n in range(1, 33)]
    filtering = AntispoofPeer(
        NullPeer(), mac=f.MAC, networks=[(each, 8 * len(each)) for kind in many for each in kind]
    )
    assert all(verdict(filtering, ip4(each)) is None for each in many[0])
    assert all(verdict(filtering, ip6(each)) is None for each in (*many[1], f.LINK6))
    for kind in many:
        with pytest.raises(ValueError, match="more than 32 networks"):
            AntispoofPeer(
                NullPeer(), mac=f.MAC, networks=[(each, 8 * len(each)) for each in [*kind, kind[0]]]
            )


OFFLOAD_OWN = [(offload_frames.SOURCE4, 32), (offload_frames.SOURCE6, 128)]


class Guest(Bench):
    """A guest behind the filter, whose every page is granted."""

    def __init__(self) -> None:
        super().__init__()
        self.filtering = AntispoofPeer(self.peer, mac=f.MAC, networks=OFFLOAD_OWN)
        self.worker.set_peer(self.queue, self.filtering)
        self.posted = 0
        for gref in range(10, 300):
            self.grant(gref, gref)

    def transmit(self, frame: bytes, flags: int = 0, gso: tuple[int, int] | None = None) -> None:
        """One frame of one slot, whatever its flags and its GSO extra say of it."""
        page = 10 + self.posted % 200
        self.write(page, 0, frame)
        slots = [TX_REQUEST.pack(page, 0, flags | (TxFlag.EXTRA_INFO if gso else 0), 1, len(frame))]
        if gso:
            slots.append(EXTRA_GSO.pack(ExtraType.GSO, 0, gso[1], gso[0], 0, 0).ljust(TX_SLOT, b"\0"))
        for slot in slots:
            self.write(RING_PAGES[0], slot_offset(self.posted, TX_SLOT), slot)
            self.posted += 1
        self.write(RING_PAGES[0], 0, self.posted.to_bytes(4, "little"))
        self.run()


LIES = [
    (0, None),
    (TxFlag.CSUM_BLANK | TxFlag.DATA_VALIDATED, None),
    *(
        (TxFlag.CSUM_BLANK, (kind, size))
        for kind in (GsoType.TCPV4, GsoType.TCPV6)
        for size in (8, 500, 1448)
    ),
    (TxFlag(0), (GsoType.TCPV4, 536)),
]
"""Flags and GSO extras."""


@pytest.mark.parametrize("lie", LIES)
def test_what_a_guest_says_of_its_frames_changes_no_verdict(lie: tuple[int, tuple[int, int] | None]) -> None:
    """A segment of a frame that was judged has the addresses of the frame; what netback makes of it is judged, too."""
    guest = Guest()
    try:
        honest = offload_frames.build(4, TCP, bytes(3000))
        modern = offload_frames.build(6, TCP, bytes(3000))
        for frame in (honest, modern, *(frame for frame, _ in RULES.values() if len(frame) <= 4096)):
            for changed in (frame, honest[:26] + f.OTHER4 + honest[30:], honest[:6] + f.OTHER + honest[12:]):
                if len(changed) >= 14:
                    guest.transmit(changed, *lie)
        oracle = Oracle(f.MAC, OWN)
        sent = guest.sent()
        assert sent
        assert all(oracle.judge(frame[HEADER.size :]) is None for frame in sent)
        assert isinstance(guest.peer, SocketPeer)
        assert not guest.queue.broken
    finally:
        guest.close()
