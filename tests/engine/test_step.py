"""One training step against an independent reference in float64, from the papers' formulas."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

import tiny
from limner.config import Lora
from limner.diffusion.draws import noise_like
from limner.engine.journal import Journal
from limner.engine.objective import preservation_loss
from limner.engine.prepare import prepare
from limner.engine.runtime import Runtime
from limner.engine.train import accumulate_gradients
from limner.randomness import mix

CPU = torch.device("cpu")
STEP = 4


def job_for(model, folder, **sections):
    """A prepared training job with its adapter moved away from zero."""
    from limner import jobs
    from limner.config import files

    given = {
        "model": {"base": str(model)},
        "data": {"path": str(folder), "resolution": 32, "bucket_min_px": 16, "bucket_step_px": 8},
        "adapter": {"rank": 3, "alpha": 2.0},
        "train": {"steps": 10, "batch_size": 2, "accumulation": 2, "seed": 7},
        "launch": {"device": "cpu"},
    }
    config = files.build({**given, **sections}, {})
    run = jobs.prepare(config)
    job = prepare(run, config, Runtime(CPU, "fp32"), Journal(run, is_main=True), lambda: False)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in job.params:
            p.add_(torch.randn(p.shape, generator=rng) * 0.05)
    return job


def merged(job, ending: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """(the denoiser in float64 with the LoRA merged in by hand, the up matrix of the layer of that name, with a gradient)."""
    model = copy.deepcopy(job.family.denoiser)
    for module in model.modules():
        module.__dict__.pop("forward", None)
    model = model.double()
    name, (target, layer) = next((n, v) for n, v in job.adapter.layers.items() if n.endswith(ending))
    up = layer.lora_up.detach().double().requires_grad_()
    for other, (place, change) in job.adapter.layers.items():
        weight = model.get_parameter(f"{place.name}.weight").detach()
        matrix = up if other == name else change.lora_up.detach().double().flatten(1)
        whole = weight + (2.0 / 3) * (matrix @ change.lora_down.detach().double().flatten(1)).view(weight.shape)
        module = model.get_submodule(place.name)
        del module.weight
        module.weight = whole
    assert target.part == "denoiser"
    return model, up


def shown(job):
    """(number, x0, noise, conditioning) of each picture of the step, in float64."""
    order = [i for indices in job.dataset.order.step(STEP) for i in indices]
    for position, i in enumerate(order):
        entry = job.samples._latents(i)
        rng = torch.Generator().manual_seed(mix(7, "posterior", STEP, position))
        x0 = entry["mean"].double() + entry["deviation"].double() * torch.randn(entry["mean"].shape, generator=rng).double()
        cond = job.samples._text_of(job.dataset.pictures[i].caption)
        eps = noise_like(x0[None].float(), 7, STEP, [position]).double()[0]
        yield i, x0, eps, {k: v[None].double() for k, v in cond.items()}


def reference(job, prediction: str, gamma: float | None) -> tuple[float, torch.Tensor]:
    """(loss, gradient of one up matrix) of a step: float64, diffusers' UNet with the LoRA merged in by hand."""
    unet, up = merged(job, "attn2_to_v")
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    losses = []
    for position, (i, x0, eps, cond) in enumerate(shown(job)):
        t = int(torch.randint(1000, (), generator=torch.Generator().manual_seed(mix(7, "timestep", STEP, position))))
        a, s = math.sqrt(alphas[t]), math.sqrt(1 - alphas[t])
        told = None
        if "pooled" in cond:  # SDXL, arXiv:2307.01952, section 2.2: sizes before and after, and where it was cut between
            picture, (width, height) = Image.open(job.dataset.pictures[i].path), job.dataset.fits[i].bucket
            scale = max(width / picture.width, height / picture.height)
            cut = [(round(picture.height * scale) - height) // 2, (round(picture.width * scale) - width) // 2]
            sizes = torch.tensor([[picture.height, picture.width, *cut, height, width]], dtype=torch.float64)
            told = {"text_embeds": cond["pooled"], "time_ids": sizes}
        noisy = (a * x0 + s * eps)[None]
        pred = unet(noisy, t, encoder_hidden_states=cond["text"], added_cond_kwargs=told).sample[0]
        target_ = eps if prediction == "epsilon" else a * eps - s * x0
        snr = a**2 / s**2
        weight = 1.0 if gamma is None else min(snr, gamma) / (snr if prediction == "epsilon" else snr + 1)
        losses.append(weight * ((pred - target_) ** 2).mean())
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), up.grad


@pytest.mark.parametrize(
    ("family", "prediction", "gamma"),
    [
        ("sd1", "epsilon", None), ("sd1", "epsilon", 5.0), ("sd1", "v_prediction", 5.0), ("sd2", "v_prediction", None),
        ("sdxl", "epsilon", None),
    ],
)  # fmt: skip
def test_loss_and_gradient(tmp_path, family, prediction, gamma):
    model = tiny.build(tmp_path / "model", prediction, family=family)
    job = job_for(model, tiny.pictures(tmp_path / "p"), objective={"weighting": "min_snr", "snr_gamma": gamma} if gamma else {})
    loss = accumulate_gradients(job, STEP)
    expected_loss, expected_gradient = reference(job, prediction, gamma)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-5)
    _, (_, layer) = next((n, v) for n, v in job.adapter.layers.items() if n.endswith("attn2_to_v"))
    difference = (layer.lora_up.grad.double() - expected_gradient).norm() / expected_gradient.norm()
    assert difference < 1e-5


def flow_reference(job, ending: str) -> tuple[float, torch.Tensor]:
    """As `reference`, for rectified flow (arXiv:2403.03206): logit-normal sigmas, shifted; the target is noise - x0."""
    (model, up), losses = merged(job, ending), []
    for position, (_, x0, eps, cond) in enumerate(shown(job)):
        drawn = torch.randn((), generator=torch.Generator().manual_seed(mix(7, "timestep", STEP, position)))
        sigma = 1 / (1 + math.exp(-float(drawn)))
        height, width = x0.shape[-2] // 2, x0.shape[-1] // 2
        if job.family.base.family == "sd3":
            sigma = 3 * sigma / (1 + 2 * sigma)
            noisy = ((1 - sigma) * x0 + sigma * eps)[None]
            t = torch.tensor([1000 * sigma], dtype=torch.float64)
            pred = model(noisy, cond["text"], cond["pooled"], t).sample[0]
        else:
            mu = 0.5 + (1.15 - 0.5) * (height * width - 256) / (4096 - 256)  # Flux's own inference code
            sigma = math.exp(mu) / (math.exp(mu) + 1 / sigma - 1)
            noisy = ((1 - sigma) * x0 + sigma * eps)[None]
            tokens = FluxPipeline._pack_latents(noisy, 1, 16, 2 * height, 2 * width)
            ids = FluxPipeline._prepare_latent_image_ids(1, height, width, CPU, torch.float64)
            t, guidance = torch.tensor([sigma], dtype=torch.float64), torch.tensor([2.5], dtype=torch.float64)
            no_ids = torch.zeros(cond["text"].shape[1], 3, dtype=torch.float64)
            found = model(tokens, cond["text"], cond["pooled"], t, ids, no_ids, guidance).sample
            pred = FluxPipeline._unpack_latents(found, 4 * height, 4 * width, 2)[0]
        losses.append(((pred - (eps - x0)) ** 2).mean())
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), up.grad


@pytest.mark.parametrize(("family", "ending"), [("sd3", "x_block_attn_qkv.2"), ("flux", "img_attn_qkv.2")])
def test_loss_and_gradient_of_a_flow(tmp_path, family, ending):
    objective = {"guidance": 2.5} if family == "flux" else {}
    job = job_for(tiny.build(tmp_path / "model", family=family), tiny.pictures(tmp_path / "p"), objective=objective)
    loss = accumulate_gradients(job, STEP)
    expected_loss, expected_gradient = flow_reference(job, ending)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-5)
    _, (_, layer) = next((n, v) for n, v in job.adapter.layers.items() if n.endswith(ending))
    difference = (layer.lora_up.grad.double() - expected_gradient).norm() / expected_gradient.norm()
    assert difference < 1e-5


@dataclass(frozen=True)
class Cut:
    """An order that cuts the same pictures into micro-batches of our choice."""

    parts: tuple[tuple[int, ...], ...]

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:  # noqa: ARG002
        return self.parts


@pytest.mark.parametrize("flip", [False, True])
def test_accumulation_equals_one_large_batch(tiny_model, tmp_path, flip):
    """The same pictures at the same positions, cut otherwise: the same loss and gradient."""
    folder = tiny.pictures(tmp_path / "p", ((40, 40),) * 4)
    job = job_for(tiny_model, folder, data={"path": str(folder), "resolution": 32, "bucket_step_px": 8, "flip": flip})
    found = []
    for parts in (((0, 1, 2, 3),), ((0, 1), (2, 3)), ((0,), (1, 2, 3)), ((0,), (1,), (2,), (3,))):
        job.dataset = replace(job.dataset, order=Cut(parts))
        loss = accumulate_gradients(job, 0)
        found.append((float(loss), torch.cat([p.grad.flatten() for p in job.params])))
        job.optimizer.zero_grad()
    loss, gradient = found[0]
    for other_loss, other in found[1:]:
        assert other_loss == pytest.approx(loss, rel=1e-6)
        assert (other - gradient).norm() / gradient.norm() < 1e-5


def test_gradient_checkpointing_changes_little(tiny_model, tmp_path):
    """Recomputing gives the same loss to the bit, and the same gradients but for the order of sums."""
    found = []
    for on in (False, True):
        section = {"rank": 3, "alpha": 2.0, "text_encoder": True}
        job = job_for(tiny_model, tiny.pictures(tmp_path / "p"), adapter=section, memory={"checkpointing": on})
        loss = accumulate_gradients(job, STEP)
        found.append((float(loss), [p.grad.clone() for p in job.params]))
    (plain, gradients), (again, recomputed) = found
    assert again == plain
    assert all((a - b).norm() <= 1e-4 * a.norm() for a, b in zip(gradients, recomputed, strict=True))
    assert sum(int(g.abs().max() > 0) for g in recomputed) > 0.9 * len(recomputed)


def test_checkpointing_recomputes(tiny_model, tmp_path):
    job = job_for(tiny_model, tiny.pictures(tmp_path / "p"), memory={"checkpointing": True})
    calls, block = [], job.family.denoiser.up_blocks[-1].resnets[0]
    block.register_forward_pre_hook(lambda *_: calls.append(1))  # the second pass ends before the hooks behind it
    accumulate_gradients(job, STEP)
    assert len(calls) == 2 * len(job.dataset.order.step(STEP))


def test_scale_of_a_section():
    """The same alpha means the same scale, however the section came about."""
    for section, scale in (
        (Lora(rank=8), 1.0),
        (Lora(rank=8, alpha=4.0), 0.5),
        (Lora(rank=16, alpha=4.0, rank_stabilized=True), 1.0),
    ):
        assert section.rank_and_scale(spatial=False) == (section.rank, scale)
        assert section.file_alpha(spatial=False) == scale * section.rank


def test_preservation_asks_the_base_model(tiny_model, tmp_path):
    """The teacher is the model without its adapter; the pupil is asked under class words, to the bit like any caption."""
    folder = tiny.pictures(tmp_path / "p")
    for caption in folder.glob("*.txt"):
        caption.write_text("a sks thing", encoding="utf-8")
    data = {"path": str(folder), "resolution": 32, "bucket_min_px": 16, "bucket_step_px": 8}
    given = {"data": {**data, "trigger": "sks", "class_words": ["red", "blue"]}, "objective": {"preserve": 1.0}}
    job = job_for(tiny_model, folder, **given)
    batch = job.samples.batch(job.dataset.order.step(0)[0], 0, 0)
    assert batch.class_cond is not None and batch.cond is not None
    assert {job.samples._class_caption("a SKS thing", w) for w in ("red", "blue")} == {"a red thing", "a blue thing"}
    noisy, t = torch.randn(batch.mean.shape, generator=torch.Generator().manual_seed(3)), torch.full((len(batch.mean),), 500)
    adapted = job.family.predict(noisy, t, batch.class_cond)
    with job.adapter.suspended():
        base = job.family.predict(noisy, t, batch.class_cond)
    assert torch.equal(adapted, job.family.predict(noisy, t, batch.class_cond)) and not torch.equal(adapted, base)
    expected = (adapted.double() - base.double()).square().flatten(1).mean(1)
    assert torch.allclose(preservation_loss(job, noisy, t, batch.class_cond).double(), expected, rtol=1e-5)
    with torch.no_grad():
        for p in job.params:
            p.zero_()
    assert preservation_loss(job, noisy, t, batch.class_cond).tolist() == [0.0] * len(noisy)
