"""Which of PyTorch's attention kernels is used."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

from torch.nn.attention import SDPBackend, sdpa_kernel

Kernel = Literal["auto", "flash", "efficient", "cudnn", "math"]
_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def attending_by(kernel: Kernel) -> contextlib.AbstractContextManager[Any]:
    """Inside, attention is computed by this kernel, or plainly where it cannot be. The backward pass must be inside, too: what
    is computed again there would else be computed otherwise."""
    if kernel == "auto":
        return contextlib.nullcontext()
    return sdpa_kernel(list(dict.fromkeys([_BACKENDS[kernel], SDPBackend.MATH])))
