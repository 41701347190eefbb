# SPDX-License-Identifier: Apache-2.0
"""Any keys of a frontend are the agreement that a plain model finds, or a refusal that names a wrong key."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from tests import keys_oracle as oracle
from tests.keys_oracle import Agreement

from netback.errors import GuestError
from netback.frontend.config import BackFeatures
from netback.frontend.profiles import PROFILES
from netback.vif.features import KEYS, MAX_QUEUES, Limits, agree, offer, queue_keys
from netback.vif.rate import parse_node

NAMED = re.compile(r"the frontend's ([a-z0-9/-]+) is ")
OTHER = (
    "feature-rx-flip",
    "vifname",
    "mtu",
    "carrier",
    "rate",
    "queue-0",
    "queue-00/tx-ring-ref",
)
NUMBERS = (
    "0",
    "1",
    "2",
    "8",
    "08",
    "4082",
    "4083",
    "4294967295",
    "4294967296",
    "0000000009",
    "00000000009",
    "9" * 30,
)
NONSENSE = (
    "",
    " 8",
    "8\n",
    "-1",
    "+8",
    "0x8",
    "1e3",
    "8.0",
    "\u0668",
    "\u00b2",
    "\udcff\udcfe",
    "\x00",
    "%s{0}",
    "yes",
)
RATES = (*NUMBERS, "18446744073709551615", "18446744073709551616", "", "-1", "10Mb/s", "\u0668")


@dataclass(frozen=True, slots=True)
class Case:
    queues: int
    """The queues and, next, the split event channels that the backend offers."""
    split: bool
    rate: str
    offered: tuple[tuple[str, str], ...]
    """The keys of a backend, for a frontend."""
    ops: tuple[tuple[str, str], ...]
    """The keys that the frontend writes, in this order."""


WORDS = (Case,)


def text(rng: random.Random) -> str:
    return rng.choice(
        (rng.choice(NUMBERS), rng.choice(NONSENSE), str(rng.getrandbits(rng.choice((3, 12, 32, 33)))))
    )


def rings(rng: random.Random, path: str) -> list[tuple[str, str]]:
    channels = rng.choice((("event-channel",), ("event-channel-tx", "event-channel-rx")))
    return [(path + key, str(rng.getrandbits(32))) for key in ("tx-ring-ref", "rx-ring-ref", *channels)]


def honest(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """The keys that a known frontend with so many queues writes, in its order, some of its features on or off."""
    profile = rng.choice(PROFILES)
    keys = {**profile.config.nodes(), "multi-queue-num-queues": str(count)}
    for path in [""] if count == 1 else [f"queue-{number}/" for number in range(count)]:
        keys |= rings(rng, path)
    keys |= {key: rng.choice(("0", "1")) for key in rng.sample(oracle.FLAGS[1:], rng.choice((0, 0, 3)))}
    if rng.random() < 0.3:
        keys |= {"ctrl-ring-ref": "9", "event-channel-ctrl": "7"}
    return list(profile.handshake.sort(keys).items())


def make(rng: random.Random) -> Case:
    """An honest frontend's keys, of which most cases spoil a few."""
    offered = rng.choice((1, 1, 2, 3, 8, MAX_QUEUES))
    ops = honest(rng, rng.choice((1, offered, rng.randint(1, min(offered, 8)))))
    names = [
        *map(str, KEYS),
        *OTHER,
        *(key for key, _ in ops),
        *(f"queue-{rng.randrange(9)}/{key}" for key in KEYS[:3]),
    ]
    for _ in range(rng.choice((0, 1, 1, 2, 6))):
        ops.insert(rng.randrange(len(ops) + 1), (rng.choice(names), text(rng)))
    keys = offer(Limits(offered))
    spoiled = {key: text(rng) for key in rng.sample(sorted(keys), rng.choice((0, 1, 3)))}
    rate = rng.choice((text(rng), ",".join(rng.choice(RATES) for _ in range(rng.choice((1, 2, 2, 2, 3))))))
    return Case(offered, rng.random() < 0.8, rate, tuple((keys | spoiled).items()), tuple(ops))


def outcome(keys: dict[str, str | None], limits: Limits) -> Agreement | str:
    """An agreement in the model's words, or the reason of a refusal."""
    try:
        config = agree(keys, "vif", limits)
    except GuestError as error:
        return str(error)
    rings = tuple((one.tx_ring_ref, one.rx_ring_ref, one.tx_channel, one.rx_channel) for one in config.queues)
    control = config.control and (config.control.ring_ref, config.control.event_channel)
    live = config.live
    return Agreement(
        rings,
        int(config.caps),
        config.sg,
        config.rx_unannounced,
        live.multicast_control,
        live.xdp_headroom,
        control,
    )


def of_the_frontend(keys: dict[str, str], limits: Limits) -> None:
    wanted = oracle.agreement(keys, limits.queues, limits.split)
    names = (*KEYS, *queue_keys(keys, limits))  # as the backend reads them
    assert len(names) <= len(KEYS) + 5 * limits.queues
    found = outcome({name: keys.get(name) for name in names}, limits)
    if isinstance(found, Agreement):
        assert found == wanted
        return
    named = NAMED.match(found)
    assert isinstance(wanted, set), f"refused, although {wanted}: {found}"
    assert named is not None, found
    assert named[1] in wanted
    assert len(found) < 200
    assert found.isprintable()


def of_the_backend(keys: dict[str, str]) -> None:
    """A frontend takes what a backend offers with exactly "1"."""
    features, on = BackFeatures.of(keys), {key for key, value in keys.items() if value == "1"}
    flags = features.rx_copy, features.sg, features.multicast, features.xdp, features.control, features.split
    names = ("rx-copy", "sg", "multicast-control", "xdp-headroom", "ctrl-ring", "split-event-channels")
    assert flags == tuple(f"feature-{name}" in on for name in names)
    assert 1 <= features.queues <= MAX_QUEUES


def of_the_toolstack(text: str) -> None:
    try:
        rate = parse_node(text)
    except ValueError:
        rate = None
    assert (rate and (rate.size, rate.interval)) == oracle.rate(text)


def play(case: Case) -> int:
    of_the_frontend(dict(case.ops), Limits(case.queues, case.split))
    of_the_backend(dict(case.offered))
    of_the_toolstack(case.rate)
    return len(case.ops) + len(case.offered) + 1
