"""One use of each tool at the page: what is put into its fields, and what must come of it. Shared by test_tools_page.py and
scripts/screenshots.py, so that each tool that is shown is one that was tried."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from playwright.sync_api import Page
from safetensors.numpy import load_file
from safetensors.torch import save_file

import caption_models
import tiny
from fake_hub import REPO, TOKEN, FakeHub
from limner.adapters.layered import LayerAdapter
from limner.config import Lora
from limner.config.fields import Option, walk
from limner.config.files import build_as
from limner.config.tools import Tools
from limner.formats.header import read_header
from limner.pocket import MODEL, PICTURES
from limner.tools import group_pictures

PROMPT = "a large zibbo in the middle on a beige background --s 4 --d 1"
BLOCK = "down_blocks.{}.attentions.0.transformer_blocks.0.attn1.to_q"
POCKET, TINY = BLOCK.format(1), BLOCK.format(0)
"""A layer of the pocket model, and of the tiny one."""
_TAGS = (("red", 2), ("green", 1), ("blue", 0))
"""What the tagger knows, and in which channel (BGR) it sees it."""


HUBS: list[FakeHub] = []
"""The last one is what is published on."""


@dataclass(frozen=True)
class Use:
    """A tool, used."""

    fields: dict[str, str]
    """Label -> what is typed or chosen. {F} is the folder of inputs, {URL} the captioning server's address."""
    says: str
    """A regular expression that the outcome on the page matches."""
    check: Callable[[Path], None]
    """Given the folder of inputs, looks at what was written."""
    advanced: dict[str, str] = field(default_factory=dict)
    """The same, of folded options."""


# --- what is worked on ------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Make the inputs; LIMNER_HOME must be the home of the page."""
    pictures = sorted(PICTURES.glob("*.png"))
    for i, name in enumerate(("zibbo", "style")):
        _lora(folder / f"{name}.safetensors", 0.03 / (i + 1))
    shutil.copytree(MODEL, folder / "base")
    tiny.build(folder / "model")
    _tuned(folder)
    for name, count, captioned in (("tagged", 3, False), ("captioned", 3, False), ("asked", 3, False), ("plain", 4, True)):
        (folder / name).mkdir()
        for picture in pictures[:count]:
            shutil.copy(picture, folder / name)
            if captioned:
                shutil.copy(picture.with_suffix(".txt"), folder / name)
    for name, count in (("10_cat", 2), ("3_dog", 4)):
        for place in ("kohya", "kohya2/img"):
            (folder / place / name).mkdir(parents=True)
            for picture in pictures[:count]:
                shutil.copy(picture, folder / place / name)
    for name in ("shapes", "regrouped"):
        (folder / name).mkdir()
        for i, (width, height) in enumerate([(96, 64), (90, 60), (64, 96), (64, 64)]):
            Image.new("RGB", (width, height), (40 * i, 120, 200 - 40 * i)).save(folder / name / f"{width}x{height}.png")
    asked = build_as(Tools, {"group_pictures": {"folder": str(folder / "regrouped"), "least": 1, "resolution": 64}}, {})
    assert asked.group_pictures
    group_pictures.run(asked.group_pictures, lambda *_: None)
    assert not list((folder / "regrouped").glob("*.png"))
    with tarfile.open(folder / "zibbos.tar", "w") as tar:
        for picture in sorted((folder / "plain").iterdir()):
            tar.add(picture, picture.name)
    _tagger(folder / "tagger")
    caption_models.build("blip", folder / "blip")


def _lora(path: Path, scale: float) -> None:
    """Of the pocket model, rank 4, alpha 2."""
    family, adapter = tiny.fresh(MODEL), LayerAdapter(Lora(rank=4, alpha=2.0))
    adapter.attach(family, 1)
    tiny.moved(adapter, scale)
    tensors = {k: v.clone().contiguous() for k, v in adapter.exported("kohya").items()}
    said = {"ss_network_dim": "4", "ss_network_alpha": "2.0", "ss_tag_frequency": json.dumps({"4_zibbo": {"zibbo": 14}})}
    said |= {
        "ss_output_name": path.stem,
        "ss_steps": "400",
        "ss_optimizer": "torch.optim.adamw.AdamW",
        "modelspec.title": path.stem,
    }
    save_file(tensors, path, said)


def _tuned(folder: Path) -> None:
    """The tiny model, one layer of it changed by a matrix of rank 1."""
    shutil.copytree(folder / "model", folder / "tuned")
    file = folder / "tuned" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = {k: torch.from_numpy(v) for k, v in load_file(file).items()}
    weight = tensors[f"{TINY}.weight"]
    weight += torch.outer(torch.linspace(-1, 1, weight.shape[0]), torch.linspace(1, 2, weight.shape[1]))
    save_file(tensors, file)


def _tagger(folder: Path) -> None:
    """Says of a picture how sure it is of each colour: the logistic function of 20 (mean of its channel - 1/2)."""
    folder.mkdir()
    weights = np.zeros((3, len(_TAGS)), np.float32)
    for i, (_, channel) in enumerate(_TAGS):
        weights[channel, i] = 20 / 255
    given = {"weights": weights, "bias": np.full(len(_TAGS), -10, np.float32), "axes": np.array([1, 2], np.int64)}
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes, "tagger",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 8, 8, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", len(_TAGS)])],
        [numpy_helper.from_array(v, k) for k, v in given.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "model.onnx")
    lines = [f"{i},{name},0,1" for i, (name, _) in enumerate(_TAGS)]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *lines]) + "\n")


class _Asker(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        self.server.going_on.wait(self.server.seconds)
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        shown = next(part for part in asked["messages"][0]["content"] if part["type"] == "image_url")
        assert shown["image_url"]["url"].startswith("data:image/") and asked["model"] == "qwen3-vl"
        raw = json.dumps({"choices": [{"message": {"content": "A zibbo on a plain background."}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *words: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    seconds: float
    going_on: threading.Event

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # who asked may have gone away


@contextmanager
def captioning_server(seconds: float = 0) -> Iterator[str]:
    """The base address of a server that speaks OpenAI's language and knows one caption, after some seconds."""
    server = _Server(("127.0.0.1", 0), _Asker)
    server.seconds, server.going_on = seconds, threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.going_on.set()
    server.shutdown()
    server.server_close()


@contextmanager
def hub() -> Iterator[None]:
    """A Hugging Face Hub of our own, which processes that begin meanwhile take for the real one."""
    HUBS.append(FakeHub())
    threading.Thread(target=HUBS[-1].serve_forever, daemon=True).start()
    told = {"HF_ENDPOINT": HUBS[-1].url, "HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    before = {name: os.environ.get(name) for name in told}
    os.environ |= told
    try:
        yield
    finally:
        for name, text in before.items():
            os.environ.pop(name, None)
            if text is not None:
                os.environ[name] = text
        HUBS[-1].shutdown()
        HUBS[-1].server_close()


# --- what must come of it ---------------------------------------------------------------------------------------------


def _product(file: Path, layer: str = POCKET) -> np.ndarray:
    """What a LoRA in kohya's names adds to a layer, in float64."""
    stored, name = load_file(file), "lora_unet_" + layer.replace(".", "_")
    down, up, alpha = (stored[f"{name}.{n}"].astype(np.float64) for n in ("lora_down.weight", "lora_up.weight", "alpha"))
    return up @ down * (float(alpha) / len(down))


def _weight(model: Path, layer: str) -> np.ndarray:
    """A weight of a model's UNet, in float64."""
    return load_file(model / "unet" / "diffusion_pytorch_model.safetensors")[f"{layer}.weight"].astype(np.float64)


def _ranks(file: Path) -> set[int]:
    return {len(v) for k, v in load_file(file).items() if k.endswith("lora_down.weight")}


def _inspected(folder: Path) -> None:
    assert _ranks(folder / "zibbo.safetensors") == {4}  # it is as it was


def _converted(folder: Path) -> None:
    new = load_file(folder / "zibbo-peft.safetensors")
    up, down = (new[f"unet.{POCKET}.lora_{part}.weight"].astype(np.float64) for part in "BA")
    product = up @ down
    np.testing.assert_allclose(product, _product(folder / "zibbo.safetensors"), atol=1e-6)


def _named_anew(folder: Path) -> None:
    old, new = folder / "zibbo.safetensors", folder / "zibbo-named.safetensors"
    said = read_header(new).metadata
    assert (said["modelspec.title"], said["modelspec.trigger_phrase"]) == ('"Zibbo" & <b>friends</b>', "zibbo")
    assert all((load_file(old)[k] == v).all() for k, v in load_file(new).items())


def _published(folder: Path) -> None:
    ((message, files),) = HUBS[-1].commits
    assert message == "The first" and HUBS[-1].repos[REPO] == {"private": True}
    assert files["zibbo.safetensors"] == (folder / "zibbo.safetensors").read_bytes() and b"zibbo" in files["README.md"]


def _summed(folder: Path) -> None:
    wanted = _product(folder / "zibbo.safetensors") + 0.5 * _product(folder / "style.safetensors")
    np.testing.assert_allclose(_product(folder / "both.safetensors"), wanted, atol=1e-3 * abs(wanted).max())
    assert _ranks(folder / "both.safetensors") == {8}


def _merged(folder: Path) -> None:
    before, after = (_weight(place, POCKET) for place in (MODEL, folder / "merged"))
    wanted = 0.8 * _product(folder / "zibbo.safetensors")
    np.testing.assert_allclose(after - before, wanted, atol=2e-3 * abs(before).max())
    with Image.open(folder / "merged.preview.png") as picture:
        left = picture.crop((0, 0, picture.width // 2, picture.height))
        right = picture.crop((picture.width // 2, 0, picture.width, picture.height))
        assert left.size == right.size and left.tobytes() != right.tobytes()


def _extracted(folder: Path) -> None:
    before, after = (_weight(folder / place, TINY) for place in ("model", "tuned"))
    assert abs(after - before).max() > 0.5
    np.testing.assert_allclose(_product(folder / "extracted.safetensors", TINY), after - before, atol=1e-5)


def _cut(folder: Path) -> None:
    left, values, right = np.linalg.svd(_product(folder / "zibbo.safetensors"))
    wanted = left[:, :2] * values[:2] @ right[:2]
    np.testing.assert_allclose(_product(folder / "small.safetensors"), wanted, atol=2e-3 * abs(wanted).max())


def _texts(folder: Path) -> dict[str, str]:
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.txt"))}


def _tagged(folder: Path) -> None:
    for picture in (folder / "tagged").glob("*.png"):
        with Image.open(picture) as opened:
            means = np.asarray(opened.convert("RGB"), np.float64).mean((0, 1)) / 255
        sure = {name: 1 / (1 + np.exp(-20 * (means[2 - channel] - 0.5))) for name, channel in _TAGS}
        wanted = sorted(sure, key=lambda name: -sure[name])
        said = picture.with_suffix(".txt").read_text(encoding="utf-8").strip()
        assert said == ", ".join(["zibbo", *wanted]), picture


def _captioned(folder: Path) -> None:
    said = _texts(folder / "captioned")
    assert len(said) == 3
    for text in said.values():
        assert text.startswith("a ") and set(text.split()) <= {
            "a",
            *(w.strip("[]").lower() for w in caption_models.vocabulary("blip")),
        }


def _asked(folder: Path) -> None:
    assert _texts(folder / "asked") == dict.fromkeys(
        ("zibbo_00", "zibbo_01", "zibbo_02"), "zwx, A zibbo on a plain background.\n"
    )


def _grouped(folder: Path) -> None:
    found = {str(p.relative_to(folder / "groups").parent): p.stem for p in sorted((folder / "groups").rglob("*.png"))}
    assert sorted(found) == ["48x80", "64x64", "80x48"] and found["64x64"] == "64x64", found
    assert len(list((folder / "shapes").glob("*.png"))) == 4  # copied


def _balanced(folder: Path) -> None:
    assert sorted(p.name for p in (folder / "kohya").iterdir()) == ["10_cat", "5_dog"]


def _made_kohya(folder: Path) -> None:
    made = folder / "for-kohya" / "img" / "7_zwx toy"
    assert {p.name: p.read_bytes() for p in made.iterdir()} == {p.name: p.read_bytes() for p in (folder / "plain").iterdir()}


def _made_plain(folder: Path) -> None:
    pictures = folder / "from-kohya" / "pictures"
    assert {p.name: len(list(p.glob("*.png"))) for p in pictures.iterdir()} == {"cat": 2, "dog": 4}


def _unpacked(folder: Path) -> None:
    packed, made = folder / "plain", folder / "unpacked"
    assert {p.name: p.read_bytes() for p in made.glob("*.png")} == {p.name: p.read_bytes() for p in packed.glob("*.png")}
    assert {k: v.strip() for k, v in _texts(made).items()} == {k: v.strip() for k, v in _texts(packed).items()}


def _undone(folder: Path) -> None:
    assert sorted(p.name for p in (folder / "regrouped").glob("*.png")) == ["64x64.png", "64x96.png", "90x60.png", "96x64.png"]


USES: dict[str, Use] = {
    "inspect": Use(
        {"file": "{F}/zibbo.safetensors", "family": "sd1"}, r"rank 4: 84 layers", _inspected, {"config": "{F}/base"}
    ),
    "convert": Use(
        {"file": "{F}/zibbo.safetensors", "output": "{F}/zibbo-peft.safetensors", "layout": "diffusers", "dtype": "fp32"},
        r"zibbo-peft\.safetensors",
        _converted,
        {"family": "sd1", "config": "{F}/base"},
    ),
    "metadata": Use(
        {
            "file": "{F}/zibbo.safetensors",
            "output": "{F}/zibbo-named.safetensors",
            "name": '"Zibbo" & <b>friends</b>',
            "trigger": "zibbo",
        },
        r'"Zibbo" & <b>friends</b>',
        _named_anew,
    ),
    "publish": Use(
        {"file": "{F}/zibbo.safetensors", "repo": REPO, "message": "The first", "license": "apache-2.0"},
        rf"Published: .*{REPO}",
        _published,
    ),
    "merge_loras": Use(
        {"loras": "{F}/zibbo.safetensors\n{F}/style.safetensors @ 0.5", "output": "{F}/both.safetensors", "base": "pocket"},
        r"both\.safetensors",
        _summed,
    ),
    "merge_model": Use(
        {"base": "pocket", "loras": "{F}/zibbo.safetensors @ 0.8", "output": "{F}/merged", "preview prompt": PROMPT},
        r"merged\.preview\.png",
        _merged,
    ),
    "extract": Use(
        {"base": "{F}/model", "tuned": "{F}/tuned", "output": "{F}/extracted.safetensors", "rank": "2", "dtype": "fp32"},
        r"extracted\.safetensors",
        _extracted,
    ),
    "resize": Use(
        {"lora": "{F}/zibbo.safetensors", "output": "{F}/small.safetensors", "rank": "2"}, r"small\.safetensors", _cut
    ),
    "tag": Use(
        {"path": "{F}/tagged", "model": "{F}/tagger", "prefix": "zibbo, ", "general threshold": "0"},
        r"3 pictures got a caption",
        _tagged,
    ),
    "caption": Use(
        {"path": "{F}/captioned", "model": "{F}/blip", "max tokens": "8", "prefix": "a "},
        r"3 pictures got a caption",
        _captioned,
        {"device": "cpu"},
    ),
    "caption_by_server": Use(
        {"path": "{F}/asked", "url": "{URL}", "model": "qwen3-vl", "prefix": "zwx, "}, r"3 pictures got a caption", _asked
    ),
    "group_pictures": Use(
        {
            "folder": "{F}/shapes",
            "output": "{F}/groups",
            "least": "1",
            "resolution (px)": "64",
            "bucket step (px)": "16",
            "how": "copy",
        },
        r"64x64: 1 picture",
        _grouped,
    ),
    "balance": Use({"folder": "{F}/kohya"}, r"3_dog: 3 x 4 = 12, becomes 5 x 4 = 20", _balanced),
    "to_kohya_folders": Use(
        {"pictures": "{F}/plain", "output": "{F}/for-kohya", "trigger": "zwx", "class words": "toy", "repeats": "7"},
        r"7_zwx toy",
        _made_kohya,
    ),
    "from_kohya_folders": Use(
        {"folder": "{F}/kohya2", "output": "{F}/from-kohya"}, r"3_dog: 4 pictures -> pictures/dog", _made_plain
    ),
    "unpack": Use({"source": "{F}/zibbos.tar", "output": "{F}/unpacked"}, r"8 files in .*unpacked", _unpacked),
    "undo_folders": Use({"folder": "{F}/regrouped"}, r"5 changes taken back", _undone),
}


def values(tool: str, folder: Path, url: str) -> dict[str, str]:
    """The same as the page sends it: dotted name -> typed text."""
    options = {_label(o): o for o in walk(Tools) if o.section == tool}
    said = {**USES[tool].fields, **USES[tool].advanced}
    typed = {options[label]: text.replace("{F}", str(folder)).replace("{URL}", url) for label, text in said.items()}
    return {o.path: json.dumps(text.split("\n")) if o.is_list else text for o, text in typed.items()}


def _label(option: Option) -> str:
    spoken = option.name.replace("_", " ")
    return f"{spoken.removesuffix(f' {option.unit}')} ({option.unit})" if option.unit else spoken


def fill_in(page: Page, tool: str, folder: Path, url: str) -> None:
    """Choose a tool on the tab Tools, and fill its fields by their labels."""
    page.locator(f"[data-tool={tool}]").click()
    card, use = page.locator(".tool-main .card"), USES[tool]
    if use.advanced:
        card.locator("summary", has_text="Advanced").click()
    for label, text in [*use.fields.items(), *use.advanced.items()]:
        typed, entry = text.replace("{F}", str(folder)).replace("{URL}", url), card.get_by_label(label, exact=True)
        if entry.evaluate("e => e.tagName") == "SELECT":
            entry.select_option(typed)
        else:
            entry.fill(typed)
