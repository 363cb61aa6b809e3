"""What every adapter promises (`adapters.adapter.Adapter`), tried on each kind and its options on Stable Diffusion 1, kinds on
the other families."""

from __future__ import annotations

import pytest
import torch

import tiny
from limner.adapters import adapter as adapters
from limner.config import Dylora, Full, Glora, Ia3, Loha, Lokr, Lora, NoAdapter, Oft, Optimizer
from limner.errors import UserError
from limner.formats.base import recognise
from limner.models import family as families
from limner.models.family import Keep

CPU = torch.device("cpu")
SECTIONS = {
    "lora": Lora(rank=4),
    "lora, alpha": Lora(rank=3, alpha=0.1),
    "lora, convolutions": Lora(rank=4, conv_rank=2, conv_alpha=1.0),
    "lora, rank stabilised": Lora(rank=7, alpha=3.0, rank_stabilized=True),
    "lora, both": Lora(rank=4, text_encoder=True),
    "lora, text encoder": Lora(rank=4, denoiser=False, text_encoder=True),
    "dora": Lora(rank=4, dora=True),
    "dora, everything": Lora(rank=4, conv_rank=2, dora=True, text_encoder=True, rank_stabilized=True),
    "lora, down frozen": Lora(rank=4, freeze_down=True, up_lr_ratio=1.0),
    "loha": Loha(rank=3, alpha=2.0),
    "loha, everything": Loha(rank=2, conv_rank=3, text_encoder=True),
    "lokr": Lokr(rank=2, conv_rank=2, text_encoder=True),
    "lokr, both": Lokr(rank=1, factor=4, decompose_both=True),
    "lokr, whole": Lokr(rank=64),
    "oft": Oft(convolutions=True, text_encoder=True),
    "oft, butterfly": Oft(block=4, butterfly=True, convolutions=True),
    "ia3": Ia3(text_encoder=True),
    "glora": Glora(rank=3, alpha=2.0, conv_rank=2, text_encoder=True),
    "dylora": Dylora(rank=4, unit=2, conv_rank=4, text_encoder=True),
    "full": Full(convolutions=True, text_encoder=True),
    "none": NoAdapter(),
    "none, both": NoAdapter(text_encoder=True),
    "none, text encoder": NoAdapter(denoiser=False, text_encoder=True),
}
BESIDE = {name: section for name, section in SECTIONS.items() if section.kind != "none"}


def output(family) -> torch.Tensor:
    """What the whole model computes, with gradients where it has any."""
    rng = torch.Generator().manual_seed(3)
    noisy = torch.randn(2, 4, 8, 8, generator=rng)
    return family.predict(noisy, torch.tensor([10, 700]), family.encode_captions(["a cat", "a photo of a dog"]))


def train(family, adapter, steps: int = 3) -> None:
    groups = adapter.parameter_groups(Optimizer(), 1e-2)
    optimizer = torch.optim.AdamW([p for g in groups for p in g["params"]], lr=1e-2)
    for _ in range(steps):
        output(family).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(params=SECTIONS, ids=lambda n: n.replace(" ", "_"))
def section(request):
    return SECTIONS[request.param]


def test_every_kind_is_tried():
    assert {s.kind for s in SECTIONS.values()} == set(adapters.ADAPTERS) - {"embedding"}  # tests/adapters/test_embedding.py


@torch.no_grad()
def test_attaching_and_detaching_changes_no_bit(tiny_model, section):
    family = tiny.fresh(tiny_model)
    before = output(family)
    adapter = adapters.make(section)
    adapter.attach(family, 5)
    assert torch.equal(output(family), before)
    adapter.detach()
    assert torch.equal(output(family), before)
    assert not any(p.requires_grad for p in family.denoiser.parameters())


@pytest.mark.parametrize("name", BESIDE)
def test_detaching_after_training_gives_the_base_back(tiny_model, name):
    family = tiny.fresh(tiny_model)
    before = output(family).detach()
    adapter = adapters.make(BESIDE[name])
    adapter.attach(family, 5)
    train(family, adapter)
    assert (output(family) - before).abs().max() > 1e-3
    adapter.detach()
    assert torch.equal(output(family), before)


def test_gradients_reach_what_is_trained_and_nothing_else(tiny_model, section):
    family = tiny.fresh(tiny_model)
    adapter = adapters.make(section)
    adapter.attach(family, 5)
    train(family, adapter, 1)  # behind the first step: a LoRA's down has no gradient while its up is zero
    groups = adapter.parameter_groups(Optimizer(text_encoder_lr=3e-5), 2e-4)
    assert groups and all(g["params"] for g in groups)
    wanted = {n for n in ("denoiser", "text_encoder") if getattr(section, n)}
    assert {g["name"] for g in groups} == wanted
    assert {g["name"]: g["lr"] for g in groups} == {n: {"denoiser": 2e-4, "text_encoder": 3e-5}[n] for n in wanted}
    output(family).square().mean().backward()
    ours = {id(p) for g in groups for p in g["params"]}
    assert len(ours) == sum(len(g["params"]) for g in groups), "a parameter stands in two groups"
    for group in groups:
        reached = [p for p in group["params"] if p.grad is not None and p.grad.abs().max() > 0]
        # the last layers of an encoder may be cut off by the model itself; nearly all must learn
        assert len(reached) >= 0.9 * len(group["params"]), group["name"]
    models = [family.denoiser, *family.text_encoders.values()]
    strangers = [p for m in models for p in m.parameters() if id(p) not in ours]
    assert all(p.grad is None and not p.requires_grad for p in strangers)


def test_half_the_rate_is_the_text_encoders_default(tiny_model):
    adapter = adapters.make(SECTIONS["lora, both"])
    adapter.attach(tiny.fresh(tiny_model), 0)
    assert [(g["name"], g["lr"]) for g in adapter.parameter_groups(Optimizer(), 2e-4)] == [
        ("denoiser", 2e-4),
        ("text_encoder", 1e-4),
    ]


@pytest.mark.long
def test_a_fresh_adapter_takes_the_state_over_to_the_bit(tiny_model, section):
    family = tiny.fresh(tiny_model)
    adapter = adapters.make(section)
    adapter.attach(family, 5)
    train(family, adapter)
    expected = output(family).detach()
    state = {k: v.clone() for k, v in adapter.state_dict().items()}

    other = tiny.fresh(tiny_model)
    fresh = adapters.make(section)
    fresh.attach(other, 99)
    fresh.load_state_dict(state)
    assert torch.equal(output(other).detach(), expected)
    assert all(torch.equal(fresh.state_dict()[k], v) for k, v in state.items())
    assert fresh.state_dict().keys() == state.keys()


def test_the_seed_decides_the_start(tiny_model):
    def start(seed: int) -> dict:
        adapter = adapters.make(SECTIONS["lora"])
        adapter.attach(tiny.fresh(tiny_model), seed)
        return {k: v.clone() for k, v in adapter.state_dict().items() if "lora_down" in k}

    first, again, other = start(1), start(1), start(2)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not any(torch.equal(first[k], other[k]) for k in first)
    shapes = {}
    for key, tensor in first.items():
        assert not any(torch.equal(tensor, t) for t in shapes.get(tensor.shape, [])), f"{key} starts as another layer does"
        shapes.setdefault(tensor.shape, []).append(tensor)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshapen"])
def test_a_state_that_does_not_fit_is_refused(tiny_model, section, fault):
    adapter = adapters.make(section)
    adapter.attach(tiny.fresh(tiny_model), 5)
    state = {k: v.clone() for k, v in adapter.state_dict().items()}
    key = sorted(k for k in state if state[k].ndim)[0]
    if fault == "missing":
        del state[key]
    elif fault == "unexpected":
        state["lora_unet_nowhere.lora_up.weight"] = torch.zeros(1)
    else:
        state[key] = torch.zeros(*state[key].shape[:-1], state[key].shape[-1] + 1)
    before = {k: v.clone() for k, v in adapter.state_dict().items()}
    with pytest.raises(UserError):
        adapter.load_state_dict(state)
    assert all(torch.equal(v, before[k]) for k, v in adapter.state_dict().items()), "half taken over"


def test_merging_keeps_the_output(tiny_model, section):
    family = tiny.fresh(tiny_model)
    adapter = adapters.make(section)
    adapter.attach(family, 5)
    train(family, adapter)
    attached = output(family).detach()
    adapter.merge()
    merged = output(family).detach()
    assert (merged - attached).abs().max() / attached.abs().max() < 1e-5
    models = [family.denoiser, *family.text_encoders.values()]
    assert not any(p.requires_grad for m in models for p in m.parameters())
    assert not any("forward" in module.__dict__ for m in models for module in m.modules())


def test_suspended_is_the_base(tiny_model, section):
    if section.kind == "none":
        pytest.skip("there is no base beside it")
    family = tiny.fresh(tiny_model)
    before = output(family).detach()
    adapter = adapters.make(section)
    adapter.attach(family, 5)
    train(family, adapter)
    attached = output(family).detach()
    with adapter.suspended():
        assert torch.equal(output(family), before)
    assert torch.equal(output(family).detach(), attached)


# --- on every family, and on layers of few bits -----------------------------------------------------------------------

KINDS = {
    "lora": Lora(rank=2),
    "dora": Lora(rank=2, dora=True),
    "loha": Loha(rank=2),
    "lokr": Lokr(rank=1),
    "oft": Oft(),
    "boft": Oft(butterfly=True),
    "ia3": Ia3(),
    "glora": Glora(rank=2),
    "dylora": Dylora(rank=4, unit=2),
    "full": Full(),
    "none": NoAdapter(),
}


@pytest.fixture(scope="module", params=["sd2", "sdxl", "sd3", "flux"])
def other(request, tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("models") / request.param, family=request.param)


def prediction(family) -> torch.Tensor:
    rng = torch.Generator().manual_seed(3)
    noisy = torch.randn(2, family.base.latent_channels, 8, 8, generator=rng)
    told = {"geometry": torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2), "guidance": torch.tensor([1.0, 3.5])}
    return family.predict(noisy, torch.tensor([10, 700]), family.encode_captions(["a cat", "a dog"]) | told)


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_what_holds_on_every_family(other, name):
    family, section = tiny.fresh(other), KINDS[name].model_copy(update={"text_encoder": True})
    before = prediction(family).detach()
    adapter = adapters.make(section)
    adapter.attach(family, 5)
    assert torch.equal(prediction(family).detach(), before), "attaching changed something"
    groups = adapter.parameter_groups(Optimizer(), 1e-2)
    optimizer = torch.optim.AdamW([p for g in groups for p in g["params"]], lr=1e-2)
    for step in range(2):
        adapter.begin(step, 0)
        prediction(family).square().mean().backward()
        optimizer.step()
        adapter.after_step()
        optimizer.zero_grad()
    attached = prediction(family).detach()
    assert (attached - before).abs().max() > 1e-4
    if section.kind != "none":
        with adapter.suspended():
            assert torch.equal(prediction(family), before)
    adapter.merge()
    assert (prediction(family) - attached).abs().max() / attached.abs().max() < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("bits", ["nf4", "fp8", "int8"])
@pytest.mark.parametrize("name", [k for k in KINDS if k != "none"])
def test_beside_layers_of_few_bits(tiny_model, name, bits):
    family = families.make(recognise(str(tiny_model)), Keep(quantize=bits))
    family.load("text", torch.float32, CPU)
    family.load("denoiser", torch.float32, CPU)
    before = output(family).detach()
    adapter = adapters.make(KINDS[name])
    adapter.attach(family, 5)
    assert torch.equal(output(family).detach(), before)
    train(family, adapter, 2)
    assert (output(family) - before).abs().max() > 1e-4
    adapter.detach()
    assert torch.equal(output(family).detach(), before)
