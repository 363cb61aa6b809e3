"""Forward and backward of a micro-batch as one CUDA graph: recorded once for each shape, and then started as a whole.

A small batch has thousands of kernels that are each done sooner than Python orders the next; a graph orders them all at once
(PyTorch's CUDA semantics, "Whole-network capture"). It reads and writes the same memory each time, so inputs are copied
into buffers of its own, and gradients stay where they are and are set to zero instead of forgotten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from limner.engine.objective import Question

WARM = 3
"""Micro-batches of a shape that are computed as usual before it is recorded: libraries choose their kernels meanwhile."""
MOST = 32
"""Shapes that are recorded; those beyond are computed as usual."""

Learn = Callable[[Question, Tensor], Tensor]
"""Forward and backward: gradients are added up, the micro-batch's share of the loss is returned, a mean over a count."""
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], Any], Tensor]]
"""Makes of a function what does the same again, on the same memory, and where its result lies."""


@dataclass
class _Recorded:
    inputs: list[Tensor]
    count: Tensor
    replay: Callable[[], Any]
    loss: Tensor


class Graphs:
    """The micro-batches of a run, recorded by shape."""

    def __init__(self, learn: Learn, params: Sequence[nn.Parameter], record: Record, warm: Callable[[], Any]) -> None:
        """`warm` gives what a shape is computed in before it is recorded (a stream)."""
        self._learn, self._record, self._warm = learn, record, warm
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._recorded: dict[tuple[Any, ...], _Recorded] = {}
        self._count = torch.zeros((), device=params[0].device)
        self._gradients = [torch.zeros_like(p) for p in params]
        for p, gradient in zip(params, self._gradients, strict=True):
            p.grad = gradient

    def learn(self, question: Question, count: int) -> Tensor:
        """As a `Learn`; what it returns is overwritten by the next micro-batch."""
        inputs = _inputs(question)
        shape = tuple((name, t.shape, t.dtype) for name, t in inputs.items())
        known = self._recorded.get(shape)
        if known is None and (self._seen[shape] < WARM or len(self._recorded) >= MOST):
            self._seen[shape] += 1
            with self._warm():
                return self._learn(question, self._count.fill_(count))
        if known is None:
            known = self._recorded[shape] = self._new(question, inputs)
        torch._foreach_copy_(known.inputs, list(inputs.values()))
        known.count.fill_(count)
        known.replay()
        return known.loss

    def forget_gradients(self) -> None:
        """Begin a step anew."""
        torch._foreach_zero_(self._gradients)

    def _new(self, question: Question, inputs: dict[str, Tensor]) -> _Recorded:
        kept = {name: t.clone() for name, t in inputs.items()}
        count, asked = torch.ones_like(self._count), _with_inputs(question, kept)
        replay, loss = self._record(lambda: self._learn(asked, count))
        return _Recorded(list(kept.values()), count, replay, loss)


def on_gpu(learn: Learn, params: Sequence[nn.Parameter]) -> Graphs:
    """Recorded as CUDA graphs, which share the memory for what lives only within one."""
    device = params[0].device
    stream, pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def record(function: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # other threads go on copying batches and writing files meanwhile
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            loss = function()
        return graph.replay, loss

    return Graphs(learn, params, record, lambda: _Aside(stream))


class _Aside:
    """Inside, work is ordered on another stream, behind what was ordered before and before what comes after."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream, self._switch = stream, torch.cuda.stream(stream)

    def __enter__(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._switch.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._switch.__exit__(*error)
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)


def _inputs(question: Question) -> dict[str, Tensor]:
    """What the answer depends on, by names."""
    batch = question.batch
    assert batch.cond is not None, "preflight refuses runs that train the text"
    found: dict[str, Tensor | None] = {"noisy": question.noisy, "t": question.t, "target": question.target}
    found |= {"mask": batch.mask, "weight": batch.weight}
    found |= {f"cond {k}": v for k, v in batch.cond.items()}
    found |= {f"class_cond {k}": v for k, v in (batch.class_cond or {}).items()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _with_inputs(question: Question, inputs: dict[str, Tensor]) -> Question:
    """The same question asked with other tensors."""

    def part(prefix: str) -> dict[str, Tensor] | None:
        return {k.removeprefix(prefix): v for k, v in inputs.items() if k.startswith(prefix)} or None

    asked = {"mask": inputs.get("mask"), "weight": inputs.get("weight")}
    batch = replace(question.batch, cond=part("cond "), class_cond=part("class_cond "), **asked)
    return Question(batch, inputs["noisy"], inputs["t"], inputs["target"])
