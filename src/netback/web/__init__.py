# SPDX-License-Identifier: Apache-2.0
"""A page to watch: vifs, their rates, the xenbus timeline and rings, live, and a lesson on emulated Xen."""

from collections.abc import Iterator
from contextlib import contextmanager

from netback.errors import ConfigError


@contextmanager
def needs_extra() -> Iterator[None]:
    """Around the imports of this room's modules. ConfigError: their packages are not installed."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is missing: pip install 'netback[web]'; for Debian's package of netback: "
            "apt install python3-starlette python3-uvicorn"
        ) from error
