"""The family of a LoRA file, by headers as the trainers write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

from limner.errors import UserError
from limner.formats.header import Header, TensorInfo
from limner.formats.known import FAMILIES
from limner.formats.lora_file import family_of_lora, require_family
from limner.formats.metadata import ARCHITECTURES, BASE_VERSIONS
from limner.models.parts import CONFIGS

GOLDEN = Path(__file__).parents[1] / "golden" / "lora_keys_sd1.txt"
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def header(shapes: Mapping[str, tuple[int, ...]], **metadata: str) -> Header:
    return Header({name: TensorInfo("F16", shape) for name, shape in shapes.items()}, metadata)


def kohya(*layers: tuple[str, int, int]) -> dict[str, tuple[int, ...]]:
    """(name, takes, gives) of layers, as kohya writes them with rank 8."""
    out = dict[str, tuple[int, ...]]()
    for name, takes, gives in layers:
        out |= {f"{name}.alpha": (), f"{name}.lora_down.weight": (8, takes), f"{name}.lora_up.weight": (gives, 8)}
    return out


def unet(family: str) -> Any:
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGS / family / "unet"))


def flow(family: str, **options: Any) -> Any:
    """Two blocks of each kind, as wide as the real ones."""
    with torch.device("meta"):
        if family == "flux":
            return FluxTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=True)
        return SD3Transformer2DModel(num_layers=2, joint_attention_dim=4096, pooled_projection_dim=2048, **options)


def peft(model: Any, prefix: str, targets: list[str] = ATTENTION, **options: Any) -> dict[str, tuple[int, ...]]:
    """What diffusers' training scripts write of a real model."""
    with torch.device("meta"):
        config = LoraConfig(r=8, target_modules=targets, **options)
        state = get_peft_model_state_dict(inject_adapter_in_model(config, model), adapter_name="default")
    return {f"{prefix}{name}": tuple(tensor.shape) for name, tensor in state.items()}


SD1_TEXT = ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 768, 768)
SD1_ATTENTION = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
SDXL_ATTENTION = "lora_unet_input_blocks_4_1_transformer_blocks_1"
KOHYA: dict[str, tuple[str | None, dict[str, tuple[int, ...]]]] = {
    "SD 1": ("sd1", kohya(SD1_TEXT, (f"{SD1_ATTENTION}_attn1_to_k", 320, 320), (f"{SD1_ATTENTION}_attn2_to_k", 768, 320))),
    "SD 1, text encoder only": ("sd1", kohya(SD1_TEXT, ("lora_te_text_model_encoder_layers_0_mlp_fc1", 768, 3072))),
    "SD 2": ("sd2", kohya((f"{SD1_ATTENTION}_attn2_to_v", 1024, 320))),
    "SD 2, text encoder only": ("sd2", kohya(("lora_te_text_model_encoder_layers_22_self_attn_q_proj", 1024, 1024))),
    "SDXL": ("sdxl", kohya((f"{SDXL_ATTENTION}_attn2_to_k", 2048, 640))),
    "SDXL in diffusers' names": ("sdxl", kohya((f"{SD1_ATTENTION}_attn2_to_k", 2048, 640))),
    "SDXL without its attention to text": ("sdxl", kohya((f"{SDXL_ATTENTION}_attn1_to_k", 640, 640))),
    "SDXL, convolutions": ("sdxl", {"lora_unet_input_blocks_1_0_in_layers_2.lora_down.weight": (8, 320, 3, 3)}),
    "SDXL, LoHa": (
        "sdxl",
        {f"{SDXL_ATTENTION}_attn2_to_k.hada_w1_a": (640, 8), f"{SDXL_ATTENTION}_attn2_to_k.hada_w1_b": (8, 2048)},
    ),
    "SDXL, LoKr": ("sdxl", {f"{SDXL_ATTENTION}_attn2_to_k.lokr_w1": (8, 8), f"{SDXL_ATTENTION}_attn2_to_k.lokr_w2": (80, 256)}),
    "SD 1, LoHa": ("sd1", {f"{SD1_ATTENTION}_attn2_to_k.hada_w1_b": (8, 768)}),
    "SD 3": ("sd3", kohya(("lora_unet_joint_blocks_0_context_block_attn_qkv", 1536, 4608))),
    "SD 3.5 large": ("sd3", kohya(("lora_unet_joint_blocks_37_x_block_mlp_fc2", 9728, 2432))),
    "Flux": (
        "flux",
        kohya(
            ("lora_unet_double_blocks_18_img_attn_qkv", 3072, 9216),
            ("lora_unet_double_blocks_0_txt_mlp_2", 12288, 3072),
            ("lora_unet_single_blocks_37_linear2", 15360, 3072),
            ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 768, 768),
        ),
    ),
    "Flux, single blocks": ("flux", kohya(("lora_unet_single_blocks_3_linear1", 3072, 21504))),
    "Flux, LoKr": ("flux", {"lora_unet_double_blocks_0_img_attn_qkv.lokr_w1": (8, 8)}),
    "Flux of XLabs": ("flux", {"double_blocks.0.processor.qkv_lora1.down.weight": (16, 3072)}),
    "Flux of SimpleTuner": ("flux", {"lycoris_single_transformer_blocks_3_attn_to_q.lokr_w1": (8, 8)}),
    "SDXL's refiner": (None, kohya((f"{SDXL_ATTENTION}_attn2_to_k", 1280, 640))),
    "SDXL, text encoders only": (None, kohya(("lora_te2_text_model_encoder_layers_31_mlp_fc1", 1280, 5120))),
    "HunyuanVideo": (None, kohya(("lora_unet_single_blocks_39_linear1", 3072, 21504))),
    "HunyuanImage": (None, kohya(("lora_unet_double_blocks_0_img_attn_qkv", 3584, 10752))),
    "Flux.2": (None, kohya(("lora_unet_double_blocks_0_img_attn_qkv", 6144, 18432))),
    "Lumina": (None, kohya(("lora_unet_layers_0_attention_qkv", 2304, 6912))),
    "Anima": (
        None,
        kohya(("lora_unet_blocks_0_cross_attn_k_proj", 1024, 2048), ("lora_te_layers_0_self_attn_q_proj", 1024, 2048)),
    ),
    "AuraFlow": (None, {"transformer.joint_transformer_blocks.0.attn.to_q.lora_A.weight": (8, 3072)}),
    "Qwen": (None, {f"transformer.transformer_blocks.{i}.attn.to_q.lora_A.weight": (8, 3072) for i in range(60)}),
    "PixArt": (None, {"transformer.transformer_blocks.0.attn2.to_k.lora_A.weight": (8, 1152)}),
    "LTX": (None, {"transformer.transformer_blocks.0.attn2.to_k.lora_A.weight": (8, 2048)}),
    "no LoRA": (None, {"a": (1,)}),
    "nothing": (None, {}),
    "a down matrix without a width": (None, {f"{SD1_ATTENTION}_attn2_to_k.lora_down.weight": ()}),
    "a number that is none": (None, {f"lora_unet_double_blocks_{'9' * 5000}_img_attn_qkv.lora_down.weight": (8, 3072)}),
}


@pytest.mark.parametrize("name", KOHYA)
def test_names_of_kohya_and_others(name: str) -> None:
    family, shapes = KOHYA[name]
    assert family_of_lora(header(shapes)) == family


def test_the_golden_file_of_kohya() -> None:
    lines = (line.partition(" ") for line in GOLDEN.read_text().splitlines())
    shapes = {name: tuple(json.loads(shape)) for name, _, shape in lines}
    assert len(shapes) == 792 and family_of_lora(header(shapes)) == "sd1"


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_what_diffusers_writes_of_a_unet(family: str) -> None:
    shapes = peft(unet(family), "unet.")
    assert len(shapes) >= 256 and all(".lora_A.weight" in n or ".lora_B.weight" in n for n in shapes)
    assert family_of_lora(header(shapes)) == family
    older = {n.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."): s for n, s in shapes.items()}
    assert family_of_lora(header(older)) == family
    oldest = {
        n.removeprefix("unet.").replace(".to_", ".processor.to_").replace(".lora.", "_lora."): s for n, s in older.items()
    }
    assert any(n.endswith("attn2.processor.to_k_lora.down.weight") for n in oldest)
    assert family_of_lora(header(oldest)) == family


FLOWS: dict[str, tuple[str, Callable[[], Any]]] = {
    "Flux": ("flux", lambda: flow("flux")),
    "SD 3": ("sd3", lambda: flow("sd3", num_attention_heads=24, caption_projection_dim=1536)),
    "SD 3.5 large": ("sd3", lambda: flow("sd3", num_attention_heads=38, caption_projection_dim=2432, qk_norm="rms_norm")),
    "SD 3.5 medium": (
        "sd3",
        lambda: flow(
            "sd3", num_attention_heads=24, caption_projection_dim=1536, dual_attention_layers=(0, 1), qk_norm="rms_norm"
        ),
    ),
}


@pytest.mark.parametrize("name", FLOWS)
def test_what_diffusers_writes_of_a_transformer(name: str) -> None:
    family, make = FLOWS[name]
    every = [*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff.net.0.proj", "ff.net.2"]
    every += ["ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "norm1.linear"]
    for targets in (ATTENTION, every):
        shapes = peft(make(), "transformer.", targets, exclude_modules=["proj_out"])
        assert family_of_lora(header(shapes)) == family
        assert family_of_lora(header({f"base_model.model.{n[12:]}": s for n, s in shapes.items()})) == family
    doubles = {n: s for n, s in shapes.items() if "single" not in n}
    assert family_of_lora(header(doubles)) == family


@pytest.mark.parametrize("family", FAMILIES)
def test_metadata_where_the_tensors_do_not_tell(family: str) -> None:
    small = kohya((f"{SD1_ATTENTION}_attn2_to_k", 16, 8), (f"{SD1_ATTENTION}_attn1_to_k", 8, 8))
    assert family_of_lora(header(small)) is None
    assert family_of_lora(header(small, ss_base_model_version=BASE_VERSIONS[family])) == family
    for (own, _), architecture in ARCHITECTURES.items():
        if own == family:
            assert family_of_lora(header(small, **{"modelspec.architecture": f"{architecture}/lora"})) == family


SAID = {
    "sd_v2_v": "sd2", "sd_1.5": "sd1", "sd_2.1": "sd2", "sdxl_base_v0-9": "sdxl", "sdxl_1.0": "sdxl", "Flux.1-dev": "flux",
    "flux-1-schnell": "flux", "sd3_m": "sd3", "chroma": None, "flux-2-dev": None, "lumina-2": None, "": None, "None": None,
}  # fmt: skip


@pytest.mark.parametrize("said", SAID)
def test_what_metadata_say(said: str) -> None:
    assert family_of_lora(header({}, ss_base_model_version=said)) == SAID[said]


def test_tensors_are_believed_rather_than_metadata() -> None:
    sdxl, flux = KOHYA["SDXL"][1], KOHYA["Flux"][1]
    assert family_of_lora(header(sdxl, ss_base_model_version="sd_v1")) == "sdxl"
    assert family_of_lora(header(flux, **{"modelspec.architecture": "flux-1-dev/lora"})) == "flux"
    assert family_of_lora(header(flux, **{"modelspec.architecture": "chroma/lora"})) is None, "as wide as Flux, and no Flux"


def test_another_familys_file_is_refused_in_words() -> None:
    sdxl = header(KOHYA["SDXL"][1])
    require_family(sdxl, "sdxl", "cat.safetensors", "adapter.start")
    require_family(header({}), "sd1", "cat.safetensors", "adapter.start")
    with pytest.raises(UserError) as caught:
        require_family(sdxl, "sd1", "cat.safetensors", "adapter.start")
    [finding] = caught.value.findings
    assert finding.field == "adapter.start"
    assert finding.message == "cat.safetensors is a LoRA for Stable Diffusion XL, the base model is Stable Diffusion 1."
    assert finding.remedy == "Choose a LoRA for Stable Diffusion 1, or a base model that is Stable Diffusion XL."
