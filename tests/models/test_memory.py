"""Parts kept in memory otherwise: the same numbers where that is promised, near ones where it is not."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

import tiny
from limner import launch
from limner.adapters.layered import LayerAdapter
from limner.config import Config, Lora
from limner.errors import UserError
from limner.formats.base import recognise
from limner.models import again, parts, quantized
from limner.models import family as families
from limner.models.family import Keep
from limner.models.quantized import QuantizedLinear
from limner.models.swapping import BlockSwap

CPU = torch.device("cpu")
FAMILIES = ("sd1", "sdxl", "sd3", "flux")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("models") / request.param / "m", family=request.param)


def step(folder: Path, keep: Keep, *, checkpointing: bool) -> tuple[Any, Tensor, list[Tensor]]:
    """(the family, its prediction, the LoRA's gradients) of one training step."""
    family = tiny.loaded(folder, keep)
    adapter = LayerAdapter(Lora(rank=2))
    adapter.attach(family, 1)
    params = [p for _, layer in tiny.moved(adapter).layers.values() for p in layer.parameters()]
    if checkpointing:
        family.enable_checkpointing(text=False)
    noisy = torch.randn(2, family.base.latent_channels, 12, 16, generator=torch.Generator().manual_seed(3))
    told = {"geometry": torch.tensor([[40.0, 60, 0, 6, 24, 32]] * 2), "guidance": torch.tensor([1.0, 3.5])}
    with torch.no_grad():
        cond = family.encode_captions(["a cat", "two dogs"]) | told
    pred = family.predict(noisy, torch.tensor([450, 801]), cond)
    pred.square().mean().backward()
    return family, pred.detach(), [p.grad for p in params if p.grad is not None]


@pytest.mark.long
@pytest.mark.parametrize("every", [1, 2, 3])
def test_computing_again_changes_nothing(folder: Path, every: int):
    _, pred, grads = step(folder, Keep(), checkpointing=False)
    family, again, same = step(folder, Keep(checkpoint_every=every), checkpointing=True)
    assert torch.equal(pred, again) and len(grads) == len(same) > 0
    assert all(torch.equal(a, b) for a, b in zip(grads, same, strict=True))
    del family


def test_every_other_layer_is_computed_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    real = again.checkpoint
    monkeypatch.setattr(again, "checkpoint", lambda layer, *a, **k: asked.append(layer) or real(layer, *a, **k))
    step(folder, Keep(), checkpointing=True)
    every, asked = len(asked), asked.clear() or asked
    step(folder, Keep(checkpoint_every=2), checkpointing=True)
    assert len(asked) == -(-every // 2) < every


def test_swapped_blocks_compute_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch):
    swaps, used, real = list[BlockSwap](), list[int](), F.linear
    _, pred, grads = step(folder, Keep(), checkpointing=True)
    count = len(families.make(recognise(str(folder)), Keep()).blocks_of(blank(folder)))  # type: ignore[attr-defined]
    for number in (1, count):
        used.clear()
        with monkeypatch.context() as patch:
            patch.setattr(F, "linear", lambda x, weight, *a: used.append(weight.data_ptr()) or real(x, weight, *a))
            patch.setattr(parts, "BlockSwap", lambda *given: swaps.append(BlockSwap(*given)))
            _, again, same = step(folder, Keep(swap_blocks=number), checkpointing=True)
        assert torch.equal(pred, again) and all(torch.equal(a, b) for a, b in zip(grads, same, strict=True))
        # on a device, what is at home could not be computed with; forward nor backward
        homes = {t.data_ptr() for block in swaps.pop()._home for t in block if t.numel()}
        assert used and not homes & set(used)
    with pytest.raises(UserError, match=rf"{count + 1} is more than the {count} blocks"):
        step(folder, Keep(swap_blocks=count + 1), checkpointing=True)


def blank(folder: Path) -> Any:
    return families.make(recognise(str(folder)), Keep())._make(("unet", "transformer")[(folder / "transformer").exists()])  # type: ignore[attr-defined]


class Chain(nn.Module):
    """Eight blocks, each computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16).eval()) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False).tanh()  # type: ignore[union-attr]
        return x


class Watched(BlockSwap):
    """Counts what is on the device."""

    def __init__(self, *args: Any) -> None:
        self.alive: list[weakref.ref[Tensor]] = []
        self.most = self.fetched = 0
        super().__init__(*args)

    def _fetch(self, number: int) -> list[Tensor]:
        here = super()._fetch(number)
        self.alive = [r for r in self.alive if r() is not None] + [weakref.ref(t.untyped_storage()) for t in here[:1]]  # type: ignore[arg-type]
        self.most, self.fetched = max(self.most, len(self.alive)), self.fetched + 1
        return here


def test_few_blocks_are_here_at_once_and_none_is_written_back():
    torch.manual_seed(0)
    model = Chain().requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(4, 16, requires_grad=True)
    model(x).sum().backward()
    plain, x.grad = x.grad, None
    swap = Watched(list(model.blocks), CPU)
    for _ in range(3):
        x.grad = None
        model(x).sum().backward()
        assert torch.equal(x.grad, plain)
    assert swap.most <= 3 and swap.fetched < 3 * 2 * 8 + 8  # one is used, one comes, one may not be let go yet
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    homes = {t.data_ptr() for block in swap._home for t in block}
    assert {p.data_ptr() for p in model.state_dict().values()} == homes


@pytest.mark.parametrize(("kind", "near"), [("fp8", 0.05), ("int8", 0.02), ("nf4", 0.25)])
def test_a_quantized_base(folder: Path, kind: Any, near: float):
    """Near the whole one; and exactly what whole weights of the stored values would give."""
    _, pred, grads = step(folder, Keep(), checkpointing=False)
    family, found, other = step(folder, Keep(quantize=kind), checkpointing=True)
    assert 0 < (found - pred).abs().max() < near * pred.abs().max()
    assert len(other) == len(grads)
    stored = [m for m in family.denoiser.modules() if isinstance(m, nn.Linear) and type(m) is not nn.Linear]
    inside = [t for t in family.adapter_targets(convolutions=False) if t.part == "denoiser" and isinstance(t.module, nn.Linear)]
    assert {id(t.module) for t in inside} <= {id(m) for m in stored}


@pytest.mark.parametrize(("kind", "bits", "step"), [("fp8", 8, 2**-4), ("int8", 8, 1 / 254), ("nf4", 4.5, 0.153)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_quantized_layer(kind: Any, bits: float, step: float, precision: torch.dtype):
    torch.manual_seed(0)
    weight = torch.randn(24, 80) * torch.logspace(-6, 2, 24)[:, None]  # rows of very different size
    weight[3] = 0
    layer = QuantizedLinear(80, 24, True, kind)
    layer.take(weight.to(precision))
    stored = layer.weight.nbytes + (layer.scale.nbytes if kind == "nf4" else 0)
    assert stored * 8 <= bits * weight.numel() * (1.12 if kind == "nf4" else 1)  # scales in float32, and the last group
    whole = layer.whole(torch.float32)
    # of the largest that shares its scale: a row, or for nf4 a group of 64 that may reach into the next row
    largest = weight.abs().amax(1, keepdim=True)
    largest = torch.maximum(largest, largest.roll(-1)) if kind == "nf4" else largest
    largest = torch.maximum(largest, largest.roll(1)) if kind == "nf4" else largest
    assert ((whole - weight).abs() <= (step + 2**-7) * largest).all()
    x = torch.randn(2, 5, 80, dtype=precision, requires_grad=True)
    with torch.no_grad():
        layer.bias.data = layer.bias.to(precision)
    y = layer(x)
    expected = F.linear(x, layer.whole(precision), layer.bias)
    assert torch.equal(y, expected) and y.dtype == precision
    grad = torch.randn_like(y)
    [found], [wanted] = torch.autograd.grad(y, x, grad), torch.autograd.grad(expected, x, grad)
    assert torch.allclose(found, wanted, rtol=1e-5 if precision == torch.float32 else 2e-2, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_the_levels_of_nf4_are_a_normal_distributions():
    """QLoRA's rule (arXiv:2305.14314, eq. 4): halves of equal quantiles, 8 below zero and 9 from zero on, scaled to 1."""
    offset = 0.9677083
    normal = torch.distributions.Normal(0.0, 1.0)
    above = normal.icdf(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    below = -normal.icdf(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([below, torch.zeros(1, dtype=torch.float64), above.flip(0)]) / above.max()
    assert (levels.float() - quantized._LEVELS).abs().max() < 1e-6


def kernels(model: nn.Module) -> list[Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1]


def test_vae_in_tiles_and_in_bf16(folder: Path):
    pixels = torch.randn(1, 3, 64, 80, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    found = []
    for keep in (Keep(), Keep(vae_tiling=True), Keep(vae_dtype=torch.bfloat16)):
        family = families.make(recognise(str(folder)), keep)
        family.load("vae", keep.vae_dtype, CPU)
        with torch.no_grad():
            mean, _ = family.encode_pixels(pixels)
            found.append((mean, family.decode_latents(mean)))
        lies_last = all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels(family.vae))
        assert lies_last == (keep.vae_dtype == torch.bfloat16)  # in which a CPU is faster so
    for mean, picture in found[1:]:
        assert mean.dtype == torch.float32 and mean.shape == found[0][0].shape
        assert 0 < (mean - found[0][0]).abs().mean() < 0.3 * found[0][0].abs().mean()
        assert picture.shape == pixels.shape


def test_channels_side_by_side_compute_the_same(folder: Path):
    _, pred, grads = step(folder, Keep(), checkpointing=False)
    family, same, others = step(folder, Keep(channels_last=True), checkpointing=False)
    family.load("vae", torch.float32, CPU)
    for model in (family.denoiser, family.vae):
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels(model))
        assert kernels(model) or family.base.prediction == "flow"
    assert (same - pred).abs().max() <= 1e-5 * pred.abs().max()
    for a, b in zip(others, grads, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max() + 1e-8


def test_t5_keeps_what_float16_is_too_narrow_for(tmp_path: Path):
    family = families.make(recognise(str(tiny.build(tmp_path / "m", family="flux"))), Keep())
    family.load("text", torch.float16, CPU)
    dtypes = {n.split(".")[-2]: p.dtype for n, p in family.text_encoders["text_encoder_2"].named_parameters()}
    assert dtypes["wo"] == torch.float32 and dtypes["wi_0"] == dtypes["q"] == torch.float16


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="the device can be used")
def test_a_device_that_cannot_be_used_is_no_fault_of_the_model(folder: Path):
    family = families.make(recognise(str(folder)), Keep())
    for part in ("text", "vae", "denoiser"):
        with pytest.raises(NotImplementedError, match="MPS"):
            family.load(part, torch.float32, torch.device("mps"))


def test_keep_is_what_the_configuration_says():
    from limner.config import files
    from limner.engine.fetching import keep_of

    given = {"memory": {"quantize": "int8", "swap_blocks": 3, "checkpoint_every": 2, "vae_dtype": "bf16", "vae_tiling": True}}
    assert keep_of(files.build(given, {})) == Keep("int8", 3, 2, torch.bfloat16, True)
    assert keep_of(files.build({"speed": {"channels_last": True}}, {})) == Keep(channels_last=True)
    assert keep_of(files.build({}, {})) == replace(Keep(), vae_dtype=torch.float32)


_PEAK = """
import sys, torch
from pathlib import Path
from limner.formats.base import recognise
from limner.models import family as families
from limner.models.family import Keep

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

family = families.make(recognise(sys.argv[1]), Keep())
before = status("VmRSS")
family.load("denoiser", torch.float32, torch.device("cpu"))
largest = sum(t.nbytes for t in family.denoiser.state_dict().values()) >> 10
family.free("denoiser")
for part in ("text", "vae"):
    family.load(part, torch.float32, torch.device("cpu"))
    family.free(part)
print(largest, status("VmHWM") - before)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_peak_of_loading_is_near_the_largest_part(tmp_path: Path):
    """Parts one after the other, each tensor straight from the file, from one dtype to another."""
    rng = torch.Generator().manual_seed(0)
    wide = tiny.build(tmp_path / "m", family="flux")
    config = FluxTransformer2DModel.load_config(wide, subfolder="transformer")
    config |= {"num_layers": 6, "num_single_layers": 12, "num_attention_heads": 32, "attention_head_dim": 16}
    model = FluxTransformer2DModel.from_config(config).to(torch.bfloat16)
    for p in model.parameters():
        p.data.normal_(std=0.02, generator=rng)
    model.save_pretrained(wide / "transformer")
    del model
    trainers = os.environ | launch.environment(Config(), "cpu")
    done = subprocess.run([sys.executable, "-c", _PEAK, str(wide)], capture_output=True, text=True, timeout=300, env=trainers)
    assert done.returncode == 0, done.stderr
    largest, peak = map(int, done.stdout.split()[-2:])
    assert largest > 300_000 and peak < 1.2 * largest, (largest, peak)
