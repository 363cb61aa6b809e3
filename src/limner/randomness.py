"""Randomness without state: every draw is a function of (seed, purpose, and where in the run it happens).

Nothing has to be saved to resume, and neither workers, accumulation nor the number of processes change a draw.
"""

from __future__ import annotations

import hashlib
import random

_MASK = (1 << 64) - 1


def _splitmix64(x: int) -> int:
    """One output of SplitMix64 (Steele, Lea, Flood 2014, figure 16)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def mix(seed: int, purpose: str, *places: int) -> int:
    """A 63-bit seed for one draw; `places` are for example (epoch, sample) or (step, position)."""
    value = _splitmix64(seed & _MASK) ^ int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    for place in places:
        value = _splitmix64(value ^ _splitmix64(place & _MASK))
    return _splitmix64(value) >> 1


def permutation(count: int, seed: int, purpose: str, *places: int) -> list[int]:
    """A shuffled list of 0..count-1."""
    order = list(range(count))
    random.Random(mix(seed, purpose, *places)).shuffle(order)
    return order
