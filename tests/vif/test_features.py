# SPDX-License-Identifier: Apache-2.0
"""The offer and the agreement: each key alone, each missing, and any text in any key."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netback.dataplane.caps import Can
from netback.errors import GuestError
from netback.vif.features import (
    KEYS,
    MAX_QUEUES,
    REQUIRED,
    ControlConfig,
    DeviceType,
    Limits,
    QueueConfig,
    VifConfig,
    agree,
    make_mac,
    offer,
    parse_mac,
    queue_keys,
)

LEAST = {"tx-ring-ref": "8", "rx-ring-ref": "9", "event-channel": "3", "request-rx-copy": "1"}
RINGS = (QueueConfig(8, 9, 3, 3),)
SPLIT = {"event-channel-tx": "4", "event-channel-rx": "5"}
LINUX = LEAST | {
    "feature-rx-notify": "1",
    "feature-sg": "1",
    "feature-gso-tcpv4": "1",
    "feature-gso-tcpv6": "1",
    "feature-ipv6-csum-offload": "1",
}


def caps(**changes: str | None) -> Can:
    return agree(LINUX | {key.replace("_", "-"): value for key, value in changes.items()}, "vif").caps


def test_the_offer() -> None:
    assert offer(Limits()) == {
        "feature-rx-copy": "1",
        "feature-rx-flip": "0",
        "feature-sg": "1",
        "feature-gso-tcpv4": "1",
        "feature-gso-tcpv6": "1",
        "feature-ipv6-csum-offload": "1",
        "feature-multicast-control": "1",
        "feature-dynamic-multicast-control": "1",
        "feature-xdp-headroom": "1",
        "feature-ctrl-ring": "1",
        "feature-split-event-channels": "1",
        "multi-queue-max-queues": "1",
    }
    assert offer(Limits(queues=4)) == offer(Limits()) | {"multi-queue-max-queues": "4"}


@pytest.mark.parametrize(("kind", "offset"), [("vif", 0), ("qnic", 2)])
def test_linux(kind: DeviceType, offset: int) -> None:
    every = Can.CSUM4 | Can.CSUM6 | Can.TSO4 | Can.TSO6
    assert agree(LINUX, kind) == VifConfig(RINGS, every, sg=True, rx_unannounced=False, rx_offset=offset)


def test_a_frontend_that_agrees_to_nothing() -> None:
    """IPv4 checksums are on unless refused: netif.h says so."""
    assert agree(LEAST, "vif") == VifConfig(RINGS, Can.CSUM4, sg=False, rx_unannounced=True, rx_offset=0)


def test_each_feature_alone() -> None:
    every = Can.CSUM4 | Can.CSUM6 | Can.TSO4 | Can.TSO6
    assert caps() == every
    assert caps(feature_gso_tcpv4=None) == every - Can.TSO4
    assert caps(feature_gso_tcpv6="0") == every - Can.TSO6
    assert caps(feature_ipv6_csum_offload="0") == Can.CSUM4 | Can.TSO4
    assert caps(feature_no_csum_offload="1") == Can.CSUM6 | Can.TSO6
    assert caps(feature_sg="0") == Can.CSUM4 | Can.CSUM6


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(GuestError, match=f"^the frontend's {key} is missing$"):
        agree({name: value for name, value in LINUX.items() if name != key}, "vif")


@pytest.mark.parametrize("value", [None, "0", "00"])
def test_rx_copy_is_needed(value: str | None) -> None:
    with pytest.raises(GuestError, match=r"^the frontend's request-rx-copy is missing or 0: "):
        agree(LINUX | {"request-rx-copy": value}, "vif")


@pytest.mark.parametrize(
    "value", ["", " 8", "8 ", "+8", "-1", "0x8", "8\n", "٨", "4294967296", "9" * 4000, "1e3"]
)
@pytest.mark.parametrize("key", REQUIRED)
def test_numbers_are_strict(key: str, value: str) -> None:
    with pytest.raises(GuestError, match=f"^the frontend's {key} is '") as caught:
        agree(LINUX | {key: value}, "vif")
    assert len(str(caught.value)) < 120


CONTROL = {"ctrl-ring-ref": "6", "event-channel-ctrl": "7"}


def test_a_control_ring_needs_its_channel() -> None:
    """As in Linux's backend. A channel alone means nothing."""
    assert agree(LINUX | CONTROL, "vif").control == ControlConfig(6, 7)
    assert agree(LINUX | CONTROL | {"ctrl-ring-ref": None}, "vif").control is None
    assert agree(LINUX | CONTROL | {"ctrl-ring-ref": ""}, "vif").control is None
    for key, value in (("event-channel-ctrl", None), ("event-channel-ctrl", "x"), ("ctrl-ring-ref", "-1")):
        with pytest.raises(GuestError, match=f"the frontend's {key}"):
            agree(LINUX | CONTROL | {key: value}, "vif")


@pytest.mark.parametrize(
    ("keys", "channels"),
    [
        ({}, (3, 3)),
        (SPLIT, (4, 5)),
        (SPLIT | {"event-channel": None}, (4, 5)),
        (SPLIT | {"event-channel-rx": None}, (3, 3)),
        (SPLIT | {"event-channel-tx": ""}, (3, 3)),
        (SPLIT | {"event-channel-rx": "4"}, (4, 4)),
    ],
)
def test_event_channels(keys: dict[str, str | None], channels: tuple[int, int]) -> None:
    """One for each ring if both are named, as in Linux's backend; otherwise one for both."""
    (queue,) = agree(LINUX | keys, "vif").queues
    assert (queue.tx_channel, queue.rx_channel) == channels
    assert set(queue.channels) == set(channels)


def test_split_channels_that_were_not_offered_are_leftovers() -> None:
    """The fault: keys that a frontend wrote for another backend name ports that no longer exist."""
    for offered in ({}, {"feature-split-event-channels": "0"}, {"feature-split-event-channels": "yes"}):
        limits = Limits.offered(offered)
        assert agree(LINUX | SPLIT, "vif", limits).queues == RINGS
    assert agree(LINUX | SPLIT, "vif", Limits.offered(offer(Limits()))).queues != RINGS


def test_one_queue() -> None:
    assert agree(LINUX | {"multi-queue-num-queues": "1"}, "vif") == agree(LINUX, "vif")
    with pytest.raises(GuestError, match="multi-queue-num-queues is 2: 1 was offered"):
        agree(LINUX | {"multi-queue-num-queues": "2"}, "vif")


TWO = LINUX | {
    "multi-queue-num-queues": "2",
    **{f"queue-0/{key}": LINUX[key] for key in REQUIRED},
    "queue-1/tx-ring-ref": "18",
    "queue-1/rx-ring-ref": "19",
    "queue-1/event-channel-tx": "14",
    "queue-1/event-channel-rx": "15",
}


def test_several_queues() -> None:
    """Each has its keys in a directory of its own; those of the frontend's directory are left over, as in Linux."""
    limits = Limits(queues=2)
    assert queue_keys(LINUX, limits) == queue_keys(LINUX | {"multi-queue-num-queues": "1"}, limits) == ()
    assert set(TWO) - set(KEYS) <= set(queue_keys(TWO, limits))
    assert agree(TWO, "vif", limits).queues == (
        QueueConfig(8, 9, 3, 3, "queue-0/"),
        QueueConfig(18, 19, 14, 15, "queue-1/"),
    )
    assert agree(TWO, "vif", limits).queues[1].channels == {
        14: "queue-1/event-channel-tx",
        15: "queue-1/event-channel-rx",
    }
    with pytest.raises(GuestError, match=r"^the frontend's queue-1/tx-ring-ref is missing$"):
        agree(TWO | {"queue-1/tx-ring-ref": None}, "vif", limits)


@pytest.mark.parametrize(
    ("count", "reason"),
    [
        ("0", "is 0: up to 2 were offered"),
        ("3", "is 3: up to 2 were offered"),
        ("4294967295", "is 4294967295: up to 2 were offered"),
        ("-1", "is '-1': not a number below"),
        ("two", "is 'two': not a number below"),
    ],
)
def test_a_number_of_queues_that_was_not_offered(count: str, reason: str) -> None:
    keys = TWO | {"multi-queue-num-queues": count}
    assert queue_keys(keys, Limits(queues=2)) == ()
    with pytest.raises(GuestError, match=f"^the frontend's multi-queue-num-queues {reason}"):
        agree(keys, "vif", Limits(queues=2))


@pytest.mark.parametrize(
    ("text", "queues"),
    [(None, 1), ("", 1), ("0", 1), ("1", 1), ("8", 8), ("x", 1), ("-3", 1), ("9999999999", MAX_QUEUES)],
)
def test_what_a_frontend_was_offered(text: str | None, queues: int) -> None:
    assert Limits.offered({"multi-queue-max-queues": text}).queues == queues


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(KEYS), st.one_of(st.none(), st.text(max_size=12), st.integers(0, 1 << 33).map(str))
    )
)
def test_any_text_is_a_config_or_a_guest_error(keys: dict[str, str | None]) -> None:
    try:
        config = agree(LINUX | keys, "vif")
    except GuestError:
        return
    (queue,) = config.queues
    assert max(queue.tx_ring_ref, queue.rx_ring_ref, queue.tx_channel, queue.rx_channel) < 1 << 32


def test_mac_addresses() -> None:
    assert parse_mac("00:16:3E:0a:Bc:01") == "00:16:3e:0a:bc:01"
    assert make_mac(b"\x01\x02\xff") == "00:16:3e:01:02:ff"
    with pytest.raises(ValueError, match="no MAC address found"):
        parse_mac(None)
    for text in (
        "",
        "00:16:3e:01:02",
        "00-16-3e-01-02-03",
        "00:16:3e:01:02:0g",
        "00:16:3e:01:02:03 ",
        "0:16:3e:1:2:3",
    ):
        with pytest.raises(ValueError, match="failed to parse MAC address"):
            parse_mac(text)
    for text in ("ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "33:33:00:00:00:01", "03:00:00:00:00:00"):
        with pytest.raises(ValueError, match="a NIC cannot have a multicast or broadcast MAC address"):
            parse_mac(text)
    with pytest.raises(ValueError, match="a NIC cannot have the MAC address of zeros"):
        parse_mac("00:00:00:00:00:00")
