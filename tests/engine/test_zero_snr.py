"""Models that are trained down to pure noise: recognised, taught, painted and written as such."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

import tiny
from limner.config import files
from limner.config.prompts import Prompt
from limner.engine import fetching, paint, sampling
from limner.engine.runtime import Runtime
from limner.formats.base import recognise
from limner.formats.header import read_header
from limner.models import family as families

CPU = torch.device("cpu")
# of as many steps as divide 1000: with others diffusers' DDIM steps beside its own timesteps
PROMPT = Prompt("a photo of a cat", "blurry", 32, 24, 5, 7.0, 11, "ddim")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that predicts v, and says nothing of pure noise."""
    return tiny.build(tmp_path_factory.mktemp("models") / "m", "v_prediction")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, whose scheduler says that it was trained down to pure noise."""
    folder = tiny.build(tmp_path_factory.mktemp("models") / "m", "v_prediction")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rescale_betas_zero_snr": True}))
    return folder


def last_alpha(family: families.Family) -> float:
    return float(family.process.alphas_cumprod[-1])  # type: ignore


def base_for(model: Path, **objective):
    return fetching.find_base(files.build({"model": {"base": str(model)}, "objective": objective}, {}))


def test_the_process_ends_in_noise_where_the_model_says_so_or_it_is_asked_for(model, said):
    assert last_alpha(families.make(base_for(model))) > 0.004
    assert last_alpha(families.make(base_for(model, zero_terminal_snr=True))) == 0
    assert last_alpha(families.make(base_for(said))) == 0


def loaded(base) -> families.Family:
    family = families.make(base)
    for part in ("text", "denoiser", "vae"):
        family.load(part, torch.float32, CPU)
    return family


def test_its_pictures_are_the_pipelines(said):
    family, runtime = loaded(base_for(said)), Runtime(CPU, "fp32")
    pipe = StableDiffusionPipeline.from_pretrained(said, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    ours = next(paint.paint(family, runtime, [PROMPT], paint.encode_prompts(family, runtime, [PROMPT])))
    theirs = pipe(
        PROMPT.text, negative_prompt=PROMPT.negative, width=32, height=24, num_inference_steps=5, guidance_scale=7.0,
        generator=torch.Generator().manual_seed(11), output_type="pt",
    ).images[0]  # fmt: skip
    assert (ours - (theirs * 2 - 1)).abs().max() < 1e-4


def test_a_trained_model_says_so_itself(model, tmp_path):
    """A folder in its scheduler, a file by the marks that ComfyUI looks for."""
    family = loaded(base_for(model, zero_terminal_snr=True))
    family.save(tmp_path / "folder", torch.float32)
    scheduler = json.loads((tmp_path / "folder" / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["rescale_betas_zero_snr"], scheduler["timestep_spacing"]) == (True, "trailing")
    family.save_file(tmp_path / "m.safetensors", torch.float32, {})
    assert {"ztsnr", "v_pred"} <= read_header(tmp_path / "m.safetensors").tensors.keys()
    assert load_file(tmp_path / "m.safetensors")["ztsnr"].numel() == 0
    again = recognise(str(tmp_path / "folder"))
    assert (again.has_zero_snr, again.prediction) == (True, "v_prediction")
    file = recognise(str(tmp_path / "m.safetensors"), config=tmp_path / "folder")
    assert (file.has_zero_snr, file.prediction) == (True, "v_prediction")
    plain = loaded(base_for(model))
    plain.save_file(tmp_path / "plain.safetensors", torch.float32, {})
    assert not {"ztsnr", "v_pred"} & read_header(tmp_path / "plain.safetensors").tensors.keys()


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        # pure noise tells only a prediction of v something, whatever the base predicts without this LoRA
        ({"ss_zero_terminal_snr": "True"}, (True, "v_prediction", 1)),
        ({"ss_clip_skip": "2"}, (False, "epsilon", 2)),
        ({"ss_clip_skip": "None", "ss_zero_terminal_snr": "False", "modelspec.prediction_type": "v"}, (False, "epsilon", 1)),
        (None, (False, "epsilon", 1)),
    ],
)
def test_a_lora_says_so(model, metadata, expected, tmp_path):
    """A LoRA made for another base model of the family changes nothing of what this one predicts."""
    base = replace(base_for(model), prediction="epsilon")
    save_file({"a": torch.ones(1)}, tmp_path / "l.safetensors", metadata)
    found = sampling._as_taught(base, tmp_path / "l.safetensors")
    assert (found.has_zero_snr, found.prediction, found.clip_skip) == expected
    assert sampling._as_taught(base, tmp_path / "none.safetensors") == base
