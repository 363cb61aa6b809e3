"""Long texts, weights and CLIP's layers, against a slow encoding by hand with transformers' own models."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import tiny
from limner.config.prompts import Prompt
from limner.engine import paint
from limner.engine.runtime import Runtime
from limner.errors import UserError
from limner.formats.base import recognise
from limner.models import family as families
from limner.models.family import Family

CPU = torch.device("cpu")
LONG = ", ".join(f"a cat of colour {i} on a mat" for i in range(20))  # 200 tokens and more
CAPTIONS = ["a cat", "", LONG, "cat " * 75, "cat " * 76, "cat " * 150, "wow " * 400]


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("models") / request.param, family=request.param)


@cache
def loaded(folder: Path, **facts: Any) -> Family:
    """Only read: tests share it."""
    family = families.make(replace(recognise(str(folder)), **facts))
    family.load("text", torch.float32, CPU)
    return family


@cache
def theirs(folder: Path, part: str) -> tuple[Any, Any]:
    model: Any = (CLIPTextModelWithProjection if part else CLIPTextModel).from_pretrained(folder / f"text_encoder{part}")
    return model, CLIPTokenizer.from_pretrained(folder / f"tokenizer{part}")


def by_hand(folder: Path, caption: str, count: int, skip: int = 1, part: str = "") -> tuple[Tensor, Tensor]:
    """(75 count + 2, W) states and the first chunk's pooled vector, chunk by chunk, token by token."""
    is_xl = folder.name == "sdxl"
    model, tokenizer = theirs(folder, part)
    pad = 0 if part or folder.name == "sd2" else 49407
    ids = tokenizer(caption).input_ids[1:-1][: 75 * count]
    rows, pooled = [], []
    for chunk in range(count):
        mine = [49406, *ids[chunk * 75 : chunk * 75 + 75], 49407]
        found = model(torch.tensor([mine + [pad] * (77 - len(mine))]), output_hidden_states=True)
        pooled.append(found.text_embeds[0] if part else found.pooler_output[0])
        states = found.hidden_states[-2] if is_xl else model.final_layer_norm(found.hidden_states[-skip])
        rows += [*([states[0, 0]] if chunk == 0 else []), *(states[0, i] for i in range(1, 76))]
        rows += [states[0, 76]] if chunk == count - 1 else []
    return torch.stack(rows), pooled[0]


def whole_by_hand(folder: Path, caption: str, count: int, skip: int = 1) -> dict[str, Tensor]:
    states, _ = by_hand(folder, caption, count, skip)
    if folder.name != "sdxl":
        return {"text": states}
    second, pooled = by_hand(folder, caption, count, part="_2")
    return {"text": torch.cat([states, second], dim=-1), "pooled": pooled}


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 3])
def test_captions_in_chunks(folder: Path, count: int) -> None:
    family = loaded(folder, text_chunks=count)
    for caption in CAPTIONS:
        found, expected = family.encode_captions([caption]), whole_by_hand(folder, caption, count)
        assert found["text"].shape[1] == 75 * count + 2 and found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (found[name][0] - tensor).abs().max() < 1e-5, (caption[:20], name)
        length = len(theirs(folder, "")[1](caption).input_ids) - 2
        assert family.is_too_long(caption) == (length > 75 * count)
    together = family.encode_captions(CAPTIONS)
    assert all((v[0] - together[k][-1]).abs().max() < 1e-5 for k, v in family.encode_captions(CAPTIONS[-1:]).items())


@torch.no_grad()
def test_layers_counted_from_the_end(folder: Path) -> None:
    if folder.name == "sdxl":
        pytest.skip("its layer is settled")
    usual = loaded(folder).encode_captions(["a cat"])["text"]
    model, _ = theirs(folder, "")
    expected = []
    for skip in (1, 2):
        family = loaded(folder, clip_skip=skip)
        found = family.encode_captions(["a cat"])["text"]
        ids = family.token_ids(["a cat"])  # type: ignore[attr-defined]
        states = model.final_layer_norm(model(ids, output_hidden_states=True).hidden_states[-skip])
        assert torch.equal(found, states)
        expected.append(found)
    assert torch.equal(expected[0], usual) and torch.equal(usual, model(ids).last_hidden_state)
    assert (expected[0] - expected[1]).abs().max() > 0.01
    long = loaded(folder, clip_skip=2, text_chunks=2).encode_captions([LONG])["text"][0]
    assert (long - by_hand(folder, LONG, 2, skip=2)[0]).abs().max() < 1e-5
    with pytest.raises(UserError, match="3 is more than the 2 layers"):
        loaded(folder, clip_skip=3)


@torch.no_grad()
def test_a_prompt_without_weights_is_the_plain_text(folder: Path) -> None:
    prompts = ("a cat", LONG, r"cat \(animal\)", "(cat:1.0)", "a (cat", "")
    for prompt, plain in zip(prompts, ("a cat", LONG, "cat (animal)", "cat", "a (cat", ""), strict=True):
        for count in (1, 4):
            family = loaded(folder, text_chunks=count)
            needed = max(count, 3 if plain == LONG else 1)
            cond, negative = family.encode_prompt(prompt, "dark")
            reader = loaded(folder, text_chunks=needed)
            for found, text in ((cond, plain), (negative, "dark")):
                expected = reader.encode_captions([text])
                assert found.keys() == expected.keys()
                assert all(torch.equal(found[k], v) for k, v in expected.items()), (prompt, count)


@torch.no_grad()
def test_the_longer_of_the_two_decides_and_nothing_is_cut(folder: Path) -> None:
    family = loaded(folder)
    for prompt, negative, tokens in (
        ("a", "b", 77),
        ("wow " * 76, "", 152),
        ("a", "wow " * 151, 227),
        ("(a:2) " * 400, "b", 452),
    ):
        both = family.encode_prompt(prompt, negative)
        assert [c["text"].shape[1] for c in both] == [tokens, tokens]
    last = family.encode_prompt("wow " * 399 + "cat", "")[0]["text"] - family.encode_prompt("wow " * 400, "")[0]["text"]
    assert last.abs().max() > 1e-3


@torch.no_grad()
def test_weights_multiply_and_the_mean_stays(folder: Path) -> None:
    family = families.make(recognise(str(folder)))
    family.load("text", torch.float32, CPU)
    if folder.name != "sdxl":
        # as in a taught one; behind the norm of a new one every mean is zero
        torch.nn.init.uniform_(family.text_encoders["text_encoder"].final_layer_norm.bias, 0, 1)  # type: ignore
    cond, negative = family.encode_prompt("a (cat:1.5) on [mat]", "(dark:2)")
    plain = family.encode_captions(["a cat on mat"])
    factors = torch.ones(77)
    factors[2], factors[4] = 1.5, 1 / 1.1  # behind the start: a, cat, on, mat
    widths = [16, 24] if folder.name == "sdxl" else [16]  # each encoder's states have a mean of their own
    for found, states in zip(cond["text"][0].split(widths, -1), plain["text"][0].split(widths, -1), strict=True):
        weighted = states * factors[:, None]
        assert torch.allclose(found, weighted * states.mean() / weighted.mean(), rtol=1e-4, atol=1e-5)
        assert torch.allclose(found.mean(), states.mean(), rtol=1e-3, atol=1e-6)
    assert cond.keys() == plain.keys() and all(torch.equal(cond[k], plain[k]) for k in cond if k != "text")
    assert (negative["text"] - family.encode_captions(["dark"])["text"]).abs().max() > 0.01
    # behind a chunk's end, too
    far, same = (
        family.encode_prompt("cat " * 80 + "(mat:0)", "")[0]["text"],
        family.encode_prompt("cat " * 80 + "mat", "")[0]["text"],
    )
    assert far[0, 81].abs().max() == 0 and same[0, 81].abs().max() > 0.01


@torch.no_grad()
def test_a_mean_of_zero_is_left_alone(folder: Path) -> None:
    if folder.name == "sdxl":
        pytest.skip("no norm behind its states")
    found, plain = (loaded(folder).encode_prompt(text, "")[0]["text"] for text in ("a (cat:1.5)", "a cat"))
    assert plain.mean().abs() < 1e-6
    plain[0, 2] *= 1.5
    assert torch.equal(found, plain)


def test_captions_are_plain_text(folder: Path) -> None:
    with torch.no_grad():
        family = loaded(folder)
        a, b = (family.encode_captions([caption])["text"] for caption in ("a (cat:1.5)", "a cat"))
        assert (a - b).abs().max() > 0.01
        assert (a - family.encode_prompt(r"a \(cat:1.5\)", "")[0]["text"]).abs().max() == 0


def test_prompts_of_different_lengths_are_painted_each_on_its_own(folder: Path) -> None:
    family, runtime = families.make(recognise(str(folder))), Runtime(CPU, "fp32")
    family.load("text", torch.float32, CPU)
    family.load("denoiser", torch.float32, CPU)
    family.load("vae", torch.float32, CPU)
    prompts = [Prompt(text, "dark", 16, 16, 2, 3.0, 5, "ddim") for text in ("a cat", "a (cat:1.3)", LONG, "a dog")]
    encoded = paint.encode_prompts(family, runtime, prompts)
    assert [c["text"].shape[1] for c, _ in encoded] == [77, 77, 227, 77]
    pictures = list(paint.paint(family, runtime, prompts, encoded, together=4))
    alone = [next(paint.paint(family, runtime, [p], [e])) for p, e in zip(prompts, encoded, strict=True)]
    assert all((a - b).abs().max() < 1e-4 for a, b in zip(pictures, alone, strict=True))
    assert min((pictures[0] - p).abs().max() for p in pictures[1:]) > 1e-5


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_flow_takes_a_prompt_as_it_is(name: str, tmp_path: Path) -> None:
    family = loaded(tiny.build(tmp_path / name, family=name))
    with torch.no_grad():
        both = family.encode_prompt("a (cat:1.5)", "[b]")
        for found, text in zip(both, ("a (cat:1.5)", "[b]"), strict=True):
            assert all(torch.equal(found[k], v) for k, v in family.encode_captions([text]).items())
