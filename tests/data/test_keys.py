"""Keys by number: as a dict of them, and far smaller."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from array import array

import pytest

from limner.data.keys import Keys


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_they_are_as_a_dict() -> None:
    numbers = sorted(random.Random(0).sample(range(10**9), 500))
    keys, plain = Keys(array("Q", numbers), map(key, numbers)), {n: key(n) for n in numbers}
    assert dict(keys) == plain and list(keys) == numbers and len(keys) == 500
    assert list(keys.in_order()) == list(plain.values())
    for absent in (numbers[0] - 1, numbers[250] + 1, numbers[-1] + 1):
        assert absent not in keys
        with pytest.raises(KeyError):
            keys[absent]
    assert not Keys() and 0 not in Keys() and list(Keys().in_order()) == []


def test_they_take_little_memory() -> None:
    count = 20_000
    tracemalloc.start()
    keys = Keys(array("Q", range(count)), map(key, range(count)))
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert keys[count - 1] == key(count - 1)
    assert held / count < 50 and most / count < 100  # 8 + 32, and room to grow while they come
