"""What every family promises (`models.family.Family`), against diffusers' own pipelines, on tiny real models of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tiny
from headers import parts_beside, single_file
from limner.adapters.layered import LayerAdapter
from limner.adapters.stacks import joined, parted
from limner.config import Lora
from limner.config.prompts import Prompt
from limner.engine import paint, sampling
from limner.engine.runtime import Runtime
from limner.errors import UserError
from limner.formats import flux, openclip, original, sd3
from limner.formats.base import recognise
from limner.formats.known import FAMILIES as KNOWN
from limner.formats.layout import Names
from limner.formats.suited import require_suited
from limner.models import family as families
from limner.models.family import FAMILIES
from limner.models.parts import CONFIGS
from original_layout import LAYOUTS, as_file, as_single_file, in_folder

CPU = torch.device("cpu")
SCHEDULERS = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
}
GOLDEN = Path(__file__).parents[1] / "golden"
CAPTIONS = ["a photo of a cat", "", "a dog! and, (many) words " * 20]
GEOMETRY = torch.tensor([[40.0, 60, 0, 6, 24, 32]] * 3)
GUIDANCE = torch.tensor([1.0, 3.5, 2.0])
PROMPT = Prompt("a photo of a cat", "blurry, dark", 32, 24, 6, 7.0, 11, "ddim")

_T5_TOKENS = {"sd3": 256, "flux": 512}


def test_the_tables_agree():
    assert FAMILIES.keys() == KNOWN.keys() == LAYOUTS.keys()
    assert all(list(known.parts) == list(LAYOUTS[name]) for name, known in KNOWN.items())


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of each family, in a diffusers folder; its parent has the family's name."""
    return tiny.build(tmp_path_factory.mktemp("models") / request.param / "m", family=request.param)


@pytest.fixture
def unet(folder: Path) -> Path:
    """Only those whose denoiser is a UNet."""
    if not (folder / "unet").exists():
        pytest.skip("a transformer")
    return folder


@pytest.fixture
def flow(folder: Path) -> Path:
    """Only those that predict a flow."""
    if not (folder / "transformer").exists():
        pytest.skip("a UNet")
    return folder


def loaded(source: str | Path, config: Path | None = None):
    family = families.make(recognise(str(source), config=config))
    for part in ("text", "denoiser", "vae"):
        family.load(part, torch.float32, CPU)
    return family


def pipeline(folder: Path, **parts: None) -> Any:
    name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    pipe = getattr(diffusers, name).from_pretrained(folder, torch_dtype=torch.float32, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(channels: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(3, channels, 12, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([7, 450, 801])


def prediction(family: Any) -> Tensor:
    noisy, t = inputs(family.base.latent_channels)
    return family.predict(noisy, t, family.encode_captions(CAPTIONS) | {"geometry": GEOMETRY, "guidance": GUIDANCE})


def pipelines_prediction(pipe: Any) -> Tensor:
    noisy, t = inputs(pipe.vae.config.latent_channels)
    if isinstance(pipe, StableDiffusion3Pipeline):
        text, _, pooled, _ = pipe.encode_prompt(CAPTIONS, None, None, device=CPU, do_classifier_free_guidance=False)
        return pipe.transformer(noisy, text, pooled, t).sample
    if isinstance(pipe, FluxPipeline):
        text, pooled, text_ids = pipe.encode_prompt(CAPTIONS, None, device=CPU)
        tokens = pipe._pack_latents(noisy, 3, 16, 12, 16)
        ids = pipe._prepare_latent_image_ids(3, 6, 8, CPU, torch.float32)
        found = pipe.transformer(tokens, text, pooled, t / 1000, ids, text_ids, GUIDANCE).sample
        return pipe._unpack_latents(found, 24, 32, 2)
    if not hasattr(pipe, "text_encoder_2"):
        return pipe.unet(noisy, t, pipe.encode_prompt(CAPTIONS, CPU, 1, False)[0]).sample
    text, _, pooled, _ = pipe.encode_prompt(CAPTIONS, device=CPU, do_classifier_free_guidance=False)
    return pipe.unet(noisy, t, text, added_cond_kwargs={"text_embeds": pooled, "time_ids": GEOMETRY}).sample


def test_it_is_recognised(folder: Path):
    base, family = recognise(str(folder)), folder.parent.name
    resolution = 1024 if family == "flux" else 32  # Flux's configuration says none
    assert (base.family, base.resolution_px, base.bucket_step_px, base.latent_factor) == (family, resolution, 4, 2)
    assert base.latent_channels == (16 if family in ("sd3", "flux") else 4)


@torch.no_grad()
def test_predictions_are_the_pipelines(folder: Path):
    family, pipe = loaded(folder), pipeline(folder)
    found = prediction(family)
    # not to the bit: diffusers computes with mapped weights, whose alignment is another
    assert found.std() > 0.01 and (found - pipelines_prediction(pipe)).abs().max() < 1e-5
    own, theirs = family.denoiser.state_dict(), denoiser(pipe).state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[k], theirs[k]) for k in own)


def denoiser(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def test_painted_pictures_of_a_flow_are_the_pipelines(flow: Path):
    """With the usual guidance and none, with a shift of its own, and where guidance is told: with another on top of it."""
    family, runtime, pipe = loaded(flow), Runtime(CPU, "fp32"), pipeline(flow)
    is_flux, size = flow.parent.name == "flux", {"width": 32, "height": 24}
    usual = 3.5 if is_flux else 7.0
    negative = {} if is_flux else {"negative_prompt": PROMPT.negative}
    cases: list[tuple[dict[str, float], dict[str, Any]]] = [
        ({}, {"guidance_scale": usual, **negative}),
        ({"guidance": 1.0}, {"guidance_scale": 1.0, **negative}),
        ({"shift": 1.7}, {"guidance_scale": usual, **negative}),
    ]
    if is_flux:
        cases.append(({"told_guidance": 2.0}, {"guidance_scale": 2.0}))
        both = {"guidance_scale": 2.0, "true_cfg_scale": 4.0, "negative_prompt": PROMPT.negative}
        cases.append(({"told_guidance": 2.0, "guidance": 4.0}, both))
    own, pictures = pipe.scheduler.config, []
    for asked, given in cases:
        prompt = replace(PROMPT, solver=None, **{"guidance": None, **asked})
        ours = next(paint.paint(family, runtime, [prompt], paint.encode_prompts(family, runtime, [prompt])))
        fixed = {"shift": asked["shift"], "use_dynamic_shifting": False} if "shift" in asked else {}
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(own, **fixed)
        # FluxPipeline decodes a size that it takes for 8 times its latents': ask for them, and decode by hand
        latents = pipe(
            prompt.text, **given, **size, num_inference_steps=6, generator=torch.Generator().manual_seed(11),
            output_type="latent", max_sequence_length=_T5_TOKENS[flow.parent.name],
        ).images  # fmt: skip
        if is_flux:
            latents = pipe._unpack_latents(latents, **size, vae_scale_factor=pipe.vae_scale_factor)
        with torch.no_grad():
            theirs = pipe.vae.decode(latents / 0.5 + 0.1).sample[0].clamp(-1, 1)
        assert (ours - theirs).abs().max() < 1e-4, asked
        assert ours.std() > 0.01
        pictures.append(ours)
    different = [(a - b).abs().max() for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(different) > 1e-3


@pytest.mark.long
def test_a_picture_does_not_depend_on_its_company(folder: Path):
    """Painted alone, with others and in another order it is the same; only like pictures are painted together."""
    family, runtime = loaded(folder), Runtime(CPU, "fp32")
    is_flow, told = family.base.prediction == "flow", family.base.takes_guidance
    first = replace(PROMPT, solver=None if is_flow else "euler_a")
    company = [first, replace(first, text="a dog", seed=12), replace(first, seed=13)]
    company += [replace(first, shift=1.7)] if is_flow else [replace(first, solver="dpmpp_2m")]
    company += [replace(first, told_guidance=2.0), replace(first, told_guidance=2.0, guidance=None)] if told else []

    def painted(prompts: list[Prompt], together: int) -> list[Tensor]:
        return list(paint.paint(family, runtime, prompts, paint.encode_prompts(family, runtime, prompts), together))

    alone = painted(company, 1)
    assert min((a - b).abs().max() for i, a in enumerate(alone) for b in alone[:i]) > 1e-3
    for found in (painted(company, 8), painted(company[::-1], 2)[::-1]):
        assert max((a - b).abs().max() for a, b in zip(alone, found, strict=True)) < 1e-4


def test_prompts_that_a_model_cannot_paint_are_refused(folder: Path):
    family = loaded(folder)
    is_flow = family.base.prediction == "flow"
    wrong = [replace(PROMPT, where="a", solver="ddim")] if is_flow else [replace(PROMPT, where="b", shift=3.0)]
    wrong += [] if family.base.takes_guidance else [replace(PROMPT, where="c", solver=None, told_guidance=3.0)]
    with pytest.raises(UserError) as caught:
        require_suited([replace(PROMPT, solver=None), *wrong], family.base)
    assert [f.field for f in caught.value.findings] == [p.where for p in wrong]


def test_pictures_of_schnell_are_the_pipelines(tmp_path: Path):
    """Its shift does not grow with the picture; its few steps are even all the same."""
    folder = tiny.build(tmp_path / "m", family="flux")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"shift": 1.0, "use_dynamic_shifting": False}))
    family, pipe, runtime = loaded(folder), pipeline(folder), Runtime(CPU, "fp32")
    prompt = replace(PROMPT, solver=None, guidance=None, steps=4)
    ours = next(paint.paint(family, runtime, [prompt], paint.encode_prompts(family, runtime, [prompt])))
    size = {"width": 32, "height": 24}
    latents = pipe(
        prompt.text, **size, num_inference_steps=4, guidance_scale=3.5, generator=torch.Generator().manual_seed(11),
        output_type="latent", max_sequence_length=512,
    ).images  # fmt: skip
    latents = pipe._unpack_latents(latents, **size, vae_scale_factor=pipe.vae_scale_factor)
    with torch.no_grad():
        theirs = pipe.vae.decode(latents / 0.5 + 0.1).sample[0].clamp(-1, 1)
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_painted_pictures_are_the_pipelines(unet: Path, tmp_path: Path, kind: str):
    folder = unet
    model = tiny.build(tmp_path / "m", kind, family=folder.parent.name)
    family, runtime, pipe = loaded(model), Runtime(CPU, "fp32"), pipeline(model)
    for solver, scheduler in SCHEDULERS.items():
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


@torch.no_grad()
def test_a_single_file_is_the_model(folder: Path, tmp_path: Path):
    save_file(as_single_file(folder, folder.parent.name), tmp_path / "one.safetensors")
    family = loaded(tmp_path / "one.safetensors", folder)
    assert family.base.family == folder.parent.name
    assert torch.equal(prediction(family), prediction(loaded(folder)))


@pytest.mark.long
@torch.no_grad()
def test_from_single_file_to_single_file(folder: Path, tmp_path: Path):
    """The same names, tensors and dtypes; also of what no part of ours holds, save the averaged weights of former training."""
    state = as_single_file(folder, folder.parent.name) | {"betas": torch.linspace(0, 1, 1000), "v_pred": torch.zeros(0)}
    if folder.parent.name == "sd2":  # whose files hold one layer more than is used
        last = {k: v for k, v in state.items() if ".resblocks.1." in k}
        state |= {k.replace(".resblocks.1.", ".resblocks.2."): v + 1 for k, v in last.items()}
    save_file(state | {"model_ema.decay": torch.tensor(0.5)}, tmp_path / "one.safetensors", {"modelspec.title": "one"})
    family = loaded(tmp_path / "one.safetensors", folder)
    for part in ("vae", "text"):
        family.free(part)  # as after caching: they are loaded for saving
    family.save_file(tmp_path / "two.safetensors", torch.float32, {"format": "pt"})
    again = load_file(tmp_path / "two.safetensors")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[k], v) and again[k].dtype == v.dtype for k, v in state.items())
    family.save_file(tmp_path / "half.safetensors", torch.float16, {})
    half = loaded(tmp_path / "half.safetensors", folder)
    assert (prediction(half) - prediction(loaded(folder))).abs().max() < 0.02


_OWN_FILES = {"vae": "vae", "text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5"}


@torch.no_grad()
def test_parts_in_files_of_their_own(flow: Path, tmp_path: Path):
    """The transformer alone as Black Forest Labs writes it, and the rest as ComfyUI's users have it; or as diffusers has it."""
    name, states = flow.parent.name, in_folder(flow, flow.parent.name)
    options = _OWN_FILES if name == "sd3" else _OWN_FILES | {"text_encoder_2": "t5"}
    files = {options[part]: tmp_path / f"{part}.safetensors" for part in states if part != "transformer"}
    expected = prediction(loaded(flow))
    for is_diffusers in (False, True):
        for part, state in states.items():
            own = state if is_diffusers and part != "transformer" else as_file(name, {part: state}, {part: ""})
            save_file(own, tmp_path / f"{part}.safetensors")
        base = recognise(str(tmp_path / "transformer.safetensors"), config=flow, files=files)
        assert base.family == name and base.others.keys() == states.keys() - {"transformer"}
        family = families.make(base)
        for part in ("text", "denoiser", "vae"):
            family.load(part, torch.float32, CPU)
        assert torch.equal(prediction(family), expected)
    family.save_file(tmp_path / "out.safetensors", torch.float32, {})  # only what the source held
    assert load_file(tmp_path / "out.safetensors").keys() == load_file(tmp_path / "transformer.safetensors").keys()


@torch.no_grad()
def test_numbers_scaled_into_8_bits_are_read(flow: Path, tmp_path: Path):
    """ComfyUI's files: weights in float8, and for each layer a scale; beside them whole layers."""
    state = as_single_file(flow, flow.parent.name)
    stored = dict(state)
    for name, value in state.items():
        if name.endswith(".weight") and value.ndim == 2 and "blocks." in name:
            scale = value.abs().max() / 448
            stored[name] = (value / scale).to(torch.float8_e4m3fn)
            stored[name.removesuffix("weight") + "scale_weight"] = scale
    stored["model.diffusion_model.scaled_fp8"] = torch.zeros(2)
    save_file(stored, tmp_path / "one.safetensors")
    family = loaded(tmp_path / "one.safetensors", flow)
    exact, found = prediction(loaded(flow)), prediction(family)
    assert 0 < (found - exact).abs().max() < 0.1 * exact.abs().max()
    family.save_file(tmp_path / "two.safetensors", torch.float32, {})
    again = load_file(tmp_path / "two.safetensors")
    assert again.keys() == state.keys() and {v.dtype for v in again.values()} == {torch.float32}


@torch.no_grad()
def test_a_folder_of_sd2_becomes_a_file_with_the_layer_that_others_build(tmp_path: Path):
    family = loaded(tiny.build(tmp_path / "m", family="sd2"))
    family.save_file(tmp_path / "one.safetensors", torch.float32, {})
    found = load_file(tmp_path / "one.safetensors")
    layers = {k.split(".resblocks.")[1].split(".")[0] for k in found if ".resblocks." in k}
    assert layers == {"0", "1", "2"}


@torch.no_grad()
def test_a_folder_of_a_flow_becomes_a_file(flow: Path, tmp_path: Path):
    """Of Flux the transformer alone, as others expect it; of Stable Diffusion 3 everything."""
    loaded(flow).save_file(tmp_path / "one.safetensors", torch.float32, {})
    found, states = load_file(tmp_path / "one.safetensors"), in_folder(flow, flow.parent.name)
    alone = (
        as_file("flux", {"transformer": states["transformer"]}, {"transformer": ""}) if "text_encoder_3" not in states else {}
    )
    whole = alone or as_single_file(flow, flow.parent.name)
    assert found.keys() == whole.keys() and all(torch.equal(found[k], v) for k, v in whole.items())


@torch.no_grad()
@pytest.mark.parametrize("absent", [["_3"], [""], ["", "_2"]], ids=["t5", "clip-l", "both clips"])
def test_sd3_without_some_of_its_text_encoders(tmp_path: Path, absent: list[str]):
    model = tiny.build(tmp_path / "m", family="sd3")
    whole = prediction(loaded(model))
    if absent == ["_3"]:
        expected = pipelines_prediction(pipeline(model, text_encoder_3=None, tokenizer_3=None))
    for number in absent:
        shutil.rmtree(model / f"text_encoder{number}")
        shutil.rmtree(model / f"tokenizer{number}")
    family = families.make(recognise(str(model)))
    family._widths = lambda clip: (16, 16) if clip.name == "text_encoder" else (24, 24)
    for part in ("text", "denoiser", "vae"):
        family.load(part, torch.float32, CPU)
    found = prediction(family)
    assert (found - whole).abs().max() > 1e-4
    if absent == ["_3"]:
        assert (found - expected).abs().max() < 1e-5
    cond = family.encode_captions(["a cat"])
    assert cond["text"].shape == (1, 77 + 256, 40) and cond["pooled"].shape == (1, 40)
    missing = {"_3": cond["text"][:, 77:], "": cond["text"][:, :77, :16], "_2": cond["text"][:, :77, 16:40]}
    for number, part in missing.items():
        assert bool(part.any()) == (number not in absent)
    family.save(tmp_path / "out", torch.float32)
    again = recognise(str(tmp_path / "out"))
    assert again.absent == family.base.absent


def test_diffusers_reads_the_single_file(folder: Path, tmp_path: Path):
    """Its converters are an independent opinion on the original layout's names."""
    if folder.parent.name == "flux":
        pytest.skip("its converter knows Flux's full width only; see the test of Flux's order")
    save_file(as_single_file(folder, folder.parent.name), tmp_path / "one.safetensors")
    family = loaded(folder)
    kind = UNet2DConditionModel if (folder / "unet").exists() else SD3Transformer2DModel
    for model, cls, part in ((family.denoiser, kind, family.denoiser_folder), (family.vae, AutoencoderKL, "vae")):
        theirs = cls.from_single_file(str(tmp_path / "one.safetensors"), config=str(folder), subfolder=part).state_dict()
        own = model.state_dict()
        assert own.keys() == theirs.keys() and all(torch.equal(own[k], theirs[k]) for k in own)


def test_diffusers_reads_fluxs_layers_in_our_order():
    """At full width, each row reduced to one number that tells it from the others."""
    with torch.device("meta"):
        shapes = FluxTransformer2DModel(guidance_embeds=True, num_layers=2, num_single_layers=2).state_dict()
    rng = torch.Generator().manual_seed(0)
    own = {name: torch.rand(len(t), *[1] * (t.ndim - 1), generator=rng) for name, t in shapes.items()}
    theirs = convert_flux_transformer_checkpoint_to_diffusers(as_file("flux", {"transformer": own}, {"transformer": ""}))
    assert own.keys() == theirs.keys() and all(torch.equal(own[k], theirs[k]) for k in own)


def away_from_zero(adapter: LayerAdapter) -> None:
    rng = torch.Generator().manual_seed(2)
    for _, layer in adapter.layers.values():
        for p in layer.parameters():
            p.add_(torch.randn(p.shape, generator=rng) * 0.1)


@torch.no_grad()
def test_a_lora_of_every_layer_works_in_diffusers(folder: Path, tmp_path: Path):
    if folder.parent.name == "sd3":
        pytest.skip("diffusers does not read kohya's files for Stable Diffusion 3")
    family, is_flux = loaded(folder), folder.parent.name == "flux"
    adapter = LayerAdapter(Lora(rank=3, alpha=2.0, conv_rank=None if is_flux else 2, text_encoder=not is_flux))
    adapter.attach(family, 1)
    before = prediction(family)
    away_from_zero(adapter)
    # diffusers reads `linear1` at Flux's full width only
    narrow = {name: layer for name, (_, layer) in adapter.layers.items() if "_linear1." in name}
    for layer in narrow.values():
        layer.lora_up.zero_()
    expected = prediction(family)
    assert (expected - before).abs().max() > 0.01
    state = {k: v for k, v in adapter.state_dict().items() if not k.startswith(tuple(narrow))}
    save_file({k: v.contiguous() for k, v in joined(state).items()}, tmp_path / "lora.safetensors")
    pipe = pipeline(folder)
    pipe.load_lora_weights(tmp_path / "lora.safetensors")
    assert (pipelines_prediction(pipe) - expected).abs().max() < 1e-5
    adapter.detach()
    assert torch.equal(prediction(family), before)


@pytest.mark.long
@torch.no_grad()
def test_a_lora_in_diffusers_names_works_there_and_comes_back(folder: Path, tmp_path: Path):
    family = loaded(folder)
    conv_rank = None if family.denoiser_folder == "transformer" else 2
    adapter = LayerAdapter(Lora(rank=3, alpha=2.0, conv_rank=conv_rank, text_encoder=True))
    adapter.attach(family, 1)
    away_from_zero(adapter)
    expected = prediction(family)
    state = adapter.exported("diffusers")
    assert {n.rpartition(".lora_")[2] for n in state} == {"A.weight", "B.weight"}
    assert {n.split(".")[0] for n in state} == {family.denoiser_folder, *(p.name for p in family.text_parts if not p.is_t5)}
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "lora.safetensors")
    pipe = pipeline(folder)
    pipe.load_lora_weights(tmp_path / "lora.safetensors")
    assert (pipelines_prediction(pipe) - expected).abs().max() < 1e-5
    again = loaded(folder)
    sampling.load_lora(again, tmp_path / "lora.safetensors")
    assert (prediction(again) - expected).abs().max() < 1e-5


@torch.no_grad()
def test_a_lora_file_comes_back(folder: Path, tmp_path: Path):
    """What was written is read, by the painter too, and gives the same prediction: stacked layers and all."""
    family = loaded(folder)
    adapter = LayerAdapter(Lora(rank=3, alpha=2.0, text_encoder=True))
    adapter.attach(family, 1)
    away_from_zero(adapter)
    expected = prediction(family)
    save_file({k: v.contiguous() for k, v in joined(adapter.state_dict()).items()}, tmp_path / "lora.safetensors")
    assert {k.partition(".")[2] for k in load_file(tmp_path / "lora.safetensors")} == {
        "lora_down.weight",
        "lora_up.weight",
        "alpha",
    }
    again = loaded(folder)
    sampling.load_lora(again, tmp_path / "lora.safetensors")
    assert torch.equal(prediction(again), expected)


@torch.no_grad()
def test_stacked_layers_that_were_trained_as_one_are_read(flow: Path):
    """kohya's trainer adapts query, key and value as one layer: they share the down matrix, and the change is the same."""
    family = loaded(flow)
    targets = [t for t in family.adapter_targets(convolutions=False) if t.piece.isdigit()]
    in_file = targets[0].in_file
    own = sorted((t for t in targets if t.in_file == in_file), key=lambda t: t.piece)
    outputs = [t.module.weight.shape[0] for t in own]
    up, down = torch.randn(sum(outputs), 4), torch.randn(4, own[0].module.weight.shape[1])
    state = {f"{in_file}.lora_up.weight": up, f"{in_file}.lora_down.weight": down, f"{in_file}.alpha": torch.tensor(2.0)}
    found = parted(state, targets)
    whole = torch.cat(
        [found[f"{in_file}.{i}.lora_up.weight"] @ found[f"{in_file}.{i}.lora_down.weight"] for i in range(len(own))]
    )
    assert torch.equal(whole, up @ down) and {float(found[f"{in_file}.{i}.alpha"]) for i in range(len(own))} == {2.0}


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
    for part, (prefix, rule) in LAYOUTS[name].items():
        state = models[part].state_dict()
        for own, place in rule(state).items():
            there, shape = prefix + place.name, list(state[own].shape)
            shape += [1, 1] if place.lies == "pointwise" and len(shape) == 2 else []
            out[there] = [out[there][0] + shape[0], *shape[1:]] if there in out else shape
    return out


def test_sdxls_original_names_are_the_published_ones():
    lines = sorted(f"{name} {shape}" for name, shape in originals("sdxl").items())
    assert lines == (GOLDEN / "sdxl_original_keys.txt").read_text(encoding="utf-8").splitlines()  # sd-mecha's `sdxl-sgm`


@pytest.mark.parametrize(
    ("name", "rule", "make"),
    [
        ("flux", flux.transformer_names, lambda: FluxTransformer2DModel(guidance_embeds=True)),
        (
            "sd3",
            sd3.transformer_names,
            lambda: SD3Transformer2DModel(
                num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
            ),
        ),
    ],
)
def test_a_transformers_original_names_are_the_published_ones(name: str, rule: Names, make: Callable[[], nn.Module]):
    with torch.device("meta"):
        state = make().state_dict()
    found = dict[str, list[int]]()
    for own, place in rule(state).items():
        there, shape = place.name, list(state[own].shape)
        found[there] = [found[there][0] + shape[0], *shape[1:]] if there in found else shape
    lines = sorted(f"{there} {shape}" for there, shape in found.items())
    assert lines == (GOLDEN / f"{name}_original_keys.txt").read_text(encoding="utf-8").splitlines()  # sd-mecha's lists


def test_a_name_without_a_place_is_refused():
    for rule in (flux.transformer_names, sd3.transformer_names, openclip.openclip_names):
        with pytest.raises(ValueError, match=r"has no place for 'odd\.weight'"):
            rule(["odd.weight"])


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
    adapter = LayerAdapter(Lora(rank=8, text_encoder=True))
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
    adapter = LayerAdapter(Lora(rank=8, text_encoder=True))
    adapter.attach(full_size("sd2"), 0)
    found = {k: list(v.shape) for k, v in adapter.state_dict().items()}
    assert len({k.partition(".")[0] for k in found}) == 192 + 23 * 6
    assert found["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"] == [8, 320]  # linear, unlike SD 1's
    assert found["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"] == [8, 1024]
    assert found["lora_te_text_model_encoder_layers_22_mlp_fc1.lora_up.weight"] == [4096, 8]


def test_convolutions_of_sdxl_have_kohyas_names():
    adapter = LayerAdapter(Lora(rank=8, conv_rank=4))
    adapter.attach(full_size("sdxl"), 0)
    names = {k.partition(".")[0] for k in adapter.state_dict()}
    for name in ("input_blocks_1_0_in_layers_2", "input_blocks_1_0_out_layers_3", "input_blocks_1_0_emb_layers_1",
                 "input_blocks_4_0_skip_connection", "input_blocks_3_0_op", "output_blocks_2_2_conv"):  # fmt: skip
        assert f"lora_unet_{name}" in names, name


@pytest.mark.parametrize(("name", "count"), [("flux", 19 * 10 + 38 * 3), ("sd3", 24 * 10 - 3)])
def test_lora_names_of_a_flow_are_kohyas(name: str, count: int, tmp_path: Path):
    """At full size, planned without memory from a file's header alone: every matrix of every block, under the file's names."""
    golden = dict(line.split(" ", 1) for line in (GOLDEN / f"{name}_original_keys.txt").read_text().splitlines())
    shapes = {key: tuple(json.loads(shape)) for key, shape in golden.items()}
    parts_beside(tmp_path, 16)
    tiny._t5_tokenizer().save_pretrained(tmp_path)
    family: Any = families.make(recognise(str(single_file(tmp_path / "x.safetensors", shapes))))
    family.denoiser = family.empty()["transformer"]
    adapter = LayerAdapter(Lora(rank=1))
    adapter.attach(family, 0)
    found = {k.partition(".")[0]: v.shape for k, v in adapter.exported("kohya").items() if k.endswith("lora_up.weight")}
    expected = {
        "lora_unet_" + key.removesuffix(".weight").replace(".", "_"): shape[0]
        for key, shape in shapes.items()
        if "blocks." in key and len(shape) == 2
    }
    assert {k: v[0] for k, v in found.items()} == expected and len(found) == count
