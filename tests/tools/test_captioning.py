"""Captions by models of transformers: tiny random ones of each kind, written by the test, against words found by hand."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch import Tensor

import caption_models
from limner import runs
from limner.config.files import build_as
from limner.config.tools import Tools
from limner.config.tools.captioning import Caption
from limner.data.undo import Journal
from limner.errors import StopRequested, UserError
from limner.tools import caption_loop, captioners, captioning
from limner.tools.tool import Report

KINDS = ("blip", "git", "blip-2", "llava", "florence2")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds one tiny model of each kind. Read only."""
    root = tmp_path_factory.mktemp("caption-models")
    for kind in KINDS:
        caption_models.build(kind, root / kind)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    root.mkdir()
    Image.new("RGB", (32, 32), (255, 0, 0)).save(root / "a.png")
    Image.new("RGB", (32, 32), (0, 60, 255)).save(root / "b.png")
    noise = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "c.png")
    return root


def section(folder: Path, model: object, **options: Any) -> Caption:
    raw = {"path": str(folder), "model": str(model), "max_tokens": 8, "min_tokens": 0, **options}
    found = build_as(Tools, {"caption": raw}, {}).caption
    assert found is not None
    return found


def quiet(done: int, total: int, words: str = "") -> None:
    pass


def run(folder: Path, model: object, progress: Callable[..., None] = quiet, **options: Any) -> Report:
    return captioning.run(section(folder, model, **options), progress)


def texts(folder: Path) -> dict[str, str]:
    return {p.stem: p.read_text("utf-8").rstrip("\n") for p in folder.glob("*.txt")}


# --- the words of a model, found by hand ------------------------------------------------------------------------------


def pixels(path: Path) -> Tensor:
    """(1, 3, 32, 32) in float64, normalised as CLIP's are; the pictures have the models' size already."""
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    array = np.asarray(Image.open(path), dtype=np.float64) / 255
    return torch.from_numpy((array - mean) / std).permute(2, 0, 1)[None]


def by_hand(kind: str, opened: Any, picture: Path, words: list[str], count: int) -> str:
    """The likeliest word, `count` times, each after a whole pass through the model in float64."""
    vocabulary = caption_models.vocabulary(kind)
    ids = [vocabulary.index(word) for word in words]
    asked = {"pixel_values": pixels(picture)}
    said = list[int]()
    for _ in range(count):
        so_far = torch.tensor([ids + said])
        with torch.no_grad():
            if kind == "blip":
                seen = opened.vision_model(**asked).last_hidden_state
                logits = opened.text_decoder(so_far, encoder_hidden_states=seen).logits
            elif kind == "florence2":  # the decoder begins with </s>
                begun = torch.tensor([[2, *said]])
                logits = opened(input_ids=torch.tensor([ids]), decoder_input_ids=begun, **asked).logits
            else:
                logits = opened(input_ids=so_far, attention_mask=torch.ones_like(so_far), **asked).logits
        said.append(int(logits[0, -1].argmax()))
        if vocabulary[said[-1]] in ("[SEP]", "</s>"):
            break
    spoken = [*(words if kind in ("blip", "git") else []), *(vocabulary[i] for i in said)]
    return " ".join(w for w in spoken if w not in caption_models.SPECIAL).replace(" ##", "")


PATCHES = ["<image>"] * 4
PROMPTS: dict[str, list[tuple[str, list[str]]]] = {
    "blip": [("", ["[DEC]"]), ("photo of", ["[DEC]", "photo", "of"])],
    "git": [("", ["[CLS]"]), ("photo of", ["[CLS]", "photo", "of"])],
    "blip-2": [("", [*PATCHES, "<s>"]), ("Question: cat Answer:", [*PATCHES, "Question:", "cat", "Answer:"])],
    "llava": [("cat", ["USER:", *PATCHES, "cat", "ASSISTANT:"])],
    "florence2": [("<CAPTION>", [*["<image>"] * 17, "<s>", "What", "does", "the", "image", "describe?", "</s>"])],
}


@pytest.mark.parametrize(("kind", "which"), [(kind, i) for kind in KINDS for i in range(len(PROMPTS[kind]))])
def test_the_likeliest_words_are_written(folder: Path, models: Path, kind: str, which: int) -> None:
    prompt, words = PROMPTS[kind][which]
    run(folder, models / kind, prompt=prompt, batch_size=2)
    opened = caption_models.opened(kind, models / kind).double().eval()
    expected = {p.stem: by_hand(kind, opened, p, words, 8) for p in folder.glob("*.png")}
    assert texts(folder) == {name: text for name, text in expected.items() if text}
    assert len(set(expected.values())) > 1, "the model should tell the pictures apart, or this test tells nothing"


# --- options ----------------------------------------------------------------------------------------------------------


def test_lengths_and_repetition(folder: Path, models: Path) -> None:
    run(folder, models / "git", max_tokens=3)
    assert all(len(text.split()) <= 3 for text in texts(folder).values())
    run(folder, models / "git", min_tokens=20, max_tokens=20, existing="replace")
    long = texts(folder)
    run(folder, models / "git", min_tokens=20, max_tokens=20, existing="replace", repetition_penalty=5.0)
    varied = texts(folder)
    assert sum(len(set(t.split())) for t in varied.values()) > sum(len(set(t.split())) for t in long.values())
    with pytest.raises(UserError, match=r"caption\.min_tokens"):
        run(folder, models / "git", min_tokens=9)


def test_enough_beams_find_the_likeliest_of_all_wordings(folder: Path, models: Path) -> None:
    """With as many beams as there are words, two words are searched through; by hand all pairs are tried, in float64."""
    vocabulary = caption_models.vocabulary("git")
    size, end = len(vocabulary), vocabulary.index("[SEP]")
    run(folder, models / "git", max_tokens=2, min_tokens=2, beams=size)
    model = caption_models.opened("git", models / "git").double().eval()
    for picture in folder.glob("*.png"):
        start = torch.full((size, 1), vocabulary.index("[CLS]"))
        ids, seen = torch.cat([start, torch.arange(size)[:, None]], 1), pixels(picture).expand(size, -1, -1, -1)
        with torch.no_grad():
            chances = model(input_ids=ids, pixel_values=seen).logits[:, -2:].log_softmax(-1)
        pairs = chances[0, 0, :, None] + chances[:, 1]  # of all (first, second)
        pairs[end] = pairs[:, end] = -torch.inf
        best = divmod(int(pairs.argmax()), size)
        expected = " ".join(vocabulary[i] for i in best if vocabulary[i] not in caption_models.SPECIAL)
        assert texts(folder).get(picture.stem, "") == expected


def test_the_same_seed_draws_the_same_words_also_after_a_stop(folder: Path, models: Path, tmp_path: Path) -> None:
    drawn = {"sample": True, "temperature": 3.0, "top_p": 1.0, "seed": 7}
    run(folder, models / "git", **drawn)
    whole = texts(folder)
    again = shutil.copytree(folder, tmp_path / "again", ignore=shutil.ignore_patterns("*.txt"))
    with pytest.raises(StopRequested):
        run(again, models / "git", stop_at(2), **drawn)
    assert 0 < len(texts(again)) < 3
    run(again, models / "git", **drawn)
    assert texts(again) == whole
    run(folder, models / "git", **{**drawn, "seed": 8}, existing="replace")
    assert texts(folder) != whole


def test_half_precision(folder: Path, models: Path) -> None:
    run(folder, models / "blip", dtype="bfloat16")
    assert len(texts(folder)) == 3


def test_prefix_existing_and_undo(folder: Path, models: Path) -> None:
    (folder / "a.txt").write_text("mine")
    run(folder, models / "blip", prefix="zwx, ", suffix=".")
    assert texts(folder)["a"] == "mine"
    assert all(t.startswith("zwx, ") and t.endswith(".") for n, t in texts(folder).items() if n != "a")
    outcome = Journal(runs.home() / "undo").undo(folder, lambda path: True)
    assert outcome is not None and outcome.changed == 2 and texts(folder) == {"a": "mine"}


# --- stops, and models that are none ----------------------------------------------------------------------------------


def stop_at(count: int) -> Callable[..., None]:
    def progress(done: int, total: int, words: str = "") -> None:
        if done >= count:
            raise StopRequested

    return progress


def test_a_stop_comes_in_the_middle_of_a_caption(folder: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_loop, "_TICK_SECONDS", 0.0)
    asked = list[int]()

    def progress(done: int, total: int, words: str = "") -> None:
        asked.append(done)
        if len(asked) == 6:  # opening, the start, and four words
            raise StopRequested

    with pytest.raises(StopRequested):
        run(folder, models / "git", progress, max_tokens=40, min_tokens=40)
    assert asked == [0] * 6 and not texts(folder)


def test_looking_says_counts_and_opens_no_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "blip"}')
    report = captioning.look(section(folder, tmp_path / "m"))
    assert report.lines == ["3 pictures would get a caption."] and len(report.files) == 3 and not texts(folder)


@pytest.mark.parametrize(
    "config", ["", "[]", "{", '{"model_type": 7}', '{"model_type": "bert"}', '{"model_type": ["blip"]}', "[" * 100_000, "null"]
)
def test_folders_that_hold_no_caption_model(folder: Path, tmp_path: Path, config: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(config)
    for action in (captioning.look, lambda s: captioning.run(s, quiet)):
        with pytest.raises(UserError, match=r"caption\.model"):
            action(section(folder, tmp_path / "m"))


@pytest.mark.parametrize("damage", ["no weights", "cut weights", "no tokenizer", "other sizes", "no processor", "pickled"])
def test_damaged_models_are_told(folder: Path, models: Path, tmp_path: Path, damage: str) -> None:
    model = shutil.copytree(models / "blip", tmp_path / "m")
    weights = model / "model.safetensors"
    if damage == "no weights":
        weights.unlink()
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "no tokenizer":
        for file in model.glob("*token*"):
            file.unlink()
        (model / "vocab.txt").unlink(missing_ok=True)
    elif damage == "other sizes":
        config = json.loads((model / "config.json").read_text())
        config["text_config"]["hidden_size"] = 32
        (model / "config.json").write_text(json.dumps(config))
    elif damage == "no processor":
        for file in model.glob("*processor*"):
            file.unlink()
    else:
        torch.save({"x": torch.zeros(1)}, model / "pytorch_model.bin")
        weights.unlink()
    with pytest.raises(UserError, match=r"caption\.model.*cannot be opened"):
        run(folder, model)
    assert not texts(folder)


def test_no_code_of_a_model_is_run(folder: Path, models: Path, tmp_path: Path) -> None:
    """Also where its config.json names some, as those of Florence-2's first release do."""
    model = shutil.copytree(models / "blip", tmp_path / "m")
    fired = tmp_path / "fired"
    (model / "evil.py").write_text(f"open({str(fired)!r}, 'w')\nclass Evil: pass\n")
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        content = json.loads((model / name).read_text())
        content["auto_map"] = {
            "AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoProcessor": "evil.Evil",
            "AutoImageProcessor": "evil.Evil", "AutoTokenizer": ["evil.Evil", None], "AutoModelForCausalLM": "evil.Evil",
        }  # fmt: skip
        (model / name).write_text(json.dumps(content))
    try:
        run(folder, model)
    except UserError:
        assert not texts(folder)
    assert not fired.exists()


@pytest.mark.parametrize("shape", ['"; touch {}; #', "$(touch {})", "`touch {}`", "a/b; touch {}", "x\\$(touch {})/y"])
def test_a_models_name_is_only_a_name(folder: Path, tmp_path: Path, shape: str) -> None:
    """CVE-2024-32026: shell words in the model id of GIT."""
    with pytest.raises(UserError, match="no file or folder here"):
        run(folder, shape.format(tmp_path / "fired"))
    assert not (tmp_path / "fired").exists()


@pytest.mark.parametrize(("option", "value"), [("device", "cuda:77"), ("device", "cuda; x"), ("device", "tpu")])
def test_devices_that_are_not_there(folder: Path, models: Path, option: str, value: str) -> None:
    with pytest.raises(UserError, match=r"caption\.device"):
        run(folder, models / "blip", **{option: value})


def test_offline_it_is_said_what_to_fetch(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="cannot be fetched") as caught:
        run(folder, "Salesforce/blip-image-captioning-base")
    assert f"put them into {runs.home() / 'models' / 'blip-image-captioning-base'}" in caught.value.findings[0].remedy
    assert not texts(folder)


# --- several processes ------------------------------------------------------------------------------------------------


def test_processes_write_what_one_writes(folder: Path, models: Path, tmp_path: Path) -> None:
    drawn = {"sample": True, "temperature": 3.0, "top_p": 1.0}
    again = shutil.copytree(folder, tmp_path / "again")
    run(folder, models / "git", **drawn)
    together = set[int]()

    def progress(done: int, total: int, words: str = "") -> None:
        together.update(child.pid for child in _working())

    report = run(again, models / "git", progress, processes=2, **drawn)
    assert texts(again) == texts(folder) and len(report.files) == 3 and len(together) >= 2
    assert not _working()


@pytest.mark.long
def test_what_a_process_finds_is_told(folder: Path, models: Path) -> None:
    with pytest.raises(UserError, match=r"caption.model.*cannot be opened") as raised:
        broken = shutil.copytree(models / "git", folder.parent / "broken")
        (broken / "model.safetensors").write_bytes(b"")
        run(folder, broken, processes=2)
    assert raised.value.findings and not _working() and not texts(folder)


@pytest.mark.long
def test_a_stop_ends_the_processes(folder: Path, models: Path) -> None:
    with pytest.raises(StopRequested):
        run(folder, models / "git", stop_at(1), processes=2)
    assert not _working() and 0 < len(texts(folder)) < 3


def test_a_process_that_is_killed_is_told(folder: Path, models: Path) -> None:
    def progress(done: int, total: int, words: str = "") -> None:
        for child in _working():
            child.kill()

    with pytest.raises(UserError, match=r"caption.processes: one of the processes ended by itself"):
        run(folder, models / "git", progress, processes=2)
    assert not _working()


@pytest.mark.long
def test_a_tool_that_is_killed_leaves_none_behind(folder: Path, models: Path) -> None:
    words = ["tools", "caption", "--path", folder, "--model", models / "git", "--processes", "2"]
    long = ["--max-tokens", "2000", "--min-tokens", "1000"]
    tool = psutil.Popen([sys.executable, "-m", "limner.cli", *map(str, words), *long])
    deadline = time.monotonic() + 120
    while len(found := _workers_of(tool)) < 2:
        assert tool.is_running() and time.monotonic() < deadline
        time.sleep(0.05)
    tool.kill()
    tool.wait()
    assert not psutil.wait_procs(found, timeout=60)[1]


@pytest.mark.long
@pytest.mark.parametrize("device", ["cuda:0", "cuda"])
def test_processes_that_there_are_no_gpus_for(folder: Path, models: Path, device: str) -> None:
    with pytest.raises(UserError, match=r"caption.device: .*cuda"):
        run(folder, models / "git", device=device, processes=2)


def test_each_process_has_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asked = section(folder, "a/b", device="cuda", processes=2)
    assert [captioners._device(asked, n).index for n in (0, 1)] == [0, 1]
    with pytest.raises(UserError, match=r"caption.processes: 3 are asked for, and there are 2 GPUs"):
        captioners._device(section(folder, "a/b", device="cuda", processes=3), 0)


def _workers_of(process: psutil.Process) -> list[psutil.Process]:
    found = list[psutil.Process]()
    with contextlib.suppress(psutil.Error):
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any("spawn_main" in word for word in child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
    return found


def _working() -> list[psutil.Process]:
    return _workers_of(psutil.Process())
