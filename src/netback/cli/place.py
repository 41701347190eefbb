# SPDX-License-Identifier: Apache-2.0
"""Where things are unless a command is told."""

import os
from pathlib import Path

SOCKET = "xenstored.sock"


def default_directory() -> Path:
    """Where `netback emulate --print-env` points to, else the user's runtime directory, else the system's."""
    store = Path(os.environ.get("XENSTORED_PATH", ""))
    if store.name == SOCKET:
        return store.parent
    user = os.environ.get("XDG_RUNTIME_DIR")
    return Path(user) / "netback" if user else Path("/run/netback")
