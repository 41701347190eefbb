# SPDX-License-Identifier: Apache-2.0
"""What `netback rings` asks for at the control socket: the rings of a device with their slots."""

import msgspec

from netback.observe.rings import Ring


class RingsRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which device."""

    device: str
    """The device's name, as in "vif3.0"."""


class RingsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Its rings; none while no guest is connected."""

    device: str
    rings: list[Ring]
