# SPDX-License-Identifier: Apache-2.0
"""A network in a page of Python: a host that answers ARP and ping, behind a guest's vif on emulated Xen.

It needs no root, no link and no hypervisor. Any object that receives and sends frames can replace `Host`.
"""

import asyncio
import struct
import tempfile
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path

from netback.daemon import Backend, BackendConfig
from netback.frontend import Frontend
from netback.net.python import PythonNetwork
from netback.platforms.emulated import EmulatedPlatform, Emulator

ETHERNET = struct.Struct("!6s6sH")
ARP = struct.Struct("!HHBBH6s4s6s4s")
IPV4 = struct.Struct("!BBHHHBBH4s4s")
ARP_TYPE, IPV4_TYPE, ICMP = 0x0806, 0x0800, 1


def checksum(data: bytes) -> int:
    """RFC 1071: the sum of the 16-bit words, modulo 65535, inverted."""
    return 0xFFFF - int.from_bytes(data + bytes(len(data) % 2), "big") % 0xFFFF


def echo(kind: int, rest: bytes) -> bytes:
    """An ICMP message: type 8 echo request, 0 echo reply."""
    return struct.pack("!BBH", kind, 0, checksum(bytes([kind, 0, 0, 0]) + rest)) + rest


def ipv4(source: bytes, destination: bytes, body: bytes) -> bytes:
    """An ICMP packet."""
    head = IPV4.pack(0x45, 0, IPV4.size + len(body), 0, 0, 64, ICMP, 0, source, destination)
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body


class Host:
    """One address on an Ethernet."""

    def __init__(self, mac: bytes, address: bytes) -> None:
        self.mac, self.address = mac, address

    async def live(self, network: PythonNetwork) -> None:
        """Answer frames until the vif is closed."""
        with suppress(EOFError, BrokenPipeError):
            while True:
                if answer := self.answer(await network.recv()):
                    await network.send(answer)

    def answer(self, frame: bytes) -> bytes | None:
        """The answer to a frame, or None."""
        _, source, kind = ETHERNET.unpack_from(frame)
        reply = {ARP_TYPE: self.arp, IPV4_TYPE: self.ping}.get(kind, lambda _: None)(frame[ETHERNET.size :])
        return reply and ETHERNET.pack(source, self.mac, kind) + reply

    def arp(self, packet: bytes) -> bytes | None:
        """The reply to a request for this host's address, or None."""
        if len(packet) < ARP.size:
            return None
        *format_, asks, asker_mac, asker, _, wanted = ARP.unpack_from(packet)
        if asks != 1 or wanted != self.address:
            return None
        return ARP.pack(*format_, 2, self.mac, self.address, asker_mac, asker)

    def ping(self, packet: bytes) -> bytes | None:
        """The same bytes, back to where they came from."""
        if (
            len(packet) < IPV4.size + 8
            or packet[0] != 0x45
            or packet[9] != ICMP
            or packet[16:20] != self.address
        ):
            return None
        body = packet[IPV4.size : int.from_bytes(packet[2:4], "big")]
        return ipv4(self.address, packet[12:16], echo(0, body[4:])) if body[:1] == b"\x08" else None


async def main() -> None:
    """A guest finds the host by ARP and pings it."""
    host = Host(b"\x02\0\0\0\0\x01", bytes([10, 0, 0, 1]))
    guest_mac, guest_address = b"\x00\x16\x3e\0\0\x02", bytes([10, 0, 0, 2])
    network, eth0 = PythonNetwork("host"), PythonNetwork("eth0")
    living = asyncio.create_task(host.live(network))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        async with AsyncExitStack() as run:
            await run.enter_async_context(Emulator(directory))
            platform = run.enter_context(closing(EmulatedPlatform(directory)))
            config = BackendConfig(directory, networks={"python": network})
            backend = await run.enter_async_context(Backend(platform, config))
            vif = await run.enter_async_context(Frontend(directory, eth0))
            await backend.attach(vif.guest.domid, "python")
            await vif.connected()
            question = ARP.pack(1, IPV4_TYPE, 6, 4, 1, guest_mac, guest_address, bytes(6), host.address)
            await eth0.send(ETHERNET.pack(b"\xff" * 6, guest_mac, ARP_TYPE) + question)
            mac = (await eth0.recv())[6:12]
            print(f"10.0.0.1 is at {mac.hex(':')}")
            for number in range(3):
                ping = ipv4(guest_address, host.address, echo(8, struct.pack("!HH", 1, number) + b"hello"))
                await eth0.send(ETHERNET.pack(mac, guest_mac, IPV4_TYPE) + ping)
                reply = await eth0.recv()
                print(f"{reply[42:].decode()} number {number} came back")
    network.close()
    await living
    network.remove()
    eth0.remove()


if __name__ == "__main__":
    asyncio.run(main())
