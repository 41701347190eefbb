# SPDX-License-Identifier: Apache-2.0
"""The list of fuzz targets."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fuzz import (
    antispoof,
    capture,
    control,
    hypervisor,
    keys,
    offload,
    recording,
    rings,
    sandbox,
    store,
    switch,
    xs_wire,
)


@dataclass(frozen=True, slots=True)
class Target:
    """`make` draws a case, plain data; `play` returns its number of operations, or raises if the invariant broke."""

    name: str
    invariant: str
    make: Callable[[random.Random], Any]
    play: Callable[[Any], int]
    words: tuple[type, ...]
    """The classes that a case is made of, to read one back from its repr."""

    def case(self, seed: int) -> Any:
        return self.make(random.Random(seed))


TARGETS = {
    name: Target(name, (module.__doc__ or "").partition("\n")[0], module.make, module.play, module.WORDS)
    for name, module in {
        "rings": rings,
        "keys": keys,
        "control": control,
        "offload": offload,
        "antispoof": antispoof,
        "xs_wire": xs_wire,
        "store": store,
        "hypervisor": hypervisor,
        "capture": capture,
        "switch": switch,
        "sandbox": sandbox,
        "recording": recording,
    }.items()
}
