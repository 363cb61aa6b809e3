"""The keys of very many cache entries, as the bytes of their hashes: a dict of a million keys as text would weigh 300 MB."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence

_BYTES = 32


class Keys(Mapping[int, str]):
    """A key (64 hexadecimal digits) for each of some numbers, which ascend."""

    def __init__(self, numbers: Sequence[int] = (), keys: Iterable[str] = ()) -> None:
        self._numbers, self._bytes = numbers, bytearray()
        for key in keys:
            self._bytes += bytes.fromhex(key)
        assert len(self._bytes) == _BYTES * len(numbers)

    def __getitem__(self, number: int) -> str:
        place = bisect_left(self._numbers, number)
        if place == len(self._numbers) or self._numbers[place] != number:
            raise KeyError(number)
        return self._at(place)

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def in_order(self) -> Iterator[str]:
        """The keys alone."""
        return map(self._at, range(len(self)))

    def _at(self, place: int) -> str:
        return self._bytes[place * _BYTES : (place + 1) * _BYTES].hex()
