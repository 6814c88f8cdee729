"""Memory for what is made again and again, bounded by bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ByteCache(Generic[T]):
    """Keeps what was used last, up to so many bytes; at least one thing. Threads may share it.

    Args:
        make: makes the value of some arguments.
        size_bytes: says how large a value is.
        most_bytes: of all values together.
    """

    def __init__(
        self, make: Callable[..., T], size_bytes: Callable[[T], int], most_bytes: int
    ) -> None:
        self._make, self._size_bytes, self._most_bytes = make, size_bytes, most_bytes
        self._held: OrderedDict[tuple[Any, ...], T] = OrderedDict()
        self.held_bytes, self._lock = 0, Lock()

    def __call__(self, *arguments: Any) -> T:
        """Return the value of some arguments, made now or before."""
        with self._lock:
            if (found := self._held.get(arguments)) is not None:
                self._held.move_to_end(arguments)
                return found
        made = self._make(*arguments)
        with self._lock:
            if (found := self._held.get(arguments)) is not None:  # by another thread meanwhile
                return found
            self._held[arguments] = made
            self.held_bytes += self._size_bytes(made)
            while self.held_bytes > self._most_bytes and len(self._held) > 1:
                self.held_bytes -= self._size_bytes(self._held.popitem(last=False)[1])
        return made
