"""The meter on a GPU: who is behind whom, by CUDA's events, and that backward passes in other threads are counted."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from limner.engine import flops
from limner.engine.hints import Situation
from limner.engine.meter import Meter

GPU = torch.device("cuda", 0)
BATCH: Any = SimpleNamespace(mean=torch.empty(1, 4, 8, 8), cond=None)


def shares(seconds: float, work: Any, *, wait: float = 0.0) -> dict[str, Any]:
    meter = Meter(GPU, "fp32", Situation(True, True, False, False))
    meter.counted[(BATCH.mean.shape,)] = 10**9
    work()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        meter.begin(1)
        with meter.waiting():
            time.sleep(wait)
        with meter.counting(BATCH):
            found = work()
        meter.end()
    found.sum().item()  # what the losses' reading does
    told = meter.read()
    assert told is not None
    return told


def small() -> torch.Tensor:
    x = torch.ones(8, device=GPU)
    for _ in range(300):
        x = x + 1
    return x


def large() -> torch.Tensor:
    x = torch.ones(4096, 4096, device=GPU)
    for _ in range(10):
        x = x @ x
    return x


def test_many_small_kernels_are_the_hosts_time() -> None:
    assert shares(0.5, small)["host"] > 0.8


def test_few_large_kernels_are_the_devices_time() -> None:
    assert shares(0.5, large)["device"] > 0.9


def test_a_wait_counts_only_where_the_device_has_run_dry() -> None:
    assert shares(0.5, small, wait=0.01)["data_wait"] > 0.5
    assert shares(0.5, large, wait=0.002)["data_wait"] < 0.1


def test_a_gpu_counts_what_a_cpu_counts() -> None:
    counts = []
    for device in ("cpu", GPU):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), nn.Linear(36, 16)).to(device)
        x = torch.randn(2, 3, 8, 8, device=device, requires_grad=True)
        with flops.counting() as counter:
            y = model(x)
            y = y + nn.functional.scaled_dot_product_attention(y[:, None], y[:, None], y[:, None])[:, 0]
            y.sum().backward()
        counts.append(counter.total)
    assert counts[0] == counts[1] > 0
