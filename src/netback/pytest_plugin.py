# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of frontends and of networks, which pytest finds once netback is installed (docs/testing.md).

Every name begins with `xen`. netback itself is imported by the fixtures, so that it costs other tests nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from netback.testing import Guest, Namespace, ServedBackend, Vif, Xen


@pytest.fixture
def xen() -> Iterator[Xen]:
    """An emulated Xen: a store, a hypervisor, and programs that join them as domains (netback.testing.Xen)."""
    from netback.testing import Xen

    with Xen() as emulated:
        yield emulated


@pytest.fixture
def xen_backend(xen: Xen) -> Iterator[ServedBackend]:
    """netback's backend in domain 0, which gives domains their vifs (netback.testing.ServedBackend)."""
    from netback.testing import ServedBackend

    with ServedBackend(xen) as backend:
        yield backend


@pytest.fixture
def xen_guest(xen: Xen) -> Iterator[Guest]:
    """A domain with netback's frontend, which connects once it is given a vif (netback.testing.Guest)."""
    from netback.testing import Guest

    with Guest(xen, name="guest") as guest:
        yield guest


@pytest.fixture
def xen_vif(xen_backend: ServedBackend) -> Iterator[Vif]:
    """A connected vif between netback's frontend and backend (netback.testing.Vif)."""
    from netback.testing import Vif

    with Vif(xen_backend) as vif:
        yield vif


@pytest.fixture
def xen_namespace() -> Iterator[Callable[[], Namespace]]:
    """A function that makes a network namespace (netback.testing.Namespace); all end with the test."""
    from netback.testing import Namespace

    with ExitStack() as undo:
        yield lambda: undo.enter_context(Namespace())
