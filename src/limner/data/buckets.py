"""Aspect-ratio buckets: which size each picture is brought to, and how it is cut.

The rules are sd-scripts' (`make_bucket_resolutions`, `select_bucket`, `get_crop_ltrb`; kohya.md §2.7), so that the same
folder gives the same buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, isqrt, sqrt

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Fit:
    """How one picture becomes a training sample: resized to `resized`, then cut from the centre to `bucket` (w, h in px)."""

    bucket: Size
    resized: Size

    @property
    def crop(self) -> tuple[int, int]:
        """Left and top of the cut, in px of the resized picture."""
        return (self.resized[0] - self.bucket[0]) // 2, (self.resized[1] - self.bucket[1]) // 2


@dataclass(frozen=True)
class Buckets:
    """The rule by which pictures are sorted."""

    resolution: int
    step: int
    minimum: int
    maximum: int
    enabled: bool = True
    upscale: bool = True

    def sizes(self) -> list[Size]:
        """Every bucket that can occur with upscaling: sides are multiples of `step`, areas at most `resolution` squared."""
        area = self.resolution**2
        square = max(self.step, self._cut(isqrt(area)))
        low, high = max(self.step, self._cut(self.minimum)), self._cut(self.maximum + self.step - 1)
        found = {(square, square)}
        for width in range(low, high + 1, self.step):
            height = min(high, self._cut(area // width))
            if height >= low:
                found |= {(width, height), (height, width)}
        return sorted(found)

    def fit(self, width: int, height: int, sizes: Sequence[Size] | None = None) -> Fit:
        """The bucket of a picture of this size. `sizes` are those of `self.sizes()`, to compute them only once."""
        if not self.enabled:
            side = max(self.step, self.resolution // self.step * self.step)
            return Fit((side, side), _cover(width, height, side, side))
        if self.upscale:
            aspect = width / height
            bucket = min(sizes if sizes is not None else self.sizes(), key=lambda s: abs(s[0] / s[1] - aspect))
            return Fit(bucket, _cover(width, height, *bucket))
        return self._fit_without_upscaling(width, height)

    def _fit_without_upscaling(self, width: int, height: int) -> Fit:
        resized = (width, height)
        if width * height > self.resolution**2:
            aspect = width / height
            ideal = floor(sqrt(self.resolution**2 * aspect) + 0.5), max(1, floor(sqrt(self.resolution**2 / aspect) + 0.5))
            by_width, by_height = self._cut(ideal[0]), self._cut(ideal[1])
            candidates = (floor(by_height * aspect + 0.5), by_height), (by_width, floor(by_width / aspect + 0.5))
            # the one whose sides, cut to multiples, distort the aspect least
            resized = min(
                (c for c in candidates if min(c) >= self.step),
                key=lambda c: abs(self._cut(c[0]) / self._cut(c[1]) - aspect),
                default=ideal,
            )
        bucket = max(self.step, self._cut(resized[0])), max(self.step, self._cut(resized[1]))
        # a side smaller than one step is enlarged after all: a bucket of size 0 cannot be trained
        return Fit(bucket, _cover(*resized, *bucket) if min(resized) < self.step else resized)

    def _cut(self, side: int) -> int:
        return side // self.step * self.step


def _cover(width: int, height: int, bucket_width: int, bucket_height: int) -> Size:
    """The picture's size scaled so that it just covers the bucket."""
    if width / height > bucket_width / bucket_height:
        return max(bucket_width, int(width * bucket_height / height + 0.5)), bucket_height
    return bucket_width, max(bucket_height, int(height * bucket_width / width + 0.5))
