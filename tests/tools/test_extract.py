"""LoRAs from two models: products that are known, of all families and layouts; what is left out; and models that do not fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import headers
import original_layout
import tiny
from limner.adapters import reading
from limner.adapters.layered import LayerAdapter
from limner.config import Lora
from limner.config.files import build_as
from limner.config.tools import Tools
from limner.errors import UserError
from limner.tools import extract
from limner.tools.tool import Report


@dataclass(frozen=True)
class Taught:
    """A model, and what a LoRA has made of it."""

    family: str
    base: Path
    tuned: Path
    lora: dict[str, Tensor]
    """In kohya's names: rank 2, 3x3 convolutions 1; stacks have that of all their members."""

    @property
    def convolutions(self) -> dict[str, int]:
        return {"conv_rank": 8} if self.family in ("sd1", "sdxl") else {}


def state_file(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def teach(family: str, base: Path, tuned: Path, text: bool = True) -> Taught:
    model = tiny.loaded(base)
    adapter = LayerAdapter(Lora(rank=2, alpha=1.0, conv_rank=1, conv_alpha=1.0, text_encoder=text))
    adapter.attach(model, 1)
    state = {k: v.clone() for k, v in tiny.moved(adapter).exported("kohya").items()}
    adapter.merge()
    shutil.copytree(base, tuned)
    for part, module in {model.denoiser_folder: model.denoiser, **model.text_encoders}.items():
        save_file({k: v.clone().contiguous() for k, v in module.state_dict().items()}, state_file(tuned, part))
    return Taught(family, base, tuned, state)


@pytest.fixture(scope="module", params=["sd1", "sdxl", "sd3", "flux"])
def taught(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Taught:
    folder = tmp_path_factory.mktemp(request.param)
    return teach(request.param, tiny.build(folder / "base", family=request.param), folder / "tuned")


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Taught:
    return teach("sd1", tiny_model, tmp_path_factory.mktemp("sd1-taught") / "tuned")


def section(base: Path, tuned: Path, output: Path, **options: Any) -> Any:
    raw = {"base": str(base), "tuned": str(tuned), "output": str(output), "dtype": "fp32", **options}
    return build_as(Tools, {"extract": raw}, {}).extract


def run(*args: Any, **options: Any) -> tuple[dict[str, Tensor], Report]:
    asked = section(*args, **options)
    report = extract.run(asked, lambda *_: None)
    assert report.files == [asked.output]
    return load_file(asked.output), report


def refused(*args: Any, **options: Any) -> str:
    asked = section(*args, **options)
    with pytest.raises(UserError) as error:
        extract.look(asked)
    assert not asked.output.exists()
    return str(error.value)


def product(state: dict[str, Tensor], layer: str) -> np.ndarray:
    """up down alpha / rank, in float64, as a matrix."""
    down, up = (state[f"{layer}.lora_{side}.weight"].double().flatten(1).numpy() for side in ("down", "up"))
    return up @ down * (float(state[f"{layer}.alpha"]) / len(down))


def layers(state: dict[str, Tensor]) -> set[str]:
    return {name.partition(".")[0] for name in state}


def unlike(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


# --- what was put in comes out -------------------------------------------------------------------------------------------


def as_file(folder: Path, family: str, path: Path) -> Path:
    save_file(original_layout.as_single_file(folder, family), path)
    return path


@pytest.mark.parametrize("layout", ["folders", "files", "both"])
def test_the_product_is_restored(taught: Taught, layout: str, tmp_path: Path):
    base = taught.base if layout != "files" else as_file(taught.base, taught.family, tmp_path / "base.safetensors")
    tuned = taught.tuned if layout == "folders" else as_file(taught.tuned, taught.family, tmp_path / "tuned.safetensors")
    config = {} if layout == "folders" else {"config": str(taught.base)}
    state, report = run(base, tuned, tmp_path / "lora.safetensors", rank=64, min_diff=0, **taught.convolutions, **config)
    wanted = {name for name in layers(taught.lora) if taught.convolutions or "conv" not in name}
    assert layers(state) == wanted
    for layer in wanted:
        assert unlike(product(state, layer), product(taught.lora, layer)) < 1e-5, layer
    assert "100.00% is kept" in "\n".join(report.lines)
    assert not any("Not in the LoRA" in line for line in report.lines)


def test_ranks_are_found(taught: Taught, tmp_path: Path):
    """2 for a layer, 2 for each member of a stack, 1 for a 3x3 convolution."""
    state, _ = run(
        taught.base, taught.tuned, tmp_path / "lora.safetensors", rule="sv_ratio", value=3000, min_diff=0, **taught.convolutions
    )
    for layer in layers(taught.lora):
        rank = len(taught.lora[f"{layer}.lora_down.weight"])
        # on one side of the stack the members' down matrices differ, so that no rank is lost but where it is too narrow
        down = state[f"{layer}.lora_down.weight"]
        assert len(down) == min(rank, len(state[f"{layer}.lora_up.weight"]), down[0].numel()), layer
        assert float(state[f"{layer}.alpha"]) == len(down)


def test_it_reads_back_as_an_adapter(taught: Taught, tmp_path: Path):
    """Each layer's change, by Limner's own reader, is that between the two models; of swapped halves and stacks, too."""
    path = tmp_path / "lora.safetensors"
    run(taught.base, taught.tuned, path, rank=64, min_diff=0, **taught.convolutions)
    before, after = tiny.fresh(taught.base), tiny.loaded(taught.tuned)
    tuned = {(t.part, t.name): t.module.weight for t in after.adapter_targets(convolutions=True)}
    seen = 0
    for _, target, layer in reading.layers_of(before, reading.read(path, before, "lora"), "lora"):
        wanted = tuned[target.part, target.name].double() - target.module.weight.double()
        if wanted.any():
            assert unlike(layer.delta().detach().double().numpy(), wanted.detach().numpy()) < 1e-5, target.name
            seen += 1
    assert seen == len(before.adapter_targets(convolutions=bool(taught.convolutions)))


def test_names_and_metadata(taught: Taught, tmp_path: Path):
    state, _ = run(taught.base, taught.tuned, tmp_path / "my lora.safetensors", rank=4, min_diff=0)
    sure = {
        "sd1": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "sdxl": "lora_unet_input_blocks_3_1_transformer_blocks_1_attn2_to_k",
        "sd3": "lora_unet_joint_blocks_0_x_block_attn_qkv",
        "flux": "lora_unet_single_blocks_1_linear1",
    }
    assert f"{sure[taught.family]}.lora_up.weight" in state
    text = "lora_te_" if taught.family == "sd1" else "lora_te1_"
    assert f"{text}text_model_encoder_layers_0_self_attn_q_proj.alpha" in state
    with safe_open(tmp_path / "my lora.safetensors", "pt") as file:
        said = file.metadata()
    assert said["ss_network_dim"] == "4" and said["ss_network_alpha"] == "4.0"
    assert said["modelspec.title"] == "my lora" and said["modelspec.architecture"].endswith("/lora")
    assert said["ss_training_comment"] == "extracted from tuned minus base by rank 4"
    assert len(said["sshs_model_hash"]) == 64


def test_diffusers_loads_it(sd1: Taught, tmp_path: Path):
    from diffusers import StableDiffusionPipeline

    run(sd1.base, sd1.tuned, tmp_path / "lora.safetensors", rank=4, min_diff=0)
    pipe = StableDiffusionPipeline.from_pretrained(sd1.base, torch_dtype=torch.float32)
    pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    tuned = load_file(state_file(sd1.tuned, "unet"))
    names = [n for n in tuned if ".attentions." in n and n.endswith("weight") and "norm" not in n]
    found = pipe.unet.state_dict()
    assert len(names) > 20
    for name in names:
        assert torch.allclose(found[name], tuned[name], atol=1e-6), name


# --- what is left out, and what is said -----------------------------------------------------------------------------------


def changed(base: Path, tuned: Path, part: str, edits: dict[str, Tensor]) -> Path:
    """A copy of a folder in which some tensors of a part are others."""
    shutil.copytree(base, tuned)
    file = state_file(tuned, part)
    save_file(load_file(file) | edits, file)
    return tuned


def test_a_text_encoder_that_did_not_change_is_left_out(sd1: Taught, tmp_path: Path):
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    text = load_file(state_file(sd1.base, "text_encoder"))
    name = name if name in text else name.removeprefix("text_model.")
    rng = torch.Generator().manual_seed(0)
    edit = text[name] + 0.004 * torch.randn(text[name].shape, generator=rng).clamp(-1, 1)
    tuned = tmp_path / "tuned"
    shutil.copytree(sd1.tuned, tuned)
    save_file(text | {name: edit}, state_file(tuned, "text_encoder"))
    state, report = run(sd1.base, tuned, tmp_path / "a.safetensors", rank=4)
    assert not any(layer.startswith("lora_te") for layer in layers(state))
    (remark,) = report.remarks
    largest = float((edit - text[name]).abs().max())
    assert remark.field == "extract.min_diff" and f"{largest:.2g}" in remark.message and "Set it to 0" in remark.message
    state, report = run(sd1.base, tuned, tmp_path / "b.safetensors", rank=16, min_diff=0.001)
    assert [n for n in layers(state) if n.startswith("lora_te")] == ["lora_te_text_model_encoder_layers_0_mlp_fc1"]
    wanted = (edit.double() - text[name].double()).numpy()
    assert unlike(product(state, "lora_te_text_model_encoder_layers_0_mlp_fc1"), wanted) < 1e-5
    assert any("11 layers are the same" in line for line in report.lines)


def test_what_a_lora_has_no_place_for_is_said(sd1: Taught, tmp_path: Path):
    """The share of the denoiser's change that lies in its convolutions and in a bias, against numpy."""
    before, after = load_file(state_file(sd1.base, "unet")), load_file(state_file(sd1.tuned, "unet"))
    after["conv_in.bias"] = before["conv_in.bias"] + 0.5
    tuned = changed(sd1.tuned, tmp_path / "tuned", "unet", {"conv_in.bias": after["conv_in.bias"]})
    squares = {n: float(((after[n].double() - before[n].double()) ** 2).sum()) for n in before}
    beside = {n: v for n, v in squares.items() if v and not (".attentions." in n and n.endswith("weight"))}
    assert "down_blocks.0.resnets.0.conv1.weight" in beside
    _, report = run(sd1.base, tuned, tmp_path / "a.safetensors", rank=4)
    said = "\n".join(report.lines)
    assert f"{len(beside)} more tensors" in said and "conv_rank" in said
    assert f"{sum(beside.values()) / sum(squares.values()):.2%}" in said


def test_the_share_that_is_kept_is_true(sd1: Taught, tmp_path: Path):
    """Of a difference of full rank, against numpy's singular values."""
    before = load_file(state_file(sd1.base, "unet"))
    rng = torch.Generator().manual_seed(5)
    edits = {
        n: t + 0.1 * torch.randn(t.shape, generator=rng) for n, t in before.items() if ".attentions." in n and "norm" not in n
    }
    tuned = changed(sd1.base, tmp_path / "tuned", "unet", edits)
    state, report = run(sd1.base, tuned, tmp_path / "a.safetensors", rank=3)
    kept, squares, shares = 0.0, 0.0, dict[str, float]()
    for name in (n for n in edits if n.endswith("weight")):
        values = np.linalg.svd((edits[name].double() - before[name].double()).flatten(1).numpy(), compute_uv=False) ** 2
        kept, squares = kept + values[:3].sum(), squares + values.sum()
        layer = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        shares[layer] = values[:3].sum() / values.sum()
        found = product(state, layer)
        lost = np.linalg.norm(found - (edits[name].double() - before[name].double()).flatten(1).numpy()) ** 2
        assert lost == pytest.approx(values[3:].sum(), rel=1e-4)
    said = "\n".join(report.lines)
    assert f"{kept / squares:.2%} is kept" in said
    least = min(shares, key=shares.__getitem__)
    assert f"Least of {least}: {shares[least]:.2%}." in said
    assert sum(line.endswith("%") for line in report.lines) == len(shares)


@pytest.mark.parametrize("value", [0.9, 0.99])
def test_clamping_cuts_the_largest_numbers(sd1: Taught, tmp_path: Path, value: float):
    plain, _ = run(sd1.base, sd1.tuned, tmp_path / "a.safetensors", rank=4)
    state, report = run(sd1.base, sd1.tuned, tmp_path / "b.safetensors", rank=4, clamp_quantile=value)
    for layer in layers(plain):
        before, after = (
            np.concatenate([s[f"{layer}.lora_{side}.weight"].numpy().ravel() for side in ("up", "down")])
            for s in (plain, state)
        )
        limit = np.quantile(before, value)
        np.testing.assert_allclose(after, before.clip(-limit, limit), rtol=1e-5, atol=1e-7)
    assert "100.00% is kept" not in "\n".join(report.lines)


def test_look_says_what_run_would_write(sd1: Taught, tmp_path: Path):
    report = extract.look(section(sd1.base, sd1.tuned, tmp_path / "a.safetensors", rank=4))
    assert report.files == [tmp_path / "a.safetensors"] and not (tmp_path / "a.safetensors").exists()
    state, _ = run(sd1.base, sd1.tuned, tmp_path / "a.safetensors", rank=4)
    assert f"{len(layers(state))} layers (denoiser, text_encoder)" in report.lines[0]


def test_a_denoiser_alone_is_enough(tmp_path: Path):
    """Flux as it is published: without text encoders, in a file of 24 GB of which nothing but the header is read."""
    shapes = headers.published("flux")
    for name in ("base", "tuned"):
        headers.single_file(tmp_path / f"{name}.safetensors", shapes)
    report = extract.look(
        section(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "l.safetensors", rank=16)
    )
    matrices = [s for n, s in shapes.items() if n.endswith("weight") and len(s) == 2 and "_blocks." in n]
    assert f"Flux.1: {len(matrices)} layers (denoiser)" in report.lines[0]
    assert f"{16 * sum(map(sum, matrices)) * 4 / 1e6:.1f} MB" in report.lines[0]
    assert f"{len(matrices)} large layers" in report.lines[1]


# --- models and options that do not fit -----------------------------------------------------------------------------------


def test_two_families(sd1: Taught, tmp_path: Path):
    other = tiny.build(tmp_path / "xl", family="sdxl")
    said = refused(sd1.base, other, tmp_path / "a.safetensors")
    assert "extract.tuned" in said and "xl is a sdxl model" in said


def test_models_of_two_shapes(sd1: Taught, tmp_path: Path):
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    tuned = changed(sd1.base, tmp_path / "tuned", "unet", {name: torch.zeros(8, 24)})
    said = refused(sd1.base, tuned, tmp_path / "a.safetensors")
    assert "extract.tuned" in said and name in said and "(8, 24)" in said


def test_a_missing_tensor(sd1: Taught, tmp_path: Path):
    tuned = tmp_path / "tuned"
    shutil.copytree(sd1.base, tuned)
    state = load_file(state_file(tuned, "unet"))
    del state["mid_block.attentions.0.proj_in.weight"]
    save_file(state, state_file(tuned, "unet"))
    said = refused(sd1.base, tuned, tmp_path / "a.safetensors")
    assert "1 tensors of the UNet are missing" in said and "mid_block.attentions.0.proj_in.weight" in said


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["base", "tuned"])
def test_numbers_that_are_none(sd1: Taught, tmp_path: Path, bad: float, which: str):
    name = "mid_block.attentions.0.proj_in.weight"
    weight = load_file(state_file(sd1.base, "unet"))[name].clone()
    weight.view(-1)[3] = bad
    models = {"base": sd1.base, "tuned": sd1.tuned}
    models[which] = changed(models[which], tmp_path / "damaged", "unet", {name: weight})
    with pytest.raises(UserError, match=rf"extract\.{which}: .*proj_in holds numbers that are not finite"):
        run(models["base"], models["tuned"], tmp_path / "a.safetensors")
    assert list(tmp_path.glob("*.safetensors")) == [] and list(tmp_path.glob(".tmp*")) == []


def test_a_file_that_is_cut_short(sd1: Taught, tmp_path: Path):
    tuned = tmp_path / "tuned"
    shutil.copytree(sd1.base, tuned)
    file = state_file(tuned, "unet")
    file.write_bytes(file.read_bytes()[:-100])
    said = refused(sd1.base, tuned, tmp_path / "a.safetensors")
    assert "extract.tuned" in said and "not a whole safetensors file" in said


def test_models_that_do_not_differ(sd1: Taught, tmp_path: Path):
    with pytest.raises(UserError, match="do not differ"):
        run(sd1.base, sd1.base, tmp_path / "a.safetensors")


def test_numbers_too_large_for_the_file(sd1: Taught, tmp_path: Path):
    name = "mid_block.attentions.0.proj_in.weight"
    weight = load_file(state_file(sd1.base, "unet"))[name]
    tuned = changed(sd1.base, tmp_path / "tuned", "unet", {name: weight + 1e20 * torch.ones_like(weight)})
    with pytest.raises(UserError, match="too large for fp16"):
        run(sd1.base, tuned, tmp_path / "a.safetensors", dtype="fp16")
    assert not (tmp_path / "a.safetensors").exists()


def test_a_lora_is_no_model(sd1: Taught, tmp_path: Path):
    save_file(sd1.lora, tmp_path / "lora.safetensors")
    assert "lora.safetensors is a LoRA" in refused(sd1.base, tmp_path / "lora.safetensors", tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "energy"}, "extract.value"),
        ({"rule": "sv_fro", "value": 1.5}, "is no share"),
        ({"rule": "sv_ratio", "value": 0.5}, "extract.value"),
        ({"output": "lora.txt"}, "does not end in .safetensors"),
        ({"tuned": "/nowhere/model.safetensors"}, "extract.tuned"),
    ],
)
def test_options_that_mean_nothing(sd1: Taught, tmp_path: Path, options: dict, said: str):
    raw = {"base": str(sd1.base), "tuned": str(sd1.tuned), "output": str(tmp_path / "a.safetensors")} | options
    with pytest.raises(UserError, match=said):
        extract.look(build_as(Tools, {"extract": raw}, {}).extract)


def test_nothing_is_overwritten_unasked(sd1: Taught, tmp_path: Path):
    (tmp_path / "a.safetensors").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        run(sd1.base, sd1.tuned, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_text() == "mine"
    state, _ = run(sd1.base, sd1.tuned, tmp_path / "a.safetensors", overwrite=True, rank=2)
    assert state


def test_a_stop_leaves_nothing(sd1: Taught, tmp_path: Path):
    from limner.errors import StopRequested

    def stop(done: int, total: int, words: str = "") -> None:
        del total, words
        if done == 5:
            raise StopRequested

    with pytest.raises(StopRequested):
        extract.run(section(sd1.base, sd1.tuned, tmp_path / "a.safetensors"), stop)
    assert list(tmp_path.iterdir()) == [] or [p.name for p in tmp_path.iterdir()] == ["home"]


def test_json_in_the_metadata(sd1: Taught, tmp_path: Path):
    run(sd1.base, sd1.tuned, tmp_path / "a.safetensors", rank=4, conv_rank=2, rule="energy", value=0.9)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        said = file.metadata()
    assert json.loads(said["ss_network_args"]) == {"conv_dim": 2, "conv_alpha": 2.0}
    assert said["ss_network_dim"] == said["ss_network_alpha"] == "Dynamic"
