"""What the inspector says of LoRAs and models: kinds, norms against float64, faults, who loads them; hostile files."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import bare
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from headers import GOLDEN, published, single_file
from limner.adapters.layered import LayerAdapter
from limner.config import Ia3, Loha, Lokr, Lora, files
from limner.config.tools import Tools, the_section
from limner.errors import UserError
from limner.tools import inspect
from limner.tools.numbers import block_of


def section(file: Path, **given: Any) -> Any:
    raw = {"file": str(file)} | {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}
    return the_section(files.build_as(Tools, {"inspect": raw}, {}))[1]


def quiet(*_: object) -> None: ...


def facts(file: Path, **given: Any) -> tuple[dict[str, Any], str]:
    report = inspect.run(section(file, as_json=True, **given), quiet)
    return json.loads("\n".join(report.lines)), "\n".join(map(str, report.remarks))


def published_lora(path: Path, **metadata: str) -> Path:
    """A LoRA of Stable Diffusion 1's layers at their full size."""
    lines = (GOLDEN / "lora_keys_sd1.txt").read_text(encoding="utf-8").splitlines()
    shapes = {name: json.loads(shape) for name, shape in (line.split(" ", 1) for line in lines)}
    rng = torch.Generator().manual_seed(0)
    state = {n: torch.tensor(4.0) if n.endswith("alpha") else torch.randn(s, generator=rng).half() for n, s in shapes.items()}
    save_file(state, path, metadata or None)
    return path


@torch.no_grad()
def written(folder: Path, path: Path, kind: Any, names: Any = "kohya") -> LayerAdapter:
    adapter = LayerAdapter(kind)
    adapter.attach(tiny.fresh(folder), 1)
    tiny.moved(adapter)
    save_file({k: v.contiguous().clone() for k, v in adapter.exported(names).items()}, path)
    return adapter


def test_a_published_lora(tmp_path: Path):
    tags = json.dumps({"10_cat": {"cat": 24, "grass\n": 9}, "x": {"cat": 1, "bad": "many"}, "y": 3})
    words = {"ss_steps": "1200", "ss_sd_model_name": "v1-5.safetensors", "ss_unet_lr": "None", "ss_tag_frequency": tags}
    path = published_lora(tmp_path / "a.safetensors", **words)
    found, remarks = facts(path)
    assert (found["what"], found["family"], found["kind"]) == ("LoRA", "sd1", "LoRA") and not remarks
    assert found["layers per part"] == {"lora_te": 72, "denoiser": 192} and found["ranks"] == {"rank 8": "264 layers"}
    assert found["dtypes"] == {"F16": 528, "F32": 264} and found["alphas"] == {"alpha 4": "264 layers"}
    assert set(found["does it load"].values()) == {"yes, finds all 264 layers"} and len(found["does it load"]) == 3
    told = found["trained with"]
    assert told == {"base model": "v1-5.safetensors", "steps": "1200", "commonest tags": "cat (25), grass  (9)"}
    state = load_file(path)
    for layer in ("lora_te_text_model_encoder_layers_3_mlp_fc1", "lora_unet_mid_block_attentions_0_proj_in"):
        down, up = (state[f"{layer}.lora_{n}.weight"].double().flatten(1) for n in ("down", "up"))
        assert found["layers"][layer] == pytest.approx(float((0.5 * up @ down).norm()), rel=1e-5)
    assert len(found["layers"]) == 264
    mean = sum(found["layers"].values()) / 264
    assert found["average norm of the change"] == pytest.approx(mean)
    assert "down_blocks_0" in found["norms of the change by block"]
    raw = path.read_bytes()
    rest = hashlib.sha256(raw[8 + struct.unpack("<Q", raw[:8])[0] :]).hexdigest()
    assert found["hashes"] == {
        "sha256": hashlib.sha256(raw).hexdigest(), "AutoV1": hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8],
        "AutoV2": hashlib.sha256(raw).hexdigest()[:10], "AutoV3": rest[:12], "sha256 of the tensors": rest,
    }  # fmt: skip
    before = path.read_bytes()
    lines = inspect.look(section(path)).lines
    assert lines[0] == "a.safetensors: a LoRA file for Stable Diffusion 1" and all(line.isprintable() for line in lines)
    assert path.read_bytes() == before and "  steps: 1200" in lines


def test_faults_in_numbers_and_hashes(tmp_path: Path):
    path = published_lora(tmp_path / "a.safetensors")
    state = load_file(path)
    one, two = (f"lora_te_text_model_encoder_layers_{i}_mlp_fc1.lora_up.weight" for i in (0, 1))
    state[one][3, 2] = float("nan")
    state[two].zero_()
    save_file(state, path, {"sshs_model_hash": "0" * 64})
    _, remarks = facts(path)
    assert f"error: inspect.file: 1 tensors hold numbers that are none (NaN) or infinite, the first is {one}." in remarks
    assert f"1 tensors hold nothing but zeros, the first is {two}." in remarks
    assert "its sshs_model_hash is not that of its tensors" in remarks


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux"])
def test_who_loads_it(tmp_path: Path, family: str):
    folder = bare.model(family)
    given = {"config": folder, "family": family}
    expected = {"sd1": (True, True, True), "sdxl": (True, True, True), "sd3": (True, True, False), "flux": (True, False, True)}
    written(folder, path := tmp_path / "k.safetensors", Lora(rank=2, text_encoder=True))
    said = facts(path, **given)[0]["does it load"]
    assert tuple(words.startswith("yes") for words in said.values()) == expected[family], said
    written(folder, path, Lora(rank=2, text_encoder=True), "diffusers")
    said = facts(path, **given)[0]["does it load"]
    assert [words[:3] for words in said.values()] == ["yes", "no:", "yes"], said
    written(folder, path, Loha(rank=2))
    said = facts(path, **given)[0]["does it load"]
    assert said["ComfyUI and Forge"].startswith("yes") and said["diffusers"].startswith("no")
    state = load_file(path) | {"lora_unet_blocks_7_nowhere.lora_down.weight": torch.ones(2, 4)}
    save_file(state, path)
    found, remarks = facts(path, **given)
    assert "it does not know lora_unet_blocks_7_nowhere" in found["does it load"]["ComfyUI and Forge"]
    assert "lora_unet_blocks_7_nowhere has no place in this model" in remarks


@torch.no_grad()
@pytest.mark.parametrize("kind", [Lokr(rank=2, factor=2), Loha(rank=2), Ia3(), Lora(rank=2, dora=True)])
def test_kinds_and_their_norms(tmp_path: Path, kind: Any):
    adapter = written(bare.model("sd1"), path := tmp_path / "k.safetensors", kind)
    found, remarks = facts(path, config=bare.model("sd1"), family="sd1")
    names = {"lokr": "LoKr", "loha": "LoHa", "ia3": "IA3", "lora": "DoRA"}
    assert found["kind"] == names[kind.kind] and not remarks
    says = found["does it load"]
    assert says["ComfyUI and Forge"].startswith("no" if kind.kind == "ia3" else "yes")
    if kind.kind in ("lokr", "loha"):
        for name, (_, layer) in adapter.layers.items():
            assert found["layers"][name] == pytest.approx(float(_delta(layer.tensors(), layer.scale).norm()), rel=1e-5)


def _delta(tensors: dict[str, Tensor], scale: float) -> Tensor:
    """LoHa: (w1a w1b) * (w2a w2b); LoKr: w1 (x) w2 (LyCORIS, arXiv:2309.14859), in float64."""
    t = {k: v.double() for k, v in tensors.items()}
    if "hada_w1_a" in t:
        return scale * (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
    large = t["lokr_w2"] if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
    return scale * torch.kron(t["lokr_w1"], large.flatten(1))


def test_models(tmp_path: Path):
    for family, title in (("sdxl", "Stable Diffusion XL, epsilon"), ("flux", "Flux.1, flow")):
        path = single_file(tmp_path / "m.safetensors", published(family))
        lines = inspect.look(section(path)).lines
        assert lines[0] == f"m.safetensors: {title}"
    assert "  transformer: 780" in lines
    state = {"decoder.conv_in.weight": torch.full((2, 2), 3.0), "b": torch.zeros(4)}
    torch.save({"state_dict": state}, path := tmp_path / "v.pt")
    found, remarks = facts(path)
    assert found["kind"] == "a VAE and nothing else" and found["layers"] == {"decoder.conv_in.weight": 6.0} and not remarks
    assert "AutoV3" not in found["hashes"]
    save_file({"emb_params": torch.ones(3, 768)}, path := tmp_path / "e.safetensors")
    assert facts(path)[0]["vectors"] == [[3, 768]]


def test_blocks_of_names():
    for name, block in {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_ff_net_2": "down_blocks_1",
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.1.ff.net.2.weight": "input_blocks_4",
        "transformer.single_transformer_blocks.37.attn.to_q": "single_transformer_blocks_37",
        "lora_te1_text_model_encoder_layers_11_mlp_fc1": "lora_te1 layers_11",
        "lora_unet_double_blocks_3_img_attn_qkv.0": "double_blocks_3",
        "first_stage_model.decoder.up.2.block.0.conv1.weight": "decoder_up_2",
        "lora_unet_middle_block_1_proj_in": "middle_block",
        "time_embed.0.weight": "others",
    }.items():
        assert block_of(name) == block


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt"])
@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x80\x02cos\nsystem\n(S'touch gone'\ntR.", b"PK\x03\x04" + bytes(40)])
def test_hostile_files(tmp_path: Path, name: str, content: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (path := tmp_path / name).write_bytes(content)
    for call in (inspect.look, lambda s: inspect.run(s, quiet)):
        with pytest.raises(UserError):
            call(section(path))
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_hostile_names_and_words(tmp_path: Path):
    evil = "lora_unet_\x1b[2J\u202e\n$(touch x)"
    deep = "[" * 100_000
    state = {f"{evil}.lora_down.weight": torch.ones(2, 320), f"{evil}.lora_up.weight": torch.ones(320, 2)}
    save_file(state, path := tmp_path / "x.safetensors", {"ss_tag_frequency": deep, "modelspec.title": evil})
    for report in (inspect.look(section(path)), inspect.run(section(path, family="sd1"), quiet)):
        assert all(line.isprintable() for line in report.lines) and "\\u001b[2J" in "\n".join(report.lines)
        assert all(str(remark).isprintable() for remark in report.remarks)
    assert "the family" not in str(report.remarks)
    with pytest.raises(UserError, match="is a folder"):
        inspect.look(section(tmp_path))
