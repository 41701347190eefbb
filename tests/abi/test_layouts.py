# SPDX-License-Identifier: Apache-2.0
"""Layouts and constants against Xen's own headers (Debian's libxen-dev), and against bytes written by hand.

A C program made of expressions prints the headers' values; Python's abi/ and the native part's abi.pxd must have the
same.
"""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from struct import Struct

import pytest

import netback
from netback.abi import grant_table, netif, netif_control, ring, virtio_net, xen, xs_wire
from netback.abi.xenbus import XenbusState

PXD = (Path(netback.__file__).parent / "dataplane" / "abi.pxd").read_text()
INCLUDES = """
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <xen/xen.h>
#include <xen/grant_table.h>
#include <xen/io/netif.h>
#include <xen/io/xenbus.h>
#include <xen/io/xs_wire.h>
#include <xen/sys/gntdev.h>
#include <linux/virtio_net.h>
"""

STRUCTS = {
    "struct netif_tx_request": ("gref offset flags id size", netif.TX_REQUEST),
    "struct netif_rx_request": ("id pad gref", netif.RX_REQUEST),
    "struct netif_rx_response": ("id offset flags status", netif.RX_RESPONSE),
    "struct netif_extra_info": (
        "type flags u.gso.size u.gso.type u.gso.pad u.gso.features",
        netif.EXTRA_GSO,
    ),
    "struct xen_netif_ctrl_request": ("id type data[0] data[1] data[2]", netif_control.CTRL_REQUEST),
    "struct xen_netif_gref": ("ref flags status", netif_control.GREF_ENTRY),
    "struct grant_entry_v1": ("flags domid frame", grant_table.ENTRY),
    "struct xsd_sockmsg": ("type req_id tx_id len", xs_wire.HEADER),
    "struct netif_tx_sring": ("req_prod req_event rsp_prod rsp_event", ring.SRING),
    "struct netif_rx_sring": ("req_prod req_event rsp_prod rsp_event", ring.SRING),
    "struct virtio_net_hdr": (
        "flags gso_type hdr_len gso_size csum_start csum_offset",
        virtio_net.HEADER,
    ),
}
"""Each header's struct, its fields in the order of the Python struct, and that struct."""

NATIVE = {
    "tx_request": ("struct netif_tx_request", {}),
    "rx_request": ("struct netif_rx_request", {}),
    "rx_response": ("struct netif_rx_response", {}),
    "extra_info": (
        "struct netif_extra_info",
        {},
    ),
    "grant_entry": ("struct grant_entry_v1", {}),
    "copy_segment": ("struct ioctl_gntdev_grant_copy_segment", {}),
    "virtio_net_hdr": ("struct virtio_net_hdr", {}),
}
"""The native part's structs: the header's, and fields that have another name there."""

CONSTANTS: Mapping[str, int] = {
    "__CONST_RING_SIZE(netif_tx, 4096)": netif.TX_SLOTS,
    "__CONST_RING_SIZE(netif_rx, 4096)": netif.RX_SLOTS,
    "sizeof(union netif_tx_sring_entry)": netif.TX_SLOT,
    "sizeof(union netif_rx_sring_entry)": netif.RX_SLOT,
    "__CONST_RING_SIZE(xen_netif_ctrl, 4096)": netif_control.CTRL_SLOTS,
    "sizeof(union xen_netif_ctrl_sring_entry)": netif_control.CTRL_SLOT,
    "offsetof(struct xen_netif_ctrl_sring, ring)": ring.HEADER_SIZE,
    "offsetof(struct xen_netif_ctrl_response, status)": 4,
    "offsetof(struct xen_netif_ctrl_response, data)": 8,
    "sizeof(struct xen_netif_ctrl_response)": 12,
    "offsetof(struct netif_tx_sring, ring)": ring.HEADER_SIZE,
    "offsetof(struct netif_rx_sring, ring)": ring.HEADER_SIZE,
    "offsetof(struct netif_tx_sring, req_prod)": ring.REQ_PROD,
    "offsetof(struct netif_tx_sring, req_event)": ring.REQ_EVENT,
    "offsetof(struct netif_tx_sring, rsp_prod)": ring.RSP_PROD,
    "offsetof(struct netif_tx_sring, rsp_event)": ring.RSP_EVENT,
    "offsetof(struct netif_tx_response, status)": 2,
    "sizeof(struct netif_tx_response)": 4,
    "XEN_NETIF_CTRLF_GREF_readonly": netif_control.GREF_READONLY,
    "XEN_NETIF_MAX_TX_SIZE": netif.MAX_TX_SIZE,
    "XEN_NETIF_EXTRA_FLAG_MORE": netif.EXTRA_FLAG_MORE,
    "GTF_type_mask": grant_table.TYPE_MASK,
    "XENSTORE_PAYLOAD_MAX": xs_wire.PAYLOAD_MAX,
    "XENSTORE_ABS_PATH_MAX": xs_wire.ABS_PATH_MAX,
    "XENSTORE_REL_PATH_MAX": xs_wire.REL_PATH_MAX,
    "DOMID_FIRST_RESERVED": xen.DOMID_FIRST_RESERVED,
    "VIRTIO_NET_HDR_F_NEEDS_CSUM": virtio_net.F_NEEDS_CSUM,
    "VIRTIO_NET_HDR_F_DATA_VALID": virtio_net.F_DATA_VALID,
    "VIRTIO_NET_HDR_GSO_NONE": virtio_net.GSO_NONE,
    "VIRTIO_NET_HDR_GSO_TCPV4": virtio_net.GSO_TCPV4,
    "VIRTIO_NET_HDR_GSO_UDP": virtio_net.GSO_UDP,
    "VIRTIO_NET_HDR_GSO_TCPV6": virtio_net.GSO_TCPV6,
    "VIRTIO_NET_HDR_GSO_ECN": virtio_net.GSO_ECN,
    **{f"NETTXF_{flag.name.lower()}": flag for flag in netif.TxFlag if flag.name},
    **{f"NETRXF_{flag.name.lower()}": flag for flag in netif.RxFlag if flag.name},
    **{f"NETIF_RSP_{status.name}": status for status in netif.Status},
    **{
        f"XEN_NETIF_EXTRA_TYPE_{kind.name}": kind
        for kind in netif.ExtraType
        if kind is not netif.ExtraType.XDP  # Linux's own
    },
    **{f"XEN_NETIF_GSO_TYPE_{kind.name}": kind for kind in netif.GsoType},
    **{f"XEN_NETIF_CTRL_TYPE_{kind.name}": kind for kind in netif_control.CtrlType},
    **{f"XEN_NETIF_CTRL_STATUS_{status.name}": status for status in netif_control.CtrlStatus},
    **{f"XEN_NETIF_CTRL_HASH_ALGORITHM_{kind.name}": kind for kind in netif_control.HashAlgorithm},
    **{f"XEN_NETIF_CTRL_HASH_TYPE_{kind.name}": kind for kind in netif_control.HashType},
    **{f"GTF_{flag.name.lower()}": flag for flag in grant_table.GrantFlag if flag.name},
    **{f"GNTST_{status.name.lower()}": status for status in grant_table.GrantStatus},
    **{f"XenbusState{state.title}": state for state in XenbusState},
    **{f"XS_{op.name}": op for op in xs_wire.Op},
}

RENAMED = {
    r"^HASH_ALGORITHM_": "XEN_NETIF_CTRL_HASH_ALGORITHM_",
    r"^HASH_TYPE_": "_XEN_NETIF_CTRL_HASH_TYPE_",
    r"^CTRL_SLOTS$": "__CONST_RING_SIZE(xen_netif_ctrl, 4096)",
    r"^CTRL_SLOT$": "sizeof(union xen_netif_ctrl_sring_entry)",
    r"^(EXTRA_|GSO_)": r"XEN_NETIF_\1",
    r"^PAGE_SIZE$": "(1 << XEN_PAGE_SHIFT)",
    r"^RING_SLOTS$": "__CONST_RING_SIZE(netif_tx, 4096)",
    r"^RING_HEADER$": "offsetof(struct netif_tx_sring, ring)",
    r"^TX_SLOT$": "sizeof(union netif_tx_sring_entry)",
    r"^RX_SLOT$": "sizeof(union netif_rx_sring_entry)",
    r"^VIRTIO_NET_HDR_GSO_UDP_L4$": "5",
}
"""Names that abi.pxd changes. UDP_L4 is younger than some distributions' linux/virtio_net.h."""


OWN = {"MAC_BYTES", "MIN_FRAME", "FULL_FRAME_SLOTS", "EXTRA_TYPES_END", "EXTRA_TYPE_XDP"}
"""Bounds of netback's own, which no header has; XDP is younger than libxen-dev's netif.h."""
PARTS = {"tx_response", "foreign_buffer", "copy_end", "extra_gso", "extra_hash", "extra_body"}
"""Structs of abi.pxd that stand in others, or that no header has so."""


def native_constants() -> dict[str, int]:
    found = re.findall(r"^    (\w+) = (-?\w+)", PXD, re.MULTILINE)
    return {name: int(value, 0) for name, value in found if name not in OWN}


def header_name(name: str) -> str:
    for pattern, replacement in RENAMED.items():
        name = re.sub(pattern, replacement, name)
    return name


def native_structs() -> dict[str, tuple[bool, list[tuple[str, str, str]]]]:
    """Of abi.pxd: whether packed, and (type, name, array) of each field."""
    found = {}
    sizes = dict(re.findall(r"^    ([A-Z_]+) = (\d+)", PXD, re.MULTILINE))
    for packed, name, body in re.findall(
        r"^cdef (packed )?(?:struct|union) (\w+):.*\n((?:    .+\n)+)", PXD, re.MULTILINE
    ):
        fields = re.findall(r"^    (\w+(?: \*)?) ?(\w+)(\[\w+\])?", body, re.MULTILINE)
        arrays = [
            (kind, field, f"[{sizes.get(size[1:-1], size[1:-1])}]" * bool(size))
            for kind, field, size in fields
        ]
        found[name] = (bool(packed), arrays)
    return found


def as_c(structs: Mapping[str, tuple[bool, list[tuple[str, str, str]]]]) -> str:
    """The same types in C, as ours_NAME."""
    lines = []
    for name, (packed, fields) in structs.items():
        kind = "union" if name in ("copy_end", "extra_body") else "struct"
        types = [(f"ours_{t}" if t in structs else t, field, array) for t, field, array in fields]
        body = " ".join(f"{t} {field}{array};" for t, field, array in types)
        lines.append(
            f"typedef {kind} {{ {body} }} {'__attribute__((packed)) ' if packed else ''}ours_{name};"
        )
    return "\n".join(lines)


def evaluate(expressions: list[str], tmp_path: Path) -> list[int]:
    """The headers' value of each expression."""
    prints = "\n".join(f'    printf("%lld\\n", (long long)({expression}));' for expression in expressions)
    source = tmp_path / "layouts.c"
    source.write_text(
        f"{INCLUDES}\n{as_c(native_structs())}\nint main(void)\n{{\n{prints}\n    return 0;\n}}\n"
    )
    subprocess.run(["gcc", "-Wall", "-Wextra", "-Werror", source, "-o", tmp_path / "layouts"], check=True)
    output = subprocess.run([tmp_path / "layouts"], check=True, capture_output=True, text=True).stdout
    return [int(line) for line in output.split()]


def agree(expected: Mapping[str, int], tmp_path: Path) -> None:
    found = evaluate(list(expected), tmp_path)
    assert dict(zip(expected, found, strict=True)) == dict(expected)


def offsets(fields: Struct) -> list[int]:
    """The offset of each field of a little-endian format."""
    codes = re.findall(r"\d*[a-zA-Z]", fields.format[1:])
    codes = [c[-1] for c in codes for _ in range(int(c[:-1] or 1))]
    return [Struct("<" + "".join(codes[:i])).size for i in range(len(codes))]


def test_constants(tmp_path: Path) -> None:
    agree(CONSTANTS, tmp_path)


def test_structs(tmp_path: Path) -> None:
    expected = {}
    for struct, (names, ours) in STRUCTS.items():
        fields = names.split()
        if not struct.endswith("sring"):
            expected[f"sizeof({struct})"] = ours.size
        expected |= {f"offsetof({struct}, {f})": at for f, at in zip(fields, offsets(ours), strict=True)}
    agree(expected, tmp_path)


def test_native_constants(tmp_path: Path) -> None:
    constants = native_constants()
    assert len(constants) > 40
    agree({header_name(name): value for name, value in constants.items()}, tmp_path)


def test_native_structs(tmp_path: Path) -> None:
    """Each field at the header's offset and of its size; the other structs of abi.pxd are parts of these."""
    pairs = []
    for name, (_, fields) in native_structs().items():
        if name not in NATIVE:
            assert name in PARTS
            continue
        struct, renamed = NATIVE[name]
        pairs.append((f"sizeof(ours_{name})", f"sizeof({struct})"))
        for _, field, _ in fields:
            theirs = renamed.get(field, field)
            pairs.append((f"offsetof(ours_{name}, {field})", f"offsetof({struct}, {theirs})"))
            pairs.append((f"sizeof((({struct} *)0)->{theirs})", f"sizeof(((ours_{name} *)0)->{field})"))
    pairs.append(("sizeof(ours_tx_response)", "sizeof(union netif_tx_sring_entry)"))
    for part in ("u.gso.size", "u.gso.type", "u.gso.features", "u.hash.type", "u.hash.value", "u.mcast"):
        theirs = "u.mcast.addr" if part == "u.mcast" else part
        pairs.append((f"offsetof(ours_extra_info, {part})", f"offsetof(struct netif_extra_info, {theirs})"))
    for part in ("virt", "foreign.ref", "foreign.offset", "foreign.domid"):
        ours, theirs = (
            f"offsetof({t}, dest.{part})"
            for t in ("ours_copy_segment", "struct ioctl_gntdev_grant_copy_segment")
        )
        pairs.append((ours, theirs))
    found = evaluate([expression for pair in pairs for expression in pair], tmp_path)
    assert dict(zip(pairs, found[::2], strict=True)) == dict(zip(pairs, found[1::2], strict=True))


def test_store_errors(tmp_path: Path) -> None:
    """The same names in the same order as the header's table."""
    names = [str(name) for name in xs_wire.Errno]
    table = [f'strcmp(xsd_errors[{i}].errstring, "{name}")' for i, name in enumerate(names)]
    length = "sizeof(xsd_errors) / sizeof(xsd_errors[0])"
    assert evaluate([*table, length], tmp_path) == [0] * len(names) + [len(names)]


@pytest.mark.parametrize(
    ("fields", "values", "golden"),
    [
        (netif.TX_REQUEST, (0x01020304, 0x0506, 9, 0x0708, 0x090A), "04030201 0605 0900 0807 0a09"),
        (netif.TX_RESPONSE, (0x0102, -1), "0201 ffff 0000000000000000"),
        (netif.RX_REQUEST, (0x0102, 0, 0x03040506), "0201 0000 06050403"),
        (netif.RX_RESPONSE, (0x0102, 2, 0x000F, 4094), "0201 0200 0f00 fe0f"),
        (netif.EXTRA_GSO, (1, 0, 1448, 1, 0, 0), "01 00 a805 01 00 0000"),
        (grant_table.ENTRY, (5, 7, 0x01020304), "0500 0700 04030201"),
        (ring.SRING, (1, 2, 0xFFFFFFFF, 0), "01000000 02000000 ffffffff 00000000"),
        (virtio_net.HEADER, (1, 4, 74, 1428, 54, 16), "01 04 4a00 9405 3600 1000"),
        (xs_wire.HEADER, (2, 1, 0, 5), "02000000 01000000 00000000 05000000"),
    ],
)
def test_golden_bytes(fields: Struct, values: tuple[int, ...], golden: str) -> None:
    assert fields.pack(*values) == bytes.fromhex(golden)
    assert fields.unpack(bytes.fromhex(golden)) == values


def test_slots_of_a_page() -> None:
    assert (ring.slots(12), ring.slots(8), ring.slots(16)) == (256, 256, 128)
    assert ring.slot_offset(2**32 - 1, 12) == 64 + 255 * 12
    assert ring.slot_offset(256, 8) == 64
