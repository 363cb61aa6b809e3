"""A word and its vectors: the adapter's contract, what texts become, and the files against diffusers' own loader."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import nn

import tiny
from limner.adapters import adapter as adapters
from limner.adapters.embedding import remarks
from limner.config import Embedding, EmbeddingOnly, Lora, NoAdapter, Optimizer
from limner.engine import sampling
from limner.errors import UserError
from limner.formats.base import recognise
from limner.models import family as families
from limner.models.text import END, clip_tokenizer

CPU = torch.device("cpu")
WORD = Embedding(token="zibbo", vectors=3, initial="house")
SECTIONS = {"alone": EmbeddingOnly(), "beside a LoRA": Lora(rank=4, text_encoder=True), "beside the model": NoAdapter()}
WITH, WITHOUT = "a photo of Zibbo, on grass", "a photo of a house, on grass"
WIDTHS = {"sd1": [16], "sd2": [16], "sdxl": [16, 24]}


@pytest.fixture(scope="module", params=WIDTHS)
def folder(request, tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("word") / request.param, seed=4, family=request.param)


@pytest.fixture(params=SECTIONS)
def section(request):
    return SECTIONS[request.param]


def attached(family, section=SECTIONS["alone"], word=WORD, seed=5):
    adapter = adapters.make(section, word)
    adapter.attach(family, seed)
    return adapter


def vectors_of(adapter) -> dict[str, nn.Parameter]:
    return getattr(adapter, "embedding", adapter).vectors


def output(family, caption=WITH) -> torch.Tensor:
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    cond = family.encode_captions([WITHOUT, caption])
    cond["geometry"] = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2)
    return family.predict(noisy, torch.tensor([10, 700]), cond)


def train(family, adapter) -> None:
    groups = adapter.parameter_groups(Optimizer(), 1e-2)
    optimizer = torch.optim.AdamW([{"params": g["params"]} for g in groups], lr=1e-2)
    for _ in range(3):
        output(family).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


# --- the contract -----------------------------------------------------------------------------------------------------


def test_texts_without_the_word_are_untouched_and_detaching_gives_the_base_back(folder, section):
    family = tiny.fresh(folder)
    before, with_word = output(family, WITHOUT).detach(), output(family).detach()
    adapter = attached(family, section)
    assert torch.equal(output(family, WITHOUT).detach(), before)
    if section.kind != "none":
        train(family, adapter)
        changed = output(family).detach()
        assert (changed - with_word).abs().max() > 1e-3
        with adapter.suspended():
            assert torch.equal(output(family), with_word) and not family.words
        assert torch.equal(output(family).detach(), changed)
    if section.kind == "embedding":
        assert torch.equal(output(family, WITHOUT), before)
    adapter.detach()
    assert torch.equal(output(family), with_word) and not family.words
    assert not any("forward" in m.__dict__ for e in family.text_encoders.values() for m in e.modules())


def test_gradients_reach_the_vectors_of_every_encoder(folder, section):
    family = tiny.fresh(folder)
    adapter = attached(family, section)
    (group,) = [g for g in adapter.parameter_groups(Optimizer(lr=1e-4), 1e-4) if g["name"] == "embedding"]
    assert group["lr"] == 5e-3 and [tuple(p.shape) for p in group["params"]] == [(3, w) for w in WIDTHS[family.base.family]]
    output(family).square().mean().backward()
    assert all((p.grad.abs().amax(1) > 0).all() for p in group["params"])
    ours = {id(p) for g in adapter.parameter_groups(Optimizer(), 1e-4) for p in g["params"]}
    models = [family.denoiser, *family.text_encoders.values()]
    assert not [p for m in models for p in m.parameters() if p.requires_grad and id(p) not in ours]


def test_without_the_word_in_a_batch_the_gradient_is_zero_and_not_missing(folder):
    family = tiny.fresh(folder)
    adapter = attached(family)
    output(family, WITHOUT).square().mean().backward()
    assert all(p.grad is not None and not p.grad.any() for p in adapter.vectors.values())


def test_the_vectors_stay_in_float32_where_the_model_does_not(folder):
    family = families.make(recognise(str(folder)))
    family.load("text", torch.bfloat16, CPU)
    adapter = attached(family)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        family.encode_captions([WITH])["text"].float().square().mean().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 and p.grad.any() for p in adapter.vectors.values())


@pytest.mark.long
def test_a_fresh_adapter_takes_the_state_over_to_the_bit(folder, section):
    family, other = tiny.fresh(folder), tiny.fresh(folder)
    adapter, fresh = attached(family, section), attached(other, section, seed=99)
    train(family, adapter)
    state = {k: v.clone() for k, v in adapter.state_dict().items()}
    fresh.load_state_dict(state)
    assert torch.equal(output(other), output(family))
    assert fresh.state_dict().keys() == state.keys()


@pytest.mark.long
@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshapen"])
def test_a_state_that_does_not_fit_is_refused_whole(folder, section, fault):
    adapter = attached(tiny.fresh(folder), section)
    state = {k: v.clone() + 1 for k, v in adapter.state_dict().items()}
    if fault == "missing":
        del state["embedding.text_encoder"]
    elif fault == "unexpected":
        state["embedding.elsewhere"] = torch.zeros(3, 16)
    else:
        state["embedding.text_encoder"] = torch.zeros(2, 16)
    before = {k: v.clone() for k, v in adapter.state_dict().items()}
    with pytest.raises(UserError, match=r"embedding\.(text_encoder|elsewhere)"):
        adapter.load_state_dict(state)
    assert all(torch.equal(v, before[k]) for k, v in adapter.state_dict().items()), "half taken over"


# --- where it begins --------------------------------------------------------------------------------------------------


def test_it_begins_as_the_words_given(folder):
    family = tiny.fresh(folder)
    adapter = attached(family, word=Embedding(token="zibbo", vectors=2, initial="house cat"))
    for name, vectors in adapter.vectors.items():
        rows = family.text_encoders[name].get_input_embeddings().weight
        assert torch.equal(vectors, rows[clip_tokenizer()("house cat", add_special_tokens=False).input_ids])
    # as many as one word's: the caption with the word in its place is encoded alike
    short = attached(tiny.fresh(folder), word=Embedding(token="zibbo", initial="house"))
    family = short._family
    said, same = family.encode_captions(["a zibbo"]), family.encode_captions(["a house"])
    assert all(torch.equal(said[k], same[k]) for k in said)


def test_too_few_words_are_repeated_each_time_a_little_otherwise(folder):
    def start(seed: int, initial: str | None = "house") -> torch.Tensor:
        family = tiny.fresh(folder)
        return attached(family, word=Embedding(token="zibbo", vectors=3, initial=initial), seed=seed).vectors["text_encoder"]

    first, again, other = start(1), start(1), start(2)
    assert torch.equal(first, again) and torch.equal(first[0], other[0])
    table = tiny.fresh(folder).text_encoders["text_encoder"].get_input_embeddings().weight
    spread = (first[1:] - first[0]) / table.std(0)
    assert 0.03 < spread.abs().mean() < 0.2  # a tenth, of 32 draws
    assert (first[1:] - other[1:]).abs().min() > 0 and not torch.equal(first[1], first[2])
    assert torch.equal(start(1, None)[0], table[265])  # "*"


def test_remarks_are_those_of_the_tokenizer(folder):
    family = families.make(recognise(str(folder)))
    assert remarks(family, Embedding(token="zibbo", initial="a house", vectors=2)) == []
    assert remarks(family, Embedding(token="zibbo")) == []
    few, known = remarks(family, Embedding(token="cat", initial="house", vectors=2))
    assert few == "embedding.initial is 1 tokens for 2 vectors: they are repeated"
    assert known.startswith("'cat' is a word that the model knows already")
    assert "only the first" in remarks(family, Embedding(token="zibbo", initial="two houses"))[0]


# --- what texts become ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "word", "parts"),
    [
        ("a zibbo!", "zibbo", ["a", 0, "!"]),
        ("ZIBBO's roof", "Zibbo", [0, "'s roof"]),
        ("zibbos, my_zibbo, zibbo2 and zibbo", "zibbo", ["zibbos, my_zibbo, zibbo2 and", 0]),
        ("a <zibbo>zibbo", "<zibbo>", ["a", 0, "zibbo"]),
        ("zibbo-zibbo", "zibbo", [0, "-", 0]),
        ("a.b a-b", "a.b", [0, "a-b"]),
        ("nothing of it", "zibbo", ["nothing of it"]),
    ],
)
def test_the_word_is_found_as_a_whole(tiny_model, text, word, parts):
    family = tiny.fresh(tiny_model)
    attached(family, word=Embedding(token=word, vectors=2))
    expected = []
    for part in parts:
        expected += [-1, -2] if part == 0 else clip_tokenizer()(part, add_special_tokens=False).input_ids
    assert [i for i, _ in family._tokens(family.text_parts[0], [(text, 1.0)])] == expected


def test_all_its_vectors_have_the_weight_of_a_prompts_brackets(tiny_model):
    family = tiny.fresh(tiny_model)
    attached(family, word=Embedding(token="zibbo", vectors=2))
    weighted, plain = (family.encode_prompt(p, "")[0]["text"] for p in ("a (zibbo:1.5) house", "a zibbo house"))
    factors = torch.tensor([1, 1, 1.5, 1.5, *[1] * 73])[None, :, None]
    assert torch.allclose(weighted, plain * factors, atol=1e-6)  # an untaught norm's mean is zero: nothing to bring back


def test_its_places_count_towards_a_captions_length(tiny_model):
    family = tiny.fresh(tiny_model)
    attached(family, word=Embedding(token="zibbo", vectors=3))
    assert family.is_too_long("cat " * 73 + "zibbo") and not family.is_too_long("cat " * 72 + "zibbo")


@pytest.mark.parametrize("end", [2, END])
def test_the_pooled_vector_is_that_of_the_end(tmp_path, end):
    """`eos_token_id` = 2, as SDXL's own configuration has it, means that the largest id is taken for the end."""
    folder = tiny.build(tmp_path / "xl", seed=4, family="sdxl")
    file = folder / "text_encoder_2" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"eos_token_id": end}), encoding="utf-8")
    family = tiny.fresh(folder)
    adapter = attached(family)
    encoder = family.text_encoders["text_encoder_2"]
    assert encoder.config.eos_token_id == end
    found = family.encode_captions([WITH])["pooled"]
    # the same by hand: the embeddings given, the hidden state at the first end, the projection
    tokens = [i for i, _ in family._tokens(family.text_parts[1], [(WITH, 1.0)])]
    rows = encoder.get_input_embeddings().weight
    ids = torch.tensor([49406, *tokens, END, *[0] * (75 - len(tokens))])
    given = rows[ids.clamp(min=0)]
    for place in (ids < 0).nonzero().flatten():
        given[place] = adapter.vectors["text_encoder_2"][-1 - ids[place]]
    plain = copy.deepcopy(encoder)
    plain.get_input_embeddings().__dict__.pop("forward")
    plain.get_input_embeddings().weight.requires_grad_(False)[:77] = given  # id i is now the i-th place's
    states = plain(torch.arange(77)[None], output_hidden_states=True).last_hidden_state
    assert torch.allclose(found[0], plain.text_projection(states[0, len(tokens) + 1]), atol=1e-6)


# --- files ------------------------------------------------------------------------------------------------------------


def written(adapter, path, width=0.5):
    """The adapter's file, its vectors moved away from where they began."""
    for number, vectors in enumerate(vectors_of(adapter).values()):
        vectors.data += width * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(number))
    save_file({k: v.contiguous() for k, v in getattr(adapter, "embedding", adapter).exported().items()}, path)
    return path


def test_diffusers_reads_the_file_and_encodes_alike(folder, tmp_path):
    family = tiny.fresh(folder)
    file = written(attached(family), tmp_path / "zibbo.safetensors")
    ours = family.encode_captions([WITH.lower()])
    is_xl = family.base.family == "sdxl"
    pipe = (StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if is_xl:
        state = load_file(file)
        assert state.keys() == {"clip_l", "clip_g"}
        pipe.load_textual_inversion(state["clip_l"], token="zibbo", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
        pipe.load_textual_inversion(
            state["clip_g"], token="zibbo", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2
        )
        text, _, pooled, _ = pipe.encode_prompt(WITH.lower(), device=CPU, do_classifier_free_guidance=False)
        assert torch.allclose(ours["pooled"], pooled, atol=1e-6)
    else:
        assert {k: tuple(v.shape) for k, v in load_file(file).items()} == {"emb_params": (3, 16)}
        pipe.load_textual_inversion(file, token="zibbo")
        text, _ = pipe.encode_prompt(WITH.lower(), CPU, 1, False)
    assert torch.allclose(ours["text"], text, atol=1e-6)
    base = tiny.fresh(folder).encode_captions([WITH.lower()])["text"]
    assert (ours["text"] - base).abs().max() > 1e-2


def test_a_file_loads_again(folder, tmp_path):
    family, other = tiny.fresh(folder), tiny.fresh(folder)
    file = written(attached(family), tmp_path / "my thing.safetensors")
    sampling.load_embedding(other, f"{file}=zibbo")
    assert torch.equal(output(other), output(family))
    by_name = tiny.fresh(folder)
    sampling.load_embedding(by_name, str(shutil.copy(file, tmp_path / "zibbo.safetensors")))
    assert torch.equal(output(by_name), output(family))


def test_another_models_file_is_refused_in_words(tiny_model, tmp_path):
    family = tiny.fresh(tiny_model)
    for tensors, said in (
        ({"clip_l": torch.zeros(1, 16), "clip_g": torch.zeros(1, 24)}, "needs emb_params"),
        ({"emb_params": torch.zeros(2, 24)}, r"\(2, 16\) is needed"),
        ({"emb_params": torch.zeros(16)}, "holds no embedding"),
    ):
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(UserError, match=said):
            sampling.load_embedding(tiny.fresh(tiny_model), str(tmp_path / "x.safetensors"))
    with pytest.raises(UserError, match="not a file"):
        sampling.load_embedding(family, str(tmp_path / "nowhere.safetensors=zibbo"))
