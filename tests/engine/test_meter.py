"""What the meter makes of a run's times: shares, rates, rare reports, hints; by a clock that the tests set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from limner import runs
from limner.config import files
from limner.engine import hints, meter, peak
from limner.engine.hints import SENTENCES, Shares, Situation, hint

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAIN = Situation(launches=True, caches=True, compiles=False, checkpoints=False)


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter, "time", clock)
    return clock


class Device:
    """A device's clock: marks tell how far it is behind, as the test last said."""

    behind = 0.0

    def mark(self) -> float:
        return self.behind

    def lag(self, mark: float) -> float:
        return mark

    def set(self, last: float | None) -> None:
        pass


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Each counting finds 10^12 operations; how often it was counted."""
    seen: list[int] = []

    @contextmanager
    def counting() -> Iterator[Any]:
        seen.append(1)
        yield SimpleNamespace(total=10**12)

    monkeypatch.setattr(meter.flops, "counting", counting)
    return seen


def batch(*shape: int) -> Any:
    return SimpleNamespace(mean=torch.empty(*shape), cond={"text": torch.empty(shape[0], 77, 8)})


SMALL = batch(2, 4, 8, 8)


def step(m: meter.Meter, clock: Clock, wait: float, compute: float, rest: float = 0.0, of: Any = SMALL) -> None:
    m.begin(images=2)
    with m.waiting():
        clock.now += wait
    with m.counting(of):
        clock.now += compute
    m.end()
    clock.now += rest


def new(device: torch.device = CPU, situation: Situation = PLAIN) -> meter.Meter:
    m = meter.Meter(CPU, "fp32", situation)
    m.device = device
    m.peak = peak.Peak(2.0, "data sheet")
    if device is CUDA:
        m._clock = Device()  # type: ignore[assignment]
        m._memory_used = lambda: 0.5  # type: ignore[method-assign]
    return m


def test_a_cpus_time_is_that_of_the_calls(clock: Clock, counts: list[int]) -> None:
    m = new()
    step(m, clock, 1, 5)  # the first of its shape is left out
    assert m.read() is None
    for _ in range(4):
        step(m, clock, 0.25, 1.5, 0.25)
    told = m.read()
    assert told is not None and counts == [1]
    assert told == {
        "seconds_per_step": 2.0, "images_per_second": 1.0, "tflops": 0.5, "utilisation": 0.25, "peak_tflops": 2.0,
        "data_wait": 0.125, "host": 0.125, "device": 0.75, "peak_source": "data sheet",
    }  # fmt: skip


def test_a_devices_time_is_when_it_is_behind(clock: Clock, counts: list[int]) -> None:
    m = new(CUDA)
    step(m, clock, 0, 1)
    device: Any = m._clock
    # 0.2 s of waiting, 0.8 s of telling: behind all the time; caught up with in the wait; never behind
    for behind_after_wait, behind_at_end in ((0.5, 0.5), (0.0, 0.5), (0.0, 0.0)):
        m.begin(2)
        with m.waiting():
            clock.now += 0.2
            device.behind = behind_after_wait
        with m.counting(SMALL):
            clock.now += 0.8
            device.behind = behind_at_end
        m.end()
    told = m.read()
    assert told is not None
    assert (told["data_wait"], told["host"], told["device"]) == pytest.approx((0.4 / 3, 0.8 / 3, 1.8 / 3), abs=1e-3)


def test_each_shape_is_counted_once(clock: Clock, counts: list[int]) -> None:
    m = new()
    shapes = [batch(2, 4, 8, 8), batch(1, 4, 8, 8), batch(2, 4, 8, 16)]
    for _ in range(3):
        for shape in shapes:
            step(m, clock, 0, 1, of=shape)
    assert len(counts) == len(m.counted) == 3


def test_pauses_are_not_counted(clock: Clock, counts: list[int]) -> None:
    m = new()
    step(m, clock, 0, 1)
    step(m, clock, 0, 1)
    assert m.read()
    clock.now += 500  # pictures are painted
    step(m, clock, 0, 1)
    told = m.read()
    assert told is not None and told["seconds_per_step"] == 1.0 and told["device"] == 1.0


@pytest.mark.parametrize("seconds", [0.004, 0.5, 20.0])
def test_reports_of_long_runs_are_few_and_small(clock: Clock, counts: list[int], seconds: float) -> None:
    m, told, last = new(), [], clock.now
    for _ in range(min(30_000, int(86_400 / seconds))):
        step(m, clock, 0, seconds)
        if clock.now - last > 1:
            last = clock.now
            told += [m.read()]
        assert len(m._open) <= 128
    reports = [r for r in told if r]
    # one a second at first, one in half a minute later
    assert 50 < len(reports) < 500 + (clock.now - 100) / 30 and max(len(json.dumps(r)) for r in reports) < 300
    assert all(r["seconds_per_step"] == pytest.approx(seconds, rel=1e-3) for r in reports)


def test_other_processes_do_nothing(counts: list[int]) -> None:
    m = meter.Meter(CPU, "fp32", PLAIN, is_on=False)
    m.begin(2)
    with m.waiting(), m.counting(SMALL):
        pass
    m.end()
    assert m.read() is None and not counts


def test_a_hint_is_given_when_it_stays(clock: Clock, counts: list[int]) -> None:
    m = new()
    step(m, clock, 0, 1)
    said = []
    for wait in (0, 1, 1, 1, 1, 0):
        step(m, clock, wait, 1)
        told = m.read()
        assert told is not None
        said.append(told.get("hint"))
    assert said == [None, None, None, "waits for data", "waits for data", None]


@pytest.mark.parametrize(
    ("shares", "changed", "used", "wanted"),
    [
        ((0.02, 0.10, 0.88), {}, 0.3, None),
        ((0.02, 0.10, 0.88), {"checkpoints": True}, 0.3, "room without checkpointing"),
        ((0.02, 0.10, 0.88), {"checkpoints": True}, 0.7, None),
        ((0.02, 0.60, 0.38), {}, 0.3, "launched one by one"),
        ((0.02, 0.60, 0.38), {"compiles": True}, 0.3, "launch-bound"),
        ((0.02, 0.60, 0.38), {"launches": False}, 0.3, None),
        ((0.02, 0.60, 0.38), {"launches": False, "checkpoints": True}, 0.3, "room without checkpointing"),
        ((0.30, 0.60, 0.10), {}, 0.3, "waits for data"),
        ((0.30, 0.00, 0.70), {"caches": False}, 0.3, "encodes anew"),
    ],
)
def test_hints(shares: tuple[float, float, float], changed: dict[str, bool], used: float, wanted: str | None) -> None:
    found = hint(Shares(*shares), Situation(**{**vars(PLAIN), **changed}), used)
    assert found == wanted
    assert found is None or SENTENCES[found].endswith(".")


def test_the_situation_is_the_configs() -> None:
    asked = files.build({}, {"memory.checkpointing": "true", "memory.cache_latents": "false"})
    assert hints.situation(asked, "cuda") == Situation(launches=True, caches=False, compiles=False, checkpoints=True)
    assert hints.situation(files.build({}, {}), "cpu") == Situation(False, True, False, False)


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA A100-SXM4-40GB", "tf32", 156.0),
        ("NVIDIA A100 80GB PCIe", "fp32", 19.5),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA GeForce RTX 3090", "fp16", 71.2),
        ("NVIDIA RTX A6000", "bf16", 154.8),
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA L40S", "bf16", 362.0),
        ("Tesla T4", "fp16", 65.0),
        ("Tesla T4", "bf16", None),  # it has none
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
    ],
)
def test_data_sheets(name: str, precision: str, tflops: float | None) -> None:
    assert peak.from_data_sheet(name, precision) == (None if tflops is None else pytest.approx(tflops))


def test_a_measured_peak_is_kept_while_the_machine_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = peak._measured(CPU, torch.float32)
    assert 1e-4 < measured < 1e3  # TFLOP/s: more than a calculator, less than a GPU
    answers = iter([1.5, 2.5])
    monkeypatch.setattr(peak, "_measured", lambda *_: next(answers))
    assert peak.peak(CPU, "fp32") == peak.peak(CPU, "fp32") == peak.Peak(1.5, "measured")
    kept = json.loads((runs.home() / "peaks.json").read_text())
    assert list(kept["peaks"].values()) == [1.5]
    monkeypatch.setattr(peak.machine, "key", lambda: "another one")
    assert peak.peak(CPU, "fp32").tflops == 2.5


def test_a_measured_peak_is_no_less_than_what_a_run_does(clock: Clock, counts: list[int]) -> None:
    m = new()
    m.peak = peak.Peak(0.5, "measured")
    step(m, clock, 0, 1)
    step(m, clock, 0, 1)
    told = m.read()
    assert told is not None and (told["tflops"], told["utilisation"], told["peak_tflops"]) == (1.0, 1.0, 1.0)
