"""A base model is recognised from headers; whatever else it is gets its name, never a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from headers import parts_beside, published, single_file
from limner.errors import UserError
from limner.formats.base import Base, recognise
from limner.pocket import MODEL

UNET = "model.diffusion_model."
TO_K = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
FIRST = f"{UNET}input_blocks.0.0.weight"
VAE = "first_stage_model.decoder.conv_in.weight"
TEXT = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
SD1 = {FIRST: (320, 4, 3, 3), TO_K: (320, 768), VAE: (512, 4, 3, 3), TEXT: (49408, 768)}


def refused(source: object, config: Path | None = None, field: str = "model.base") -> str:
    with pytest.raises(UserError) as caught:
        recognise(str(source), config=config)
    [finding] = caught.value.findings
    assert finding.field == field and finding.remedy
    return finding.message


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be broken."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_diffusers_folder(tiny_model: Path) -> None:
    source = str(tiny_model)
    assert recognise(source) == Base(source, tiny_model, "folder", "sd1", "epsilon", 32, 4, 2)
    assert not recognise(source).is_pocket


@pytest.mark.skipif(not (MODEL / "model_index.json").exists(), reason="the pocket model is not in this checkout")
def test_the_pocket_model() -> None:
    assert recognise("pocket").is_pocket


def test_a_folder_that_predicts_v(model: Path) -> None:
    change(model / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert recognise(str(model)).prediction == "v_prediction"
    change(model / "scheduler" / "scheduler_config.json", prediction_type="sample")
    assert "predicts 'sample'" in refused(model)
    (model / "scheduler" / "scheduler_config.json").write_text("[1]")
    assert "is not JSON" in refused(model), "it may have said v"
    (model / "scheduler" / "scheduler_config.json").unlink()
    assert recognise(str(model)).prediction == "epsilon"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_folder_without_a_part(model: Path, part: str) -> None:
    [weights] = (model / part).glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    assert part in refused(model) and "holds no .safetensors file" in refused(model)
    weights.write_bytes(b"half a file")
    assert "not a whole safetensors file" in refused(model)


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "vae/config.json"])
@pytest.mark.parametrize("content", [None, "", "{", "[]", "3"])
def test_a_folder_with_a_damaged_configuration(model: Path, file: str, content: str | None) -> None:
    (model / file).unlink() if content is None else (model / file).write_text(content)
    assert "is missing or is not JSON" in refused(model) or "cannot train" in refused(model)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("unet", {"block_out_channels": 5}),
        ("unet", {"block_out_channels": []}),
        ("vae", {"block_out_channels": "ab"}),
        ("vae", {"block_out_channels": [1] * 99}),
        ("unet", {"sample_size": "x"}),
        ("unet", {"sample_size": []}),
        ("unet", {"sample_size": -3}),
        ("unet", {"sample_size": [64, "x"]}),
        ("unet", {"sample_size": 1e9}),
    ],
)
def test_a_folder_with_an_impossible_configuration(model: Path, file: str, values: dict[str, Any]) -> None:
    change(model / file / "config.json", **values)
    message = refused(model) if values.get("sample_size") != [] else "damaged"
    assert "damaged" in message


def test_folders_of_other_models(model: Path) -> None:
    index = json.loads((model / "model_index.json").read_text())
    change(model / "model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"])
    change(model / "unet" / "config.json", addition_embed_type="text_time")
    assert "text_encoder_2 holds no .safetensors file" in refused(model)
    refiner = {k: v for k, v in index.items() if k != "text_encoder"} | {"text_encoder_2": ["transformers", "x"]}
    (model / "model_index.json").write_text(json.dumps(refiner))
    assert "refiner" in refused(model)
    (model / "model_index.json").write_text(json.dumps(index))
    change(model / "unet" / "config.json", in_channels=9, addition_embed_type=None)
    assert "inpainting" in refused(model)
    (model / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", "transformer": ["diffusers", "x"]}))
    assert "FluxPipeline" in refused(model)


def test_a_whole_single_file(tmp_path: Path) -> None:
    path = single_file(tmp_path / "sd.safetensors", published("sd1"))
    assert recognise(str(path)) == Base(str(path), path, "file", "sd1", "epsilon", 512, 64, 8)
    assert recognise(str(single_file(tmp_path / "xl.safetensors", published("sdxl")))).family == "sdxl"


@pytest.mark.parametrize(
    ("family", "without", "said"),
    [
        ("sd1", "model.diffusion_model.out.2.bias", "1 of the 686 tensors of the UNet are missing"),
        ("sd1", "first_stage_model.quant_conv.bias", "1 of the 248 tensors of the VAE are missing"),
        ("sdxl", "conditioner.embedders.1.model.ln_final.bias", "1 of the 389 tensors of the text encoder 2 are missing"),
        ("flux", "double_blocks.3.img_attn.proj.bias", "1 tensors of double_blocks.3 are missing"),
        ("flux", "single_blocks.37.linear2.weight", "1 tensors of single_blocks.37 are missing"),
        ("sd3", "joint_blocks.5.context_block.mlp.fc1.bias", "1 tensors of joint_blocks.5 are missing"),
    ],
)
def test_a_file_that_lacks_a_tensor(tmp_path: Path, family: str, without: str, said: str) -> None:
    shapes = published(family)
    del shapes[without]
    parts_beside(tmp_path, 16)
    assert said in refused(single_file(tmp_path / "x.safetensors", shapes))


# --- transformers, with their parts in files of their own ---------------------------------------------------------------


def test_flux_with_its_parts_beside_it(tmp_path: Path) -> None:
    files = parts_beside(tmp_path, 16)
    single_file(tmp_path / "t5xxl_fp8.safetensors", {"shared.weight": (32128, 4096)})  # smaller: the other one is taken
    path = single_file(tmp_path / "dev.safetensors", published("flux"))
    base = recognise(str(path))
    assert (base.family, base.prediction, base.takes_guidance, base.guidance) == ("flux", "flow", True, 3.5)
    assert base.others == {"vae": files["vae"], "text_encoder": files["clip_l"], "text_encoder_2": files["t5"]}
    assert base.described["transformer"] == {"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True}
    assert (base.latent_channels, base.bucket_step_px, base.resolution_px, base.t5) == (16, 16, 1024, "text_encoder_2")
    schnell = {k: v for k, v in published("flux", "model.diffusion_model.").items() if ".guidance_in." not in k}
    base = recognise(str(single_file(tmp_path / "schnell.safetensors", schnell)))
    assert (base.takes_guidance, base.guidance) == (False, 1.0)
    assert base.described["scheduler"] == {"shift": 1.0, "use_dynamic_shifting": False}
    fill = published("flux") | {"img_in.weight": (3072, 384)}
    assert "takes more than noisy pictures" in refused(single_file(tmp_path / "fill.safetensors", fill))


@pytest.mark.parametrize("folder", ["diffusion_models", "unet", "checkpoints"])
def test_parts_where_comfyui_keeps_them(tmp_path: Path, folder: str) -> None:
    vae, text = parts_beside(tmp_path / "vae", 16)["vae"], parts_beside(tmp_path / "text_encoders", 16)
    text["vae"].unlink()
    (tmp_path / folder).mkdir()
    base = recognise(str(single_file(tmp_path / folder / "dev.safetensors", published("flux"))))
    assert base.others["text_encoder_2"].name == text["t5"].name and base.others["vae"].name == vae.name
    (tmp_path / "elsewhere").mkdir()  # of no known name: its neighbours are nobody's business
    path = single_file(tmp_path / "elsewhere" / "dev.safetensors", published("flux"))
    assert "the Flux.1 model holds no VAE and no CLIP-L and no T5." in refused(path)


def test_parts_of_other_models_are_not_taken(tmp_path: Path) -> None:
    """Wan's T5 is as wide and larger; of two VAEs nothing tells which belongs to the model."""
    files = parts_beside(tmp_path, 16)
    umt5 = single_file(tmp_path / "umt5_xxl.safetensors", {"shared.weight": (256384, 4096)})
    path = single_file(tmp_path / "dev.safetensors", published("flux"))
    assert recognise(str(path)).others["text_encoder_2"] == files["t5"]
    with pytest.raises(UserError, match="another model's T5"):
        recognise(str(path), files={"t5": umt5})
    single_file(tmp_path / "sd3_vae.safetensors", {"decoder.conv_in.weight": (512, 16, 3, 3)})
    with pytest.raises(UserError, match="both lie beside the model and fit"):
        recognise(str(path))
    assert recognise(str(path), files={"vae": files["vae"]}).others["vae"] == files["vae"]


def test_the_variants_of_sd3(tmp_path: Path) -> None:
    files = parts_beside(tmp_path, 16)
    shapes = published("sd3", "model.diffusion_model.")
    base = recognise(str(single_file(tmp_path / "medium.safetensors", shapes)))
    assert base.others == {
        "vae": files["vae"],
        "text_encoder": files["clip_l"],
        "text_encoder_2": files["clip_g"],
        "text_encoder_3": files["t5"],
    }
    assert base.described["transformer"] == {
        "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192,
        "qk_norm": None, "dual_attention_layers": [],
    }  # fmt: skip
    own = {n.removeprefix("model.diffusion_model."): s for n, s in shapes.items()}
    own |= {f"joint_blocks.{i}.x_block.attn.ln_q.weight": (64,) for i in range(24)}
    own |= {f"joint_blocks.{i}.x_block.attn2.qkv.weight": (4608, 1536) for i in range(13)}
    own |= {"pos_embed": (1, 384 * 384, 1536)}
    found = recognise(str(single_file(tmp_path / "m35.safetensors", own))).described["transformer"]
    assert (found["qk_norm"], found["dual_attention_layers"], found["pos_embed_max_size"]) == ("rms_norm", list(range(13)), 384)


def test_sd3_does_without_some_text_encoders_but_not_all(tmp_path: Path) -> None:
    files = parts_beside(tmp_path, 16)
    path = single_file(tmp_path / "medium.safetensors", published("sd3"))
    files["t5"].unlink()
    files["clip_g"].unlink()
    assert recognise(str(path)).absent == ("text_encoder_2", "text_encoder_3")
    files["clip_l"].unlink()
    assert "holds no CLIP-L and no CLIP-G and no T5" in refused(path)


def test_given_parts(tmp_path: Path, tiny_model: Path) -> None:
    beside, given = parts_beside(tmp_path, 16), parts_beside(tmp_path / "given", 16, "vae.")
    path = single_file(tmp_path / "dev.safetensors", published("flux"))
    base = recognise(str(path), files={"vae": given["vae"]})
    assert base.others["vae"] == given["vae"] and base.others["text_encoder"] == beside["clip_l"]
    for field, files, said in (
        ("vae", {"vae": given["t5"]}, "my t5.safetensors holds no VAE"),
        ("clip_l", {"clip_l": tmp_path}, "is not a file"),
        ("clip_g", {"clip_g": given["clip_g"]}, "Flux.1 models have no such file of their own"),
    ):
        with pytest.raises(UserError) as caught:
            recognise(str(path), files=files)
        assert caught.value.findings[0].field == f"model.{field}" and said in caught.value.findings[0].message
    sd = recognise(str(tiny_model), files={"vae": parts_beside(tmp_path / "sd", 4)["vae"]})
    assert sd.others["vae"].parent.name == "sd"


def test_where_t5s_tokenizer_is_looked_for(tmp_path: Path) -> None:
    files = parts_beside(tmp_path / "text", 16)
    path = single_file(tmp_path / "dev.safetensors", published("flux"))
    given = {k: files[k] for k in ("vae", "clip_l", "t5")}
    assert recognise(str(path), files=given).t5_tokenizer is None
    for folder in (tmp_path / "text", tmp_path):  # beside T5, then, before it, beside the model
        (folder / "tokenizer.json").write_text("{}")
        assert recognise(str(path), files=given).t5_tokenizer == folder
    (tmp_path / "own").mkdir()
    with pytest.raises(UserError, match="is not T5's tokenizer"):
        recognise(str(path), files=given, t5_tokenizer=tmp_path / "own")
    (tmp_path / "own" / "tokenizer.json").write_text("{}")
    for option in (tmp_path / "own", tmp_path / "own" / "tokenizer.json"):
        assert recognise(str(path), files=given, t5_tokenizer=option).t5_tokenizer == tmp_path / "own"


OTHERS = {
    "a LoRA": {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 320)},
    "a LoRA of diffusers": {"unet.mid_block.attentions.0.proj_in.lora_A.weight": (4, 320)},
    "SDXL's refiner": {**SD1, TO_K: (320, 1280)},
    "a model with text width 1000": {**SD1, TO_K: (320, 1000)},
    "an inpainting": {**SD1, FIRST: (320, 9, 3, 3)},
    "an inpainting or damaged": {k: v for k, v in SD1.items() if k != FIRST},
    "holds no VAE": {k: v for k, v in published("sd1").items() if not k.startswith("first_stage")},
    "holds no text encoder": {k: v for k, v in published("sd1").items() if not k.startswith("cond_stage")},
    "a VAE and nothing else": {VAE: SD1[VAE]},
    "no checkpoint that Limner recognises": {"x": (1,)},
    "no checkpoint": {},
    "no checkpoint that": {**SD1, TO_K: (320,)},
}


@pytest.mark.parametrize("said", OTHERS)
def test_other_single_files_are_named(said: str, tmp_path: Path) -> None:
    message = refused(single_file(tmp_path / "x.safetensors", OTHERS[said]))
    assert said.removesuffix(" of diffusers") in message


def test_a_single_file_with_a_configuration_beside_it(tiny_model: Path, tmp_path: Path) -> None:
    path = single_file(tmp_path / "x.safetensors", {**SD1, TO_K: (8, 16)})
    assert "text width 16" in refused(path)
    expected = Base(str(path), path, "file", "sd1", "epsilon", 32, 4, 2, config=tiny_model)
    assert recognise(str(path), config=tiny_model) == expected
    assert "a LoRA" in refused(single_file(tmp_path / "l.safetensors", OTHERS["a LoRA"]), tiny_model)
    assert "config.json is missing" in refused(path, tmp_path, "model.config")


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model"])
def test_pickles_are_never_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    assert "is a bare pickle" in refused(tmp_path / name) or "is not a .safetensors file" in refused(tmp_path / name)


SOURCES = [
    "",
    "no/such/place/at all",
    "../../etc",
    "/dev/zero",
    "x" * 300,
    "a" * 5000,
    "~nobody-of-this-name/x",
    "http://x/y",
    "a/b/c",
    "$(id)",
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s[:12])
def test_what_is_no_model(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(source)


def test_a_hub_name_that_is_not_here_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    base = recognise("nobody/nothing-of-this-name")
    assert base.path is None and base.family == "sd1"
