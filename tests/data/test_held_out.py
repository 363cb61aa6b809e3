"""What is held out: never class pictures, and always seen in the same way."""

from __future__ import annotations

from limner.config import Data, files
from limner.data.held_out import parted, seen_plainly
from limner.data.scan import Picture
from limner.data.subset import Subset

DRAWN = Subset(Data(flip=True, shuffle_tags=True, caption_dropout_epochs=2))
REG = Subset(Data(), is_class=True)


def picture(name: str, subset: Subset | None = None) -> Picture:
    return Picture(name, 64, 64, "a, b", 1, subset, subset is not None and subset.is_class)


def test_class_pictures_are_never_held_out():
    pictures = [*(picture(f"own{i}") for i in range(3)), *(picture(f"reg{i}", REG) for i in range(8))]
    for seed in range(12):
        config = files.build({"validation": {"share": 0.4}, "train": {"seed": seed}}, {})
        kept, held = parted(config, pictures)
        assert len(held) == 1 and not held[0].is_class
        assert sum(p.is_class for p in kept) == 8


def test_the_only_picture_stays():
    config = files.build({"validation": {"share": 0.5}}, {})
    assert parted(config, [picture("own"), picture("reg", REG)])[1] == []


def test_subsets_are_seen_plainly_too():
    [seen] = seen_plainly([picture("own", DRAWN)])
    data = seen.settings(Data())
    assert (data.flip, data.shuffle_tags, data.caption_dropout_epochs) == (False, False, 0)
