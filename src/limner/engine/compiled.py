"""torch.compile, block by block: blocks of one kind and size share what is compiled, where a whole model would take long.

Shapes are static, so each size of picture is compiled for itself. Only training is compiled: previews and the validation
loss, which come once in a while and in other sizes, are computed as they are.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from limner.config import Speed
from limner.data.dataset import Dataset
from limner.models.family import Family


def compile_blocks(family: Family, section: Speed, dataset: Dataset) -> None:
    """Have each block of the denoiser compiled when it is first used. Adapters must be attached."""
    blocks = family.blocks_of(family.denoiser)
    # counted for each forward of each class: its blocks may all differ in width, and come with and without a gradient before
    # them. With more than that torch would quietly compile no further.
    most = 2 * len(blocks) * num_shapes(dataset)
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, most)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 4 * most)
    mode = {"mode": section.compile_mode} if section.compile_backend == "inductor" else {}
    for block in blocks:
        block.compile(
            backend=section.compile_backend, fullgraph=section.compile_fullgraph, dynamic=section.compile_dynamic, **mode
        )


def num_shapes(dataset: Dataset) -> int:
    """How many shapes micro-batches have: those of each bucket are full, but the last."""
    size = dataset.order.batch_size
    return sum((count >= size) + (count % size > 0) for count in dataset.bucket_counts().values())


def uncompiled(section: Speed) -> contextlib.AbstractContextManager[Any]:
    """Inside, blocks are computed as they are."""
    return contextlib.nullcontext() if section.compile == "off" else torch.compiler.set_stance("force_eager")
