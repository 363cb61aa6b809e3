"""From a config and a recognised base model to what is trained on: pictures, their cuts, their order, the step count."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

from limner.config import Config, defaults
from limner.data.buckets import Buckets, Fit
from limner.data.plan import Order, repeated
from limner.data.scan import Picture
from limner.formats.base import Base


@dataclass(frozen=True)
class Dataset:
    """The pictures of a run in their fixed order, with how each is cut and when each is shown."""

    pictures: list[Picture]
    fits: list[Fit]
    buckets: Buckets
    order: Order
    total_steps: int

    def fingerprint(self) -> str:
        """A hash of what decides the order and the content of every step, as far as headers and captions tell."""
        facts = [(p.path, p.caption, p.repeats, f.bucket) for p, f in zip(self.pictures, self.fits, strict=True)]
        return hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def num_epochs(self) -> int:
        """Epochs that are begun in all the steps."""
        whole = self.order.epoch_of(self.total_steps)
        return whole if self.order.steps(whole) == self.total_steps else whole + 1

    def bucket_counts(self) -> Counter[tuple[int, int]]:
        """Pictures times repeats in each bucket (width, height)."""
        counts: Counter[tuple[int, int]] = Counter()
        for picture, fit in zip(self.pictures, self.fits, strict=True):
            counts[fit.bucket] += picture.repeats
        return counts

    def bucket_info(self) -> dict[str, Any]:
        """The buckets as kohya's metadata list them."""
        counts = sorted(self.bucket_counts().items())
        return {"buckets": {str(i): {"resolution": list(b), "count": n} for i, (b, n) in enumerate(counts)}}


def bucket_rule(config: Config, base: Base) -> Buckets:
    """The bucket rule with everything that was not given filled in from the base model."""
    data = config.data
    resolution = data.resolution or base.resolution_px
    return Buckets(
        resolution=resolution,
        step=data.bucket_step_px or base.bucket_step_px,
        minimum=data.bucket_min_px or resolution // 2,
        maximum=data.bucket_max_px or resolution * 2,
        enabled=data.buckets,
        upscale=data.upscale,
    )


def assemble(config: Config, base: Base, pictures: list[Picture]) -> Dataset:
    """Sort the pictures into buckets and lay down their order. Class pictures come behind the others."""
    rule = bucket_rule(config, base)
    sizes = rule.sizes()
    by_size: dict[tuple[int, int], Fit] = {}
    for p in pictures:
        if (p.width, p.height) not in by_size:
            by_size[p.width, p.height] = rule.fit(p.width, p.height, sizes)
    fits = [by_size[p.width, p.height] for p in pictures]
    numbers = {bucket: i for i, bucket in enumerate(sorted({f.bucket for f in fits}))}
    num_own = sum(not p.is_class for p in pictures)
    order = Order(
        items=repeated([p.repeats for p in pictures[:num_own]]),
        buckets=tuple(numbers[f.bucket] for f in fits),
        batch_size=config.train.batch_size,
        micro_batches_per_step=config.train.accumulation * config.launch.num_processes,
        seed=config.train.seed,
        class_items=repeated([p.repeats for p in pictures[num_own:]], num_own),
    )
    steps = defaults.total_steps(config, 2 * num_own if num_own < len(pictures) else num_own)
    return Dataset(pictures, fits, rule, order, steps if steps is not None else order.steps(config.train.epochs or 1))
