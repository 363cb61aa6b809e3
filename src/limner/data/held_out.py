"""Pictures that are not trained on, for the validation loss: a share of the data set, and a folder of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from limner.config import Config, Data
from limner.data.classes import scan_beside
from limner.data.scan import Picture, Scan
from limner.data.subset import Subset
from limner.randomness import permutation


def parted(config: Config, pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
    """(pictures to train on, held-out ones), each in their order. Drawn by the seed; a picture goes with all its showings.

    At least one is held out if a share is asked for, and at least one is left. Class pictures are never held out.
    """
    if not config.validation.share:
        return list(pictures), []
    names = list(dict.fromkeys(p.path for p in pictures if not p.is_class))
    count = min(len(names) - 1, max(1, round(config.validation.share * len(names))))
    held = {names[i] for i in permutation(len(names), config.train.seed, "held out")[: max(0, count)]}
    return [p for p in pictures if p.path not in held], [p for p in pictures if p.path in held]


def scan_validation(config: Config, may_follow: Callable[[str], bool] | None = None) -> Scan:
    """The pictures in `validation.path`; nothing if it is not given. Raises UserError where it is no folder."""
    if config.validation.path is None:
        return Scan()
    changes = {"path": config.validation.path, "repeats": 1, "metadata": None, "subsets": None}
    return scan_beside(config.data.model_copy(update=changes), "validation.path", may_follow)


def seen_plainly(pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures with their subsets' settings made `plain`."""
    subsets = {p.subset: Subset(plain(p.subset.data)) for p in pictures if p.subset is not None}
    return [replace(p, subset=subsets[p.subset]) if p.subset is not None else p for p in pictures]


def plain(data: Data) -> Data:
    """The data section without all that is drawn: a held-out picture is always seen the same way."""
    changes = {
        "flip": False, "random_crop": False, "colour": False, "shuffle_tags": False, "tag_dropout": 0.0, "caption_dropout": 0.0,
        "caption_dropout_epochs": 0, "tag_warmup_steps": 0, "wildcards": False, "more_resolutions": (),
    }  # fmt: skip
    return data.model_copy(update=changes)
