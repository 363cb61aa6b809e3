"""How many ranks a layer needs: rules over its singular values, and the product that is left.

The rules are those of kohya's resize_lora.py (sv_ratio, sv_fro, sv_cumulative) and of LyCORIS' extraction (threshold, and its
ratio and quantile, which are sv_ratio with the inverse and sv_cumulative). With s the singular values, falling, and v the value,
the rank is the smallest r with

    sv_fro          sqrt(sum_{i<=r} s_i^2) >= v sqrt(sum s_i^2)
    energy          sum_{i<=r} s_i^2 >= v sum s_i^2
    sv_cumulative   sum_{i<=r} s_i >= v sum s_i
    sv_ratio        s_{r+1} <= s_1 / v
    threshold       s_{r+1} <= v

but at least 1 and at most what is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limner.config.tools.ranks import Extract, Resize, Rule
from limner.errors import wrong
from limner.tools.low_rank import Product, Singular, singular, singular_roughly

_LARGE = 1024
"""The shorter side from which a part of the singular values is found sooner than all."""


@dataclass(frozen=True)
class Cut:
    """What is left of a layer."""

    product: Product
    squares: float
    """The sum of the squares of the layer, which is that of its singular values."""
    kept: float
    """Those of them that the product keeps."""

    @property
    def share(self) -> float:
        """Of the energy, from 0 to 1; 1 where there is none."""
        return self.kept / self.squares if self.squares else 1.0


def check_value(section: Extract | Resize, name: str) -> None:
    """Raises UserError, under `<name>.value`, where the rule has no value, or one that it cannot go by."""
    rule, value, field = section.rule, section.value, f"{name}.value"
    if rule == "rank":
        return
    if value is None:
        raise wrong(field, f"the rule {rule} needs a value.", "Give one, say 0.9." if rule in _SHARES else "Give one.")
    if rule in _SHARES and value > 1:
        raise wrong(field, f"{value:g} is no share: the rule {rule} takes one up to 1.", "Give, say, 0.9.")
    if rule == "sv_ratio" and value < 1:
        raise wrong(field, f"no singular value is larger than the largest divided by {value:g}.", "Give, say, 20.")


_SHARES: tuple[Rule, ...] = ("energy", "sv_fro", "sv_cumulative")


def rank_of(values: Tensor, squares: float, rule: Rule, value: float | None, most: int) -> int:
    """The rank that a rule gives; `values` are the singular values, at least the `most` largest, and for sv_cumulative all.
    `squares` is the sum of the squares of all."""
    values, most = values.double(), min(most, len(values))
    if squares == 0:
        return 1
    if rule == "rank" or value is None:
        return most
    if rule in ("sv_ratio", "threshold"):
        least = value if rule == "threshold" else float(values[0]) / value
        found = int((values > least).sum())
    else:
        sums = values.cumsum(0) / values.sum() if rule == "sv_cumulative" else values.square().cumsum(0) / squares
        found = int((sums < (value**2 if rule == "sv_fro" else value)).sum()) + 1
    return max(1, min(found, most))


def is_rough(shape: tuple[int, int], rule: Rule, most: int) -> bool:
    """Whether the singular values of such a matrix are found by a random projection: it is large, a small part of them is
    needed, and no rule asks for the sum of all."""
    return min(shape) >= _LARGE and 4 * most <= min(shape) and rule != "sv_cumulative"


def cut_matrix(matrix: Tensor, rule: Rule, value: float | None, most: int) -> Cut:
    """What a rule leaves of a whole matrix (outputs, columns)."""
    squares = squares_of(matrix)
    rough = is_rough((len(matrix), matrix.shape[1]), rule, most)
    return cut_singular(singular_roughly(matrix, most) if rough else singular(matrix), squares, rule, value, most)


def cut_singular(found: Singular, squares: float, rule: Rule, value: float | None, most: int) -> Cut:
    """The same, of its singular values."""
    rank = rank_of(found.values, squares, rule, value, most)
    kept = float(found.values[:rank].double().square().sum())
    return Cut(found.cut(rank), squares, min(kept, squares))


def clamped(cut: Cut, matrix: Tensor, quantile: float) -> Cut:
    """The product with its numbers clamped to a quantile of them, as kohya's extract_lora_from_models.py does; there the rule
    is that of the signed numbers, so that a half of them lies below zero."""
    up, down = cut.product.up, cut.product.down
    numbers = torch.cat([up.flatten(), down.flatten()])
    place = quantile * (len(numbers) - 1)
    low, high = (float(numbers.kthvalue(int(p) + 1).values) for p in (place, min(int(place) + 1, len(numbers) - 1)))
    limit = abs(low + (high - low) * (place - int(place)))
    product = Product(up.clamp(-limit, limit), down.clamp(-limit, limit))
    lost = squares_of(matrix - product.whole())
    return Cut(product, cut.squares, max(0.0, cut.squares - lost))


def squares_of(matrix: Tensor) -> float:
    """The sum of a tensor's squares, in float64 without a copy of the whole."""
    return sum(float(rows.double().square().sum()) for rows in matrix.reshape(-1).split(1 << 20))
