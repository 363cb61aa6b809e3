"""LoRAs merged into models of every family: the weights that are written are those that the formulas give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import original_layout
import tiny
from limner.adapters.layered import LayerAdapter
from limner.config import Full, Glora, Ia3, Loha, Lokr, Lora, Oft, files
from limner.config.tools import Tools
from limner.errors import StopRequested, UserError
from limner.formats.base import recognise
from limner.formats.flux import transformer_names
from limner.formats.original import UNET, unet_names
from limner.models import family as families
from limner.tools import merge_model
from limner.tools.tool import Report

CPU = torch.device("cpu")
KINDS: dict[str, Any] = {
    "lora": Lora(rank=3, alpha=1.5, text_encoder=True),
    "convolutions": Lora(rank=3, conv_rank=2, text_encoder=True),
    "dora": Lora(rank=3, dora=True, text_encoder=True),
    "loha": Loha(rank=2, text_encoder=True),
    "lokr": Lokr(rank=2, text_encoder=True),
    "oft": Oft(text_encoder=True),
    "ia3": Ia3(text_encoder=True),
    "glora": Glora(rank=2, text_encoder=True),
    "full": Full(text_encoder=True),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    built = {name: tiny.build(root / name, family=name) for name in ("sd1", "sd2", "sdxl", "sd3", "flux")}
    for folder in root.glob("*/tokenizer*"):
        if (folder / "vocab.json").exists() or len((folder / "tokenizer.json").read_bytes()) > 1 << 20:
            shutil.rmtree(folder)  # CLIP's own is read once, these at every turn
    return built


def single_file(folder: Path, family: str, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    state = {k: v.to(dtype) for k, v in original_layout.as_single_file(folder, family).items()}
    save_file(state, path, {"modelspec.title": "before", "modelspec.hash_sha256": "0"})
    return path


def a_lora(model: Path, path: Path, section: Any, names: Any = "kohya", seed: int = 0, metadata: Any = None) -> Path:
    family = tiny.fresh(model)
    adapter = LayerAdapter(section)
    adapter.attach(family, seed)
    tiny.moved(adapter)
    save_file({k: v.detach().contiguous().clone() for k, v in adapter.exported(names).items()}, path, metadata)
    return path


def section(**options: Any) -> Any:
    return files.build_as(
        Tools, {"merge_model": {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}}, {}
    ).merge_model


def merge(**options: Any) -> Report:
    calls = []
    report = merge_model.run(section(**options), lambda done, total, words="": calls.append((done, total, words)))
    assert calls and all(0 <= done <= total for done, total, _ in calls)
    assert calls[-1][0] == calls[-1][1] or options.get("preview_prompt")
    return report


def formula(kind: str, base: Tensor, t: dict[str, Tensor]) -> Tensor:
    """The change of a weight, in float64, as the papers have it."""
    flat = base.flatten(1)
    if kind in ("lora", "convolutions", "dora"):
        down, up = t["lora_down.weight"].flatten(1), t["lora_up.weight"].flatten(1)
        change = up @ down * (t["alpha"] / len(down))
        if kind == "dora":
            direction = (flat + change).view(base.shape)
            norm = direction.transpose(0, 1).flatten(1).norm(dim=1)
            return direction * (t["dora_scale"].flatten() / norm).view(1, -1, *[1] * (base.ndim - 2)) - base
    elif kind == "loha":
        change = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"]) * (t["alpha"] / len(t["hada_w1_b"]))
    elif kind == "lokr":
        w1 = t["lokr_w1"]
        w2 = t["lokr_w2"].flatten(1) if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
        change = torch.kron(w1, w2) * (t["alpha"] / len(t["lokr_w2_b"]) if "lokr_w2_b" in t else 1)
    else:
        change = t["diff"].flatten(1)
    return change.view(base.shape)


def expected(model: Path, lora: Path, kind: str, strength: float) -> dict[tuple[str, str], Tensor]:
    """{(part, name in the model): merged weight} of all layers that the file has as they are, in float64."""
    family, state = tiny.fresh(model), load_file(lora)
    out = {}
    for target in family.adapter_targets(convolutions=True):
        t = {k.removeprefix(f"{target.in_file}."): v.double() for k, v in state.items() if k.startswith(f"{target.in_file}.")}
        if t and not target.piece:
            base = target.module.weight.detach().double()  # type: ignore[union-attr, operator]
            out[target.part, f"{target.name}.weight"] = base + strength * formula(kind, base, t)
    return out


def weights(path: Path, config: Path | None = None) -> dict[tuple[str, str], Tensor]:
    """All of a written model's, as Limner reads them."""
    family: Any = families.make(recognise(str(path), config=config))
    for part in ("text", "denoiser", "vae"):
        family.load(part, torch.float32, CPU)
    parts = {"denoiser": family.denoiser, "vae": family.vae, **family.text_encoders}
    return {(part, k): v for part, model in parts.items() for k, v in model.state_dict().items()}


def merged_in_memory(model: Path, lora: Path, strength: float) -> dict[tuple[str, str], Tensor]:
    """What the model computes with beside the adapter, made one: the trainer's own way, on the loaded model."""
    from limner.adapters import reading

    family = tiny.fresh(model)
    for _, _, layer in reading.layers_of(family, reading.read(lora, family, "lora"), "lora"):
        layer.strength = strength
        layer.merge()
    parts = {"denoiser": family.denoiser, **family.text_encoders}
    return {(part, k): v for part, m in parts.items() for k, v in m.state_dict().items()}


@pytest.mark.parametrize("layout", ["file", "folder"])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sd3", "flux"])
def test_every_family(models: dict[str, Path], family: str, layout: str, tmp_path: Path) -> None:
    model = models[family]
    lora = a_lora(model, tmp_path / "a.safetensors", KINDS["lora"])
    base, options = model, {}
    if layout == "file":
        base, options = single_file(model, family, tmp_path / "base.safetensors"), {"config": model}
    out = tmp_path / ("out.safetensors" if layout == "file" else "out")
    report = merge(base=base, loras=[f"{lora} @ 0.7"], output=out, **options)
    assert report.files == [out]
    before = weights(base, options.get("config"))
    after, told = weights(out, options.get("config")), expected(model, lora, "lora", 0.7)
    memory = merged_in_memory(model, lora, 0.7)
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and {part for part, _ in changed} == {"denoiser", *tiny.fresh(model).trainable_text}
    assert changed == {k for k, v in memory.items() if not torch.equal(before[k], v)}
    for key, weight in told.items():
        torch.testing.assert_close(after[key].double(), weight, atol=1e-6, rtol=1e-5)
    for key in changed:
        torch.testing.assert_close(after[key], memory[key], atol=1e-6, rtol=1e-5)


def test_output_is_that_of_base_and_adapter(models: dict[str, Path], tmp_path: Path) -> None:
    """What the models compute, beside each other, for Stable Diffusion 1 and Flux."""
    for name in ("sd1", "flux"):
        lora = a_lora(models[name], tmp_path / f"{name}.safetensors", KINDS["lora"])
        merge(base=models[name], loras=[f"{lora} @ 0.5"], output=tmp_path / name)
        beside, family = tiny.fresh(models[name]), tiny.loaded(tmp_path / name)
        from limner.engine.sampling import load_lora

        assert load_lora(beside, lora, 0.5) is not None
        noisy = torch.randn(1, family.base.latent_channels, 8, 8, generator=torch.Generator().manual_seed(1))
        found = []
        with torch.no_grad():
            for model in (beside, family):
                cond = model.encode_captions(["a cat"]) | {"guidance": torch.ones(1)}
                found.append(model.predict(noisy, torch.tensor([500]), cond))
        torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "lora"])
def test_every_kind(models: dict[str, Path], kind: str, tmp_path: Path) -> None:
    model = models["sd1"]
    base, out = single_file(model, "sd1", tmp_path / "base.safetensors"), tmp_path / "out.safetensors"
    lora = a_lora(model, tmp_path / "a.safetensors", KINDS[kind])
    merge(base=base, loras=[f"{lora} @ 0.7"], output=out, config=model)
    after = weights(out, model)
    for key, weight in merged_in_memory(model, lora, 0.7).items():
        torch.testing.assert_close(after[key], weight, atol=1e-6, rtol=1e-5)
    if kind in ("convolutions", "dora", "loha", "lokr", "full"):
        told = expected(model, lora, kind, 0.7)
        assert len(told) > 20
        for key, weight in told.items():
            torch.testing.assert_close(after[key].double(), weight, atol=1e-5, rtol=1e-5)


def test_two_files_and_diffusers_names(models: dict[str, Path], tmp_path: Path) -> None:
    model = models["flux"]
    base = single_file(model, "flux", tmp_path / "base.safetensors")
    first = a_lora(model, tmp_path / "a.safetensors", Lora(rank=3))
    second = a_lora(model, tmp_path / "b.safetensors", Lora(rank=2), "diffusers", seed=1)
    out = tmp_path / "out.safetensors"
    merge(base=base, loras=[f"{first} @ 0.5", f"{second} @ -1"], output=out, config=model)
    one, two, before = merged_in_memory(model, first, 0.5), merged_in_memory(model, second, -1), weights(base, model)
    after = weights(out, model)
    for key, weight in one.items():
        torch.testing.assert_close(after[key], weight + two[key] - before[key], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "code"), [(torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float8_e4m3fn, "F8_E4M3")]
)
def test_stored_precision_stays_and_is_rounded_once(
    models: dict[str, Path], dtype: torch.dtype, code: str, tmp_path: Path
) -> None:
    model, out = models["sdxl"], tmp_path / "out.safetensors"
    base = single_file(model, "sdxl", tmp_path / "base.safetensors", dtype)
    loras = [a_lora(model, tmp_path / f"{i}.safetensors", Lora(rank=2), seed=i) for i in range(3)]
    merge(base=base, loras=[str(f) for f in loras], output=out, config=model)
    before, after, told = load_file(base), load_file(out), [expected(model, f, "lora", 1.0) for f in loras]
    assert {v.dtype for v in after.values()} == {dtype} and list(after) == list(before)
    family, count = tiny.fresh(model), 0
    own = {(t.part, f"{t.name}.weight"): t.module.weight.double() for t in family.adapter_targets(True)}  # type: ignore[union-attr, operator]
    places = unet_names(family.denoiser.state_dict())
    for key in told[0]:
        there = UNET + places[key[1]].name
        exact = before[there].double().view(own[key].shape) + sum(t[key] - own[key] for t in told)
        rounded = exact.float().to(dtype).double()
        # float32 may fall on the other side of a tie, which is as near
        assert ((after[there].double().view(exact.shape) - exact).abs() <= (rounded - exact).abs() + 1e-6).all()
        count += 1
    assert count > 10


def test_scaled_numbers_of_8_bits(models: dict[str, Path], tmp_path: Path) -> None:
    """ComfyUI's: the scale grows where the merged weight needs it, and stays where it does not."""
    model = models["flux"]
    path, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    state = original_layout.as_single_file(model, "flux")
    names = [k for k, v in state.items() if "double_blocks" in k and k.endswith("mlp.0.weight")]
    for name in names:
        scale = state[name].abs().max() / 448
        state[f"{name.removesuffix('weight')}scale_weight"] = scale
        state[name] = (state[name] / scale).to(torch.float8_e4m3fn)
    save_file(state, path)
    lora = a_lora(model, tmp_path / "a.safetensors", Lora(rank=2))
    merge(base=path, loras=[f"{lora} @ 3"], output=out, config=model)
    before, after, memory = load_file(path), load_file(out), merged_in_memory(model, lora, 3.0)
    own_names = [own for part, own in memory if part == "denoiser"]
    places = {UNET + there.name: own for own, there in transformer_names(own_names).items()}
    grown = 0
    for name in names:
        scale = f"{name.removesuffix('weight')}scale_weight"
        whole = after[name].double() * after[scale].double()
        own = memory["denoiser", places[name]]
        assert after[name].dtype == torch.float8_e4m3fn and after[name].float().abs().max() <= 448
        assert (whole - own).abs().max() <= float(own.abs().max()) / 8
        assert after[scale] >= before[scale]
        grown += int(after[scale] > before[scale])
    assert grown
    merge(base=path, loras=[f"{lora} @ 3"], output=out, config=model, dtype="bf16", overwrite=True)
    plain = load_file(out)
    assert not any(k.endswith("scale_weight") for k in plain) and {v.dtype for v in plain.values()} == {torch.bfloat16}
    torch.testing.assert_close(
        plain[names[0]].float(),
        (after[names[0]].float() * after[names[0].replace("weight", "scale_weight")]),
        atol=0.2,
        rtol=0.1,
    )


def test_other_precision(models: dict[str, Path], tmp_path: Path) -> None:
    lora = a_lora(models["sd1"], tmp_path / "a.safetensors", Lora(rank=2))
    merge(base=models["sd1"], loras=[str(lora)], output=tmp_path / "out", dtype="fp16")
    for part in ("unet", "vae", "text_encoder"):
        state = load_file(next((tmp_path / "out" / part).glob("*.safetensors")))
        assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float16}


def test_what_the_file_says_of_itself(models: dict[str, Path], tmp_path: Path) -> None:
    model = models["sd1"]
    base, out = single_file(model, "sd1", tmp_path / "base.safetensors"), tmp_path / "out.safetensors"
    lora = a_lora(model, tmp_path / "a.safetensors", Lora(rank=2), metadata={"modelspec.trigger_phrase": "sks cat"})
    merge(base=base, loras=[f"{lora} @ 0.7"], output=out, config=model)
    from limner.formats.header import read_header
    from limner.formats.metadata import add_hashes

    said = read_header(out).metadata
    assert said["modelspec.merged_from"] == "base.safetensors, a.safetensors @ 0.7"
    assert said["modelspec.title"] == "out" and said["modelspec.trigger_phrase"] == "sks cat"
    assert said["modelspec.architecture"] == "stable-diffusion-v1" and "modelspec.hash_sha256" not in said
    (entry,) = json.loads(said["limner_merged"])["files"]
    assert entry == {"file": "a.safetensors", "strength": 0.7, **add_hashes(lora)}


def test_the_rest_of_a_folder(models: dict[str, Path], tmp_path: Path) -> None:
    """Copied, but for other variants of the weights and what does not belong to the model."""
    model = tmp_path / "model"
    shutil.copytree(models["sd1"], model)
    weight = next((model / "unet").glob("*.safetensors"))
    shutil.copy(weight, weight.with_name("diffusion_pytorch_model.fp16.safetensors"))
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"old")
    index = '{"weight_map": {"a": "diffusion_pytorch_model.fp16-00001-of-00002.safetensors"}}'
    (model / "unet" / "diffusion_pytorch_model.fp16.safetensors.index.json").write_text(index)
    (model / "whole.safetensors").write_bytes(b"")
    (model / "README.md").write_text("read me")
    (model / "elsewhere").mkdir()
    (model / "elsewhere" / "secret.txt").write_text("")
    (model / "safety_checker").mkdir()
    (model / "safety_checker" / "model.safetensors").write_bytes(b"checker")
    named = json.loads((model / "model_index.json").read_text()) | {"safety_checker": ["stable_diffusion", "X"]}
    (model / "model_index.json").write_text(json.dumps(named))
    lora = a_lora(models["sd1"], tmp_path / "a.safetensors", Lora(rank=2))
    merge(base=model, loras=[str(lora)], output=tmp_path / "out")
    found = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert sorted(f for f in found if f.startswith("unet/")) == ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    assert {"README.md", "model_index.json", "safety_checker/model.safetensors", "scheduler/scheduler_config.json"} <= found
    assert not any(f.startswith(("elsewhere", "whole")) for f in found)
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / vae).stat().st_size == (model / vae).stat().st_size


def test_a_transformer_alone(models: dict[str, Path], tmp_path: Path) -> None:
    """Flux's usual file: nothing else is needed to merge, and what the LoRA changes besides is said to be left out."""
    model = models["flux"]
    state = original_layout.as_file(
        "flux", {"transformer": original_layout.in_folder(model, "flux")["transformer"]}, {"transformer": ""}
    )
    save_file(state, tmp_path / "base.safetensors")
    lora = a_lora(model, tmp_path / "a.safetensors", KINDS["lora"])
    options = {
        "base": tmp_path / "base.safetensors",
        "loras": [str(lora)],
        "output": tmp_path / "out.safetensors",
        "config": model,
    }
    seen = merge_model.look(section(**options))
    assert not (tmp_path / "out.safetensors").exists()
    (remark,) = seen.remarks
    assert remark.severity == "warning" and "changes text encoders too" in remark.message
    merge(**options)
    assert load_file(tmp_path / "out.safetensors").keys() == state.keys()
    text = {k: v for k, v in load_file(lora).items() if k.startswith("lora_te")}
    save_file(text, tmp_path / "text.safetensors")
    with pytest.raises(UserError, match="nothing but text encoders"):
        merge_model.look(section(**options | {"loras": [str(tmp_path / "text.safetensors")], "overwrite": True}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"loras": []}, "merge_model.loras: names no file"),
        ({"loras": ["{tmp}/absent.safetensors"]}, "merge_model.loras: .*absent.safetensors is not a file"),
        ({"loras": ["{tmp}/xl.safetensors"]}, "xl.safetensors is a LoRA for Stable Diffusion XL"),
        ({"loras": ["{tmp}/strange.safetensors"]}, "strange.safetensors: lora_unet_nowhere has no place in this model"),
        ({"loras": ["{tmp}/nan.safetensors"]}, "merge_model.loras: nan.safetensors: .* not finite"),
        ({"loras": ["{tmp}/a.safetensors @ 99"]}, "no strength"),
        ({"base": "{tmp}/nothing"}, "merge_model.base: .* is neither a folder, nor a file"),
        ({"base": "some/model"}, "merge_model.base: some/model is neither a file"),
        ({"base": "{tmp}/a.safetensors"}, "merge_model.base: a.safetensors is a LoRA"),
        ({"output": "{tmp}/out.ckpt"}, "merge_model.output: out.ckpt is called like a file"),
        ({"output": "{base}"}, "merge_model.output: .* what is read"),
        ({"output": "{base}/inside"}, "merge_model.output: .* what is read"),
        ({"output": "{tmp}"}, "merge_model.output: .* what is read"),
        ({"output": "{tmp}/theirs"}, "merge_model.output: .* exists already"),
        ({"output": "{tmp}/theirs", "overwrite": True}, "was not written by Limner"),
        ({"preview_prompt": "a cat --s none"}, "merge_model.preview_prompt: --s 'none'"),
    ],
)
def test_what_is_refused(models: dict[str, Path], changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    model = models["sd1"]
    lora = a_lora(model, tmp_path / "a.safetensors", Lora(rank=2))
    a_lora(models["sdxl"], tmp_path / "xl.safetensors", Lora(rank=2), metadata={"ss_base_model_version": "sdxl_base_v1-0"})
    state = load_file(lora)
    strange = {"lora_unet_nowhere.lora_down.weight": torch.ones(1, 2), "lora_unet_nowhere.lora_up.weight": torch.ones(2, 1)}
    save_file(strange | state, tmp_path / "strange.safetensors")
    name = next(k for k in state if k.endswith("lora_up.weight"))
    save_file(state | {name: state[name] * torch.nan}, tmp_path / "nan.safetensors")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "letter.txt").write_text("dear")
    here = {"tmp": tmp_path, "base": model}
    filled = {
        k: [t.format(**here) for t in v] if isinstance(v, list) else v.format(**here) if isinstance(v, str) else v
        for k, v in changes.items()
    }
    before = sorted(p.as_posix() for p in tmp_path.rglob("*"))
    with pytest.raises(UserError, match=match):
        merge_model.run(
            section(**{"base": model, "loras": [str(lora)], "output": tmp_path / "out"} | filled),
            lambda done, total, words="": None,
        )
    assert sorted(p.as_posix() for p in tmp_path.rglob("*")) == before


def test_a_stop_leaves_nothing(models: dict[str, Path], tmp_path: Path) -> None:
    base = single_file(models["sd1"], "sd1", tmp_path / "base.safetensors")
    lora = a_lora(models["sd1"], tmp_path / "a.safetensors", Lora(rank=2))

    def stop(done: int, total: int, words: str = "") -> None:
        if done > total / 2:
            raise StopRequested

    with pytest.raises(StopRequested):
        merge_model.run(section(base=base, loras=[str(lora)], output=tmp_path / "out.safetensors", config=models["sd1"]), stop)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["a.safetensors", "base.safetensors"]


def test_preview(models: dict[str, Path], tmp_path: Path) -> None:
    """Two pictures beside each other; without LoRA, that is at strength 0, they are the same."""
    from PIL import Image

    lora = a_lora(models["sd1"], tmp_path / "a.safetensors", Lora(rank=2))
    for strength, is_same in ((0, True), (8, False)):
        options = {"loras": [f"{lora} @ {strength}"], "output": tmp_path / f"out{strength}", "preview_prompt": "a cat --s 2"}
        report = merge(base=models["sd1"], **options)
        assert not report.remarks
        picture = Image.open(report.files[1])
        assert picture.size == (64, 32) and report.files[1] == tmp_path / f"out{strength}.preview.png"
        assert (picture.crop((0, 0, 32, 32)).tobytes() == picture.crop((32, 0, 64, 32)).tobytes()) is is_same
