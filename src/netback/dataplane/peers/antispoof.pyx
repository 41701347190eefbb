# SPDX-License-Identifier: Apache-2.0
"""A filter that lets a guest send under its own addresses alone; docs/filters.md says what is judged.

Bytes decide, whatever a frame's virtio_net_hdr says of them. What hides its contents from this parser (too many tags or
extension headers, headers that end early) does not pass: another receiver may find an address there. The rules:

    Ethernet   the source is the guest's address
    ARP, RARP  the hardware address is the guest's; its IPv4 address is an own one, or none in a probe (RFC 5227)
    IPv4       the source is an own address, or none in a DHCP client's broadcast (RFC 2131)
    IPv6       the source is an own address, or none where RFC 4861, RFC 4862 and RFC 3810 allow it
    ND         every link-layer address option that names its sender has the guest's; what is advertised, or probed by
               duplicate address detection, is an own address; in fragments it does not pass (RFC 6980)

Only the first and the hardware addresses are judged for a guest whose own IP addresses are unknown. Own addresses
include the link-local one that is made of the MAC address (RFC 4291, appendix A).
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from netback.dataplane.abi cimport MAC_BYTES
from netback.dataplane.headers cimport (
    ETH_HEAD, ETH_TYPE, IPV6_HEAD, MAX_TAGS, PROTO_DESTINATION, PROTO_FRAGMENT, PROTO_HOP_BY_HOP, PROTO_ROUTING,
    PROTO_UDP, TYPE_8021AD, TYPE_8021Q, TYPE_IPV4, TYPE_IPV6, UDP_HEAD, get16, get32,
)
from netback.dataplane.peers.filter cimport (
    ADMITTED, HEAD_BYTES, FilterPeer, filter_enter, filter_leave, filter_t, gather_head,
)
from netback.dataplane.peers.peer cimport BURST_FRAMES, PEER_TAKES, Peer, peer_t
from netback.dataplane.sockets cimport iovec

cdef enum:                       # the counters of dataplane/counters.py, in this order
    SPOOFED_MAC, SPOOFED_IPV4, SPOOFED_IPV6, SPOOFED_ARP, SPOOFED_ND, SPOOFED_HEADERS

cdef enum:
    MAX_NETWORKS = 32            # of each version
    MAX_EXTENSIONS = 16          # IPv6 extension headers
    MAX_OPTIONS = 64             # of an ND message

    TYPE_ARP = 0x0806
    TYPE_RARP = 0x8035
    FIRST_TYPE = 0x0600          # below it, the field is the length of an 802.3 frame (IEEE 802.3, 3.2.6)
    SNAP_HEAD = 8                # LLC's AA AA 03, an OUI, an EtherType (RFC 1042)

    ARP_BYTES = 28
    ARP_REQUEST = 1
    RARP_REQUEST = 3

    PROTO_AH = 51
    PROTO_ICMPV6 = 58
    PROTO_NONE = -1              # none that can be judged: a fragment that is not the first
    PROTO_BROKEN = -2            # the chain of headers ends early, or is too long

    DHCP_CLIENT = 68
    DHCP_SERVER = 67

    MLD_REPORT = 131             # ICMPv6 types: of MLD,
    MLD_DONE = 132
    MLD_REPORT_V2 = 143
    ND_ROUTER_SOLICIT = 133      # and of ND, from here ...
    ND_ROUTER_ADVERT = 134
    ND_SOLICIT = 135
    ND_ADVERT = 136
    ND_REDIRECT = 137            # ... to here
    ND_TARGET = 8                # where the target address is
    ND_SOURCE_LINK = 1           # options: the sender's link-layer address,
    ND_TARGET_LINK = 2           # or the target's, who is the sender of an advertisement


cdef struct network4:
    uint32_t address
    uint32_t mask


cdef struct network6:
    uint64_t address[2]          # in memory order
    uint64_t mask[2]


cdef struct antispoof:           # `filter` is first: a peer_t * of this kind is an antispoof *
    filter_t filter
    uint8_t mac[MAC_BYTES]
    bint knows_ip                # the guest's IP addresses are known:
    uint32_t count4
    uint32_t count6
    network4 networks4[MAX_NETWORKS]
    network6 networks6[MAX_NETWORKS + 1]     # and the link-local address


# --- own addresses

cdef inline bint is_mac(const antispoof *own, const uint8_t *at) noexcept nogil:
    return memcmp(at, own.mac, MAC_BYTES) == 0


cdef inline bint is_own4(const antispoof *own, uint32_t address) noexcept nogil:
    cdef uint32_t i
    for i in range(own.count4):
        if (address ^ own.networks4[i].address) & own.networks4[i].mask == 0:
            return True
    return False


cdef inline bint is_own6(const antispoof *own, const uint8_t *at) noexcept nogil:
    cdef uint64_t words[2]
    cdef uint32_t i
    memcpy(words, at, 16)
    for i in range(own.count6):
        if ((words[0] ^ own.networks6[i].address[0]) & own.networks6[i].mask[0] == 0
                and (words[1] ^ own.networks6[i].address[1]) & own.networks6[i].mask[1] == 0):
            return True
    return False


cdef inline bint is_none6(const uint8_t *at) noexcept nogil:
    cdef uint64_t words[2]
    memcpy(words, at, 16)
    return words[0] | words[1] == 0


# --- link layer

cdef int find_payload(const uint8_t *frame, uint32_t have, uint32_t *at) noexcept nogil:
    """The EtherType of what the tags and SNAP headers lead to, and where that is; below FIRST_TYPE if it has none. -1:
    more of them than MAX_TAGS, or they end early.
    """
    cdef int kind = get16(frame + ETH_TYPE)
    cdef int heads = 0
    at[0] = ETH_HEAD
    while True:
        if kind == TYPE_8021Q or kind == TYPE_8021AD:
            at[0] += 4
        elif kind < FIRST_TYPE and is_snap(frame, have, at[0]):
            at[0] += SNAP_HEAD
        else:
            return kind
        heads += 1
        if heads > MAX_TAGS or have < at[0]:
            return -1
        kind = get16(frame + at[0] - 2)


cdef inline bint is_snap(const uint8_t *frame, uint32_t have, uint32_t at) noexcept nogil:
    """Whether an EtherType follows in a SNAP header, with the OUI of RFC 1042 or of IEEE 802.1H."""
    return have >= at + SNAP_HEAD and frame[at] == 0xAA and frame[at + 1] == 0xAA and frame[at + 2] == 3 and (
        frame[at + 3] == 0 and frame[at + 4] == 0 and (frame[at + 5] == 0 or frame[at + 5] == 0xF8))


cdef int judge_arp(const antispoof *own, int kind, const uint8_t *arp, uint32_t have) noexcept nogil:
    cdef uint32_t sender, operation
    if have < ARP_BYTES:
        return SPOOFED_HEADERS
    operation = get16(arp + 6)
    if get16(arp) != 1 or get16(arp + 2) != TYPE_IPV4 or arp[4] != MAC_BYTES or arp[5] != 4:
        return SPOOFED_ARP
    if not is_mac(own, arp + 8):
        return SPOOFED_ARP
    if kind == TYPE_RARP and operation == RARP_REQUEST and not is_mac(own, arp + 18):
        return SPOOFED_ARP
    sender = get32(arp + 14)
    if not own.knows_ip or is_own4(own, sender):
        return ADMITTED
    if sender:
        return SPOOFED_ARP
    if kind == TYPE_RARP:
        return ADMITTED if operation == RARP_REQUEST else SPOOFED_ARP
    return ADMITTED if operation == ARP_REQUEST and is_own4(own, get32(arp + 24)) else SPOOFED_ARP


# --- IPv4

cdef bint is_dhcp(const uint8_t *ip, uint32_t have) noexcept nogil:
    """Whether a whole datagram without a source is a DHCP client's broadcast."""
    cdef uint32_t l4 = 4 * (ip[0] & 15)
    return (
        have >= l4 + UDP_HEAD and ip[9] == PROTO_UDP and get16(ip + 6) & 0x3FFF == 0 and get32(ip + 16) == 0xFFFFFFFFu
        and get16(ip + l4) == DHCP_CLIENT and get16(ip + l4 + 2) == DHCP_SERVER
    )


cdef inline int judge_ipv4(const antispoof *own, const uint8_t *ip, uint32_t have) noexcept nogil:
    cdef uint32_t source
    if not own.knows_ip:
        return ADMITTED
    if have < 20 or ip[0] >> 4 != 4 or ip[0] & 15 < 5:
        return SPOOFED_HEADERS
    source = get32(ip + 12)
    if is_own4(own, source) or (source == 0 and is_dhcp(ip, have)):
        return ADMITTED
    return SPOOFED_IPV4


# --- IPv6

cdef int find_transport(const uint8_t *ip, uint32_t end, uint32_t *l4, bint *fragment) noexcept nogil:
    """The protocol after the extension headers, or a PROTO_*; `fragment`: one of them is a fragment header."""
    cdef int protocol = ip[6]
    cdef uint32_t size
    l4[0] = IPV6_HEAD
    fragment[0] = False
    for _header in range(MAX_EXTENSIONS):
        if (protocol != PROTO_HOP_BY_HOP and protocol != PROTO_ROUTING and protocol != PROTO_DESTINATION
                and protocol != PROTO_FRAGMENT and protocol != PROTO_AH):
            return protocol
        if end < l4[0] + 8:
            return PROTO_BROKEN
        size = 8 * (1 + ip[l4[0] + 1])
        if protocol == PROTO_AH:
            size = 4 * (2 + ip[l4[0] + 1])
        elif protocol == PROTO_FRAGMENT:
            fragment[0] = True
            size = 8
            if get16(ip + l4[0] + 2) >> 3:
                return PROTO_NONE
        protocol = ip[l4[0]]
        l4[0] += size
        if end < l4[0]:
            return PROTO_BROKEN
    return PROTO_BROKEN


cdef bint judge_options(const antispoof *own, int kind, const uint8_t *at, const uint8_t *end) noexcept nogil:
    """Whether the options of an ND message are well-formed, and those with the sender's link-layer address the
    guest's.
    """
    cdef uint32_t size
    for _option in range(MAX_OPTIONS):
        if at == end:
            return True
        if end - at < 8 or at[1] == 0 or end - at < 8 * at[1]:
            return False
        size = 8 * at[1]
        if at[0] == ND_SOURCE_LINK or (at[0] == ND_TARGET_LINK and kind == ND_ADVERT):
            if size != 8 or not is_mac(own, at + 2):
                return False
        at += size
    return False


cdef int judge_nd(const antispoof *own, const uint8_t *ip, const uint8_t *message, uint32_t have) noexcept nogil:
    cdef int kind = message[0]
    cdef uint32_t fixed = 24
    if kind == ND_ROUTER_SOLICIT:
        fixed = 8
    elif kind == ND_ROUTER_ADVERT:
        fixed = 16
    elif kind == ND_REDIRECT:
        fixed = 40
    if have < fixed:
        return SPOOFED_HEADERS
    if not judge_options(own, kind, message + fixed, message + have):
        return SPOOFED_ND
    if own.knows_ip and (kind == ND_ADVERT or (kind == ND_SOLICIT and is_none6(ip + 8))):
        return ADMITTED if is_own6(own, message + ND_TARGET) else SPOOFED_ND
    return ADMITTED


cdef inline bint may_lack_source(const uint8_t *ip, const uint8_t *message) noexcept nogil:
    """Whether an ICMPv6 message may come from no address: duplicate address detection, a guest that looks for a router,
    or joins a group before it has an address.
    """
    cdef int kind = message[0]
    return ip[24] == 0xFF and (
        kind == ND_SOLICIT or kind == ND_ROUTER_SOLICIT or kind == MLD_REPORT or kind == MLD_DONE
        or kind == MLD_REPORT_V2
    )


cdef int judge_ipv6(const antispoof *own, const uint8_t *ip, uint32_t have) noexcept nogil:
    cdef uint32_t l4 = 0, size, end = have
    cdef int protocol, verdict
    cdef bint fragment = False
    if have < IPV6_HEAD or ip[0] >> 4 != 6:
        return SPOOFED_HEADERS
    size = get16(ip + 4)
    if size:                     # else a jumbogram, or one that the sender's hardware is to fill in
        end = min(have, IPV6_HEAD + size)
    protocol = find_transport(ip, end, &l4, &fragment)
    if protocol == PROTO_BROKEN or (protocol == PROTO_ICMPV6 and end < l4 + 4):
        return SPOOFED_HEADERS
    if protocol == PROTO_ICMPV6 and ND_ROUTER_SOLICIT <= ip[l4] <= ND_REDIRECT:
        verdict = SPOOFED_ND if fragment else judge_nd(own, ip, ip + l4, end - l4)
        if verdict != ADMITTED:
            return verdict
    if not own.knows_ip or is_own6(own, ip + 8):
        return ADMITTED
    if protocol == PROTO_ICMPV6 and is_none6(ip + 8) and may_lack_source(ip, ip + l4):
        return ADMITTED
    return SPOOFED_IPV6


# --- frames

cdef inline int judge(const antispoof *own, const uint8_t *frame, uint32_t have) noexcept nogil:
    """ADMITTED, or the counter of frames like this one."""
    cdef uint32_t at = ETH_HEAD
    cdef int kind
    if have < ETH_HEAD:
        return SPOOFED_HEADERS
    if not is_mac(own, frame + MAC_BYTES):
        return SPOOFED_MAC
    kind = get16(frame + ETH_TYPE)
    if kind != TYPE_IPV4 and kind != TYPE_IPV6:
        kind = find_payload(frame, have, &at)
    if kind == TYPE_IPV4:
        return judge_ipv4(own, frame + at, have - at)
    if kind == TYPE_IPV6:
        return judge_ipv6(own, frame + at, have - at)
    if kind == TYPE_ARP or kind == TYPE_RARP:
        return judge_arp(own, kind, frame + at, have - at)
    return ADMITTED if kind >= 0 else SPOOFED_HEADERS


cdef int send(peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    """Send the admitted frames between two others at once."""
    cdef antispoof *own = <antispoof *>peer
    cdef peer_t *inner = filter_enter(peer)
    cdef uint8_t buffer[HEAD_BYTES]
    cdef int verdicts[BURST_FRAMES]
    cdef const uint8_t *frame
    cdef uint32_t have = 0
    cdef int i, end, got, done = 0
    inner.blocked = PEER_TAKES
    for i in range(count):
        frame = gather_head(&vectors[first[i]], first[i + 1] - first[i], inner.header, buffer, &have)
        verdicts[i] = judge(own, frame, have)
    while done < count:
        if verdicts[done] != ADMITTED:
            own.filter.counts[verdicts[done]] += 1
            done += 1
            continue
        end = done + 1
        while end < count and verdicts[end] == ADMITTED:
            end += 1
        got = inner.send(inner, vectors, first + done, end - done, refused)
        done += got
        if done < end:
            break
    filter_leave(peer)
    return done


cdef class AntispoofPeer(FilterPeer):
    """Sends what comes from `mac`, 6 bytes, and from `networks`: each the bytes of an address and its prefix length;
    None: IP addresses are not judged. ValueError: one of these is none, or there are more than 32 of a version.
    """

    cdef antispoof own

    def __cinit__(self, Peer inner, *, bytes mac, networks=None):
        if len(mac) != MAC_BYTES:
            raise ValueError("a MAC address has 6 bytes")
        memcpy(self.own.mac, <const char *>mac, MAC_BYTES)
        self.own.knows_ip = networks is not None
        if networks is not None:
            for address, prefix in networks:
                self.add(address, prefix)
            self.add(b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:], 128)
        self.wrap(&self.own.filter, inner, "antispoof", {"mac": mac, "networks": networks})
        self.peer.send = send

    cdef int add(self, bytes address, int prefix) except -1:
        """Add a network to the own addresses."""
        cdef int bits = 8 * len(address)
        if bits not in (32, 128) or not 0 <= prefix <= bits:
            raise ValueError("a network is an address and a prefix length")
        if (self.own.count4 if bits == 32 else self.own.count6 - 1) == MAX_NETWORKS:
            raise ValueError(f"more than {MAX_NETWORKS} networks of a version")
        whole = int.from_bytes(b"\xff" * len(address), "big")       # Python's: wider than C's
        ones = (whole >> (bits - prefix) << (bits - prefix)).to_bytes(len(address), "big")
        if bits == 32:
            self.own.networks4[self.own.count4].address = get32(<const uint8_t *><const char *>address)
            self.own.networks4[self.own.count4].mask = get32(<const uint8_t *><const char *>ones)
            self.own.count4 += 1
        else:
            memcpy(self.own.networks6[self.own.count6].address, <const char *>address, 16)
            memcpy(self.own.networks6[self.own.count6].mask, <const char *>ones, 16)
            self.own.count6 += 1
        return 0
