"""Files to begin with: an adapter to go on from, and files merged into the model before it is taught."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tiny
from limner import disk
from limner.adapters import adapter as adapters
from limner.config import Dylora, Full, Glora, Loha, Lokr, Lora, Model, NoAdapter, Oft
from limner.config.model import merges
from limner.engine import loading, starting
from limner.errors import UserError
from limner.formats.base import recognise
from limner.models import family as families

CPU = torch.device("cpu")


def loaded(folder: Path, *merge: str) -> Any:
    family = families.make(recognise(str(folder)))
    for part in ("text", "denoiser"):
        loading.load(family, part, torch.float32, CPU, Model(merge=merge))
    return family


def output(family: Any) -> torch.Tensor:
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return family.predict(noisy, torch.tensor([10, 700]), family.encode_captions(["a cat", "a photo of a dog"])).detach()


def trained(family: Any, section: Any, scale: float = 0.05) -> Any:
    adapter = adapters.make(section)
    adapter.attach(family, 1)
    return tiny.moved(adapter, scale)


def written(path: Path, family: Any, section: Any, names: Any = "kohya") -> tuple[Path, torch.Tensor]:
    """A file, and what the model computes with it."""
    adapter = trained(family, section)
    expected = output(family)
    save_file({k: v.clone() for k, v in adapter.exported(names).items()}, path)
    adapter.detach()
    return path, expected


def run_of(tmp_path: Path) -> Any:
    return SimpleNamespace(states=tmp_path / "states")


def go_on(family: Any, section: Any, tmp_path: Path) -> Any:
    adapter = adapters.make(section)
    adapter.attach(family, 9)
    starting.go_on(adapter, family, section, run_of(tmp_path))
    return adapter


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section",
    [
        Lora(rank=3, alpha=2.0, conv_rank=2, text_encoder=True, rules=("*to_q: rank=2", "*to_v: off")),
        Lora(rank=3, alpha=2.0, rank_stabilized=True, dora=True),
        Loha(rank=2, text_encoder=True),
        Lokr(rank=1, decompose_both=True, alpha=3.0),
        Oft(constraint=0.5),
        Oft(butterfly=True, convolutions=True),
        Glora(rank=2),
        Dylora(rank=4, unit=2),
        Full(convolutions=True),
    ],
    ids=lambda s: s.kind,
)
def test_a_file_is_gone_on_from(tiny_model: Path, tmp_path: Path, section: Any) -> None:
    family = loaded(tiny_model)
    before = output(family)
    path, expected = written(tmp_path / "a.safetensors", family, section)
    adapter = go_on(family, section.model_copy(update={"start": path}), tmp_path)
    assert (output(family) - expected).abs().max() < 1e-5 < (output(family) - before).abs().max()
    adapter.detach()
    assert torch.equal(output(family), before)


def test_a_file_in_diffusers_names(tiny_model: Path, tmp_path: Path) -> None:
    family = loaded(tiny_model)
    path, expected = written(tmp_path / "a.safetensors", family, Lora(rank=3, alpha=2.0), "diffusers")
    with pytest.raises(UserError, match=r"Set adapter\.alpha = 3\."):  # such files know no alpha
        go_on(family, Lora(rank=3, alpha=2.0, start=path), tmp_path)
    go_on(loaded(tiny_model), Lora(rank=3, start=path), tmp_path)
    other = loaded(tiny_model)
    go_on(other, Lora(rank=3, start=path), tmp_path)
    assert (output(other) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("of_file", "asked", "said"),
    [
        (Lora(rank=3), Lora(rank=4), r"has rank 3 at .*Set adapter\.rank = 3"),
        (Lora(rank=3, conv_rank=2), Lora(rank=3, conv_rank=3), r"Set adapter\.conv_rank = 2"),
        (Lora(rank=3, alpha=1.5), Lora(rank=3), r"Set adapter\.alpha = 1\.5"),
        (Lora(rank=4, alpha=2.0, rank_stabilized=True), Lora(rank=4, rank_stabilized=True), r"Set adapter\.alpha = 2\."),
        (Lora(rank=3), Lora(rank=3, dora=True), "is a Lora, not a Dora"),
        (Loha(rank=3), Lora(rank=3), "is a Loha, not a Lora"),
        (Lokr(rank=1), Lokr(rank=1, factor=2), "other shapes"),
        (Lora(rank=3, text_encoder=True), Lora(rank=3), "also changes the text encoder.*adapter.text_encoder"),
        (Lora(rank=3), Lora(rank=3, conv_rank=3), "does not change lora_unet.*layers more"),
    ],
    ids=lambda v: getattr(v, "kind", ""),
)  # fmt: skip
def test_a_file_of_another_shape(tiny_model: Path, tmp_path: Path, of_file: Any, asked: Any, said: str) -> None:
    path, _ = written(tmp_path / "a.safetensors", loaded(tiny_model), of_file)
    with pytest.raises(UserError, match=said) as caught:
        go_on(loaded(tiny_model), asked.model_copy(update={"start": path}), tmp_path)
    assert [f.field for f in caught.value.findings] == ["adapter.start"]


def test_another_familys_file(tiny_model: Path, tmp_path: Path) -> None:
    flux = loaded(tiny.build(tmp_path / "flux", family="flux"))
    adapter = trained(flux, Lora(rank=2))
    path = tmp_path / "a.safetensors"
    save_file({k: v.clone() for k, v in adapter.exported("kohya").items()}, path)
    with pytest.raises(UserError) as caught:
        go_on(loaded(tiny_model), Lora(rank=2, start=path), tmp_path)
    assert caught.value.findings[0].field == "adapter.start"


def test_a_run_that_has_a_state_does_not_ask_for_the_file(tiny_model: Path, tmp_path: Path) -> None:
    section, state = Lora(start=tmp_path / "gone.safetensors"), tmp_path / "states" / "step-00000004"
    disk.write_folder(state, lambda folder: (folder / "state.json").write_text("{}"))
    adapter = go_on(loaded(tiny_model), section, tmp_path)
    assert adapter.layers and not any(layer.lora_up.any() for _, layer in adapter.layers.values())
    # a damaged one is none to go on from: the run begins anew, and so with the file
    (state / "state.json").write_text("{ }")
    with pytest.raises(UserError, match=r"gone\.safetensors"):
        go_on(loaded(tiny_model), section, tmp_path)


# --- merging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section",
    [Lora(rank=3, conv_rank=2, text_encoder=True), Lora(rank=2, dora=True), Lokr(rank=1), Full(text_encoder=True), Oft()],
    ids=lambda s: s.kind,
)
def test_a_merged_file_is_part_of_the_base(tiny_model: Path, tmp_path: Path, section: Any) -> None:
    plain = loaded(tiny_model)
    before = output(plain)
    path, expected = written(tmp_path / "a.safetensors", plain, section)
    merged = loaded(tiny_model, str(path))
    assert (output(merged) - expected).abs().max() < 1e-5 < (expected - before).abs().max()
    assert not any("forward" in m.__dict__ for m in merged.denoiser.modules())
    assert torch.equal(output(loaded(tiny_model, f"{path} @ 0")), before)
    # what is trained on top, and the model itself, begin there
    adapters.make(Lora(rank=2)).attach(merged, 3)
    assert (output(merged) - expected).abs().max() < 1e-5
    whole = loaded(tiny_model, str(path))
    itself = adapters.make(NoAdapter())
    itself.attach(whole, 3)
    assert any(not torch.equal(t, p) for t, p in zip(itself.state_dict().values(), plain.denoiser.parameters(), strict=True))


def test_strengths_and_several_files(tiny_model: Path, tmp_path: Path) -> None:
    family = loaded(tiny_model)
    a, _ = written(tmp_path / "a @ b.safetensors", family, Lora(rank=2))
    b, _ = written(tmp_path / "b.safetensors", family, Loha(rank=2))
    found = loaded(tiny_model, f"{a} @ 0.5", f" {b} @ -1 ")
    one, two = trained(family, Lora(rank=2)), trained(family, Loha(rank=2))
    for name, (target, layer) in one.layers.items():
        expected = target.module.weight + 0.5 * layer.delta() - two.layers[name][1].delta()  # type: ignore[operator]
        assert torch.allclose(found.denoiser.get_parameter(f"{target.name}.weight"), expected, atol=1e-6)


def test_a_part_is_merged_once(tiny_model: Path, tmp_path: Path) -> None:
    path, _ = written(tmp_path / "a.safetensors", loaded(tiny_model), Lora(rank=2, text_encoder=True))
    family = loaded(tiny_model, str(path))
    text = {k: v.clone() for k, v in family.text_encoders["text_encoder"].state_dict().items()}
    alone = families.make(recognise(str(tiny_model)))
    loading.load(alone, "text", torch.float32, CPU, Model(merge=(str(path),)))
    assert all(torch.equal(v, text[k]) for k, v in alone.text_encoders["text_encoder"].state_dict().items())
    plain = loaded(tiny_model).text_encoders["text_encoder"].state_dict()
    assert any(not torch.equal(v, text[k]) for k, v in plain.items())


@pytest.mark.parametrize("text", ["", " @ 1", "a @ b", "a @ nan", "a @ 11", "a @"])
def test_what_cannot_be_merged(text: str) -> None:
    if text == "a @":  # a file's name may be so
        assert merges(Model(merge=(text,))) == [(Path("a @"), 1.0)]
        return
    with pytest.raises(UserError, match=r"file\.safetensors @ 0\.8") as caught:
        merges(Model(merge=("x.safetensors", text)))
    assert [f.field for f in caught.value.findings] == ["model.merge"]
