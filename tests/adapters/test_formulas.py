"""What adapted layers compute is what other programs make of the file: ComfyUI's formulas, written anew, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from limner.adapters import reading
from limner.adapters.layered import LAYERS, LayerAdapter
from limner.adapters.layers import Sizes
from limner.config import Dylora, Full, Glora, Ia3, Loha, Lokr, Lora, Oft
from limner.errors import UserError
from limner.models.family import FAMILIES

CPU = torch.device("cpu")
SECTIONS: dict[str, Any] = {
    "lora": Lora(rank=5, alpha=2.0, conv_rank=3),
    "lora, ranks": Lora(rank=5, conv_rank=3, rules=("*to_q: rank=2 alpha=3", "*to_v: off", "*.0.*: rank=3")),
    "dora": Lora(rank=5, alpha=2.0, conv_rank=3, dora=True),
    "loha": Loha(rank=3, alpha=2.0, conv_rank=2),
    "lokr": Lokr(rank=1, alpha=0.5, conv_rank=1, conv_alpha=3.0),
    "lokr, factor": Lokr(rank=2, alpha=3.0, conv_rank=1, factor=2),
    "lokr, both": Lokr(rank=1, alpha=3.0, conv_rank=1, decompose_both=True),
    "lokr, whole": Lokr(rank=99, conv_rank=99),
    "oft": Oft(block=4, convolutions=True),
    "oft, odd": Oft(block=7, convolutions=True),
    "boft": Oft(block=5, butterfly=True, convolutions=True),
    "ia3": Ia3(),
    "glora": Glora(rank=3, alpha=2.0, conv_rank=2),
    "dylora": Dylora(rank=4, unit=2, alpha=3.0, conv_rank=2),
    "full": Full(convolutions=True),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny.build(tmp_path_factory.mktemp("models") / request.param, family=request.param)
    return tiny.loaded(folder)


def trained(family: Any, section: Any) -> LayerAdapter:
    """Attached, and far away from where it began."""
    adapter = LayerAdapter(section.model_copy(update={"text_encoder": True}))
    adapter.attach(family, 1)
    return tiny.moved(adapter)


# --- the independent reader -------------------------------------------------------------------------------------------


def places(family: Any) -> dict[str, tuple[list[nn.Module], bool]]:
    """What a file can name -> (the layers that it means, whether the halves of its outputs lie the other way round)."""
    stacks: dict[str, list[tuple[str, nn.Module]]] = {}
    out: dict[str, tuple[list[nn.Module], bool]] = {}
    for t in family.adapter_targets(convolutions=True):
        stacks.setdefault(t.in_file, []).append((t.piece, t.module))
        if t.part == "denoiser":  # ComfyUI's map has the members of stacks by diffusers' names, halves as the file has them
            out["lycoris_" + t.in_diffusers.split(".", 1)[1].replace(".", "_")] = [t.module], t.piece == "swapped"
    return out | {k: ([m for _, m in sorted(v, key=lambda p: p[0])], v[0][0] == "swapped") for k, v in stacks.items()}


def cayley(blocks: Tensor) -> Tensor:
    q = blocks - blocks.mT
    eye = torch.eye(q.shape[-1], dtype=q.dtype)
    return (eye + q) @ (eye - q).inverse()


def changed(weight: Tensor, file: dict[str, Tensor]) -> Tensor:
    """A weight with the change of one layer of a file, as ComfyUI has it ((IA)^3: as A1111 and LyCORIS)."""
    t, flat, rows = file, weight.flatten(1), len(weight)

    def scale(rank: int) -> Tensor | float:
        return t["alpha"] / rank

    if "lora_up.weight" in t:
        down, up = t["lora_down.weight"].flatten(1), t["lora_up.weight"].flatten(1)
        out = (flat + up @ down * scale(len(down))).view_as(weight)
        if "dora_scale" in t:
            norm = out.transpose(0, 1).flatten(1).norm(dim=1).view(1, -1, *[1] * (weight.ndim - 2))
            out = out * t["dora_scale"] / norm
        return out
    if "hada_w1_a" in t:
        change = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"]) * scale(len(t["hada_w1_b"]))
    elif any(k.startswith("lokr") for k in t):
        small = t.get("lokr_w1", t["lokr_w1_a"] @ t["lokr_w1_b"] if "lokr_w1_a" in t else None)
        large = t.get("lokr_w2", t["lokr_w2_a"] @ t["lokr_w2_b"] if "lokr_w2_a" in t else None)
        assert small is not None and large is not None
        ranks = {len(t[k]) for k in ("lokr_w1_b", "lokr_w2_b") if k in t}
        if large.ndim == 4:
            small = small[:, :, None, None]
        change = torch.kron(small, large) * (scale(ranks.pop()) if ranks else 1.0)
    elif "oft_blocks" in t:
        assert t["alpha"] == 0
        turn = cayley(t["oft_blocks"])
        if turn.ndim == 3:
            return torch.block_diag(*turn.mT).mm(flat).view_as(weight)
        out = flat
        for i, stage in enumerate(turn):
            # the pairing of this stage, as a permutation of the rows
            b = stage.shape[-1]
            order = torch.arange(rows).view(-1, 2, 2**i * b // 2).transpose(1, 2).reshape(-1)
            mixed = torch.block_diag(*stage).mm(out[order])
            inverse = torch.arange(rows).view(-1, 2**i * b // 2, 2).transpose(1, 2).reshape(-1)
            out = mixed[inverse]
        return out.view_as(weight)
    elif "a1.weight" in t:
        a1, a2, b1, b2 = (t[f"{k}.weight"].flatten(1) for k in ("a1", "a2", "b1", "b2"))
        through = torch.einsum("oi...,ij,jk->ok...", weight, a1, a2)
        change = (through.flatten(1) + b1 @ b2) * scale(len(a2))
    elif "on_input" in t:
        change = flat * (t["weight"].view(1, -1) if t["on_input"] else t["weight"].view(-1, 1))
    else:
        change = t["diff"]
    return weight + change.reshape(weight.shape)


def rebuilt(family: Any, file: dict[str, Tensor]) -> dict[nn.Module, tuple[Tensor, Tensor | None]]:
    """Every layer that a file changes, with its weight and bias then."""
    named, layers = places(family), dict[str, dict[str, Tensor]]()
    for name, tensor in file.items():
        layer, _, rest = name.partition(".")
        layers.setdefault(layer, {})[rest] = tensor.double()
    out = {}
    for name, tensors in layers.items():
        members, is_swapped = named[name]

        def turned(t: Tensor, is_swapped: bool = is_swapped) -> Tensor:
            return torch.cat(t.chunk(2)[::-1]) if is_swapped else t

        weight = turned(torch.cat([m.weight.detach().double() for m in members]))  # type: ignore[arg-type]
        sizes = [len(m.weight) for m in members]  # type: ignore[arg-type]
        bias = None
        if members[0].bias is not None:
            bias = turned(torch.cat([m.bias.detach().double() for m in members]))  # type: ignore[arg-type]
            bias = turned(bias + tensors.get("diff_b", 0)).split(sizes)
        for i, (member, own) in enumerate(zip(members, turned(changed(weight, tensors)).split(sizes), strict=True)):
            out[member] = own, None if bias is None else bias[i]
    return out


@torch.no_grad()
@pytest.mark.parametrize("name", SECTIONS)
def test_the_files_weights_are_what_the_layers_compute(family: Any, name: str) -> None:
    section = SECTIONS[name]
    adapter = trained(family, section)
    file = {k: v.clone() for k, v in adapter.exported("kohya").items()}
    weights = rebuilt(family, file)
    adapted = {target.module for target, _ in adapter.layers.values()}
    assert weights.keys() == adapted and len(adapted) > 20
    rng = torch.Generator().manual_seed(3)
    for module, (weight, bias) in weights.items():
        x = torch.randn(2, weight.shape[1], *[5] * (weight.ndim - 2), generator=rng)
        ours = module(x)
        if weight.ndim == 2:
            theirs = F.linear(x.double(), weight, bias)
        else:
            theirs = F.conv2d(x.double(), weight, bias, module.stride, module.padding)  # type: ignore[arg-type]
        assert (ours - theirs).abs().max() / theirs.abs().max() < 3e-6, (name, module)
        assert (ours - module.__class__.forward(module, x)).abs().max() > 1e-4, "nothing was changed"
    kinds = {type(layer) for _, layer in adapter.layers.values()}
    adapter.detach()

    # and the file, read again, is the same adapter
    again = LayerAdapter.of_file(family, {k: v.clone() for k, v in reading.own_names(file, family).items()}, "x")
    found = {type(layer) for _, layer in again.layers.values()}
    assert found == kinds or section.kind == "dylora"
    for module, (weight, _) in weights.items():
        layer = next(la for t, la in again.layers.values() if t.module is module)
        assert (module.weight + layer.delta() - weight).abs().max() < 3e-6 * weight.abs().max()  # type: ignore[operator]
    again.detach()


@torch.no_grad()
@pytest.mark.parametrize("name", ["lora", "dora", "lokr", "ia3"])
def test_a_strength_is_a_share_of_the_change(family: Any, name: str) -> None:
    adapter = trained(family, SECTIONS[name])
    for target, layer in list(adapter.layers.values())[::7]:
        x = torch.randn(2, layer.sizes.inputs, *[4] * len(layer.sizes.kernel))
        base, full = layer.plain(x), layer(x)
        layer.strength = 0.25
        assert torch.allclose(target.module(x), base + 0.25 * (full - base), atol=1e-5)
    adapter.detach()


@pytest.mark.parametrize(
    ("section", "outputs", "inputs", "kernel", "shapes"),
    [
        # LyCORIS' shapes: of a layer of 320 to 1280 numbers, and others
        (Lokr(rank=4), 1280, 320, (), {"lokr_w1": (32, 16), "lokr_w2_a": (40, 4), "lokr_w2_b": (4, 20)}),
        (Lokr(rank=8, factor=8), 1280, 320, (), {"lokr_w1": (8, 8), "lokr_w2_a": (160, 8), "lokr_w2_b": (8, 40)}),
        (Lokr(rank=20), 1280, 320, (), {"lokr_w1": (32, 16), "lokr_w2": (40, 20)}),
        (Lokr(conv_rank=3), 320, 320, (3, 3), {"lokr_w1": (16, 16), "lokr_w2_a": (20, 3), "lokr_w2_b": (3, 180)}),
        (Lokr(conv_rank=16), 320, 320, (3, 3), {"lokr_w1": (16, 16), "lokr_w2": (20, 20, 3, 3)}),
        (Lokr(factor=7), 1280, 320, (), {"lokr_w1": (5, 5), "lokr_w2_a": (256, 16), "lokr_w2_b": (16, 64)}),
        (Oft(block=4), 320, 768, (), {"oft_blocks": (80, 4, 4)}),
        (Oft(block=9), 320, 768, (), {"oft_blocks": (40, 8, 8)}),
        (Oft(block=7), 1280, 320, (), {"oft_blocks": (256, 5, 5)}),
        (Oft(block=10, butterfly=True), 320, 320, (), {"oft_blocks": (6, 32, 10, 10)}),
        (Oft(block=9, butterfly=True), 320, 320, (), {"oft_blocks": (40, 8, 8)}),  # no power of two: turned once
        (
            Loha(conv_rank=3), 64, 32, (3, 3),
            {"hada_w1_a": (64, 3), "hada_w1_b": (3, 288), "hada_w2_a": (64, 3), "hada_w2_b": (3, 288)},
        ),
    ],
)  # fmt: skip
def test_shapes(section: Any, outputs: int, inputs: int, kernel: tuple[int, ...], shapes: dict[str, tuple[int, ...]]) -> None:
    sizes = Sizes(inputs, outputs, kernel, halves=False)
    made, _ = LAYERS[section.kind].initial(None, sizes, section, torch.Generator())  # type: ignore[arg-type]
    assert {k: tuple(t.shape) for k, t in made.items()} == shapes


# --- what is refused --------------------------------------------------------------------------------------------------


def file_of(family: Any, section: Any) -> dict[str, Tensor]:
    adapter = trained(family, section)
    state = {k: v.clone() for k, v in adapter.exported("kohya").items()}
    adapter.detach()
    return state


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.clear(), "holds no LoRA"),
        (lambda s: s.update({"lora_unet_nowhere.alpha": torch.ones(())}), "no place"),
        (lambda s: s.update({"whatever": torch.ones(())}), "whatever has no place"),
        (lambda s: s.pop(next(k for k in s if k.endswith("lora_up.weight"))), "no kind"),
        (lambda s: s.update({(k := next(iter(s))): s[k][:, :-1]}), "makes no change of a weight"),
        (lambda s: s.update({(k := next(k for k in s if "to_q.dora" in k)): s[k].T}), "magnitudes go by outputs"),
    ],
    ids=["empty", "stranger", "no layer", "half", "misshapen", "dora by outputs"],
)
def test_files_that_do_not_fit(tiny_model: Path, change: Any, said: str) -> None:
    family = tiny.loaded(tiny_model)
    state = file_of(family, Lora(rank=2, dora=True))
    change(state)
    with pytest.raises(UserError, match=said) as caught:
        LayerAdapter.of_file(family, reading.own_names(state, family), "--lora")
    assert len(caught.value.findings) <= 4
    assert not any("forward" in m.__dict__ for m in family.denoiser.modules())


def test_a_file_may_change_some_layers_alone_and_mix_kinds(tiny_model: Path) -> None:
    family = tiny.loaded(tiny_model)
    some = {k: v for k, v in file_of(family, Lora(rank=2)).items() if "mid_block" in k}
    others = {k: v for k, v in file_of(family, Loha(rank=2)).items() if "up_blocks" in k}
    adapter = LayerAdapter.of_file(family, reading.own_names(some | others, family), "--lora")
    assert {type(layer).__name__ for _, layer in adapter.layers.values()} == {"LoraLayer", "LohaLayer"}
    assert 0 < len(adapter.layers) < len(family.adapter_targets(convolutions=True))
