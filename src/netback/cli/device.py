# SPDX-License-Identifier: Apache-2.0
"""What several commands say of a device."""

from typing import TYPE_CHECKING

from netback.dataplane.counters import LOSSES

if TYPE_CHECKING:
    from netback.control.schema import DeviceStatus


def trouble(device: "DeviceStatus") -> str | None:
    """What is wrong: the error; a link that an operator took down; for a guest that takes no frames, since when."""
    if device.link is False and not device.error:
        return "the link is down: netback set --link up"
    if device.error or device.stalled is None:
        return device.error
    return f"stalled for {device.stalled:.0f} s: the guest takes no frames"


def losses(device: "DeviceStatus") -> dict[str, int]:
    """Lost frames by cause, none that is 0."""
    own = {name: (device.counters or {}).get(name, 0) for names in LOSSES.values() for name in names}
    network = {f"network {name}": count for name, count in device.drops.items()}
    return {name: count for name, count in {**own, **network}.items() if count}
