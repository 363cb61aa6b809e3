"""Single-file checkpoints in CompVis' layout: names, loading offline, what is said of files that are none."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

import tiny
from limner.errors import UserError
from limner.formats.base import recognise
from limner.formats.layout import There
from limner.formats.original import TEXT, UNET, VAE, text_names, unet_names, vae_names
from limner.models import family as families
from limner.models.parts import CONFIGS

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[1] / "golden" / "sd1_original_keys.txt"  # sd-mecha's manifest `sd1-ldm`, without position_ids

Names = Callable[[Iterable[str]], dict[str, There]]
PARTS: tuple[tuple[str, str, Names, str], ...] = (
    ("unet", "diffusion_pytorch_model", unet_names, UNET),
    ("vae", "diffusion_pytorch_model", vae_names, VAE),
    ("text_encoder", "model", text_names, TEXT),
)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError(f"a connection was tried: {args[1:]}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def original(folder: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """A diffusers folder's tensors as they stand in a single file, with the things such files hold besides."""
    state = {}
    for part, file, names, prefix in PARTS:
        weights = load_file(folder / part / f"{file}.safetensors")
        for name, there in names(weights).items():
            value = weights[name].to(dtype or weights[name].dtype)
            state[prefix + there.name] = value[..., None, None] if is_linear_there(there, value) else value
    state["betas"] = torch.linspace(0, 1, 1000)
    state["model_ema.num_updates"] = torch.tensor(3)
    state[f"{TEXT}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return state


def is_linear_there(there: There, value: Tensor) -> bool:
    return there.lies == "pointwise" and value.ndim == 2


def write(state: dict[str, Tensor], path: Path) -> str:
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return str(path)


def loaded(source: str, config: Path | None = None):
    family = families.make(recognise(source, config=config))
    for part in ("text", "vae", "denoiser"):
        family.load(part, torch.float32, CPU)
    return family


def models(family) -> list[nn.Module]:
    return [family.denoiser, family.vae, family.text_encoders["text_encoder"]]


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_and_shapes_of_the_full_model_are_the_originals():
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGS / "sd1", subfolder="unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(CONFIGS / "sd1", subfolder="vae"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(CONFIGS / "sd1" / "text_encoder"))
    lines = []
    for model, (_, _, names, prefix) in zip((unet, vae, text), PARTS, strict=True):
        state = model.state_dict()
        for own, there in names(state).items():
            shape = [*state[own].shape, 1, 1] if is_linear_there(there, state[own]) else list(state[own].shape)
            lines.append(f"{prefix}{there.name} {shape}")
    assert sorted(lines) == GOLDEN.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 686 + 248 + 196


def test_names_follow_the_shape_of_the_model():
    """Where blocks differ in their layers, and where no attention stands before an upsampling."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(8, 16, 24), layers_per_block=(1, 2, 3), norm_num_groups=4, cross_attention_dim=16,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=2,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(4, 8, 8), layers_per_block=3, norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        )  # fmt: skip
    found = unet_names(unet.state_dict())
    assert len(set(found.values())) == len(found) == len(unet.state_dict())
    # input: 0 conv | 1 layer, 2 down | 3 4 layers, 5 down | 6 7 8 layers; output: 0-3 with up | 4-6 with up | 7-8
    for name, there in {
        "down_blocks.0.attentions.0.norm.weight": "input_blocks.1.1.norm.weight",
        "down_blocks.0.downsamplers.0.conv.bias": "input_blocks.2.0.op.bias",
        "down_blocks.1.resnets.1.conv1.weight": "input_blocks.4.0.in_layers.2.weight",
        "down_blocks.2.attentions.2.proj_in.bias": "input_blocks.8.1.proj_in.bias",
        "mid_block.resnets.1.time_emb_proj.weight": "middle_block.2.emb_layers.1.weight",
        "up_blocks.0.resnets.3.conv_shortcut.weight": "output_blocks.3.0.skip_connection.weight",
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.3.2.conv.weight",
        "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.6.1.conv.weight",
        "up_blocks.2.attentions.1.norm.weight": "output_blocks.8.1.norm.weight",
    }.items():
        assert found[name] == There(there), name
    assert not any(n.name.startswith("output_blocks.9") for n in found.values())

    found = vae_names(vae.state_dict())
    assert len(set(found.values())) == len(found) == len(vae.state_dict())
    assert found["decoder.up_blocks.0.resnets.3.norm2.bias"] == There("decoder.up.2.block.3.norm2.bias")
    assert found["decoder.up_blocks.1.upsamplers.0.conv.bias"] == There("decoder.up.1.upsample.conv.bias")
    assert found["encoder.mid_block.attentions.0.to_out.0.weight"] == There("encoder.mid.attn_1.proj_out.weight", "pointwise")
    assert found["encoder.mid_block.attentions.0.to_q.bias"].lies == "same"


def test_a_name_without_a_place_is_refused():
    odd = "mid_block.resnets.0.odd.bias"
    for names, name in ((unet_names, "controlnet.weight"), (unet_names, odd), (vae_names, odd), (vae_names, "conv.bias")):
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            names([name])


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("prediction", "dtype"), [("epsilon", torch.float32), ("v_prediction", torch.float16)])
def test_a_single_file_is_the_folder(tmp_path, prediction, dtype):
    folder = tiny.build(tmp_path / "model", prediction)
    source = write(original(folder, dtype), tmp_path / "one.safetensors")
    for part, file, *_ in PARTS:
        path = folder / part / f"{file}.safetensors"
        save_file({k: v.to(dtype) for k, v in load_file(path).items()}, path, {"format": "pt"})
    one, many = loaded(source, folder), loaded(str(folder))
    for model, expected in zip(models(one), models(many), strict=True):
        found = model.state_dict()
        assert found.keys() == expected.state_dict().keys()
        for name, value in expected.state_dict().items():
            assert found[name].dtype == torch.float32 and torch.equal(found[name], value), name
    facts = ("family", "prediction", "resolution_px", "bucket_step_px", "latent_factor")
    assert [getattr(one.base, f) for f in facts] == [getattr(many.base, f) for f in facts]
    assert (one.base.layout, one.base.config, one.base.prediction) == ("file", folder, prediction)
    assert one.scheduler == many.scheduler and torch.equal(one.process.alphas_cumprod, many.process.alphas_cumprod)
    with torch.no_grad():
        rng = torch.Generator().manual_seed(0)
        noisy, t = torch.randn(2, 4, 8, 12, generator=rng), torch.tensor([3, 700])
        pixels = torch.rand(1, 3, 16, 16, generator=rng) * 2 - 1
        cond, expected = (f.encode_captions(["a photo of a cat", ""]) for f in (one, many))
        assert torch.equal(cond["text"], expected["text"])
        assert torch.equal(one.predict(noisy, t, cond), many.predict(noisy, t, expected))
        assert torch.equal(one.encode_pixels(pixels)[0], many.encode_pixels(pixels)[0])
        assert torch.equal(one.decode_latents(noisy), many.decode_latents(noisy))


@pytest.mark.usefixtures("no_network")
def test_caches_depend_on_the_configuration(tiny_model, tmp_path):
    source = write(original(tiny_model), tmp_path / "one.safetensors")
    family = families.make(recognise(source, config=tiny_model))
    assert family.part_files("vae") == [tiny_model / "vae" / "config.json", tmp_path / "one.safetensors"]
    assert tiny_model / "text_encoder" / "config.json" in family.part_files("text")
    assert not {f.suffix for f in family.part_files("denoiser")[:-1]} - {".json"}


def test_a_pickled_file_is_the_safetensors_file(tiny_model, tmp_path):
    state = original(tiny_model, torch.float16)
    torch.save({"state_dict": state, "global_step": 7}, tmp_path / "one.ckpt")
    one, other = loaded(str(tmp_path / "one.ckpt"), tiny_model), loaded(write(state, tmp_path / "one.safetensors"), tiny_model)
    for model, expected in zip(models(one), models(other), strict=True):
        assert all(torch.equal(v, expected.state_dict()[k]) for k, v in model.state_dict().items())
    one.save_file(tmp_path / "two.safetensors", torch.float16, {})
    again = load_file(tmp_path / "two.safetensors")
    kept = {k: v for k, v in state.items() if not k.startswith("model_ema.")}
    assert again.keys() == kept.keys() and all(torch.equal(again[k], v) for k, v in kept.items())


# --- what is no base model --------------------------------------------------------------------------------------------


def refused(source: str, config: Path | None) -> str:
    with pytest.raises(UserError) as caught:
        loaded(source, config)
    assert len(caught.value.findings) == 1
    return str(caught.value)


def test_files_that_are_no_base_model(tiny_model, tmp_path):
    state, path = original(tiny_model), tmp_path / "one.safetensors"
    lora = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(2, 8)}
    wide = state | {f"{UNET}input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3)}
    cases = {
        "the Stable Diffusion 1 model holds no VAE.": {k: v for k, v in state.items() if not k.startswith(VAE)},
        "the Stable Diffusion 1 model holds no text encoder.": {k: v for k, v in state.items() if not k.startswith(TEXT)},
        "the Stable Diffusion 1 model holds no VAE and no text encoder.": {
            k: v for k, v in state.items() if k.startswith(UNET)
        },
        "is a VAE and nothing else,": {k: v for k, v in state.items() if k.startswith(VAE)},
        "is a LoRA,": lora,
        "is no checkpoint that Limner recognises,": {"a": torch.zeros(2)},
        "is an inpainting or damaged Stable Diffusion 1 model,": wide,
    }
    for said, content in cases.items():
        message = refused(write(content, path), tiny_model)
        assert message.startswith("error: model.base: one.safetensors") and said in message, message
    assert "is a LoRA," in refused(write(lora, path), None)
    assert "text width 16 instead of 768 (sd1)" in refused(write(state, path), None)


@pytest.mark.parametrize("size", [0, 7, 500, -1])
def test_truncated_files(tiny_model, tmp_path, size):
    path = tmp_path / "one.safetensors"
    write(original(tiny_model), path)
    path.write_bytes(path.read_bytes()[:size])
    for config in (tiny_model, None):
        assert refused(str(path), config).startswith("error: model.base: one.safetensors is not a whole safetensors file: ")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "part"),
    [
        (f"{UNET}middle_block.0.in_layers.2.weight", "denoiser"),
        (f"{VAE}decoder.mid.attn_1.k.weight", "vae"),
        (f"{TEXT}text_model.encoder.layers.1.mlp.fc2.bias", "text"),
    ],
)
def test_a_lacking_or_misshapen_tensor_is_an_error(tiny_model, tmp_path, name, part):
    state = original(tiny_model)
    for change in ({}, {name: state[name][:1]}):
        source = write({k: v for k, v in state.items() if k != name} | change, tmp_path / "one.safetensors")
        message = refused(source, tiny_model)
        assert message.startswith(f"error: model.base: the {part} of {source} cannot be loaded: "), message


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("lacking", ["unet", "vae", "text_encoder"])
def test_a_configuration_that_is_not_whole(tiny_model, tmp_path, lacking):
    source = write(original(tiny_model), tmp_path / "one.safetensors")
    shutil.copytree(tiny_model, tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "config" / lacking / "config.json").unlink()
    message = refused(source, tmp_path / "config")
    assert message.startswith("error: model.config: ") and f"{lacking}/config.json is missing" in message
