"""LoRAs cut to fewer ranks, against singular values in float64 by numpy; the rules for ranks; and files that cannot be cut."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from limner.adapters import reading
from limner.adapters.layered import LayerAdapter
from limner.config import Full, Glora, Ia3, Loha, Lokr, Lora, Oft
from limner.config.files import build_as
from limner.config.tools import Tools
from limner.errors import UserError
from limner.tools import resize
from limner.tools.low_rank import singular, singular_roughly
from limner.tools.ranks import cut_matrix, is_rough, rank_of
from limner.tools.tool import Report

CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
QUERY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def adapter_file(folder: Path, kind: Any, path: Path, names: Any = "kohya") -> tuple[Any, Any, Path]:
    """(family, adapter, its file)."""
    family, adapter = tiny.fresh(folder), LayerAdapter(kind)
    adapter.attach(family, 1)
    tiny.moved(adapter)
    save_file({k: v.clone().contiguous() for k, v in adapter.exported(names).items()}, path, {"ss_network_args": "{}"})
    return family, adapter, path


@pytest.fixture(scope="module")
def lora(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = Lora(rank=6, alpha=3.0, conv_rank=5, conv_alpha=10.0, text_encoder=True)
    return adapter_file(tiny_model, kind, tmp_path_factory.mktemp("lora") / "six.safetensors")[2]


def section(lora: Path, output: Path, **options: Any) -> Any:
    raw = {"lora": str(lora), "output": str(output), "dtype": "fp32", "rank": 2, **options}
    return build_as(Tools, {"resize": raw}, {}).resize


def run(*args: Any, **options: Any) -> tuple[dict[str, Tensor], Report]:
    asked = section(*args, **options)
    resize.look(asked)
    assert not asked.output.exists()
    return load_file((report := resize.run(asked, lambda *_: None)).files[0]), report


def refused(*args: Any, **options: Any) -> str:
    asked = section(*args, **options)
    with pytest.raises(UserError) as error:
        resize.run(asked, lambda *_: None)
    assert not asked.output.exists()
    return str(error.value)


def product(state: dict[str, Tensor], layer: str) -> np.ndarray:
    down, up = (state[f"{layer}.lora_{side}.weight"].double().flatten(1).numpy() for side in ("down", "up"))
    return up @ down * (float(state[f"{layer}.alpha"]) / len(down))


def layers(state: dict[str, Tensor]) -> list[str]:
    return sorted({name.partition(".")[0] for name in state})


def nearest(matrix: np.ndarray, rank: int) -> np.ndarray:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def unlike(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


# --- the rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "value", "rank"),
    [
        # of 8, 4, 2, 1, 1: sum 16, squares 64 + 16 + 4 + 1 + 1 = 86
        ("rank", None, 5),
        ("sv_cumulative", 0.5, 1),  # 8 / 16
        ("sv_cumulative", 0.51, 2),
        ("sv_cumulative", 0.875, 3),  # 14 / 16
        ("sv_cumulative", 1.0, 5),
        ("energy", 0.74, 1),  # 64 / 86 = 0.7442
        ("energy", 0.75, 2),  # 80 / 86 = 0.9302
        ("energy", 0.94, 3),
        ("sv_fro", 0.86, 1),  # sqrt(0.7442) = 0.8627
        ("sv_fro", 0.87, 2),  # sqrt(0.9302) = 0.9645
        ("sv_fro", 0.97, 3),
        ("sv_ratio", 1.0, 1),  # none is larger than 8, but one layer has one rank
        ("sv_ratio", 4.0, 2),  # larger than 2
        ("sv_ratio", 4.1, 3),
        ("sv_ratio", 100.0, 5),
        ("threshold", 1.5, 3),
        ("threshold", 9.0, 1),
    ],
)
def test_the_rules(rule: Any, value: float | None, rank: int):
    values = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0])
    assert rank_of(values, 86.0, rule, value, 100) == rank
    assert rank_of(values, 86.0, rule, value, 2) == min(rank, 2)


def test_a_layer_of_zeros_has_one_rank():
    assert rank_of(torch.zeros(7), 0.0, "sv_fro", 0.9, 4) == rank_of(torch.zeros(7), 0.0, "rank", None, 4) == 1


def test_random_projection_finds_the_largest():
    """Of a matrix with a falling spectrum, against numpy; and the same each time, whatever was drawn before."""
    rng = np.random.default_rng(3)
    left, _ = np.linalg.qr(rng.normal(size=(300, 200)))
    right, _ = np.linalg.qr(rng.normal(size=(200, 200)))
    values = 10.0 * 0.8 ** np.arange(200)
    whole = (left * values) @ right
    matrix = torch.tensor(whole, dtype=torch.float32)
    found = singular_roughly(matrix, 12)
    np.testing.assert_allclose(found.values.numpy(), values[:12], rtol=1e-4)
    assert unlike(found.cut(12).whole().double().numpy(), nearest(whole, 12)) < 1e-4
    torch.manual_seed(99)
    again = singular_roughly(matrix, 12)
    assert torch.equal(again.left, found.left) and torch.equal(again.right, found.right)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(99)))  # nor is that disturbed


def test_large_matrices_are_cut_by_projection_and_the_share_is_true():
    torch.manual_seed(0)
    matrix = torch.randn(1024, 24) @ torch.randn(24, 1100) + 0.05 * torch.randn(1024, 1100)
    assert is_rough((1024, 1100), "sv_ratio", 20) and not is_rough((1024, 1100), "sv_cumulative", 20)
    assert not is_rough((1023, 1100), "rank", 20) and not is_rough((1024, 1100), "rank", 257)
    cut = cut_matrix(matrix, "rank", None, 20)
    lost = float((matrix.double() - cut.product.whole().double()).square().sum() / matrix.double().square().sum())
    assert cut.share == pytest.approx(1 - lost, abs=1e-6)
    best = singular(matrix).values.double().square()
    assert cut.share == pytest.approx(float(best[:20].sum() / best.sum()), abs=1e-4)


# --- what is kept ---------------------------------------------------------------------------------------------------------


def test_the_nearest_of_the_rank_is_left(lora: Path, tmp_path: Path):
    state, report = run(lora, tmp_path / "two.safetensors", rank=2, conv_rank=3)
    before = load_file(lora)
    assert state.keys() == before.keys() and CONV in layers(state)
    kept = squares = 0.0
    shares = dict[str, float]()
    for layer in layers(before):
        rank, scale = (3, 2.0) if ("conv" in layer and "shortcut" not in layer) else (2, 0.5)
        matrix = product(before, layer)
        values = np.linalg.svd(matrix, compute_uv=False) ** 2
        kept, squares = kept + values[:rank].sum(), squares + values.sum()
        shares[layer] = values[:rank].sum() / values.sum()
        assert unlike(product(state, layer), nearest(matrix, rank)) < 1e-5, layer
        assert float(state[f"{layer}.alpha"]) == scale * rank  # the scale alpha / rank is what it was
        assert state[f"{layer}.lora_down.weight"].shape[1:] == before[f"{layer}.lora_down.weight"].shape[1:]
        assert len(state[f"{layer}.lora_down.weight"]) == rank
        line = next(line.split() for line in report.lines if f"{layer[-60:]} " in line)
        assert line[1:] == [str(len(before[f"{layer}.lora_down.weight"])), str(rank), f"{shares[layer]:.2%}"]
    said = "\n".join(report.lines)
    assert f"{kept / squares:.2%} is kept, of the norm {(kept / squares) ** 0.5:.2%}" in said
    least = min(shares, key=shares.__getitem__)
    assert f"Least of {least}: {shares[least]:.2%}" in said


def by_hand(values: np.ndarray, rule: str, value: float) -> int:
    squares = values**2
    if rule == "sv_ratio":
        return max(1, sum(v > values[0] / value for v in values))
    for rank in range(1, len(values) + 1):
        share = {
            "energy": squares[:rank].sum() / squares.sum(),
            "sv_fro": np.sqrt(squares[:rank].sum() / squares.sum()),
            "sv_cumulative": values[:rank].sum() / values.sum(),
        }[rule]
        if share >= value:
            return rank
    return len(values)


@pytest.mark.parametrize(("rule", "value"), [("energy", 0.8), ("sv_fro", 0.95), ("sv_cumulative", 0.7), ("sv_ratio", 2.0)])
def test_ranks_by_rule(lora: Path, tmp_path: Path, rule: str, value: float):
    state, _ = run(lora, tmp_path / "d.safetensors", rule=rule, value=value, rank=4)
    before, ranks = load_file(lora), set()
    for layer in layers(before):
        values = np.linalg.svd(product(before, layer), compute_uv=False)[:6]
        rank = len(state[f"{layer}.lora_down.weight"])
        assert rank == min(4, by_hand(values[: len(before[f"{layer}.lora_down.weight"])], rule, value)), layer
        ranks.add(rank)
    assert len(ranks) > 1
    with safe_open(tmp_path / "d.safetensors", "pt") as file:
        said = file.metadata()
    assert said["ss_network_dim"] == said["ss_network_alpha"] == "Dynamic"
    assert said["ss_training_comment"] == f"resized by {rule} {value:g}, rank up to 4 from 6 (six.safetensors)"


def test_a_layer_keeps_its_rank_if_more_is_asked(lora: Path, tmp_path: Path):
    state, report = run(lora, tmp_path / "a.safetensors", rank=50)
    before = load_file(lora)
    for layer in layers(before):
        assert unlike(product(state, layer), product(before, layer)) < 1e-6
        assert len(state[f"{layer}.lora_down.weight"]) <= len(before[f"{layer}.lora_down.weight"])
    assert any("fewer ranks than asked" in r.message for r in report.remarks)


def test_it_reads_back_as_an_adapter(tiny_model: Path, lora: Path, tmp_path: Path):
    run(lora, tmp_path / "a.safetensors", rank=2)
    family, before = tiny.fresh(tiny_model), load_file(lora)
    found = list(reading.layers_of(family, reading.read(tmp_path / "a.safetensors", family, "lora"), "lora"))
    assert len(found) == len(layers(before))
    for name, _, layer in found:
        assert unlike(layer.delta().detach().double().flatten(1).numpy(), nearest(product(before, name), 2)) < 1e-5


def test_metadata(lora: Path, tmp_path: Path):
    said = {
        "ss_network_dim": "6", "ss_network_alpha": "3.0", "ss_output_name": "six", "ss_training_comment": "mine; 'x'\n",
        "ss_network_args": json.dumps({"conv_dim": "5", "conv_alpha": "10", "dropout": "0.1"}), "sshs_model_hash": "0" * 64,
        "modelspec.title": "Sechs", "other": "ü",
    }  # fmt: skip
    save_file(load_file(lora), tmp_path / "b.safetensors", said)
    run(tmp_path / "b.safetensors", tmp_path / "a.safetensors", rank=2)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        now = file.metadata()
    assert now["ss_network_dim"] == "2" and now["ss_network_alpha"] == "Dynamic"  # the convolutions have another
    assert now["ss_training_comment"] == "resized by rank 2 from 6 (b.safetensors); mine; 'x'\n"
    assert json.loads(now["ss_network_args"]) == {"conv_dim": "2", "dropout": "0.1"}
    assert (now["modelspec.title"], now["other"], now["ss_output_name"]) == ("Sechs", "ü", "six")
    # sd-scripts' hash is that of the numbers
    content = (tmp_path / "a.safetensors").read_bytes()
    assert now["sshs_model_hash"] == hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()


@pytest.mark.parametrize("said", ["[" * 100_000, "null", "3", '{"conv_dim": {"a": []}}', "{"])
def test_arguments_that_are_none(lora: Path, tmp_path: Path, said: str):
    save_file(load_file(lora), tmp_path / "b.safetensors", {"ss_network_args": said})
    state, _ = run(tmp_path / "b.safetensors", tmp_path / "a.safetensors")
    assert len(layers(state)) == len(layers(load_file(lora)))


# --- other names and kinds ------------------------------------------------------------------------------------------------


def test_names_of_diffusers(tiny_model: Path, tmp_path: Path):
    _, _, path = adapter_file(tiny_model, Lora(rank=6, alpha=3.0, text_encoder=True), tmp_path / "d.safetensors", "diffusers")
    before = load_file(path)
    # as diffusers writes it: the scale of the UNet's layers is for the metadata to say
    save_file(before, path, {"lora_adapter_metadata": json.dumps({"unet.r": 6, "unet.lora_alpha": 12})})
    state, _ = run(path, tmp_path / "a.safetensors")
    assert state.keys() == before.keys()
    for name in (n for n in before if "lora_A" in n):
        up = name.replace("lora_A", "lora_B")
        scale = 2.0 if name.startswith("unet.") else 1.0
        found = state[up].double().flatten(1).numpy() @ state[name].double().flatten(1).numpy()
        wanted = before[up].double().flatten(1).numpy() @ before[name].double().flatten(1).numpy() * scale
        assert unlike(found, nearest(wanted, 2)) < 1e-5
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert "lora_adapter_metadata" not in file.metadata()


@pytest.mark.parametrize("said", ['{"unet.r": 4, "unet.alpha_pattern": {"a": 2}}', "[]", "[" * 100_000])
def test_scales_that_are_not_read(tiny_model: Path, tmp_path: Path, said: str):
    path = adapter_file(tiny_model, Lora(rank=2), tmp_path / "d.safetensors", "diffusers")[2]
    save_file(load_file(path), path, {"lora_adapter_metadata": said})
    assert "resize.lora" in refused(path, tmp_path / "a.safetensors", rank=1)


@pytest.mark.parametrize("family", ["sd1", "flux", "sd3"])
@pytest.mark.parametrize(
    "kind", [Loha(rank=3, conv_rank=2, alpha=2.0), Lokr(rank=2, factor=2), Full()], ids=["loha", "lokr", "full"]
)
def test_whole_changes_become_loras(tmp_path: Path, tiny_model: Path, flow_models: dict[str, Path], family: str, kind: Any):
    """Of stacks, too; against what the layers themselves compute. Without the model only the usual shapes are known."""
    folder = flow_models.get(family, tiny_model)
    model, adapter, path = adapter_file(folder, kind, tmp_path / "k.safetensors")
    wanted = {(t.part, t.name): layer.delta().detach().double().flatten(1).numpy() for t, layer in adapter.layers.values()}
    adapter.detach()
    state, report = run(path, tmp_path / "a.safetensors", rank=1000, model=str(folder))
    assert {name.partition(".")[2] for name in state} == {"lora_down.weight", "lora_up.weight", "alpha"}
    found = {
        (target.part, target.name): layer.delta().detach().double().flatten(1).numpy()
        for _, target, layer in reading.layers_of(model, reading.read(tmp_path / "a.safetensors", model, "lora"), "lora")
    }
    assert found.keys() == wanted.keys()
    for name, matrix in wanted.items():
        assert unlike(found[name], matrix) < 2e-5, name
    assert (kind.kind == "full") == any("biases" in r.message for r in report.remarks)
    path.with_name("a.safetensors").unlink()
    assert "resize.lora" in refused(path, tmp_path / "a.safetensors")


@pytest.fixture(scope="module")
def flow_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("flow")
    return {name: tiny.build(folder / name, family=name) for name in ("sd3", "flux")}


def test_magnitudes_stay(tiny_model: Path, tmp_path: Path):
    path = adapter_file(tiny_model, Lora(rank=6, dora=True), tmp_path / "k.safetensors")[2]
    state, report = run(path, tmp_path / "a.safetensors")
    before = load_file(path)
    assert torch.equal(state[f"{QUERY}.dora_scale"], before[f"{QUERY}.dora_scale"])
    assert unlike(product(state, QUERY), nearest(product(before, QUERY), 2)) < 1e-5
    assert [r for r in report.remarks if "DoRA" in r.message] and len(report.remarks) == 1


def test_a_matrix_in_the_middle(tmp_path: Path):
    """LoCon as a Tucker product: 1x1, 3x3, 1x1, as torch convolves them one after the other."""
    rng = torch.Generator().manual_seed(1)
    down, middle, up = (torch.randn(s, generator=rng) for s in ((4, 7, 1, 1), (4, 4, 3, 3), (9, 4, 1, 1)))
    names = {"lora_down.weight": down, "lora_mid.weight": middle, "lora_up.weight": up, "alpha": torch.tensor(2.0)}
    save_file({f"{CONV}.{k}": v for k, v in names.items()}, tmp_path / "k.safetensors")
    state, _ = run(tmp_path / "k.safetensors", tmp_path / "a.safetensors", rank=9)
    assert sorted(state) == [f"{CONV}.{n}" for n in ("alpha", "lora_down.weight", "lora_up.weight")]
    x = torch.randn(1, 7, 6, 6, generator=rng, dtype=torch.float64)
    conv = torch.nn.functional.conv2d
    wanted = conv(conv(conv(x, down.double()), middle.double(), padding=1), up.double()) * 0.5
    scale = float(state[f"{CONV}.alpha"]) / len(state[f"{CONV}.lora_down.weight"])
    found = (
        conv(conv(x, state[f"{CONV}.lora_down.weight"].double(), padding=1), state[f"{CONV}.lora_up.weight"].double()) * scale
    )
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_other_tensors_stay(lora: Path, tmp_path: Path):
    save_file(load_file(lora) | {"bundle_emb.word.emb": torch.ones(2, 16)}, tmp_path / "k.safetensors")
    state, report = run(tmp_path / "k.safetensors", tmp_path / "a.safetensors")
    assert torch.equal(state["bundle_emb.word.emb"], torch.ones(2, 16))
    assert any("1 tensors are no layers" in r.message for r in report.remarks)


# --- files that cannot be cut -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "said"), [(Oft(), "OFT"), (Ia3(), "(IA)^3"), (Glora(rank=2), "GLoRA")], ids=["oft", "ia3", "glora"]
)
def test_kinds_that_have_no_singular_values(tiny_model: Path, tmp_path: Path, kind: Any, said: str):
    path = adapter_file(tiny_model, kind, tmp_path / "k.safetensors")[2]
    text = refused(path, tmp_path / "a.safetensors")
    assert f"is {said}, which" in text and "more layers" in text


def test_a_kind_with_a_core_is_refused_by_name(tmp_path: Path):
    names = {f"hada_w{i}_{side}": torch.ones(2, 2) for i in (1, 2) for side in "ab"} | {"hada_t1": torch.ones(2, 2, 3, 3)}
    save_file({f"{CONV}.{k}": v for k, v in names.items()}, tmp_path / "k.safetensors")
    assert "LoHa with a Tucker core" in refused(tmp_path / "k.safetensors", tmp_path / "a.safetensors")


def edited(lora: Path, path: Path, edits: dict[str, Tensor | None]) -> Path:
    state = {k: v for k, v in load_file(lora).items() if k not in edits}
    save_file(state | {k: v for k, v in edits.items() if v is not None}, path)
    return path


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ({f"{QUERY}.lora_up.weight": None}, "has no counterpart"),
        ({f"{QUERY}.lora_up.weight": torch.ones(16, 5)}, "do not make a product"),
        ({f"{QUERY}.lora_down.weight": torch.ones(0, 16)}, "do not make a product"),
        ({f"{QUERY}.lora_down.weight": torch.ones(6)}, "do not make a product"),
        ({f"{QUERY}.alpha": torch.ones(3)}, "do not make a product"),
        ({f"{QUERY}.alpha": torch.tensor(float("nan"))}, "is no finite number"),
        ({f"{QUERY}.lora_down.weight": torch.full((6, 16), float("nan"))}, "not finite"),
        ({f"{QUERY}.lora_up.weight": torch.full((16, 6), float("inf"))}, "not finite"),
    ],
)
def test_damaged_layers(lora: Path, tmp_path: Path, edits: dict, said: str):
    assert said in refused(edited(lora, tmp_path / "k.safetensors", edits), tmp_path / "a.safetensors")


def test_files_that_are_none(lora: Path, tiny_model: Path, tmp_path: Path):
    (tmp_path / "cut.safetensors").write_bytes(lora.read_bytes()[:-10])
    assert "not a whole safetensors file" in refused(tmp_path / "cut.safetensors", tmp_path / "a.safetensors")
    assert "is not a file" in refused(tmp_path / "none.safetensors", tmp_path / "a.safetensors")
    unet = next((tiny_model / "unet").glob("*.safetensors"))
    assert "holds no LoRA" in refused(unet, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="what is read"):
        resize.run(section(lora, lora, overwrite=True), lambda *_: None)
    with pytest.raises(UserError, match="exists already"):
        resize.run(section(lora, tmp_path / "cut.safetensors"), lambda *_: None)


def test_names_are_hostile(tmp_path: Path):
    """Whatever a layer is called, it is a key of the file and a word in the report."""
    name = 'lora_unet_"; rm -rf ~\u202e\n$(x)' + "y" * 300
    state = {f"{name}.lora_down.weight": torch.ones(2, 8), f"{name}.lora_up.weight": torch.ones(8, 2)}
    save_file(state, tmp_path / "k.safetensors")
    out, report = run(tmp_path / "k.safetensors", tmp_path / "a.safetensors", rank=1)
    assert set(out) == {*state, f"{name}.alpha"}
    assert all("\n" not in line and "\u202e" not in line and len(line) < 400 for line in report.lines)


def test_numbers_too_large_for_the_file(lora: Path, tmp_path: Path):
    path = edited(lora, tmp_path / "k.safetensors", {f"{QUERY}.lora_up.weight": torch.full((16, 6), 1e25)})
    assert "too large for fp16" in refused(path, tmp_path / "a.safetensors", dtype="fp16")
