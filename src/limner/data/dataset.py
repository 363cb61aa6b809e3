"""From a config and a recognised base model to what is trained on: pictures, their cuts, their order, the step count."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from limner.config import Config, Data, defaults
from limner.data.buckets import Buckets, Fit
from limner.data.plan import Order, repeated
from limner.data.scan import Picture, settings_of
from limner.errors import wrong
from limner.formats.base import Base


@dataclass(frozen=True)
class Dataset:
    """The pictures of a run in their fixed order, with how each is cut and when each is shown.

    A picture that is shown at several resolutions stands there several times. Class pictures come behind the others.
    """

    pictures: Sequence[Picture]
    fits: Sequence[Fit]
    buckets: Buckets
    """The rule of the configuration's own resolution."""
    order: Order
    total_steps: int

    @property
    def num_pictures(self) -> int:
        """Pictures that are taught, each once."""
        return len({id(p) for p in self.pictures if not p.is_class})

    def fingerprint(self) -> str:
        """A hash of what decides the order and the content of every step, as far as headers and captions tell."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        told = {s: s.data.model_dump_json() for s in dict.fromkeys(p.subset for p in self.pictures) if s is not None}
        # the hash of the repr of a list, which is never made: of a million pictures it would be too long
        digest, before = hashlib.sha256(), "["
        for p, f in zip(self.pictures, self.fits, strict=True):
            facts = p.path, p.caption, p.repeats, f.bucket, *([told[p.subset], p.is_class] if p.subset is not None else [])
            digest.update(f"{before}{facts!r}".encode("utf-8", "surrogatepass"))
            before = ", "
        digest.update(b"]" if self.pictures else b"[]")
        return digest.hexdigest()

    def outline(self) -> str:
        """A hash of what is shown when, wherever the files lie."""
        facts = [(p.caption, p.repeats, p.width, p.height, f.bucket) for p, f in zip(self.pictures, self.fits, strict=True)]
        return hashlib.sha256(repr((facts, self.total_steps)).encode("utf-8", "surrogatepass")).hexdigest()

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
    """The bucket rule of the configuration's own resolution."""
    return bucket_rules(config.data, base)[0]


def bucket_rules(data: Data, base: Base) -> list[Buckets]:
    """A rule for each resolution, the first one first, with all that was not given filled in from the base model."""
    return [
        Buckets(
            resolution=resolution,
            step=data.bucket_step_px or base.bucket_step_px,
            minimum=data.bucket_min_px or resolution // 2,
            maximum=data.bucket_max_px or resolution * 2,
            enabled=data.buckets,
            upscale=data.upscale,
        )
        for resolution in dict.fromkeys([data.resolution or base.resolution_px, *more_resolutions(data)])
    ]


def more_resolutions(data: Data) -> list[int]:
    """Raises UserError for one that is none."""
    for text in data.more_resolutions:
        if not (text.isascii() and text.isdigit() and 32 <= int(text[:9]) <= 4096):
            said = f"{text!r} is no resolution."
            raise wrong("data.more_resolutions", said, 'Give whole numbers of px from 32 to 4096, such as ["768"].')
    return [int(text) for text in data.more_resolutions]


def assemble(config: Config, base: Base, pictures: Sequence[Picture]) -> Dataset:
    """Sort the pictures into buckets and lay down their order. Class pictures come behind the others."""
    entries, fits = list[Picture](), list[Fit]()
    rules = {id(d): bucket_rules(d, base) for d in settings_of(config.data, pictures)}
    known: dict[tuple[Buckets, int, int], Fit] = {}
    sizes = {rule: rule.sizes() for found in rules.values() for rule in found}
    for p, rule in _shown(config, pictures, rules):
        key = rule, p.width, p.height
        if (fit := known.get(key)) is None:
            fit = known[key] = rule.fit(p.width, p.height, sizes[rule])
        entries.append(p)
        fits.append(fit)
    numbers = {bucket: i for i, bucket in enumerate(sorted({f.bucket for f in known.values()}))}
    num_own = sum(not p.is_class for p in entries)
    order = Order(
        items=repeated([p.repeats for p in entries[:num_own]]),
        buckets=array("I", (numbers[f.bucket] for f in fits)),
        batch_size=config.train.batch_size,
        micro_batches_per_step=config.train.accumulation * config.launch.num_processes,
        seed=config.train.seed,
        class_items=repeated([p.repeats for p in entries[num_own:]], num_own),
    )
    own = sum(not p.is_class for p in pictures)
    steps = defaults.total_steps(config, 2 * own if num_own < len(entries) else own)
    steps = steps if steps is not None else order.steps(config.train.epochs or 1)
    return Dataset(entries, fits, bucket_rule(config, base), order, steps)


def _shown(config: Config, pictures: Sequence[Picture], rules: dict[int, list[Buckets]]) -> Iterator[tuple[Picture, Buckets]]:
    """Each picture with each of its rules: all at their first resolution, then at their next; class pictures last."""
    for is_class in (False, True):
        for turn in range(max(map(len, rules.values()))):
            for p in pictures:
                own = rules[id(p.settings(config.data))]
                if p.is_class == is_class and turn < len(own):
                    yield p, own[turn]
