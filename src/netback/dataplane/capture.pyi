# SPDX-License-Identifier: Apache-2.0
MIN_RING: int

class CaptureMemory:
    """The memory of one capture: a ring for each worker."""

    fd: int
    pipe: int
    def __init__(self, rings: int, ring_bytes: int) -> None: ...
    def device(self, name: str) -> int: ...
    def release(self) -> None: ...
    def close(self) -> None: ...

class Sink:
    """Takes the frames of one queue by one ring."""

    def __init__(
        self, memory: CaptureMemory, device: str, queue: int, *, ring: int, directions: int, snaplen: int
    ) -> None: ...
