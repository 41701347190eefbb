# SPDX-License-Identifier: Apache-2.0
"""The backend, as a program and as an object for other programs."""

from netback.daemon.backend import Backend, BackendConfig

__all__ = ["Backend", "BackendConfig"]
