# SPDX-License-Identifier: Apache-2.0
"""What happened, announced to whoever listens at the moment: subscribers of the control socket."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Announcements(Generic[T]):
    """One kind of event. Listeners are called in the caller's thread and must not raise."""

    def __init__(self) -> None:
        self._listeners: tuple[Callable[[T], object], ...] = ()

    def announce(self, event: T) -> None:
        """Tell everyone who listens."""
        for listener in self._listeners:
            listener(event)

    @contextmanager
    def heard_by(self, listener: Callable[[T], object]) -> Iterator[None]:
        """Call `listener` with each event while the context lasts."""
        self._listeners += (listener,)
        try:
            yield
        finally:
            self._listeners = tuple(each for each in self._listeners if each is not listener)
