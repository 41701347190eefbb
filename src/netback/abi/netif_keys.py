# SPDX-License-Identifier: Apache-2.0
"""io/netif.h and xenstore-paths: the nodes of a network device that both ends read, each name defined once."""

from enum import StrEnum


class Key(StrEnum):
    """The name of a node; a member is that string."""

    # the frontend's rings
    TX_RING_REF = "tx-ring-ref"
    RX_RING_REF = "rx-ring-ref"
    EVENT_CHANNEL = "event-channel"
    """Of both rings; EVENT_CHANNEL_TX and _RX replace it where the frontend has one for each ring."""
    EVENT_CHANNEL_TX = "event-channel-tx"
    EVENT_CHANNEL_RX = "event-channel-rx"
    QUEUES = "multi-queue-num-queues"
    CTRL_RING_REF = "ctrl-ring-ref"
    EVENT_CHANNEL_CTRL = "event-channel-ctrl"

    # the features that the frontend requests
    REQUEST_RX_COPY = "request-rx-copy"
    RX_NOTIFY = "feature-rx-notify"
    REQUEST_MULTICAST = "request-multicast-control"
    XDP_HEADROOM = "xdp-headroom"

    # the features that the backend offers
    RX_COPY = "feature-rx-copy"
    RX_FLIP = "feature-rx-flip"
    MAX_QUEUES = "multi-queue-max-queues"
    XDP = "feature-xdp-headroom"
    """Linux's netif.h has this key and XDP_HEADROOM; Xen's does not."""
    CARRIER = "carrier"
    """"0": the backend's link is down; absent or "1": it is up."""
    MTU = "mtu"
    """In the frontend's directory, by the toolstack or the backend: the MTU for its link; without it 1500."""
    MULTICAST = "feature-multicast-control"
    DYNAMIC_MULTICAST = "feature-dynamic-multicast-control"
    CTRL_RING = "feature-ctrl-ring"
    SPLIT_CHANNELS = "feature-split-event-channels"

    # what each end publishes about itself
    SG = "feature-sg"
    GSO_TCPV4 = "feature-gso-tcpv4"
    GSO_TCPV6 = "feature-gso-tcpv6"
    NO_CSUM = "feature-no-csum-offload"
    """IPv4 checksums are on unless refused."""
    IPV6_CSUM = "feature-ipv6-csum-offload"
