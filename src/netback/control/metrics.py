# SPDX-License-Identifier: Apache-2.0
"""A backend's statistics as Prometheus' metrics: a collector that asks the control socket at each scrape.

Directions are the netdev's, as in every exporter of links: what the guest sends (TX) is received by its vif.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from netback.control.client import Client
from netback.control.connection import ControlError
from netback.control.schema import DeviceState, DeviceStatistics, Info
from netback.dataplane.counters import LOSSES

DIRECTIONS: Mapping[str, str] = {"tx": "receive", "rx": "transmit"}
"""The netdev's word for each of a guest's directions."""
_PAST = {"receive": "received", "transmit": "transmitted"}
_DEVICE = re.compile(r"([a-z]+)([0-9]+)\.(.+)")
_LABELS = ("vif", "domid", "devid")


@dataclass(frozen=True, slots=True)
class _Row:
    """A metric of counters that have one for each direction, or of one alone."""

    name: str
    help: str
    counters: Mapping[str, str]
    """The counter of each direction; "" for one that has none."""


def _both(name: str, help: str, counter: str) -> _Row:
    return _Row(name, help, {way: f"{way}_{counter}" for way in DIRECTIONS})


_QUEUES = (
    ("bytes", "Bytes that the vif {}."),
    ("frames", "Frames that the vif {}; a GSO frame counts once."),
)
"""Counters with a metric for each direction and a series for each queue."""
_ROWS = (
    _both("notifies", "Events that the guest asked for and got.", "notifies"),
    _both("throttled", "Polls after which the next frame lacked credit.", "throttled"),
    _both("completed_checksums", "Frames whose checksum netback completed.", "completed"),
    _both("segmented", "Frames that netback segmented.", "segmented"),
    _both("grant_copies", "Copies that took a grant operation.", "copies"),
    _Row("slot_waits", "Waits for slots of the guest.", {"": "rx_stalls"}),
    _Row("network_full", "Polls after which the network had not accepted everything.", {"": "tx_full"}),
    _Row("events", "Events of the guest.", {"": "events"}),
    _Row("empty_events", "Events that brought nothing.", {"": "events_empty"}),
)
_PACKETS = {"frames": "packets", "bytes": "bytes"}


class BackendCollector(Collector):
    """The metrics of the backend with this runtime directory; `netback_up` is 0 while none answers."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterator[Metric]:
        """One scrape."""
        try:
            with Client(self._directory) as client:
                info = client.backend
                with closing(client.states()) as states:
                    known = next(states.moments())
                with closing(client.statistics(queues=True)) as statistics:
                    counted = next(statistics.moments())
        except ControlError:
            yield _up(0)
            return
        yield from families([info], known, counted)


def families(
    backends: Iterable[Info], states: Iterable[DeviceState], counted: Iterable[DeviceStatistics]
) -> Iterator[Metric]:
    """Every metric, in its order; without a series where nothing is given."""
    yield _up(1)
    yield _build(backends)
    yield _states(states)
    yield from _traffic(counted)
    yield _drops(counted)
    yield from _gauges(counted)
    for row in _ROWS:
        yield _counter(row, counted)


def _up(value: int) -> Metric:
    return GaugeMetricFamily("netback_up", "Whether the backend answers.", value)


def _build(backends: Iterable[Info]) -> Metric:
    family = GaugeMetricFamily(
        "netback_build_info", "Versions and platform.", labels=("version", "protocol", "platform", "domid")
    )
    for info in backends:
        family.add_metric((info.netback, info.protocol, info.platform, str(info.domid)), 1)
    return family


def _device(name: str) -> tuple[str, str, str]:
    """The labels of a device: its name, its guest's domid, its number."""
    match = _DEVICE.fullmatch(name)
    return (name, match[2], match[3]) if match else (name, "", "")


def _states(states: Iterable[DeviceState]) -> Metric:
    family = GaugeMetricFamily(
        "netback_vif_state", "1 for the xenbus state of each end.", labels=(*_LABELS, "end", "state")
    )
    for each in states:
        for end, state in (("backend", each.backend), ("frontend", each.frontend)):
            family.add_metric((*_device(each.device), end, state), 1)
    return family


def _traffic(counted: Iterable[DeviceStatistics]) -> Iterator[Metric]:
    for way, word in DIRECTIONS.items():
        for counter, help in _QUEUES:
            family = CounterMetricFamily(
                f"netback_vif_{word}_{_PACKETS[counter]}",
                help.format(_PAST[word]),
                labels=(*_LABELS, "queue"),
            )
            for each in counted:
                for number, queue in enumerate(each.queue_counters):
                    value = queue.get(f"{way}_{counter}", 0)
                    family.add_metric((*_device(each.device), str(number)), value)
            yield family


def _drops(counted: Iterable[DeviceStatistics]) -> Metric:
    """Every reason of LOSSES, also while its count is 0, and those that the network tells."""
    family = CounterMetricFamily(
        "netback_vif_drops", "Frames that were lost.", labels=(*_LABELS, "direction", "reason")
    )
    for each in counted:
        device = _device(each.device)
        for way, counters in LOSSES.items():
            for counter in counters:
                reason = counter.removeprefix(f"{way}_")
                family.add_metric((*device, DIRECTIONS[way], reason), each.counters.get(counter, 0))
        for counter, value in each.drops.items():
            family.add_metric((*device, "transmit", f"network_{counter.removeprefix('rx_')}"), value)
    return family


def _gauges(counted: Iterable[DeviceStatistics]) -> Iterator[Metric]:
    used = GaugeMetricFamily(
        "netback_ring_slots_used", "Requests without a response.", labels=(*_LABELS, "ring")
    )
    queues = GaugeMetricFamily("netback_vif_queues", "Queues that are connected.", labels=_LABELS)
    stalled = GaugeMetricFamily(
        "netback_vif_stalled_seconds", "For how long the guest has taken no frames; 0 if it takes them.",
        labels=_LABELS,
    )  # fmt: skip
    for each in counted:
        device = _device(each.device)
        queues.add_metric(device, each.queues)
        stalled.add_metric(device, each.stalled or 0.0)
        for ring, pending in each.pending.items():
            used.add_metric((*device, ring), pending)
    yield from (used, queues, stalled)


def _counter(row: _Row, counted: Iterable[DeviceStatistics]) -> Metric:
    directed = "" not in row.counters
    labels = (*_LABELS, "direction") if directed else _LABELS
    family = CounterMetricFamily(f"netback_vif_{row.name}", row.help, labels=labels)
    for each in counted:
        for way, counter in row.counters.items():
            further = (DIRECTIONS[way],) if directed else ()
            family.add_metric((*_device(each.device), *further), each.counters.get(counter, 0))
    return family
