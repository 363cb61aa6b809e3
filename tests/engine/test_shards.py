"""Weights of which each of two processes keeps a share: moved, saved and taken over as if one had them whole."""

from __future__ import annotations

import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import forked
from limner.config import Optimizer
from limner.engine import shards
from limner.engine.average import Average, evaluation_weights
from limner.engine.optimizer_state import pack, unpack
from limner.engine.optimizers import make_optimizer
from limner.engine.runtime import Runtime
from limner.preflight.processes import _SHARDED

CPU = torch.device("cpu")
STEPS = 3


def model() -> nn.Module:
    """Weights whose first dimension is odd, less than the number of processes, or 1."""
    torch.manual_seed(0)
    blocks = nn.Sequential(nn.Linear(5, 7), nn.SiLU()), nn.Sequential(nn.Linear(7, 3, bias=False), nn.SiLU())
    return nn.Sequential(*blocks, nn.Linear(3, 1))


def optimizer_of(kind: str, params: list[nn.Parameter]) -> Any:
    return make_optimizer(Optimizer(kind=kind), [{"name": "", "params": params, "lr": 1e-2}], CPU)


def walk(net: nn.Module, optimizer: Any, average: Average, steps: range, rank: int = 0, world: int = 1) -> list[float]:
    """Train on four pictures a step, of which this process has its share; returns the norms."""
    params, norms = list(net.parameters()), []
    for step in steps:
        rng = torch.Generator().manual_seed(step)
        x = torch.randn(4, 5, generator=rng)
        (net(x[rank::world]).square().sum() / len(x)).backward()
        norms.append(float(shards.whole(torch.nn.utils.clip_grad_norm_(params, 0.5))))
        optimizer.step()
        optimizer.zero_grad()
        average.update(step)
    return norms


def trained(kind: str) -> dict[str, Any]:
    net = model()
    optimizer = optimizer_of(kind, list(net.parameters()))
    average = Average(list(net.parameters()), 0.9)
    norms = walk(net, optimizer, average, range(1, 2 * STEPS + 1))
    with evaluation_weights(optimizer, list(net.parameters()), average):
        outside = net(torch.ones(1, 5)).item()
    return {"weights": dict(net.state_dict()), "state": pack(optimizer)[0], "norms": norms, "averaged": outside}


def _one_of_two(rank: int, port: int, kind: str, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", datetime.timedelta(seconds=60), world_size=2, rank=rank
    )
    runtime = Runtime(CPU, "fp32", rank, 2, rank, 2, is_sharded=True)

    def shared() -> nn.Module:
        net = model()
        family = SimpleNamespace(denoiser=net, blocks_of=lambda whole: list(whole)[:2])
        shards.shard(family, runtime)  # type: ignore[arg-type]
        return net

    net = shared()
    params = list(net.parameters())
    optimizer, average = optimizer_of(kind, params), Average(params, 0.9)
    norms = walk(net, optimizer, average, range(1, STEPS + 1), rank, 2)
    tensors, told = pack(optimizer)
    own = {k: shards.whole(v.detach()) for k, v in net.state_dict().items()}
    values = [shards.whole_like(v, p) for v, p in zip(average.values, params, strict=True)]

    again = shared()
    params = list(again.parameters())
    optimizer, average = optimizer_of(kind, params), Average(params, 0.9)
    shards.load(dict(again.named_parameters()), own)
    unpack(optimizer, tensors, told)
    for mine, p, value in zip(average.values, params, values, strict=True):
        mine.copy_(shards.local(shards.share_like(value, p)))
    norms += walk(again, optimizer, average, range(STEPS + 1, 2 * STEPS + 1), rank, 2)
    with evaluation_weights(optimizer, params, average):
        outside = again(torch.ones(1, 5)).item()
    assert sum(p.to_local().numel() for p in params) < sum(p.numel() for p in params), "each keeps a part"  # type: ignore
    with shards.gathered(again, torch.float32, runtime):
        found = {"state": pack(optimizer)[0], "norms": norms, "averaged": outside, "weights": dict(again.state_dict())}
        if rank == 0:
            torch.save(found, Path(folder) / "found.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", _SHARDED)
def test_two_shares_are_moved_as_the_whole(kind, tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [forked.CONTEXT.Process(target=_one_of_two, args=(rank, port, kind, str(tmp_path))) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [p.exitcode for p in both] == [0, 0]
    ours, theirs = torch.load(tmp_path / "found.pt", weights_only=True), trained(kind)
    assert ours["norms"] == pytest.approx(theirs["norms"], rel=1e-5)
    assert ours["averaged"] == pytest.approx(theirs["averaged"], rel=1e-5)
    for name in ("weights", "state"):
        assert ours[name].keys() == theirs[name].keys()
        for key, tensor in theirs[name].items():
            torch.testing.assert_close(ours[name][key], tensor, rtol=1e-5, atol=1e-6)
