"""Draw the demo's picture set (the new thing, captioned with its trigger) into the package."""

from __future__ import annotations

import random

from limner import disk
from limner.pocket import PICTURES, world
from limner.pocket.exam import thing_scenes

for i, scene in enumerate(thing_scenes()[0]):
    picture = world.draw_thing(scene.size, scene.place, scene.background, scene.ground, random.Random(f"thing {i}"))
    with disk.replacing(PICTURES / f"zibbo_{i:02d}.png") as temporary:
        picture.save(temporary, format="PNG", optimize=True)
    disk.write_text(PICTURES / f"zibbo_{i:02d}.txt", scene.caption + "\n")
