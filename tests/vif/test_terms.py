# SPDX-License-Identifier: Apache-2.0
"""The explanation of features agrees with the agreement itself, and has a reason for all that is not in force."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netback.abi.netif_keys import Key
from netback.dataplane.caps import Can
from netback.vif.features import LIVE, OPTIONAL, Limits, agree, offer
from netback.vif.terms import Term, explain

OFFER = offer(Limits(queues=4))
RINGS = {
    Key.TX_RING_REF: "1",
    Key.RX_RING_REF: "2",
    Key.EVENT_CHANNEL: "3",
    Key.REQUEST_RX_COPY: "1",
}
FREE = tuple(key for key in (*OPTIONAL, *LIVE) if key not in (Key.REQUEST_RX_COPY, Key.QUEUES))


def terms(offered: dict[str, str], **keys: str) -> dict[str, Term]:
    named = {key.replace("_", "-"): value for key, value in keys.items()}
    found, fault = explain(offered, {**RINGS, **named}, "vif", connected=True)
    assert fault is None
    return {term.feature: term for term in found}


@given(st.dictionaries(st.sampled_from(FREE), st.sampled_from(["0", "1"])))
def test_it_agrees_with_the_agreement(keys: dict[str, str]) -> None:
    asked = {**RINGS, **keys}
    if keys.get(Key.CTRL_RING_REF):
        asked[Key.EVENT_CHANNEL_CTRL] = "9"
    config = agree(asked, "vif", Limits(queues=4))
    found, fault = explain(OFFER, asked, "vif", connected=True)
    assert fault is None
    assert all(bool(term.reason) is not term.agreed for term in found)
    agreed = {term.feature for term in found if term.agreed}
    caps = {
        "IPv4 checksums": Can.CSUM4,
        "IPv6 checksums": Can.CSUM6,
        "TSO of IPv4": Can.TSO4,
        "TSO of IPv6": Can.TSO6,
    }
    assert {name for name, cap in caps.items() if config.caps & cap} == agreed & set(caps)
    assert ("frames of several pages" in agreed) is config.sg
    assert ("control ring" in agreed) is (config.control is not None)
    assert ("multicast control" in agreed) is config.live.multicast_control


@pytest.mark.parametrize(
    ("feature", "keys", "reason"),
    [
        ("TSO of IPv4", {"feature_gso_tcpv4": "1"}, "it needs frames of several pages"),
        ("TSO of IPv6", {"feature_gso_tcpv6": "1"}, "it needs frames of several pages and IPv6 checksums"),
        (
            "TSO of IPv4",
            {"feature_gso_tcpv4": "1", "feature_sg": "1", "feature_no_csum_offload": "1"},
            "it needs IPv4 checksums",
        ),
        ("TSO of IPv4", {}, "the guest does not ask for it"),
        ("IPv4 checksums", {"feature_no_csum_offload": "1"}, "the guest refuses it"),
        ("frames of several pages", {"feature_sg": "0"}, "the guest does not ask for it"),
        ("several queues", {}, "the guest asks for one"),
        ("events for RX slots", {}, "the guest does not ask for it"),
    ],
)
def test_reasons(feature: str, keys: dict[str, str], reason: str) -> None:
    assert terms(OFFER, **keys)[feature].reason == reason


def test_what_was_not_offered() -> None:
    found = terms({}, feature_sg="1")
    assert found["control ring"].reason == "it was not offered"
    assert found["split event channels"].reason == "it was not offered"
    assert found["IPv4 checksums"].agreed


def test_keys_that_are_wrong_are_the_answer() -> None:
    found, fault = explain(OFFER, {**RINGS, Key.SG: "yes"}, "vif", connected=True)
    assert fault == "the frontend's feature-sg is 'yes': not a number below 4294967296"
    assert {term.agreed for term in found} == {None}
    found, fault = explain(OFFER, {}, "vif", connected=False)
    assert (fault, {term.agreed for term in found}) == (None, {None})


def test_keys_of_queues() -> None:
    queues = {
        f"queue-{number}/{key}": str(10 * number + at)
        for number in range(2)
        for at, key in enumerate(
            (Key.TX_RING_REF, Key.RX_RING_REF, Key.EVENT_CHANNEL_TX, Key.EVENT_CHANNEL_RX), 1
        )
    }
    keys = {Key.REQUEST_RX_COPY: "1", Key.QUEUES: "2", **queues}
    found, fault = explain(OFFER, keys, "vif", connected=True)
    by_name = {term.feature: term for term in found}
    assert fault is None
    assert (by_name["several queues"].asked, by_name["several queues"].agreed) == ("2", True)
    assert (by_name["split event channels"].asked, by_name["split event channels"].agreed) == ("3", True)
