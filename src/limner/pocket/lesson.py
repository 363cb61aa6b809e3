"""What the demo's LoRA is shown: pictures of the new thing, and as many showings of the world that it shall not forget.

The second kind are DreamBooth's class pictures (arXiv:2208.12242, section 3.3) with captions of their own, in kohya's folders:
the number before a folder's name says how often each of its pictures is shown in an epoch.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from limner import disk
from limner.pocket import PICTURES, world

NUM_KNOWN = 420


def lay_out(folder: Path) -> Path:
    """The folder with the lesson in it, written now if it is not there yet. It is always the same.

    The known pictures are of pairs that the base model has seen, under captions that no examination asks for.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = disk.temporary_name(folder)
        temporary.mkdir()
        try:
            _fill(temporary)
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # else another demo was faster, with the same pictures
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _fill(folder: Path) -> None:
    new = sorted(PICTURES.glob("*.png"))
    things, known = folder / f"{NUM_KNOWN // len(new)}_{world.TRIGGER}", folder / "1_known"
    things.mkdir(parents=True)
    known.mkdir()
    for picture in new:
        shutil.copyfile(picture, things / picture.name)
        shutil.copyfile(picture.with_suffix(".txt"), things / f"{picture.stem}.txt")
    rng, pairs, count = random.Random(5), world.seen_pairs(), 0
    while count < NUM_KNOWN:
        scene = world.random_scene(rng, pairs)
        caption = world.describe(scene, rng)
        if not world.held_out(caption):
            world.draw(scene, rng).save(known / f"{count:03d}.png")
            (known / f"{count:03d}.txt").write_text(caption + "\n", encoding="utf-8")
            count += 1
