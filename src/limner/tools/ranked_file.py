"""What `extract` and `resize` share beside the rules: what is asked of their options, and the words of their reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limner.config.tools.ranks import Extract, Resize
from limner.errors import printable, wrong
from limner.models.weights import PRECISIONS
from limner.tools.ranks import Cut

_NAME = 70  # columns of a table for a terminal of 100


@dataclass(frozen=True)
class Line:
    """A layer in the report."""

    name: str
    was: str
    """Its rank before, or what it was."""
    cut: Cut


def check_device(section: Extract | Resize, name: str) -> torch.device:
    """Raises UserError if it is not there."""
    if section.device == "cuda" and not torch.cuda.is_available():
        raise wrong(f"{name}.device", "PyTorch finds no CUDA device.", "Use cpu.")
    return torch.device(section.device)


def in_dtype(tensor: Tensor, dtype: str, layer: str, field: str) -> Tensor:
    """On the CPU, as it is written. Raises UserError, under `field`, if it does not fit."""
    out = tensor.to("cpu", PRECISIONS[dtype]).contiguous()
    if not bool(torch.isfinite(out).all()):
        raise wrong(field, f"the numbers of {layer} are too large for {dtype}.", "Use bf16 or fp32.")
    return out


def network_keys(section: Extract | Resize, rank: int, alpha: str) -> dict[str, str]:
    """ss_network_dim and ss_network_alpha, "Dynamic" where a rule decided, as kohya has it."""
    if section.rule != "rank":
        return {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}
    return {"ss_network_dim": str(rank), "ss_network_alpha": alpha}


def rule_words(section: Extract | Resize, conv_rank: int | None) -> str:
    """ "rank 16 (conv 8)" or "sv_fro 0.9, rank up to 16"."""
    conv = f" (conv {conv_rank})" if conv_rank not in (None, section.rank) else ""
    return (
        f"rank {section.rank}{conv}"
        if section.rule == "rank"
        else f"{section.rule} {section.value:g}, rank up to {section.rank}{conv}"
    )


def report_lines(lines: Sequence[Line], verbose: bool) -> list[str]:
    """A table of the layers, and what is kept of them all."""
    out = list[str]()
    if verbose and lines:
        names = [printable(line.name, 2 * _NAME) for line in lines]
        width = min(_NAME, max(map(len, names)))
        out.append(f"{'layer':{width}}  {'was':>8}  {'rank':>5}  energy kept")
        for line, whole in zip(lines, names, strict=True):
            name = whole if len(whole) <= width else "…" + whole[1 - width :]
            out.append(f"{name:{width}}  {line.was:>8}  {line.cut.product.rank:>5}  {line.cut.share:>10.2%}")
    cuts = [line.cut for line in lines]
    ranks = sorted(cut.product.rank for cut in cuts)
    share = Cut(cuts[0].product, sum(c.squares for c in cuts), sum(c.kept for c in cuts)).share
    least = min(lines, key=lambda line: line.cut.share)
    ranked = (
        f"rank {ranks[0]}"
        if ranks[0] == ranks[-1]
        else f"ranks {ranks[0]} to {ranks[-1]}, {ranks[len(ranks) // 2]} in the middle"
    )
    out.append(f"{len(lines)} layers, {ranked}.")
    out.append(f"Of the energy (squared Frobenius norm) {share:.2%} is kept, of the norm {share**0.5:.2%}.")
    out.append(f"Least of {printable(least.name)}: {least.cut.share:.2%}.")
    return out


def described(values: Mapping[str, Any]) -> dict[str, str]:
    """Metadata as text; what is None is left out."""
    return {key: str(value) for key, value in values.items() if value is not None}
