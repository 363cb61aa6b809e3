"""What a device can do at most, in operations a second: from its data sheet, else measured once and kept in the home.

Data sheets and architecture whitepapers of NVIDIA and AMD: dense products, 16 bits summed up in 32. GeForce cards do those at
twice the rate of float32 since Ampere, and TF32 at the rate of float32.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limner import disk, machine, runs
from limner.models.weights import PRECISIONS


@dataclass(frozen=True)
class Peak:
    """A device's most in one precision."""

    tflops: float
    """10^12 floating-point operations a second."""
    source: Literal["data sheet", "measured"]


def _geforce(fp32: float) -> dict[str, float]:
    return {"bf16": 2 * fp32, "fp16": 2 * fp32, "tf32": fp32, "fp32": fp32}


def _card(bf16: float, tf32: float, fp32: float) -> dict[str, float]:
    return {"bf16": bf16, "fp16": bf16, "tf32": tf32, "fp32": fp32}


_H100_SXM, _A100 = _card(989.4, 494.7, 66.9), _card(312.0, 156.0, 19.5)
_CARDS: dict[str, dict[str, float]] = {
    r"B200": _card(2250.0, 1125.0, 75.0),
    r"H200 NVL": _card(835.5, 417.5, 60.0),
    r"H200|H[18]00 80GB HBM3|H100 SXM5.*|GH200 (480|144)G.*": _H100_SXM,
    r"H100 PCIe": _card(756.5, 378.0, 51.2),
    r"H100 NVL": _card(835.5, 417.5, 60.0),
    r"H20": _card(148.0, 74.0, 44.0),
    r"A[18]00[- ](SXM4|SXM|PCIE|PG509|80GB PCIe).*": _A100,
    r"A40": _card(149.7, 74.8, 37.4),
    r"A30": _card(165.0, 82.0, 10.3),
    r"A10": _card(125.0, 62.5, 31.2),
    r"L40S": _card(362.0, 183.0, 91.6),
    r"L40": _card(181.0, 90.5, 90.5),
    r"L4": _card(121.0, 60.0, 30.3),
    r"Tesla T4|T4": {"fp16": 65.0, "fp32": 8.1},
    r"Tesla V100-SXM2.*": {"fp16": 125.0, "fp32": 15.7},
    r"Tesla V100-PCIE.*": {"fp16": 112.0, "fp32": 14.0},
    r"RTX PRO 6000 Blackwell Workstation Edition": _card(503.8, 251.9, 126.0),
    r"RTX 6000 Ada Generation": _card(364.2, 182.1, 91.1),
    r"RTX A6000": _card(154.8, 77.4, 38.7),
    r"RTX A5000": _card(111.1, 55.6, 27.8),
    r"RTX A4000": _card(76.7, 38.3, 19.2),
    r"RTX 5090": _geforce(104.8),
    r"RTX 5080": _geforce(56.3),
    r"RTX 5070 Ti": _geforce(43.9),
    r"RTX 5070": _geforce(30.9),
    r"RTX 4090": _geforce(82.6),
    r"RTX 4080 SUPER": _geforce(52.2),
    r"RTX 4080": _geforce(48.7),
    r"RTX 4070 Ti SUPER": _geforce(44.1),
    r"RTX 4070 Ti": _geforce(40.1),
    r"RTX 4070 SUPER": _geforce(35.5),
    r"RTX 4070": _geforce(29.1),
    r"RTX 4060 Ti": _geforce(22.1),
    r"RTX 4060": _geforce(15.1),
    r"RTX 3090 Ti": _geforce(40.0),
    r"RTX 3090": _geforce(35.6),
    r"RTX 3080 Ti": _geforce(34.1),
    r"RTX 3080": _geforce(29.8),
    r"RTX 3070": _geforce(20.3),
    r"RTX 3060 Ti": _geforce(16.2),
    r"RTX 3060": _geforce(12.7),
    r"RTX 2080 Ti": {"fp16": 53.8, "fp32": 13.4},
    r"AMD Instinct MI300X.*": _card(1307.4, 653.7, 163.4),
}
"""The whole name as torch has it, without the maker -> precision -> TFLOP/s. A slice of a card (MIG) or a laptop's is none."""


def from_data_sheet(name: str, precision: str) -> float | None:
    """TFLOP/s of a card of this name in "bf16", "fp16", "tf32" or "fp32"; None if it is not known."""
    short = re.sub(r"^(NVIDIA )?(GeForce )?", "", name)
    found = next((p for pattern, p in _CARDS.items() if "MIG" not in short and re.fullmatch(pattern, short)), {})
    return found.get(precision)


def peak(device: torch.device, precision: str) -> Peak:
    """The most that a device does in a run's precision. Takes part of a second where it has to be measured."""
    if device.type == "cuda":
        if precision == "fp32" and torch.get_float32_matmul_precision() != "highest":
            precision = "tf32"
        name = torch.cuda.get_device_name(device)
        if (known := from_data_sheet(name, precision)) is not None:
            return Peak(known, "data sheet")
    else:
        name = f"{device.type}, {torch.get_num_threads()} threads"
    return Peak(_kept(f"{name} {precision}", lambda: _measured(device, PRECISIONS.get(precision, torch.float32))), "measured")


def _kept(what: str, measure: Callable[[], float]) -> float:
    """From the home's peaks.json as long as the machine is the same, else measured now and kept there."""
    path, key = runs.home() / "peaks.json", machine.key()
    found = disk.read_json(path)
    kept = found.get("peaks") if isinstance(found, dict) and found.get("key") == key else None
    peaks: dict[str, Any] = kept if isinstance(kept, dict) else {}
    if not isinstance(peaks.get(what), float):
        peaks[what] = measure()
        with contextlib.suppress(OSError):
            disk.write_json(path, {"key": key, "peaks": peaks})
    return peaks[what]


@torch.no_grad()
def _measured(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of the fastest of ever larger products and convolutions, until one takes long."""

    def product(size: int) -> tuple[Callable[[], Tensor], float]:
        one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        return lambda: one @ other, 2.0 * size**3

    def convolution(size: int) -> tuple[Callable[[], Tensor], float]:
        channels, side = size // 4, 64
        x = torch.randn(1, channels, side, side, device=device, dtype=dtype)
        weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
        return lambda: F.conv2d(x, weight, padding=1), 18.0 * channels**2 * side**2

    best = 0.0
    for kind in (product, convolution):
        size, seconds = 256, 0.0
        while seconds < _LONG_SECONDS and size <= _LARGEST:
            run, operations = kind(size)
            run()
            for _ in range(3):
                seconds = _timed(run, device)
                best = max(best, operations / seconds)
            size *= 2
    return best / 1e12


_LONG_SECONDS = 0.02
_LARGEST = 4096


def _timed(run: Callable[[], Tensor], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
