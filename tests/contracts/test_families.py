"""What every family promises (`models.family.Family`), against diffusers' own pipelines, on tiny real models of each."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from limner.adapters.lora import LoraAdapter
from limner.config import Lora
from limner.config.prompts import Prompt
from limner.engine import paint
from limner.engine.runtime import Runtime
from limner.formats import openclip, original
from limner.formats.base import FAMILIES as KNOWN
from limner.formats.base import recognise
from limner.models import family as families
from limner.models.family import FAMILIES
from limner.models.stable_diffusion import CONFIGS

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[1] / "golden"
CAPTIONS = ["a photo of a cat", "", "a dog! and, (many) words " * 20]
GEOMETRY = torch.tensor([[40.0, 60, 0, 6, 24, 32]] * 3)
PROMPT = Prompt("a photo of a cat", "blurry, dark", 32, 24, 6, 7.0, 11, "ddim")

_TEXT = {
    "sd1": {"text_encoder": original.text_names},
    "sd2": {"text_encoder": partial(openclip.openclip_names, prefix=original.OPEN_TEXT)},
    "sdxl": {
        "text_encoder": partial(original.text_names, prefix=original.SDXL_TEXT),
        "text_encoder_2": partial(openclip.openclip_names, prefix=original.SDXL_OPEN_TEXT),
    },
}


def test_the_tables_agree():
    assert FAMILIES.keys() == KNOWN.keys() == _TEXT.keys()


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of each family, in a diffusers folder; its parent has the family's name."""
    return tiny.build(tmp_path_factory.mktemp("models") / request.param / "m", family=request.param)


def loaded(source: str | Path, config: Path | None = None):
    family = families.make(recognise(str(source), config=config))
    for part in ("text", "denoiser", "vae"):
        family.load(part, torch.float32, CPU)
    return family


def pipeline(folder: Path) -> Any:
    name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    pipe = getattr(diffusers, name).from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 4, 12, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([7, 450, 801])


def prediction(family: Any) -> Tensor:
    noisy, t = inputs()
    return family.predict(noisy, t, family.encode_captions(CAPTIONS) | {"geometry": GEOMETRY})


def pipelines_prediction(pipe: Any) -> Tensor:
    noisy, t = inputs()
    if not hasattr(pipe, "text_encoder_2"):
        return pipe.unet(noisy, t, pipe.encode_prompt(CAPTIONS, CPU, 1, False)[0]).sample
    text, _, pooled, _ = pipe.encode_prompt(CAPTIONS, device=CPU, do_classifier_free_guidance=False)
    return pipe.unet(noisy, t, text, added_cond_kwargs={"text_embeds": pooled, "time_ids": GEOMETRY}).sample


def test_it_is_recognised(folder: Path):
    base = recognise(str(folder))
    assert (base.family, base.resolution_px, base.bucket_step_px, base.latent_factor) == (folder.parent.name, 32, 4, 2)


@torch.no_grad()
def test_predictions_are_the_pipelines(folder: Path):
    family, pipe = loaded(folder), pipeline(folder)
    found = prediction(family)
    # not to the bit: diffusers computes with mapped weights, whose alignment is another
    assert found.std() > 0.01 and (found - pipelines_prediction(pipe)).abs().max() < 1e-5
    own, theirs = family.denoiser.state_dict(), pipe.unet.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[k], theirs[k]) for k in own)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_painted_pictures_are_the_pipelines(folder: Path, tmp_path: Path, kind: str):
    model = tiny.build(tmp_path / "m", kind, family=folder.parent.name)
    family, runtime, pipe = loaded(model), Runtime(CPU, "fp32"), pipeline(model)
    for solver, scheduler in (("ddim", DDIMScheduler), ("euler", EulerDiscreteScheduler)):
        prompt = replace(PROMPT, solver=solver)
        ours = next(paint.paint(family, runtime, [prompt], paint.encode_prompts(family, runtime, [prompt])))
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")
        theirs = pipe(
            prompt.text, negative_prompt=prompt.negative, width=32, height=24, num_inference_steps=6, guidance_scale=7.0,
            generator=torch.Generator().manual_seed(11), output_type="pt",
        ).images[0]  # fmt: skip
        assert (ours / 2 + 0.5 - theirs).abs().max() < 1e-4
        assert ours.std() > 0.01  # a picture, not a constant


@torch.no_grad()
def test_a_saved_folder_is_the_model(folder: Path, tmp_path: Path):
    family = loaded(folder)
    for p in family.denoiser.parameters():
        p.mul_(1.01)
    family.save(tmp_path / "out", torch.float32)
    expected = prediction(family)
    assert torch.equal(prediction(loaded(tmp_path / "out")), expected)
    assert (pipelines_prediction(pipeline(tmp_path / "out")) - expected).abs().max() < 1e-5


def as_single_file(folder: Path) -> dict[str, Tensor]:
    """A diffusers folder's tensors in the original layout."""
    state: dict[str, Tensor] = {}
    names = {"unet": original.unet_names, "vae": original.vae_names, **_TEXT[folder.parent.name]}
    for part, rule in names.items():
        weights = load_file(next((folder / part).glob("*.safetensors")))
        for name, there in rule(weights).items():
            value = weights[name].T if openclip.is_transposed(there) else weights[name]
            value = value.reshape(original.original_shape(there, tuple(value.shape)))
            state[there] = torch.cat([state[there], value]) if there in state else value
    return {k: v.contiguous() for k, v in state.items()}


@torch.no_grad()
def test_a_single_file_is_the_model(folder: Path, tmp_path: Path):
    save_file(as_single_file(folder), tmp_path / "one.safetensors")
    family = loaded(tmp_path / "one.safetensors", folder)
    assert family.base.family == folder.parent.name
    assert torch.equal(prediction(family), prediction(loaded(folder)))


@torch.no_grad()
def test_from_single_file_to_single_file(folder: Path, tmp_path: Path):
    """The same names, tensors and dtypes; also of what no part of ours holds, save the averaged weights of former training."""
    state = as_single_file(folder) | {"betas": torch.linspace(0, 1, 1000), "v_pred": torch.zeros(0)}
    save_file(state | {"model_ema.decay": torch.tensor(0.5)}, tmp_path / "one.safetensors", {"modelspec.title": "one"})
    family = loaded(tmp_path / "one.safetensors", folder)
    for part in ("vae", "text"):
        family.free(part)  # as after caching: they are loaded for saving
    family.save_file(tmp_path / "two.safetensors", torch.float32, {"format": "pt"})
    again = load_file(tmp_path / "two.safetensors")
    if folder.parent.name == "sd2":  # other programs build one layer more than they use
        assert "cond_stage_model.model.transformer.resblocks.2.ln_1.weight" in again
        again = {k: v for k, v in again.items() if ".resblocks.2." not in k}
    assert again.keys() == state.keys()
    assert all(torch.equal(again[k], v) and again[k].dtype == v.dtype for k, v in state.items())
    family.save_file(tmp_path / "half.safetensors", torch.float16, {})
    half = loaded(tmp_path / "half.safetensors", folder)
    assert (prediction(half) - prediction(loaded(folder))).abs().max() < 0.02


@torch.no_grad()
def test_diffusers_reads_the_single_file(folder: Path, tmp_path: Path):
    """Its converters are an independent opinion on the original layout's names."""
    save_file(as_single_file(folder), tmp_path / "one.safetensors")
    unet = UNet2DConditionModel.from_single_file(str(tmp_path / "one.safetensors"), config=str(folder), subfolder="unet")
    family = loaded(folder)
    own, theirs = family.denoiser.state_dict(), unet.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[k], theirs[k]) for k in own)
    vae = AutoencoderKL.from_single_file(str(tmp_path / "one.safetensors"), config=str(folder), subfolder="vae")
    own, theirs = family.vae.state_dict(), vae.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[k], theirs[k]) for k in own)


@torch.no_grad()
def test_a_lora_of_every_layer_works_in_diffusers(folder: Path, tmp_path: Path):
    family = loaded(folder)
    adapter = LoraAdapter(Lora(rank=3, alpha=2.0, conv_rank=2, text_encoder=True))
    adapter.attach(family, 1)
    before = prediction(family)
    rng = torch.Generator().manual_seed(2)
    for _, layer in adapter.layers.values():
        for p in layer.parameters():
            p.add_(torch.randn(p.shape, generator=rng) * 0.1)
    save_file({k: v.contiguous() for k, v in adapter.state_dict().items()}, tmp_path / "lora.safetensors")
    pipe = pipeline(folder)
    pipe.load_lora_weights(tmp_path / "lora.safetensors")
    expected = prediction(family)
    assert (expected - before).abs().max() > 0.01
    assert (pipelines_prediction(pipe) - expected).abs().max() < 1e-5
    adapter.detach()
    assert torch.equal(prediction(family), before)


# --- names at full size -----------------------------------------------------------------------------------------------


def full_size(name: str):
    """The family's models at their full size, without memory."""
    family = families.make(replace(recognise("pocket"), path=CONFIGS / name, family=name))
    parts = family.empty()
    family.denoiser, family.vae = parts.pop("unet"), parts.pop("vae")
    family.text_encoders |= parts
    return family


def originals(name: str) -> dict[str, list[int]]:
    """Names and shapes in the original layout of all tensors of the full-size family."""
    family, out = full_size(name), dict[str, list[int]]()
    models = {"unet": family.denoiser, "vae": family.vae, **family.text_encoders}
    for part, rule in {"unet": original.unet_names, "vae": original.vae_names, **_TEXT[name]}.items():
        state = models[part].state_dict()
        for own, there in rule(state).items():
            shape = list(original.original_shape(there, tuple(state[own].shape)))
            out[there] = [out[there][0] + shape[0], *shape[1:]] if there in out else shape
    return out


def test_sdxls_original_names_are_the_published_ones():
    lines = sorted(f"{name} {shape}" for name, shape in originals("sdxl").items())
    assert lines == (GOLDEN / "sdxl_original_keys.txt").read_text(encoding="utf-8").splitlines()  # sd-mecha's `sdxl-sgm`


def test_sd2s_original_names():
    """There is no list of others: SD 1's UNet with linear projections, and the text as SDXL's second, of 23 layers."""
    sd1, sd2, sdxl = originals("sd1"), originals("sd2"), originals("sdxl")
    parts = (original.UNET, original.VAE)
    assert {k for k in sd2 if k.startswith(parts)} == {k for k in sd1 if k.startswith(parts)}
    text = {k.removeprefix(original.OPEN_TEXT) for k in sd2 if not k.startswith(parts)}
    other = {k.removeprefix(original.SDXL_OPEN_TEXT) for k in sdxl if k.startswith(original.SDXL_OPEN_TEXT)}
    layers = tuple(f"transformer.resblocks.{i}." for i in range(23, 32))
    assert text == {k for k in other if not k.startswith(layers)} - {"text_projection"}
    assert sd2["cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight"] == [3072, 1024]


def test_lora_names_of_sdxl_are_kohyas():
    adapter = LoraAdapter(Lora(rank=8, text_encoder=True))
    adapter.attach(full_size("sdxl"), 0)
    found = {k: list(v.shape) for k, v in adapter.state_dict().items()}
    names = {k.partition(".")[0] for k in found}
    golden = dict(line.split(" ", 1) for line in (GOLDEN / "sdxl_original_keys.txt").read_text().splitlines())
    expected = {
        "lora_unet_" + k.removeprefix(original.UNET).removesuffix(".weight").replace(".", "_")
        for k, shape in golden.items()
        if k.startswith(original.UNET) and shape.count(",") == 1 and (".transformer_blocks." in k or ".proj_" in k)
    }
    assert {n for n in names if n.startswith("lora_unet_")} == expected and len(expected) == 722
    assert sum(n.startswith("lora_te1_") for n in names) == 72 and sum(n.startswith("lora_te2_") for n in names) == 192
    # kohya.md, section 2.2
    assert found["lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight"] == [8, 640]
    assert found["lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight"] == [8, 2048]
    assert found["lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj.lora_up.weight"] == [10240, 8]
    assert found["lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight"] == [8, 768]
    assert found["lora_te2_text_model_encoder_layers_31_mlp_fc1.lora_up.weight"] == [5120, 8]


def test_lora_names_of_sd2_are_kohyas():
    adapter = LoraAdapter(Lora(rank=8, text_encoder=True))
    adapter.attach(full_size("sd2"), 0)
    found = {k: list(v.shape) for k, v in adapter.state_dict().items()}
    assert len({k.partition(".")[0] for k in found}) == 192 + 23 * 6
    assert found["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"] == [8, 320]  # linear, unlike SD 1's
    assert found["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"] == [8, 1024]
    assert found["lora_te_text_model_encoder_layers_22_mlp_fc1.lora_up.weight"] == [4096, 8]


def test_convolutions_of_sdxl_have_kohyas_names():
    adapter = LoraAdapter(Lora(rank=8, conv_rank=4))
    adapter.attach(full_size("sdxl"), 0)
    names = {k.partition(".")[0] for k in adapter.state_dict()}
    for name in ("input_blocks_1_0_in_layers_2", "input_blocks_1_0_out_layers_3", "input_blocks_1_0_emb_layers_1",
                 "input_blocks_4_0_skip_connection", "input_blocks_3_0_op", "output_blocks_2_2_conv"):  # fmt: skip
        assert f"lora_unet_{name}" in names, name
