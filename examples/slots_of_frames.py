# SPDX-License-Identifier: Apache-2.0
"""How many ring slots a guest's frames take: `slots_of_frames.py vif3.0 FRAMES [RUNTIME DIRECTORY]`.

tcpdump on the vif cannot show it: one frame may come in one slot or in twenty.
"""

import sys
from collections import Counter
from itertools import islice
from pathlib import Path

from netback.control import Client, ControlError


def slots_of_frames(client: Client, device: str, count: int) -> Counter[tuple[str, int]]:
    """Of the next `count` frames: how many of each direction took how many slots."""
    with client.capture(device, snaplen=0) as frames:
        counted = Counter((frame.direction, frame.slots) for frame in islice(frames, count))
        if frames.lost:
            print(f"lost: {frames.lost}", file=sys.stderr)
    return counted


if __name__ == "__main__":
    try:
        with Client(*map(Path, sys.argv[3:4])) as client:
            for (direction, slots), frames in sorted(
                slots_of_frames(client, sys.argv[1], int(sys.argv[2])).items()
            ):
                print(f"{direction} {slots:3} slots: {frames} frames")
    except ControlError as error:
        sys.exit(str(error))
