# SPDX-License-Identifier: Apache-2.0
"""Limits of a device, as `netback set` asks for them at the control socket."""

import msgspec


class LimitRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates in units (`vif.rate.parse_rate`); None leaves a direction as it is."""

    device: str
    """The device's name, as in "vif3.0"."""
    tx_rate: str | None = None
    rx_rate: str | None = None


class LimitAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The limits in force then, "none" for no limit."""

    device: str
    tx_rate: str
    rx_rate: str
