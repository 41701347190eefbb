# SPDX-License-Identifier: Apache-2.0
"""The control socket of a running backend. `Client` is the public API; docs/control.md has the protocol."""

from netback.control.client import Client, Subscription
from netback.control.connection import ControlError, NoBackend, Refused

__all__ = ["Client", "ControlError", "NoBackend", "Refused", "Subscription"]
