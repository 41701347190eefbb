# SPDX-License-Identifier: Apache-2.0
"""Wait until a guest's device is connected, for scripts: `until_connected.py vif3.0 [RUNTIME DIRECTORY]`.

A subscription to states begins with the present one, so nothing is missed between asking and waiting.
"""

import sys
from pathlib import Path

from netback.control import Client, ControlError


def until_connected(client: Client, device: str) -> None:
    """Return once both ends are connected; print each error that the device has on the way."""
    with client.states(device) as states:
        for state in states:
            if state.error:
                print(f"{device}: {state.error}", file=sys.stderr)
            if (state.backend, state.frontend) == ("Connected", "Connected"):
                return
            if state.gone:
                sys.exit(f"{device} was removed")


if __name__ == "__main__":
    try:
        with Client(*map(Path, sys.argv[2:3])) as client:
            until_connected(client, sys.argv[1])
    except ControlError as error:
        sys.exit(str(error))
