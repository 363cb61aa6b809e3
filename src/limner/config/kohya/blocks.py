"""The denoiser's blocks by sd-scripts' numbers, and what is said of single blocks as adapter.rules, both ways.

sd-scripts counts a UNet's blocks from the input to the output: 25 in Stable Diffusion 1 and 2 (0 has no layers that an adapter
changes, 12 is the middle), 23 in Stable Diffusion XL (0 and 22 are the embeddings and the end; 10 to 12 are the middle).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from limner.config.rules import Effect, Rule

COUNTS = {"sd1": 25, "sd2": 25, "sdxl": 23}
FLUX_BLOCKS = {"double": ("denoiser.transformer_blocks", 19), "single": ("denoiser.single_transformer_blocks", 38)}
_CURVES: dict[str, Callable[[float], float]] = {
    "sine": lambda x: math.sin(math.pi / 2 * x),
    "cosine": lambda x: math.sin(math.pi / 2 * (1 - x)),
    "linear": lambda x: x,
    "reverse_linear": lambda x: 1 - x,
    "zeros": lambda x: 0.0,  # noqa: ARG005
}


def patterns(family: str, index: int, *, convolutions: bool, whole: bool = False) -> list[str]:
    """What fits the layers of a block that an adapter changes, with `convolutions` or without; all weights with `whole`."""
    convolutions |= whole
    if family == "sdxl":
        if index in (0, 22):
            ends = {0: ["time_embedding", "add_embedding"], 22: ["conv_norm_out", "conv_out"]}
            return [f"denoiser.{name}.*" for name in ends[index]] if whole else []
        if 10 <= index <= 12:
            name = ("resnets.0", "attentions.0", "resnets.1")[index - 10]
            return [f"denoiser.mid_block.{name}.*"] if convolutions or index == 11 else []
        side, place, attends = ("down", index - 2, (1, 2)) if index < 10 else ("up", index - 13, (0, 1))
        last = 2
    else:
        if index == 12:
            return ["denoiser.mid_block.*"]
        side, place, attends = ("down", index - 1, (0, 1, 2)) if index < 12 else ("up", index - 13, (1, 2, 3))
        last = 3
    if place < 0:
        return ["denoiser.conv_in.*"] if whole else []
    block, number = divmod(place, 3)
    out = list[str]()
    if block in attends and (side == "up" or number < 2):
        out.append(f"attentions.{number}")
    if convolutions and (side == "up" or number < 2):
        out.append(f"resnets.{number}")
    if convolutions and number == 2 and block < last:
        out.append(f"{side}samplers.0")
    return [f"denoiser.{side}_blocks.{block}.{name}.*" for name in out]


def curve(text: str, count: int) -> list[float] | None:
    """The weights of so many blocks that a word such as "cosine+.25" means, None if it means none."""
    name, _, base = text.partition("+")
    try:
        return [_CURVES[name.strip()](i / max(1, count - 1)) + float(base or 0) for i in range(count)]
    except (KeyError, ValueError):
        return None


def indices(text: str, count: int) -> set[int] | None:
    """The blocks of "0,3,5-9", "all" or "none"; None if it cannot be read."""
    if text.strip() in ("all", "none"):
        return set(range(count)) if text.strip() == "all" else set()
    found = set[int]()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not (first.strip().isdecimal() and (last or first).strip().isdecimal()) or len(part) > 9:
            return None
        found |= set(range(int(first), min(int(last or first), count) + 1))
    return found if found <= set(range(count)) else None


def per_block(family: str, rules: Sequence[Rule], rank: int, alpha: float, *, convolutions: bool) -> list[Effect] | None:
    """What rules say of each block of a UNet, if they speak of whole blocks alone; else None."""
    count = COUNTS.get(family, 0)
    found = [Effect(rank=rank, alpha=alpha)] * count
    places = {tuple(patterns(family, i, convolutions=convolutions)): i for i in range(count)}
    left = [rule for rule in rules]
    while left:
        block = next((key for key in places if key and list(key) == [_pattern(r) for r in left[: len(key)]]), None)
        if block is None or len({(r.off, tuple(r.values.items())) for r in left[: len(block)]}) > 1:
            return None
        index, values = places[block], left[0].values
        found[index] = Effect(
            left[0].off, values.get("rank", found[index].rank), values.get("alpha", found[index].alpha),
            values.get("lr_factor", found[index].lr_factor),
        )  # fmt: skip
        left = left[len(block) :]
    return found if count else None


def _pattern(rule: Rule) -> str:
    return rule.text.rpartition(":")[0].strip()
