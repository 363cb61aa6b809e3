"""Texts of any length for CLIP, which reads 77 tokens: chunk by chunk, each of 75 between a start and an end of its own.

The states of a text's chunks are joined as kohya does: the first start, the 75 of each chunk, the last end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def room(tokenizer: Any) -> int:
    """Tokens of a text that fit into a chunk."""
    return tokenizer.model_max_length - 2


def chunked(texts: Sequence[Sequence[int]], tokenizer: Any, count: int) -> Tensor:
    """Token ids of B texts -> (B count, 77), a text's chunks one after the other; what exceeds them is cut off."""
    size = room(tokenizer)
    chunks = [ids[i * size : (i + 1) * size] for ids in texts for i in range(count)]
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    return torch.tensor([[start, *chunk, end, *[pad] * (size - len(chunk))] for chunk in chunks])


def joined(states: Tensor, count: int) -> Tensor:
    """Hidden states (B count, 77, W) of chunks -> (B, 75 count + 2, W) of texts."""
    chunks = states.unflatten(0, (-1, count))
    return torch.cat([chunks[:, 0, :1], chunks[:, :, 1:-1].flatten(1, 2), chunks[:, -1, -1:]], dim=1)


def emphasised(states: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """Hidden states (B, T, W) times their tokens' weights, each text's brought back to the mean that it had, as A1111 does.

    `weights` are those of the tokens between start and end. Where all are 1 the states come back as they are.
    """
    if all(w == 1 for text in weights for w in text):
        return states
    factors = torch.ones(states.shape[:2])
    for row, text in zip(factors, weights, strict=True):
        row[1 : 1 + len(text)] = torch.tensor(text)
    states = states.float()
    weighted = states * factors[..., None].to(states.device)
    before, after = (s.mean((1, 2), keepdim=True) for s in (states, weighted))
    # a mean that is zero but for rounding, as behind an untaught norm, has nothing to say
    least = 1e-4 * states.abs().mean((1, 2), keepdim=True)
    return weighted * torch.where((before.abs() > least) & (after.abs() > least), before / after, 1)
