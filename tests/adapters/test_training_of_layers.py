"""What holds while adapters are trained: who learns how fast, what is left out, limits, and that all of it can be repeated."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from limner.adapters import adapter as adapters
from limner.config import Dylora, Loha, Lokr, Lora, NoAdapter, Oft, Optimizer
from limner.errors import UserError
from limner.formats.base import recognise
from limner.models import family as families

CPU = torch.device("cpu")


@cache
def _loaded(folder: Path) -> Any:
    family = families.make(recognise(str(folder)))
    family.load("text", torch.float32, CPU)
    family.load("denoiser", torch.float32, CPU)
    return family


def attached(folder: Path, section: Any, seed: int = 5, *, moved: bool = True) -> tuple[Any, Any]:
    """A family and its adapter, all of whose numbers are away from zero."""
    family = copy.copy(_loaded(folder))
    family.denoiser, family.text_encoders = copy.deepcopy((family.denoiser, family.text_encoders))
    adapter = adapters.make(section)
    adapter.attach(family, seed)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, layer in adapter.layers.values() if moved and hasattr(adapter, "layers") else ():
            for p in layer.parameters():
                p.add_(torch.randn(p.shape, generator=rng) * 0.1)
    return family, adapter


def output(family: Any) -> torch.Tensor:
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return family.predict(noisy, torch.tensor([10, 700]), family.encode_captions(["a cat", "a photo of a dog"]))


# --- groups -----------------------------------------------------------------------------------------------------------


def rates(adapter: Any, **optimizer: Any) -> dict[str, tuple[int, float]]:
    return {g["name"]: (len(g["params"]), g["lr"]) for g in adapter.parameter_groups(Optimizer(**optimizer), 1e-4)}


def test_rules_and_ratios_make_groups_of_their_own(tiny_model: Path) -> None:
    rules = ("denoiser.mid_block.*: lr_factor=0.5", "denoiser.up_blocks.*: off", "text_encoder.*.layers.0.*: rank=2 alpha=1")
    section = Lora(rank=4, text_encoder=True, up_lr_ratio=16.0, rules=rules)
    _, adapter = attached(tiny_model, section)
    found = rates(adapter, text_encoder_lr=1e-5)
    assert {name: lr for name, (_, lr) in found.items()} == pytest.approx({
        "denoiser": 1e-4, "denoiser up": 16e-4, "denoiser x0.5": 5e-5, "denoiser x0.5 up": 8e-4,
        "text_encoder": 1e-5, "text_encoder up": 16e-5,
    })  # fmt: skip
    assert found["denoiser x0.5"][0] == found["denoiser x0.5 up"][0] == sum("mid_block" in n for n in adapter.layers)
    assert not any("up_blocks" in n for n in adapter.layers)
    for name, (_, layer) in adapter.layers.items():
        first = "text_model_encoder_layers_0" in name
        assert (layer.rank, layer.scale) == ((2, 0.5) if first else (4, 1.0))


def test_frozen_down_matrices_are_in_no_group(tiny_model: Path) -> None:
    family, adapter = attached(tiny_model, Lora(rank=4, freeze_down=True))
    assert rates(adapter)["denoiser"][0] == len(adapter.layers)
    output(family).square().mean().backward()
    assert all(la.lora_down.grad is None and la.lora_up.grad is not None for _, la in adapter.layers.values())


def test_weights_of_the_model_itself_by_rules(tiny_model: Path) -> None:
    rules = ("denoiser.down_blocks.*: off", "*.attn1.*: lr_factor=2", "text_encoder.text_model.*.layers.1.*: off")
    family, adapter = attached(tiny_model, NoAdapter(text_encoder=True, rules=rules))
    found = rates(adapter)
    assert {name: lr for name, (_, lr) in found.items()} == pytest.approx(
        {"denoiser": 1e-4, "denoiser x2": 2e-4, "text_encoder": 5e-5}
    )
    named = dict(family.denoiser.named_parameters())
    down = {n for n in named if n.startswith("down_blocks.") and ".attn1." not in n}
    assert {n for n, p in named.items() if not p.requires_grad} == down != set()
    assert not any(p.requires_grad for n, p in family.text_encoders["text_encoder"].named_parameters() if ".layers.1." in n)
    assert adapter.state_dict().keys() >= {f"denoiser.{n}" for n in named}


@pytest.mark.parametrize("kind", [Lora(rules=("denoiser.nowhere.*: off",)), NoAdapter(rules=("denoiser.nowhere.*: off",))])
def test_a_rule_that_fits_no_layer(tiny_model: Path, kind: Any) -> None:
    with pytest.raises(UserError, match="fits no layer"):
        attached(tiny_model, kind)


@pytest.mark.parametrize(
    "section",
    [Lokr(rank=64, decompose_both=True), Lokr(rank=64, alpha=1.0), Lokr(rank=64, rank_dropout=0.1)],
)
def test_options_without_use_at_these_sizes(tiny_model: Path, section: Any) -> None:
    with pytest.raises(UserError, match="too small"):
        attached(tiny_model, section)


# --- what is left out -------------------------------------------------------------------------------------------------

DROPOUTS = {
    "values": Lora(rank=4, conv_rank=2, dropout=0.3),
    "ranks": Lora(rank=4, conv_rank=2, rank_dropout=0.3),
    "layers": Lora(rank=4, module_dropout=0.3),
    "dora": Lora(rank=4, dora=True, rank_dropout=0.3, module_dropout=0.1),
    "loha": Loha(rank=4, rank_dropout=0.3),
    "lokr": Lokr(rank=1, rank_dropout=0.3, module_dropout=0.1),
    "oft": Oft(module_dropout=0.3),
    "dylora": Dylora(rank=4, unit=1, conv_rank=2),
}


@pytest.mark.parametrize("name", DROPOUTS)
def test_draws_are_functions_of_seed_step_and_micro_batch(tiny_model: Path, name: str) -> None:
    family, adapter = attached(tiny_model, DROPOUTS[name], moved=False)
    other_family, other = attached(tiny_model, DROPOUTS[name], seed=6, moved=False)
    other.load_state_dict({k: v.clone() for k, v in adapter.state_dict().items()})
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for (_, a), (_, b) in zip(adapter.layers.values(), other.layers.values(), strict=True):
            for p, q in zip(a.parameters(), b.parameters(), strict=True):
                p.add_(torch.randn(p.shape, generator=rng) * 0.1)
                q.copy_(p)
    with torch.no_grad():
        whole = output(family)

        def at(*moment: int) -> torch.Tensor:
            adapter.begin(*moment)
            return output(family)

        first = at(3, 0)
        later = at(4, 0)
        assert not torch.equal(first, whole) and not torch.equal(first, later)
        assert torch.equal(at(3, 1), first) == (name == "dylora")  # a unit is drawn for the whole step
        assert torch.equal(at(3, 0), first), "not a function of the step"
        adapter.after_step()
        assert torch.equal(output(family), whole), "something is left out when nothing is trained"
        other.begin(3, 0)
        assert not torch.equal(output(other_family), first), "not a function of the seed"


@pytest.mark.parametrize("name", DROPOUTS)
def test_what_is_computed_again_leaves_out_the_same(tiny_model: Path, name: str) -> None:
    section = DROPOUTS[name].model_copy(update={"text_encoder": True})
    grads = []
    for checkpointing in (False, True):
        family, adapter = attached(tiny_model, section)
        if checkpointing:
            family.enable_checkpointing(text=True)
        adapter.begin(7, 2)
        output(family).square().mean().backward()
        grads.append([None if p.grad is None else p.grad.clone() for _, la in adapter.layers.values() for p in la.parameters()])
    assert any(g is not None and g.abs().max() > 0 for g in grads[0])
    for plain, again in zip(*grads, strict=True):
        assert (plain is None and again is None) or torch.allclose(plain, again, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["values", "ranks", "loha", "lokr"])
def test_the_mean_stays(tiny_model: Path, name: str) -> None:
    """What is kept is scaled up: over many draws a layer's output is what it is without dropout."""
    _, adapter = attached(tiny_model, DROPOUTS[name])
    with torch.no_grad():
        layer = next(la for _, la in adapter.layers.values() if la.rank and not la.sizes.kernel)
        x = torch.randn(3, layer.sizes.inputs)
        whole = layer(x) - layer.plain(x)
        total = torch.zeros_like(whole)
        for step in range(600):
            layer.begin(step, 0)
            total += layer(x) - layer.plain(x)
    assert (total / 600 - whole).norm() / whole.norm() < 0.15


# --- limits -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    "section",
    [
        Lora(rank=3, conv_rank=2, alpha=2.0, max_norm=0.05),
        Lora(rank=3, conv_rank=2, dora=True, max_norm=0.05),
        Loha(rank=3, conv_rank=2, alpha=2.0, max_norm=0.05),
        Lokr(rank=1, conv_rank=1, alpha=2.0, max_norm=0.05),
        Lokr(rank=1, factor=4, decompose_both=True, max_norm=0.05),
    ],
    ids=lambda s: f"{s.kind} {getattr(s, 'dora', '')}{getattr(s, 'decompose_both', '')}",
)
def test_the_norm_is_kept_down(tiny_model: Path, section: Any) -> None:
    """kohya.md, section 3, row 19: n = max(|dW|, m / 2), dW times min(n, m) / n."""
    _, adapter = attached(tiny_model, section)
    small = next(iter(adapter.layers.values()))[1]
    for p in small.parameters():
        p.mul_(0.01)

    def changes() -> list[torch.Tensor]:
        whole = []
        for _, layer in adapter.layers.values():
            if getattr(section, "dora", False):
                whole.append(layer.scale * layer.lora_up.double().flatten(1) @ layer.lora_down.double().flatten(1))
            else:
                whole.append(layer.delta().double())
        return whole

    def magnitudes() -> list[torch.Tensor]:
        return [p.clone() for _, layer in adapter.layers.values() for n, p in layer.named_parameters() if n == "dora_scale"]

    before, kept = changes(), magnitudes()
    adapter.after_step()
    num_changed = 0
    for old, new in zip(before, changes(), strict=True):
        norm = max(float(old.norm()), 0.025)
        expected = old * (min(norm, 0.05) / norm)
        assert torch.allclose(new, expected, rtol=1e-4, atol=1e-7)
        num_changed += norm > 0.05
    assert 0 < num_changed < len(before)
    assert all(torch.equal(a, b) for a, b in zip(magnitudes(), kept, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("butterfly", [False, True])
def test_turns_are_kept_small(tiny_model: Path, butterfly: bool) -> None:
    _, adapter = attached(tiny_model, Oft(constraint=0.01, butterfly=butterfly))
    small = next(iter(adapter.layers.values()))[1]
    small.oft_blocks.mul_(1e-3)
    before = small.oft_blocks.clone()
    adapter.after_step()
    for _, layer in list(adapter.layers.values())[1:]:
        blocks = layer.oft_blocks.double()
        assert float((blocks - blocks.mT).norm()) == pytest.approx(0.01 * layer.sizes.outputs, rel=1e-5)
    assert torch.equal(small.oft_blocks, before)


@torch.no_grad()
@pytest.mark.parametrize("butterfly", [False, True])
def test_a_turn_keeps_lengths_and_angles(tiny_model: Path, butterfly: bool) -> None:
    _, adapter = attached(tiny_model, Oft(butterfly=butterfly))
    for target, layer in adapter.layers.values():
        base = target.module.weight.double().flatten(1)  # type: ignore[operator]
        turned = base + layer.delta().double().flatten(1)
        assert torch.allclose(turned.T @ turned, base.T @ base, atol=1e-5)
        assert not torch.allclose(turned, base, atol=1e-3)


# --- DyLoRA -----------------------------------------------------------------------------------------------------------


def test_one_unit_learns_and_the_smaller_ranks_are_what_was_trained(tiny_model: Path) -> None:
    family, adapter = attached(tiny_model, Dylora(rank=6, unit=2, conv_rank=4, alpha=3.0))
    seen = set()
    for step in range(12):
        adapter.begin(step, 0)
        for p in (p for _, la in adapter.layers.values() for p in la.parameters()):
            p.grad = None
        output(family).square().mean().backward()
        for target, layer in adapter.layers.values():
            learnt = [i for i, (d, u) in enumerate(zip(layer.downs, layer.ups, strict=True)) if d.grad is not None]
            assert learnt == [layer.drawn] and all((u.grad is not None) == (i in learnt) for i, u in enumerate(layer.ups))
            # cut to this rank, with the same alpha, a plain LoRA does the same
            rank = 2 * (layer.drawn + 1)
            alpha = 4.0 if target.is_spatial else 3.0
            down, up = layer.lora_down[:rank].flatten(1).double(), layer.lora_up[:, :rank].flatten(1).double()
            weight = target.module.weight.double() + (up @ down * alpha / rank).view(layer.sizes.weight)  # type: ignore[operator]
            x = torch.randn(1, layer.sizes.inputs, *[4] * len(layer.sizes.kernel))
            plain = layer.plain(x).double() - layer.through(x, target.module.weight).double()  # its bias
            expected = layer.through(x.double(), weight) + plain
            assert torch.allclose(layer(x).double(), expected, atol=1e-4)
            seen.add((len(layer.downs), layer.drawn))
    assert seen == {(3, 0), (3, 1), (3, 2), (2, 0), (2, 1)}
