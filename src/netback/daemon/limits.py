# SPDX-License-Identifier: Apache-2.0
"""What `netback set` asks for at the control socket: limits of a device, and the carrier that its guest sees."""

import msgspec


class LimitRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates in units (`vif.rate.parse_rate`). What is None stays as it is."""

    device: str
    """The device's name, as in "vif3.0"."""
    tx_rate: str | None = None
    rx_rate: str | None = None
    carrier: bool | None = None
    """False: the guest sees a link without carrier, whatever its network's state."""


class LimitAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The limits in force then, "none" for no limit, and whether the guest sees a carrier."""

    device: str
    tx_rate: str
    rx_rate: str
    carrier: bool
