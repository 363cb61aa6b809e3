"""Stable Diffusion 1 against diffusers' own pipeline: predictions, painted pictures, loading, saving."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from limner.config.prompts import Prompt
from limner.engine import paint
from limner.engine.runtime import Runtime
from limner.errors import UserError
from limner.formats.base import Base, recognise
from limner.models import family as families
from limner.models import parts
from limner.models.text import clip_tokenizer

CPU = torch.device("cpu")
PROMPT = Prompt("a photo of a cat", "blurry, dark", 32, 24, 8, 7.0, 11, "ddim")


def whole(folder: Path, dtype: torch.dtype = torch.float32):
    family = families.make(recognise(str(folder)))
    for part in ("text", "denoiser", "vae"):
        family.load(part, dtype, CPU)
    return family


def pipeline(folder: Path) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 16, 12, generator=rng), torch.tensor([7, 801])


@torch.no_grad()
def test_prediction_and_conditioning_are_the_pipelines(tiny_model):
    family, pipe = whole(tiny_model), pipeline(tiny_model)
    noisy, t = inputs()
    captions = ["a photo of a cat", ""]
    cond = family.encode_captions(captions)
    expected, _ = pipe.encode_prompt(captions, CPU, 1, False)
    assert torch.equal(cond["text"], expected)
    assert torch.equal(family.predict(noisy, t, cond), pipe.unet(noisy, t, expected).sample)


@torch.no_grad()
def test_latents_are_the_scaled_posterior(tiny_model):
    family = whole(tiny_model)
    pixels = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, deviation = family.encode_pixels(pixels)
    posterior = family.vae.encode(pixels).latent_dist
    assert torch.equal(mean, posterior.mean * 0.5) and torch.equal(deviation, posterior.std * 0.5)
    assert mean.shape == (2, 4, 12, 16)
    assert torch.equal(family.decode_latents(mean), family.vae.decode(mean / 0.5).sample)


def test_painting_together_changes_little_and_keeps_the_order(tiny_model):
    family, runtime = whole(tiny_model), Runtime(CPU, "fp32")
    prompts = [PROMPT, replace(PROMPT, seed=5), replace(PROMPT, text="a dog", width=24), replace(PROMPT, guidance=1.0)]
    encoded = paint.encode_prompts(family, runtime, prompts)
    alone = list(paint.paint(family, runtime, prompts, encoded))
    together = list(paint.paint(family, runtime, prompts, encoded, together=4))
    assert [p.shape for p in together] == [p.shape for p in alone]
    for a, b in zip(alone, together, strict=True):
        assert (a - b).abs().max() < 1e-4
    assert (alone[0] - alone[1]).abs().max() > 0.01


def test_fp16_variant_folder_loads(tiny_model, tmp_path):
    pipeline(tiny_model).to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    names = {f.name for f in (tmp_path / "half").rglob("*.safetensors")}
    assert names == {"diffusion_pytorch_model.fp16.safetensors", "model.fp16.safetensors"}
    family, original = whole(tmp_path / "half"), whole(tiny_model)
    for name, p in original.denoiser.state_dict().items():
        assert torch.equal(family.denoiser.state_dict()[name], p.half().float()), name
    noisy, t = inputs()
    with torch.no_grad():
        cond = family.encode_captions(["x", "y"])
        expected = original.predict(noisy, t, original.encode_captions(["x", "y"]))
        assert (family.predict(noisy, t, cond) - expected).abs().max() < 0.02


def test_folder_without_tokenizer_uses_clips(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "m", ignore=shutil.ignore_patterns("tokenizer"))
    family = families.make(recognise(str(tmp_path / "m")))
    assert torch.equal(family.token_ids(["a cat"]), whole(tiny_model).token_ids(["a cat"]))
    assert [f.name for f in family.part_files("text")] == ["config.json", "model.safetensors"]


def test_text_encoder_of_a_single_file(tiny_model, tmp_path, monkeypatch):
    """The text part of an original-layout checkpoint: prefixed names, the `text_model.` level, old `position_ids`."""
    configs = tmp_path / "configs"
    shutil.copytree(tiny_model / "text_encoder", configs / "sd1" / "text_encoder")
    shutil.copytree(parts.CONFIGS / "sd1" / "scheduler", configs / "sd1" / "scheduler")
    monkeypatch.setattr(parts, "CONFIGS", configs)
    weights = {
        k.removeprefix("text_model."): v for k, v in load_file(tiny_model / "text_encoder" / "model.safetensors").items()
    }
    state = {f"cond_stage_model.transformer.text_model.{k}": v for k, v in weights.items()}
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(state | {"model.diffusion_model.out.2.bias": torch.zeros(4)}, tmp_path / "one.safetensors")
    base = Base("one", tmp_path / "one.safetensors", "file", "sd1", "epsilon", 512, 64, 8)
    family = families.make(base)
    family.load("text", torch.float32, CPU)
    with torch.no_grad():
        found, expected = (f.encode_captions(["a photo of a cat"])["text"] for f in (family, whole(tiny_model)))
    assert torch.equal(found, expected)

    lacking = {k: v for k, v in state.items() if "layers.1.mlp.fc2" not in k}
    save_file(lacking, tmp_path / "one.safetensors")
    missing = r"2 tensors are missing, the first is cond_stage_model\.transformer\.text_model\.encoder\.layers\.1\.mlp\.fc2"
    with pytest.raises(UserError, match=missing):
        families.make(base).load("text", torch.float32, CPU)


def test_missing_weights_are_named(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "m")
    file = tmp_path / "m" / "text_encoder" / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if not k.endswith("fc1.bias")}, file)
    with pytest.raises(UserError) as caught:
        whole(tmp_path / "m")
    assert "cannot be loaded" in str(caught.value) and "fc1.bias" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saved_folder_is_the_model(tiny_model, tmp_path, dtype):
    family = whole(tiny_model)
    with torch.no_grad():
        for p in family.denoiser.parameters():
            p.mul_(1.01)
    family.free("vae")
    family.save(tmp_path / "out", dtype)
    assert not family.has("vae"), "a part loaded for saving alone must not stay"
    assert {p.dtype for p in family.denoiser.parameters()} == {torch.float32}
    for file in (tmp_path / "out").rglob("*.safetensors"):
        assert {t.dtype for t in load_file(file).values()} == {dtype}, file
    text = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    assert all(k.startswith("text_model.") for k in text)
    assert "text_encoder" in json.loads((tmp_path / "out" / "model_index.json").read_text())
    noisy, t = inputs()
    limit = 1e-7 if dtype == torch.float32 else 0.02
    with torch.no_grad():
        cond = family.encode_captions(["a photo of a cat", "b"])
        expected = family.predict(noisy, t, cond)
        pipe, again = pipeline(tmp_path / "out"), whole(tmp_path / "out")
        text_again, _ = pipe.encode_prompt(["a photo of a cat", "b"], CPU, 1, False)
        assert (text_again - cond["text"]).abs().max() <= limit
        assert (pipe.unet(noisy, t, text_again).sample - expected).abs().max() <= limit
        assert (again.predict(noisy, t, again.encode_captions(["a photo of a cat", "b"])) - expected).abs().max() <= limit


def test_targets_are_the_attention_blocks_layers(tiny_model):
    family = whole(tiny_model)
    unet = [t for t in family.adapter_targets(False) if t.part == "denoiser"]
    text = [t for t in family.adapter_targets(False) if t.part == "text_encoder"]
    spatial = [t for t in family.adapter_targets(True) if t.is_spatial]
    assert len(unet) == len({t.name for t in unet}) == 48  # 4 transformer blocks x (10 linears + proj_in + proj_out)
    assert len(text) == 12  # 2 layers x (q, k, v, out, fc1, fc2)
    assert spatial and all(t.module.kernel_size == (3, 3) for t in spatial)
    assert isinstance(family.denoiser, UNet2DConditionModel) and isinstance(family.vae, AutoencoderKL)
    blocks = "".join(type(b).__name__[0] for b in family.blocks_of(family.denoiser))
    assert blocks == "RB" + "R" + "RBR" + "RR" + "RBRB"  # resnets and transformer blocks, as they take turns


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def test_clip_ids():
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("").input_ids == [49406, 49407]
    padded = tokenizer(["a cat"], padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    assert padded.tolist()[0][:5] == [49406, 320, 2368, 49407, 49407] and padded.shape == (1, 77)


def test_clip_tokenizer_survives_saving(tmp_path):
    clip_tokenizer().save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    for text in ("A Photo, of a CAT!", "naïve café 猫 🐈 ½", "don't", "  two   spaces \n", "x" * 300, "1girl, (solo:1.2)"):
        assert again(text).input_ids == clip_tokenizer()(text).input_ids, text


def test_too_long_captions_are_noticed_and_cut(tiny_model):
    family = families.make(recognise(str(tiny_model)))
    assert not family.is_too_long("cat " * 75) and family.is_too_long("cat " * 76)
    family.load("text", torch.float32, CPU)
    found = (family.encode_captions(["cat " * count])["text"] for count in (75, 76, 200))
    assert all(torch.equal(text, fits) for fits in [next(found)] for text in found)
