"""LoRAs merged with each other: what the result does is the sum of what they do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from limner.adapters.layered import LayerAdapter
from limner.config import Full, Loha, Lokr, Lora, files
from limner.config.tools import Tools
from limner.errors import UserError
from limner.formats.header import read_header
from limner.formats.metadata import add_hashes
from limner.tools import merge_loras
from limner.tools.tool import Report


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    built = {name: tiny.build(root / name, family=name) for name in ("sd1", "sdxl", "flux")}
    for folder in root.glob("*/tokenizer*"):
        if (folder / "vocab.json").exists() or len((folder / "tokenizer.json").read_bytes()) > 1 << 20:
            shutil.rmtree(folder)  # CLIP's own is read once, these at every turn
    return built


def a_lora(model: Path, path: Path, section: Any, seed: int, names: Any = "kohya", metadata: Any = None) -> Path:
    family = tiny.fresh(model)
    adapter = LayerAdapter(section)
    adapter.attach(family, seed)
    rng = torch.Generator().manual_seed(seed)
    for _, layer in adapter.layers.values():
        for p in layer.parameters():
            p.data = torch.randn(p.shape, generator=rng) * 0.3
    save_file({k: v.detach().contiguous().clone() for k, v in adapter.exported(names).items()}, path, metadata)
    return path


def section(**options: Any) -> Any:
    options = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    return files.build_as(Tools, {"merge_loras": options}, {}).merge_loras


def merge(**options: Any) -> Report:
    return merge_loras.run(section(**options), lambda done, total, words="": None)


def changes(path: Path) -> dict[str, np.ndarray]:
    """{layer as the file calls it: what is added to its weight}, in float64, from a LoRA file in either kind of names."""
    out, state = {}, load_file(path)
    for name, tensor in state.items():
        for down, up in ((".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")):
            if name.endswith(down):
                layer = name.removesuffix(down)
                alpha = float(state.get(f"{layer}.alpha", torch.tensor(float(len(tensor)))))
                a, b = tensor.double().flatten(1).numpy(), state[layer + up].double().flatten(1).numpy()
                out[layer] = b @ a * (alpha / len(tensor))
    return out


def total(parts: Mapping[Path, float]) -> dict[str, np.ndarray]:
    found = dict[str, np.ndarray]()
    for path, strength in parts.items():
        for layer, change in changes(path).items():
            found[layer] = found.get(layer, 0) + strength * change
    return found


def ranks(path: Path) -> set[int]:
    return {len(v) for k, v in load_file(path).items() if k.endswith(("lora_down.weight", "lora_A.weight"))}


@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux"])
def test_side_by_side_is_the_sum(models: dict[str, Path], family: str, tmp_path: Path) -> None:
    model, out = models[family], tmp_path / "out.safetensors"
    one = a_lora(model, tmp_path / "a.safetensors", Lora(rank=3, alpha=1.0, text_encoder=True), 1)
    two = a_lora(model, tmp_path / "b.safetensors", Lora(rank=5, alpha=8.0), 2)
    report = merge(base=model, loras=[f"{one} @ 0.6", f"{two} @ -1.5"], output=out, dtype="fp32")
    assert report.files == [out] and not report.remarks
    found, told = changes(out), total({one: 0.6, two: -1.5})
    assert found.keys() == told.keys()
    for layer, change in told.items():
        np.testing.assert_allclose(found[layer], change, atol=2e-6)
    # of layers that a file stacks, each has its own
    assert ranks(out) == ({3, 8} if family != "flux" else {3, 8, 24, 32})


def test_the_sum_in_float64() -> None:
    """The algebra itself, without rounding to the file."""
    from limner.tools.low_rank import product_of, side_by_side

    rng = np.random.default_rng(0)
    them = [(rng.normal(size=(r, 12)), rng.normal(size=(9, r)), s) for r, s in ((2, 0.5), (7, -2.0), (1, 3.0))]
    one = side_by_side([product_of(torch.from_numpy(down), torch.from_numpy(up), s) for down, up, s in them])
    np.testing.assert_allclose(one.whole(), sum(s * up @ down for down, up, s in them), atol=1e-12)


def test_matrices_that_stacked_layers_share_stay_one(models: dict[str, Path], tmp_path: Path) -> None:
    """kohya's usual LoRA of Flux: query, key and value have one down matrix; so has the result."""
    model, paths = models["flux"], []
    for seed in (1, 2):
        state = load_file(a_lora(model, tmp_path / f"{seed}.safetensors", Lora(rank=2), seed))
        for layer in {k.partition(".")[0] for k in state}:
            rows, columns = len(state[f"{layer}.lora_up.weight"]), state[f"{layer}.lora_down.weight"].shape[1]
            rng = torch.Generator().manual_seed(seed)
            state[f"{layer}.lora_up.weight"] = torch.randn(rows, 2 + seed, generator=rng)
            state[f"{layer}.lora_down.weight"] = torch.randn(2 + seed, columns, generator=rng)
        save_file(state, tmp_path / f"{seed}.safetensors")
        paths.append(tmp_path / f"{seed}.safetensors")
    out = tmp_path / "out.safetensors"
    merge(base=model, loras=[f"{p} @ 0.5" for p in paths], output=out, dtype="fp32")
    assert ranks(out) == {3 + 4}
    for layer, change in total(dict.fromkeys(paths, 0.5)).items():
        np.testing.assert_allclose(changes(out)[layer], change, atol=1e-5)


def test_other_names_in_and_out(models: dict[str, Path], tmp_path: Path) -> None:
    model = models["sd1"]
    one = a_lora(model, tmp_path / "a.safetensors", Lora(rank=2, alpha=1.0), 1)
    two = a_lora(model, tmp_path / "b.safetensors", Lora(rank=3), 2, "diffusers")
    kohya = a_lora(model, tmp_path / "b-kohya.safetensors", Lora(rank=3), 2)
    for names in ("kohya", "diffusers"):
        out = tmp_path / f"{names}.safetensors"
        merge(base=model, loras=[str(one), str(two)], output=out, dtype="fp32", lora_names=names)
        found = changes(out)
        told = total({one: 1.0, kohya: 1.0})
        assert len(found) == len(told)
        for layer, change in told.items():
            name = layer if names == "kohya" else next(k for k in found if k.replace(".", "_") == layer.removeprefix("lora_"))
            np.testing.assert_allclose(found[name], change, atol=2e-6)


def test_cut_to_full_rank_restores_and_to_less_is_the_nearest(models: dict[str, Path], tmp_path: Path) -> None:
    model = models["sd1"]
    one = a_lora(model, tmp_path / "a.safetensors", Lora(rank=2, conv_rank=2), 1)
    two = a_lora(model, tmp_path / "b.safetensors", Lora(rank=1, conv_rank=2), 2)
    told, whole, small = total({one: 1.0, two: 0.5}), tmp_path / "whole.safetensors", tmp_path / "small.safetensors"
    options = {"base": model, "loras": [str(one), f"{two} @ 0.5"], "dtype": "fp32", "method": "svd"}
    merge(output=whole, rank=64, **options)
    for layer, change in changes(whole).items():
        np.testing.assert_allclose(change, told[layer], atol=5e-6)
    assert ranks(whole) == {3, 4}
    report = merge(output=small, rank=2, conv_rank=1, **options)
    shares, sizes = [], load_file(small)
    for layer, change in changes(small).items():
        values = np.linalg.svd(told[layer], compute_uv=False)
        rank = 1 if sizes[f"{layer}.lora_down.weight"].shape[2:] == (3, 3) else 2
        assert np.linalg.norm(change - told[layer]) == pytest.approx(np.linalg.norm(values[rank:]), rel=1e-4, abs=1e-5)
        shares.append(np.linalg.norm(values[rank:]) / np.linalg.norm(values))
    assert report.lines[-1] == (
        f"What was cut off: {max(shares):.2%} of the change of a layer at most, {np.mean(shares):.2%} on average."
    )


def test_kinds_without_a_product_are_cut_to_a_lora(models: dict[str, Path], tmp_path: Path) -> None:
    model, out = models["sd1"], tmp_path / "out.safetensors"
    loha = a_lora(model, tmp_path / "loha.safetensors", Loha(rank=2), 1)
    lokr = a_lora(model, tmp_path / "lokr.safetensors", Lokr(rank=64), 2)
    options = {"base": model, "loras": [f"{loha} @ 0.5", str(lokr)], "output": out, "dtype": "fp32"}
    with pytest.raises(UserError, match=r"Loha in loha.safetensors, Lokr in lokr.safetensors cannot be put side by side"):
        merge(**options)
    merge(**options, method="svd", rank=1000)
    a, b = load_file(loha), load_file(lokr)
    found = changes(out)
    assert found
    for layer, change in found.items():
        h = {k: a[f"{layer}.{k}"].double() for k in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha")}
        one = (h["hada_w1_a"] @ h["hada_w1_b"]) * (h["hada_w2_a"] @ h["hada_w2_b"]) * h["alpha"] / 2
        two = torch.kron(b[f"{layer}.lokr_w1"].double(), b[f"{layer}.lokr_w2"].double().flatten(1))
        np.testing.assert_allclose(change, (0.5 * one + two).numpy(), atol=1e-5)


def test_what_only_one_file_changes_is_kept(models: dict[str, Path], tmp_path: Path) -> None:
    """Of a kind that cannot be added up too: as it is, its strength multiplied in where that is possible."""
    model, out = models["sd1"], tmp_path / "out.safetensors"
    text = a_lora(model, tmp_path / "text.safetensors", Lora(rank=2, denoiser=False, text_encoder=True), 1)
    for kind, name in ((Loha(rank=2), "loha"), (Lokr(rank=64), "lokr"), (Full(), "full")):
        own = a_lora(model, tmp_path / f"{name}.safetensors", kind, 2)
        merge(base=model, loras=[str(text), f"{own} @ 0.5"], output=out, dtype="fp32", overwrite=True)
        before, after = load_file(own), load_file(out)
        assert after.keys() == before.keys() | load_file(text).keys()
        scaled = {"loha": "hada_w2_a", "lokr": "lokr_w2", "full": "diff"}[name]
        for key, tensor in before.items():
            factor = 0.5 if key.endswith((f".{scaled}", ".diff_b")) else 1.0
            assert torch.equal(after[key], tensor * factor), key
    dora = a_lora(model, tmp_path / "dora.safetensors", Lora(rank=2, dora=True), 2)
    merge(base=model, loras=[str(text), str(dora)], output=out, dtype="fp32", overwrite=True)
    assert all(torch.equal(load_file(out)[k], v) for k, v in load_file(dora).items())
    with pytest.raises(UserError, match=r"Dora in dora.safetensors cannot"):
        merge(base=model, loras=[str(text), f"{dora} @ 0.5"], output=out, overwrite=True)
    with pytest.raises(UserError, match=r"Dora in dora.safetensors does depends on the model"):
        merge(base=model, loras=[str(text), str(dora)], output=out, method="svd", overwrite=True)
    other = a_lora(model, tmp_path / "other.safetensors", Lora(rank=2), 3)
    with pytest.raises(UserError, match=r"Dora in dora.safetensors cannot"):
        merge(base=model, loras=[str(other), str(dora)], output=out, overwrite=True)


def test_whole_weights_are_added_up(models: dict[str, Path], tmp_path: Path) -> None:
    model, out = models["sd1"], tmp_path / "out.safetensors"
    one, two = (a_lora(model, tmp_path / f"{i}.safetensors", Full(), i) for i in (1, 2))
    merge(base=model, loras=[f"{one} @ 0.25", str(two)], output=out, dtype="fp32")
    a, b, found = load_file(one), load_file(two), load_file(out)
    assert found.keys() == a.keys() and any(k.endswith("diff_b") for k in found)
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, a[key] * 0.25 + b[key], atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="a bias is changed"):
        merge(base=model, loras=[str(one), str(two)], output=out, method="svd", overwrite=True)


def test_the_usual_model_of_the_family_is_enough(tmp_path: Path) -> None:
    """At the full size, without any model on the machine; the scale stays in alpha, where 16 bits do not lose it."""
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    rng, paths = torch.Generator().manual_seed(0), []
    for i in range(2):
        down, up = torch.randn(128, 2048, generator=rng) / 45, torch.randn(640, 128, generator=rng) * 1e-4
        state = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
        save_file(state, tmp_path / f"{i}.safetensors")
        paths.append(tmp_path / f"{i}.safetensors")
    out = tmp_path / "out.safetensors"
    merge(loras=[str(p) for p in paths], output=out)
    state, parts = load_file(out), [load_file(p) for p in paths]
    assert {v.dtype for v in state.values()} == {torch.float16} and state[f"{name}.alpha"] == 2
    for matrix, dim in (("lora_down", 0), ("lora_up", 1)):  # both have the scale of the result, and are as they were
        expected = torch.cat([p[f"{name}.{matrix}.weight"] for p in parts], dim).half()
        assert torch.equal(state[f"{name}.{matrix}.weight"], expected)
    said = read_header(out).metadata
    assert (said["ss_network_dim"], said["ss_network_alpha"], said["ss_network_module"]) == ("256", "2", "networks.lora")
    assert said["ss_base_model_version"] == "sdxl_base_v1-0" and said["ss_v2"] == "False"


def test_what_the_file_says_of_itself(models: dict[str, Path], tmp_path: Path) -> None:
    model, out = models["sd1"], tmp_path / "out.safetensors"
    tags = [{"10_cat": {"cat": 3, "sks": 1}}, {"10_cat": {"cat": 2}, "5_dog": {"dog": 7, "bad": "many"}}]
    said = [
        {"modelspec.trigger_phrase": word, "ss_tag_frequency": json.dumps(t), "ss_sd_model_name": "v1-5", "ss_clip_skip": skip}
        for word, t, skip in zip(("sks cat", "a dog"), tags, ("1", "2"), strict=True)
    ]
    one, two = (a_lora(model, tmp_path / f"{i}.safetensors", Lora(rank=2 + i), i, metadata=m) for i, m in enumerate(said))
    merge(base=model, loras=[str(one), f"{two} @ 0.8"], output=out)
    found = read_header(out).metadata
    assert found["modelspec.trigger_phrase"] == "sks cat, a dog"
    assert json.loads(found["ss_tag_frequency"]) == {"10_cat": {"cat": 5, "sks": 1}, "5_dog": {"dog": 7}}
    assert found["ss_sd_model_name"] == "v1-5" and "ss_clip_skip" not in found
    assert found["modelspec.merged_from"] == "0.safetensors, 1.safetensors @ 0.8" and found["ss_network_dim"] == "5"
    merged = json.loads(found["limner_merged"])
    assert merged["method"] == "concat"
    assert merged["files"][1] == {"file": "1.safetensors", "strength": 0.8, **add_hashes(two)}
    assert {k: found[k] for k in ("sshs_model_hash", "sshs_legacy_hash")}["sshs_model_hash"] == add_hashes(out)[
        "sshs_model_hash"
    ]


def test_hostile_metadata_is_left_out(models: dict[str, Path], tmp_path: Path) -> None:
    deep = {"ss_tag_frequency": "[" * 200_000, "modelspec.trigger_phrase": "x" * 1_000_000}
    one = a_lora(models["sd1"], tmp_path / "a.safetensors", Lora(rank=2), 1, metadata=deep)
    two = a_lora(models["sd1"], tmp_path / "b.safetensors", Lora(rank=2), 2, metadata={"ss_tag_frequency": '{"a": 3, "b": []}'})
    merge(base=models["sd1"], loras=[str(one), str(two)], output=tmp_path / "out.safetensors")
    said = read_header(tmp_path / "out.safetensors").metadata
    assert "ss_tag_frequency" not in said and len(said["modelspec.trigger_phrase"]) == 4000


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"loras": ["{tmp}/a.safetensors"]}, "merge_loras.loras: names fewer than two files"),
        ({"loras": ["{tmp}/a.safetensors", "{tmp}/xl.safetensors"]}, "xl.safetensors is a LoRA for Stable Diffusion XL"),
        ({"loras": ["{tmp}/a.safetensors", "{tmp}/no.safetensors"]}, "merge_loras.loras: .*no.safetensors is not a file"),
        ({"loras": ["{tmp}/a.safetensors", "{tmp}/nan.safetensors"]}, "merge_loras.loras: .* not finite"),
        ({"loras": ["{tmp}/large.safetensors"] * 2}, "merge_loras.dtype: .* too large for fp16"),
        ({"output": "{tmp}/a.safetensors"}, "merge_loras.output: .* what is read"),
        ({"output": "{tmp}/out.pt"}, "merge_loras.output: out.pt does not end in .safetensors"),
        ({"output": "{tmp}/b.safetensors", "loras": ["{tmp}/a.safetensors"] * 2}, "exists already"),
        ({"preview_prompt": "a cat", "base": ""}, "merge_loras.*"),
        ({"base": ""}, "Set base|give it"),
    ],
)
def test_what_is_refused(models: dict[str, Path], changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    model = models["sd1"]
    one = a_lora(model, tmp_path / "a.safetensors", Lora(rank=2), 1)
    two = a_lora(model, tmp_path / "b.safetensors", Lora(rank=2), 2)
    a_lora(models["sdxl"], tmp_path / "xl.safetensors", Lora(rank=2), 1, metadata={"ss_base_model_version": "sdxl_base_v1-0"})
    state = load_file(one)
    name = next(k for k in state if k.endswith("lora_up.weight"))
    save_file(state | {name: state[name] * torch.nan}, tmp_path / "nan.safetensors")
    save_file(state | {name: state[name] * 1e9}, tmp_path / "large.safetensors")
    here = {"tmp": tmp_path}
    filled = {k: [t.format(**here) for t in v] if isinstance(v, list) else v.format(**here) for k, v in changes.items()}
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    options = {"base": model, "loras": [str(one), str(two)], "output": tmp_path / "out.safetensors"} | filled
    with pytest.raises(UserError, match=match):
        merge(**options)
    assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_look_writes_nothing_and_preview_paints(models: dict[str, Path], tmp_path: Path) -> None:
    from PIL import Image

    model = models["sd1"]
    one, two = (a_lora(model, tmp_path / f"{i}.safetensors", Lora(rank=2), i) for i in (1, 2))
    options = {"base": model, "loras": [str(one), f"{two} @ 3"], "output": tmp_path / "out.safetensors"}
    seen = merge_loras.look(section(**options, preview_prompt="a cat --s 2"))
    assert [p.name for p in seen.files] == ["out.safetensors", "out.preview.png"]
    assert not any(p.exists() for p in seen.files)
    report = merge(**options, preview_prompt="a cat --s 2")
    picture = Image.open(report.files[1])
    assert picture.size == (64, 32) and not report.remarks
    assert picture.crop((0, 0, 32, 32)).tobytes() != picture.crop((32, 0, 64, 32)).tobytes()
