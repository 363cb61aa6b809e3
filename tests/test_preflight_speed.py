"""[speed] before the start: what a device, a family or another option does not allow is said, with the option's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
from limner import preflight
from limner.config import files
from limner.machine import Device, Machine

GPU = Device("cuda", "H100", 80_000, True)
OLD = Device("cuda", "T4", 16_000, False)
CPU = Device("cpu", "CPU", 16_000, True)


def machine(*devices: Device) -> Machine:
    return Machine("2.13.0", "13.0", devices, 8, 64_000, "")


@pytest.fixture(scope="module")
def places(tmp_path_factory: Any) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("speed")
    return {
        "sd1": tiny.build(root / "sd1"),
        "flux": tiny.build(root / "flux", family="flux"),
        "pictures": tiny.pictures(root / "pictures"),
    }


def said(places: dict[str, Path], device: Device, family: str = "sd1", **sections: Any) -> list[tuple[str, str, str]]:
    """(field, severity, message) of the findings about [speed]."""
    given: dict[str, Any] = {
        "model": {"base": str(places[family])},
        "data": {"path": str(places["pictures"]), "resolution": 32, "bucket_min_px": 16, "bucket_step_px": 8},
        "adapter": {"rank": 2},
        "train": {"precision": "bf16"},
        "launch": {"device": device.kind},
    }
    for name, values in sections.items():
        given[name] = {**given.get(name, {}), **values}
    if given["adapter"].get("kind") == "none":
        del given["adapter"]["rank"]
    config = files.build(given, {})
    found, _ = preflight.examine(config, machine(device, CPU) if device is not CPU else machine(CPU))
    return [(f.field, f.severity, f.message) for f in found if f.field.startswith("speed.")]


GRAPH = {"cuda_graph": True}


def test_nothing_is_said_of_what_is_in_order(places: dict[str, Path]):
    assert said(places, GPU, speed=GRAPH | {"channels_last": True, "attention": "cudnn"}) == []
    assert said(places, CPU, speed={"compile": "blocks", "attention": "flash", "channels_last": True}) == []


@pytest.mark.parametrize(
    ("device", "sections"),
    [
        (CPU, {}),
        (GPU, {"memory": {"swap_blocks": 1, "checkpointing": True}}),
        (GPU, {"adapter": {"text_encoder": True}}),
        (GPU, {"adapter": {"module_dropout": 0.1}}),
        (GPU, {"adapter": {"rank_dropout": 0.1}}),
        (GPU, {"adapter": {"dropout": 0.1}}),
        (GPU, {"adapter": {"kind": "dylora", "unit": 1}}),
        (GPU, {"train": {"precision": "fp16"}}),
        (GPU, {"speed": {"compile": "blocks", "compile_mode": "reduce-overhead"}}),
        (GPU, {"speed": {"compile": "blocks", "compile_backend": "cudagraphs"}}),
    ],
    ids=str,
)
def test_what_no_graph_can_hold(places: dict[str, Path], device: Device, sections: dict[str, Any]):
    sections = sections | {"speed": GRAPH | sections.get("speed", {})}
    assert [s for f, s, _ in said(places, device, **sections) if f == "speed.cuda_graph"] == ["error"]


def test_a_whole_model_on_a_cpu_keeps_its_channels_first(places: dict[str, Path]):
    whole = {"kind": "none"}
    ((field, severity, message),) = said(places, CPU, speed={"channels_last": True}, adapter=whole)
    assert (field, severity) == ("speed.channels_last", "error") and "CPU" in message
    assert said(places, GPU, speed={"channels_last": True}, adapter=whole) == []


def test_a_model_without_convolutions(places: dict[str, Path]):
    ((field, severity, message),) = said(places, GPU, "flux", speed={"channels_last": True})
    assert (field, severity) == ("speed.channels_last", "warning") and "no effect" in message


@pytest.mark.parametrize(
    ("device", "kernel", "precision", "count"),
    [
        (CPU, "efficient", "bf16", 1),
        (CPU, "cudnn", "bf16", 1),
        (CPU, "math", "bf16", 0),
        (GPU, "flash", "fp32", 1),
        (GPU, "efficient", "fp32", 0),
        (OLD, "flash", "fp16", 1),
        (OLD, "efficient", "fp16", 0),
    ],
    ids=str,
)
def test_kernels_that_are_not_there(places: dict[str, Path], device: Device, kernel: str, precision: str, count: int):
    found = said(places, device, speed={"attention": kernel}, train={"precision": precision})
    assert [s for _, s, _ in found] == ["error"] * count


def test_what_cannot_be_compiled(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    speed = {"compile": "blocks"}
    assert [m for *_, m in said(places, GPU, speed=speed, adapter={"dropout": 0.1}) if "each step" in m]
    assert [m for *_, m in said(places, GPU, speed=speed, memory={"swap_blocks": 1, "checkpointing": True}) if "swapped" in m]
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert [m for *_, m in said(places, CPU, speed=speed) if "C++ compiler" in m]
    assert said(places, CPU, speed=speed | {"compile_backend": "aot_eager"}) == []


def test_many_sizes_are_warned_of(places: dict[str, Path], tmp_path: Path):
    sizes = tuple((40 + 12 * i, 40) for i in range(12))
    other = places | {"pictures": tiny.pictures(tmp_path / "p", sizes)}
    data = {"resolution": 64, "bucket_min_px": 16, "bucket_max_px": 160, "bucket_step_px": 8}
    found = said(other, CPU, speed={"compile": "blocks"}, data=data)
    assert [s for _, s, m in found if "sizes of pictures" in m] == ["warning"]
    assert said(other, CPU, speed={"compile": "blocks", "compile_dynamic": True}, data=data) == []
