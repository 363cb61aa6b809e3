"""What takes long to make and is asked for again and again: made once for all who ask at a time, and kept while fresh."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

_KEPT = 4
_MOST = 1_500_000
"""Pictures that all kept things together may hold, besides the newest."""
_LONG_SECONDS = 5.0
_TIMES = 10
"""What took longer than that is fresh for so many times as long: else a large folder would be read without end."""

V = TypeVar("V")


@dataclass(frozen=True)
class _Made(Generic[V]):
    at: float
    seconds: float
    times: dict[str, int]
    weight: int
    value: V


class Kept(Generic[V]):
    """Values by key. One is made again when a folder that it was made from changed, or some seconds have passed.

    `folders` names the folders of a value, `weight` says how many pictures it holds.
    """

    def __init__(self, fresh_seconds: float, folders: Callable[[V], Iterable[str]], weight: Callable[[V], int]) -> None:
        self._fresh_seconds, self._folders, self._weight = fresh_seconds, folders, weight
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, _Made[V]] = OrderedDict()
        # each lives while somebody holds it
        self._making: WeakValueDictionary[Hashable, threading.Lock] = WeakValueDictionary()
        self._writes = 0

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of a key. Raises what `make` raises."""
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:  # two who ask for the same wait for one look; nobody waits for another's
            with self._lock:
                made, writes = self._values.get(key), self._writes
            if made is not None and self._is_fresh(made):
                return made.value
            began = time.monotonic()
            value = make()
            now = time.monotonic()
            self._keep(key, _Made(now, now - began, _times(self._folders(value)), self._weight(value), value), writes)
            return value

    def _is_fresh(self, made: _Made[V]) -> bool:
        fresh = made.seconds * _TIMES if made.seconds > _LONG_SECONDS else self._fresh_seconds
        return time.monotonic() - made.at < fresh and _times(made.times) == made.times

    def _keep(self, key: Hashable, made: _Made[V], writes: int) -> None:
        with self._lock:
            if writes != self._writes:
                return  # something was written meanwhile, which may have been missed
            self._values[key] = made
            self._values.move_to_end(key)
            while len(self._values) > _KEPT or (len(self._values) > 1 and sum(m.weight for m in self._values.values()) > _MOST):
                self._values.popitem(last=False)

    def forget(self) -> None:
        """Make everything again at the next look: something was written."""
        with self._lock:
            self._values.clear()
            self._writes += 1


def _times(folders: Iterable[str]) -> dict[str, int]:
    out = {}
    for folder in folders:
        try:
            out[folder] = os.stat(folder).st_mtime_ns
        except OSError:
            out[folder] = -1
    return out
