"""Whether tensors hold numbers alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def all_finite(tensors: Iterable[Tensor], dtype: torch.dtype | None = None) -> bool:
    """Whether no tensor holds a NaN or an infinity, nor would in `dtype`. Waits for their devices, once each."""
    found: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            # one pass without a copy; both ends are NaN if anything is
            ends = torch.stack(tensor.detach().aminmax())
            found.setdefault(tensor.device, []).append(torch.isfinite(ends.to(dtype or ends.dtype)).all())
    return all(bool(torch.stack(flags).all()) for flags in found.values())
