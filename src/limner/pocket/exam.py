"""What the pocket model and the demo's LoRA are asked, and how the answers are counted. Pixels and words only, no torch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from limner.pocket import world
from limner.pocket.judge import judge
from limner.pocket.world import BACKGROUNDS, GROUNDS, PLACES, SIZES, Scene

NUM_PICTURES, NUM_PROMPTS, NUM_SEEDS = 14, 16, 4


@dataclass(frozen=True)
class ThingScene:
    """Where and how large the demo's new thing is shown."""

    size: str
    place: str
    background: str
    ground: str

    @property
    def caption(self) -> str:
        return world.describe_thing(self.size, self.place, self.background, self.ground)


def thing_scenes() -> tuple[list[ThingScene], list[ThingScene]]:
    """(scenes of the demo's pictures, scenes of the examination): disjoint, every background in both."""
    everything = [ThingScene(*s) for s in product(SIZES, PLACES, BACKGROUNDS, GROUNDS)]
    random.Random(57).shuffle(everything)
    by_background = {b: [s for s in everything if s.background == b] for b in BACKGROUNDS}
    dealt = [by_background[b].pop() for _ in range(6) for b in BACKGROUNDS]
    return dealt[:NUM_PICTURES], dealt[NUM_PICTURES : NUM_PICTURES + NUM_PROMPTS]


def held_out_scenes(count: int, seed: int = 77) -> list[tuple[Scene, str]]:
    """(scene, caption) pairs never seen in training; a quarter of them of colour-shape pairs never seen together."""
    rng, out = random.Random(seed), list[tuple[Scene, str]]()
    while len(out) < count:
        pairs = sorted(world.UNSEEN_PAIRS) if len(out) % 4 == 0 else world.seen_pairs()
        scene = world.random_scene(rng, pairs)
        caption = world.describe(scene, rng)
        if (scene.colour, scene.shape) in world.UNSEEN_PAIRS or world.held_out(caption):
            out.append((scene, caption))
    return out


def score_scenes(pictures: Sequence[np.ndarray], wanted: Sequence[tuple[Scene, str]]) -> dict[str, float]:
    """Shares of pictures that show the named colour and shape; chance is told by judging them against other captions."""
    verdicts = [judge(p) for p in pictures]
    scenes = [s for s, _ in wanted]

    def right(order: Sequence[Scene]) -> list[bool]:
        return [(v.colour, v.shape) == (s.colour, s.shape) for v, s in zip(verdicts, order, strict=True)]

    hits = right(scenes)
    unseen = [hit for hit, s in zip(hits, scenes, strict=True) if (s.colour, s.shape) in world.UNSEEN_PAIRS]
    grounds = [v.background == s.background for v, (s, c) in zip(verdicts, wanted, strict=True) if "background" in c]
    count = len(pictures)
    return {
        "captions": count,
        "right": sum(hits) / count,
        "right_unseen_pairs": sum(unseen) / max(1, len(unseen)),
        "colour": sum(v.colour == s.colour for v, s in zip(verdicts, scenes, strict=True)) / count,
        "shape": sum(v.shape == s.shape for v, s in zip(verdicts, scenes, strict=True)) / count,
        "background": sum(grounds) / max(1, len(grounds)),
        "chance": sum(right(scenes[1:] + scenes[:1])) / count,
    }


def score_thing(pictures: Sequence[np.ndarray], backgrounds: Sequence[str]) -> dict[str, int]:
    """In how many pictures the new thing is, and in how many the background asked for."""
    verdicts = [judge(p) for p in pictures]
    return {
        "pictures": len(pictures),
        "recognised": sum(v.is_thing for v in verdicts),
        "background": sum(v.background == b for v, b in zip(verdicts, backgrounds, strict=True)),
    }


def nearest_distances(pictures: Sequence[np.ndarray], training: Sequence[np.ndarray]) -> list[float]:
    """For each picture the root mean square difference (0..1) to the training picture most like it."""
    known = np.stack([t.astype(np.float64) for t in training]) / 255
    return [float(np.sqrt(((known - p / 255) ** 2).mean((1, 2, 3))).min()) for p in pictures]
