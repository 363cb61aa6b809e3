"""The objective in a training step: the whole of it against float64, what each option changes, masks and weights."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import tiny
from limner.config import files
from limner.diffusion.timesteps import timesteps_of
from limner.engine import prepare
from limner.engine.journal import Journal
from limner.engine.objective import batch_loss, loss_at
from limner.engine.runtime import Runtime
from limner.engine.train import accumulate_gradients
from limner.engine.training import Training
from limner.randomness import mix

STEP, SEED = 4, 7
CPU = torch.device("cpu")


def job_for(model, folder, **objective) -> Training:
    from limner import jobs

    config = files.build(
        {
            "model": {"base": str(model)},
            "data": {"path": str(folder), "resolution": 32, "bucket_min_px": 16, "bucket_step_px": 8},
            "adapter": {"rank": 3, "alpha": 2.0},
            "train": {"steps": 10, "batch_size": 4, "seed": SEED},
            "launch": {"device": "cpu"},
            "objective": objective,
        },
        {},
    )
    run = jobs.prepare(config)
    job = prepare.prepare(run, config, Runtime(CPU, "fp32"), Journal(run, is_main=True), lambda: False)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in job.params:
            p.add_(torch.randn(p.shape, generator=rng) * 0.05)
    return job


def asking(job: Training, **objective) -> Training:
    """The same model taught otherwise."""
    config = job.config.model_copy(update={"objective": files.build({"objective": objective}, {}).objective})
    other = replace(job, config=config)
    assert other.timesteps == timesteps_of(config.objective, job.family.process)
    return other


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.pictures(tmp_path_factory.mktemp("pictures"), ((40, 40),) * 4)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    return {
        "sd1": tiny.build(path / "sd1"),
        "v": tiny.build(path / "v", "v_prediction"),
        "sd3": tiny.build(path / "sd3", family="sd3"),
    }


def first_batch(job: Training):
    return job.samples.batch(job.dataset.order.step(STEP)[0], STEP, 0)


def source(purpose: str, position: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(SEED, purpose, STEP, position))


def test_a_step_with_much_asked_of_it(models, folder):
    """Offset and perturbed noise, timesteps by the cosine map over a part, a scheduled Huber loss, soft weights."""
    job = job_for(
        models["v"], folder, zero_terminal_snr=True, noise_offset=0.2, input_perturbation=0.1, timesteps="cosmap",
        least_timestep=100, most_timestep=800, loss="huber", huber_schedule="exponential", huber_threshold=0.2,
        weighting="soft_min_snr", snr_gamma=3.0,
    )  # fmt: skip
    batch = first_batch(job)
    root = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).sqrt()
    alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
    expected = []
    for i, position in enumerate(batch.positions):
        mean, deviation = batch.mean[i].double(), batch.deviation[i].double()
        x0 = mean + deviation * torch.randn(mean.shape, generator=source("posterior", position)).double()
        noise = torch.randn(mean.shape, generator=source("noise", position)).double()
        noise += 0.2 * torch.randn((4, 1, 1), generator=source("offset", position)).double()
        shown = noise + 0.1 * torch.randn(mean.shape, generator=source("perturbation", position)).double()
        u = 1 - float(torch.rand((), generator=source("timestep", position), dtype=torch.float64))
        t = int(100 + 700 * (1 - 1 / (math.tan(math.pi / 2 * u) + 1)))
        a, s = math.sqrt(alphas[t]), math.sqrt(1 - alphas[t])
        assert batch.cond is not None
        cond = {k: v[i : i + 1] for k, v in batch.cond.items()}
        with torch.no_grad():
            pred = job.family.predict((a * x0 + s * shown)[None].float(), torch.tensor([t]), cond)[0].double()
        d, c = pred - (a * noise - s * x0), 0.2 ** (t / 1000)
        snr = a**2 / s**2
        expected.append(float((2 * c * ((d**2 + c**2).sqrt() - c)).mean()) * (1 / (1 / snr + 1 / 3)) / (snr + 1))
    found = batch_loss(job, batch, STEP)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert float(accumulate_gradients(job, STEP)) == pytest.approx(sum(expected) / 4, rel=1e-4)


CHANGES = [
    ("sd1", {"loss": "l1"}, {}),
    ("sd1", {"loss": "huber"}, {}),
    ("sd1", {"loss": "smooth_l1"}, {"loss": "huber"}),
    ("sd1", {"loss": "huber", "huber_threshold": 0.5}, {"loss": "huber"}),
    ("sd1", {"loss": "huber", "huber_schedule": "exponential"}, {"loss": "huber"}),
    ("sd1", {"loss": "huber", "huber_schedule": "snr"}, {"loss": "huber"}),
    ("sd1", {"weighting": "min_snr"}, {}),
    ("sd1", {"weighting": "soft_min_snr"}, {"weighting": "min_snr"}),
    ("sd1", {"weighting": "min_snr", "snr_gamma": 0.5}, {"weighting": "min_snr"}),
    ("sd1", {"weighting": "debiased"}, {}),
    ("v", {"weighting": "v_as_epsilon"}, {}),
    ("sd1", {"v_share": 0.1}, {}),
    ("sd1", {"timesteps": "logit_normal"}, {}),
    ("sd1", {"timesteps": "logit_normal", "logit_mean": 1.0}, {"timesteps": "logit_normal"}),
    ("sd1", {"timesteps": "logit_normal", "logit_std": 2.0}, {"timesteps": "logit_normal"}),
    ("sd1", {"timesteps": "mode"}, {"timesteps": "cosmap"}),
    ("sd1", {"timesteps": "mode", "mode_scale": 0.5}, {"timesteps": "mode"}),
    ("sd1", {"least_timestep": 500}, {}),
    ("sd1", {"most_timestep": 500}, {}),
    ("sd1", {"noise_offset": 0.1}, {}),
    ("sd1", {"noise_offset": 0.1, "noise_offset_random": True}, {"noise_offset": 0.1}),
    ("sd1", {"noise_offset_adaptive": 0.1}, {}),
    ("sd1", {"pyramid_levels": 3}, {}),
    ("sd1", {"pyramid_levels": 3, "pyramid_discount": 0.8}, {"pyramid_levels": 3}),
    ("sd1", {"input_perturbation": 0.1}, {}),
    ("sd1", {"input_perturbation": 0.1, "input_perturbation_random": True}, {"input_perturbation": 0.1}),
    ("sd3", {"timesteps": "uniform"}, {}),
    ("sd3", {"shift": 1.0}, {}),
    ("sd3", {"shift": "resolution"}, {}),
    ("sd3", {"weighting": "sigma_sqrt"}, {}),
    ("sd3", {"weighting": "cosmap"}, {}),
    ("sd3", {"least_timestep": 500}, {}),
    ("sd3", {"loss": "huber", "huber_schedule": "snr"}, {"loss": "huber"}),
    ("sd3", {"input_perturbation": 0.1}, {}),
]


@pytest.fixture(scope="module")
def jobs_of(models, folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMNER_HOME", str(tmp_path_factory.mktemp("home")))
        return {name: job_for(model, folder) for name, model in models.items()}


@pytest.mark.parametrize(("model", "asked", "instead_of"), CHANGES)
def test_each_option_changes_the_loss(jobs_of, model, asked, instead_of):
    job = jobs_of[model]
    batch = first_batch(job)
    found, before, again = (batch_loss(asking(job, **o), batch, STEP).detach() for o in (asked, instead_of, instead_of))
    assert torch.equal(before, again)
    assert found.isfinite().all() and ((found - before).abs() > 1e-5 * before).any()


@pytest.mark.parametrize("model", ["sd1", "sd3"])
def test_pictures_weights_and_masks(jobs_of, model):
    job = jobs_of[model]
    batch = first_batch(job)
    plain = batch_loss(job, batch, STEP).detach()
    weight = torch.tensor([1.0, 0.5, 0.0, 2.0])
    assert torch.allclose(batch_loss(job, replace(batch, weight=weight), STEP), weight * plain)
    height, width = batch.mean.shape[-2:]
    halves = torch.zeros(2, 4, 1, height, width)
    halves[0, ..., : height // 2, :] = 1
    halves[1] = 1 - halves[0]
    parts = [batch_loss(job, replace(batch, mask=m), STEP).detach() for m in halves]
    assert torch.allclose((parts[0] + parts[1]) / 2, plain, rtol=1e-5)
    assert not torch.allclose(parts[0], plain, rtol=1e-3)


def test_loss_at_given_noise_and_timesteps(jobs_of):
    """The mean latents, the weights of the timesteps, no other noise and no picture's weight; nothing is drawn or changed."""
    job = asking(jobs_of["sd1"], weighting="min_snr", noise_offset=0.3, input_perturbation=0.3)
    batch = replace(first_batch(job), weight=torch.full((4,), 9.0))
    assert batch.cond is not None
    noise, t = torch.randn(batch.mean.shape, generator=torch.Generator().manual_seed(3)), torch.tensor([10, 250, 500, 900])
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)[t].view(-1, 1, 1, 1)
    noisy = alphas.sqrt() * batch.mean.double() + (1 - alphas).sqrt() * noise.double()
    with torch.no_grad():
        pred = job.family.predict(noisy.float(), t, batch.cond).double()
        state = torch.get_rng_state()
        found = loss_at(job, batch, noise, t)
    snr = (alphas / (1 - alphas)).flatten()
    expected = (pred - noise.double()).square().flatten(1).mean(1) * snr.clamp(max=5) / snr
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert torch.equal(state, torch.get_rng_state())
