"""What a ledger writes down, against counts by hand, and a rehearsal against the run itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import tiny
from limner.config import files
from limner.engine.estimate import phases_of, slack_share
from limner.engine.ledger import Ledger, Lies
from limner.engine.rehearsal import Rehearsal, Scene
from limner.engine.timing import seconds_of
from limner.formats.base import recognise
from limner.models import prepacked

CPU = torch.device("cpu")


def _peak(ledger: Ledger) -> int:
    live = peak = 0
    for event in ledger.events:
        live += event.num_bytes
        peak = max(peak, live)
    assert live >= 0
    return peak


def test_two_layers_by_hand() -> None:
    with FakeTensorMode(), (ledger := Ledger(CPU)):
        first, second = torch.empty(64, 32, requires_grad=True), torch.empty(16, 64, requires_grad=True)
        x = torch.empty(8, 32)
        hidden = x @ first.T  # kept for the gradient of `second`
        y = hidden @ second.T
        assert _peak(ledger) == 4 * (64 * 32 + 16 * 64 + 8 * 32 + 8 * 64 + 8 * 16)
        del hidden, y  # the graph is gone, too
        assert sum(e.num_bytes for e in ledger.events) == 4 * (64 * 32 + 16 * 64 + 8 * 32)


def test_a_convolution_lays_out_anew_what_it_reads_and_writes() -> None:
    with FakeTensorMode(), (ledger := Ledger(CPU)):
        x, w = torch.empty(1, 4, 16, 16), torch.empty(8, 4, 3, 3)
        torch.nn.functional.conv2d(x, w, padding=1)
    once = 4 * (4 * 256 + 8 * 4 * 9 + 8 * 256)
    assert _peak(ledger) == 2 * once


def _scene(model: Path, size: int, num_pictures: int = 4, precision: str = "fp32") -> Scene:
    return Scene(recognise(str(model)), "cpu", precision, (size, size), num_pictures, 4, [], True)


def _training(model: Path, size: int = 64, **options: str) -> dict[str, int]:
    named = {name.replace("__", "."): value for name, value in options.items()}
    config = files.build({}, {"model.base": str(model), **({} if "adapter.kind" in named else {"adapter.rank": "4"}), **named})
    ledger = Rehearsal(config, _scene(model, size, precision=options.get("train__precision", "fp32"))).play()
    live: dict[str, int] = {}
    peak: tuple[int, dict[str, int]] = (0, {})
    for event in ledger.events:
        live[event.what] = live.get(event.what, 0) + event.num_bytes
        if event.what.startswith("training") and sum(live.values()) > peak[0]:
            peak = sum(live.values()), dict(live)
    return {k.partition("/")[2]: v for k, v in peak[1].items()} | {"all": peak[0]}


@pytest.mark.long
@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux"])
def test_every_family_can_be_rehearsed(family: str, tmp_path: Path) -> None:
    model = tiny.build(tmp_path / "model", family=family)
    whole = tiny.loaded(model)
    found = _training(model, speed__prepack="false")
    assert found["weights"] == sum(t.nbytes for t in (*whole.denoiser.parameters(), *whole.denoiser.buffers()))


@pytest.mark.long
def test_what_makes_activations_more_and_less(tmp_path: Path) -> None:
    model = tiny.build(tmp_path / "model")
    found, wider = _training(model), _training(model, 128)
    # four times the places: activations grow by that, and where attention is not fused by more
    assert 3 < wider["activations"] / found["activations"] < 17
    batch = _training(model, train__batch_size="4")
    pieces = _training(model, train__batch_size="4", memory__micro_batch="1")
    again = _training(model, train__batch_size="4", memory__checkpointing="true")
    assert batch["activations"] > 2.5 * found["activations"]
    assert pieces["activations"] < 1.2 * found["activations"]
    assert again["activations"] < batch["activations"]
    assert batch["weights"] == again["weights"] == found["weights"]


def test_what_is_trained_and_its_optimiser(tmp_path: Path) -> None:
    model = tiny.build(tmp_path / "model")
    whole = tiny.loaded(model)
    count = sum(p.numel() for p in whole.denoiser.parameters())
    config = files.build({}, {"model.base": str(model), "adapter.kind": "none", "output.layout": "diffusers"})
    ledger = Rehearsal(config, _scene(model, 32)).play()
    live: dict[str, int] = {}
    for event in ledger.events:
        live[event.what] = live.get(event.what, 0) + event.num_bytes
        if event.what.startswith("saving"):
            break
    # AdamW: two numbers for each that is trained, and a count of steps for each tensor
    assert 8 * count <= live["training/optimizer"] <= 8 * count + 64 * len(list(whole.denoiser.parameters()))
    assert {p["name"] for p in phases_of(ledger.events, 0.1)} >= {"training", "saving"}


@pytest.mark.long
def test_what_is_trained_in_half_the_bytes(tmp_path: Path) -> None:
    model = tiny.build(tmp_path / "model")
    options = {"adapter__kind": "none", "output__layout": "diffusers", "optimizer__kind": "sgd"}
    found = _training(model, adapter__weights="bf16", train__precision="bf16", memory__checkpointing="true", **options)
    assert found["weights"] + found.get("trained", 0) < 0.8 * _training(model, **options)["weights"]


@pytest.mark.long
def test_what_is_laid_out_anew_and_what_is_averaged(tmp_path: Path) -> None:
    model = tiny.build(tmp_path / "model")
    layers = tiny.loaded(model).denoiser.modules()
    wide = sum(m.weight.nbytes for m in layers if isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1))
    plain, packed = _training(model, speed__prepack="false"), _training(model)
    assert wide > 0 and packed["weights"] == plain["weights"] + wide
    averaged = _training(model, train__ema="0.9")
    assert averaged["optimizer"] == packed["optimizer"] + packed["trained"]


def test_the_frozen_convolutions_of_the_denoiser_are_told_apart(tmp_path: Path) -> None:
    """They alone are laid out; the VAE's and those of a LoRA are computed as they are."""
    model = tiny.build(tmp_path / "model")
    told = {"model.base": str(model), "adapter.conv_rank": "4", "memory.cache_latents": "false"}
    operations = Rehearsal(files.build({}, told), _scene(model, 32)).play().operations["step"]
    count: dict[tuple[str, bool], int] = {}
    for (func, arguments, _), times in operations.items():
        kind = func.overloadpacket.__name__, any(isinstance(a, Lies) and a.is_laid_out for a in arguments)
        count[kind] = count.get(kind, 0) + times
    # those of one pixel are computed as linear layers beside a LoRA
    frozen = sum(layer.kernel_size == (3, 3) for layer in prepacked.packable(tiny.loaded(model).denoiser))
    assert count["convolution", True] == frozen > 0 and count["convolution", False] > 0
    # before the first LoRA no gradient is asked for: not of the first one's input, nor of what comes out of it
    assert count["convolution_backward", True] == frozen - 2 and count["convolution_backward", False] > 0


def test_a_step_is_timed(tmp_path: Path) -> None:
    model = tiny.build(tmp_path / "model")
    config = files.build({}, {"model.base": str(model), "adapter.rank": "4"})
    operations = Rehearsal(config, _scene(model, 32)).play().operations["step"]
    names = {op[0].overloadpacket.__name__ for op in operations}
    assert {"convolution", "convolution_backward"} <= names
    measured = seconds_of(operations, CPU, 20.0)
    assert 1e-3 < measured < 20
    # with no time to measure more than the costliest, the others are told from it
    assert 1e-5 < seconds_of(operations, CPU, 0.0) < 1000


def test_slack_is_more_where_steps_are_not_alike() -> None:
    """On a CPU; on a GPU nothing was measured."""
    plain = files.build({}, {"model.base": "x"})
    again = files.build({}, {"model.base": "x", "memory.checkpointing": "true"})
    smaller = files.build({}, {"model.base": "x", "memory.quantize": "int8"})
    shares = [slack_share(plain, "cpu", paints=False), slack_share(plain, "cpu", paints=True)]
    shares += [slack_share(smaller, "cpu", paints=False), slack_share(again, "cpu", paints=True)]
    assert shares[0] < shares[1] == shares[2] < shares[3]
    assert slack_share(again, "cuda", paints=True) == slack_share(plain, "cuda", paints=False)
