"""Tags by a WD14 tagger: what it is given, what is made of its answers, and a real (tiny) ONNX model that sees colours."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limner import runs
from limner.config.files import build_as
from limner.config.tools import Tools
from limner.config.tools.captioning import Tag
from limner.data.undo import Journal
from limner.errors import StopRequested, UserError
from limner.tools import tagging
from limner.tools.tool import Report
from limner.tools.wd14 import Choice, Known, prepared, read_tags

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
CSV = """tag_id,name,category,count
9999999,general,9,10
9999998,explicit,9,9
1,red,0,5
2,dark_green,0,5
3,blue,0,5
4,^_^,0,4
5,miku_(vocaloid),4,3
"""
SIDE = 8


# --- what a tagger is given -------------------------------------------------------------------------------------------


def test_a_wide_picture_lies_in_the_middle_of_a_white_square() -> None:
    out = prepared(Image.new("RGB", (8, 3), (10, 20, 30)), 8)
    assert out.shape == (8, 8, 3) and out.dtype == np.float32
    assert (out[2:5] == [30, 20, 10]).all()  # blue first, 0..255
    assert (out[:2] == 255).all() and (out[5:] == 255).all()


def test_a_high_picture_is_made_smaller_with_its_shape_kept() -> None:
    out = prepared(Image.new("RGB", (40, 80), (0, 0, 0)), 8)
    rows = out[4, :, 0]
    # a quarter of the width is white on each side; the edges between are smooth, as bicubic ones are
    assert rows[0] > 250 and rows[-1] > 250 and rows[3] < 5 and rows[4] < 5
    assert out[0].tolist() == out[7].tolist() and out[:, :, 0].tolist() == out[:, ::-1, 0].tolist()


def test_a_smooth_picture_stays_smooth() -> None:
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    out = prepared(Image.fromarray(ramp), 16)[8, :, 0]
    centres = 4.0 * (np.arange(16) * 4 + 1.5)
    assert np.abs(out[2:-2] - centres[2:-2]).max() <= 1.0


# --- what is made of its answers --------------------------------------------------------------------------------------

KNOWN = [Known(*line.split(",")[1:3]) for line in CSV.splitlines()[1:]]


def section(**options: Any) -> Tag:
    found = build_as(Tools, {"tag": {"path": "x", **options}}, {}).tag
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("options", "tags"),
    [
        ({}, ["blue", "dark green", "miku (vocaloid)"]),
        ({"order": "model"}, ["dark green", "blue", "miku (vocaloid)"]),
        ({"general_threshold": 0.3}, ["blue", "dark green", "^_^", "miku (vocaloid)"]),
        ({"general_threshold": 0.7}, ["blue", "miku (vocaloid)"]),
        ({"general_threshold": 0.70001}, ["miku (vocaloid)"]),
        ({"character_threshold": 0.95}, ["blue", "dark green"]),
        ({"characters": "first"}, ["miku (vocaloid)", "blue", "dark green"]),
        ({"characters": "off"}, ["blue", "dark green"]),
        ({"character_series": "split"}, ["blue", "dark green", "miku", "vocaloid"]),
        ({"character_series": "remove"}, ["blue", "dark green", "miku"]),
        ({"underscores": True}, ["blue", "dark_green", "miku_(vocaloid)"]),
        ({"rating": "first"}, ["explicit", "blue", "dark green", "miku (vocaloid)"]),
        ({"rating": "last"}, ["blue", "dark green", "miku (vocaloid)", "explicit"]),
        ({"rating": "first", "leave_out": "explicit"}, ["blue", "dark green", "miku (vocaloid)"]),
        ({"leave_out": " DARK_GREEN,miku (vocaloid), ,x"}, ["blue"]),
        ({"leave_out": "vocaloid", "character_series": "split"}, ["blue", "dark green", "miku"]),
        ({"first": "miku_(vocaloid), dark green, nothing"}, ["miku (vocaloid)", "dark green", "blue"]),
        ({"first": "blue, blue, dark green"}, ["blue", "dark green", "miku (vocaloid)"]),
        ({"rename": ["dark green -> green", "blue->"]}, ["green", "miku (vocaloid)"]),
        ({"rename": ["blue -> dark green"]}, ["dark green", "miku (vocaloid)"]),
        ({"rename": ["blue -> navy"], "leave_out": "navy"}, ["dark green", "miku (vocaloid)"]),
    ],
)
def test_which_tags_are_taken(options: dict[str, Any], tags: list[str]) -> None:
    probabilities = [0.2, 0.8, 0.1, 0.6, 0.7, 0.3, 0.9]
    assert Choice(KNOWN, section(**options)).of(probabilities) == tags


@pytest.mark.parametrize("tag", ["^_^", "o_o", "(o)_(o)", "<|>_<|>", "||_||", ">_<", "0_0", "+_-"])
def test_faces_keep_their_underscores(tag: str) -> None:
    assert Choice([Known(tag, "0")], section()).of([1.0]) == [tag]


@pytest.mark.parametrize(("tag", "words"), [("long_hair", "long hair"), ("k-on!_(x)_y2", "k-on! (x) y2"), ("a_cat", "a cat")])
def test_words_lose_theirs(tag: str, words: str) -> None:
    assert Choice([Known(tag, "0")], section()).of([1.0]) == [words]


def test_a_costume_stays_with_the_character() -> None:
    known = [Known("miku_(winter)_(vocaloid)", "4")]
    assert Choice(known, section(character_series="split")).of([1.0]) == ["miku (winter)", "vocaloid"]


def test_ratings_are_told_by_their_category_not_their_place() -> None:
    known = [Known("a", "0"), Known("safe", "9"), Known("b", "3"), Known("rude", "9")]
    assert Choice(known, section(rating="last")).of([0.9, 0.1, 0.8, 0.05]) == ["a", "b", "safe"]


@pytest.mark.parametrize("text", ["a b", "-> b", "a = b", ""])
def test_renamings_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=r"tag\.rename"):
        Choice(KNOWN, section(rename=[text]))


def test_a_list_of_tags_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\ufeff" + CSV + '8,"a, ""b""",0,1\n', encoding="utf-8")
    assert read_tags(tmp_path / "t.csv", "f") == [*KNOWN, Known('a, "b"', "0")]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a,b\n1,2\n",
        b"\xff\xfe\x00",
        b"\x00" * 100,
        b"name,category\n" + b'"' + b"x" * 200_000,
        b"name\nx\n",
        b"x" * (17 << 20),
    ],
    ids=range(7),
)
def test_lists_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"t\.csv"):
        read_tags(tmp_path / "t.csv", "tag.tags_file")


def test_hostile_tags_become_one_line_of_words(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('name,category\n"a\nb\x1b[31m",0\n"\u2028",0\n$(touch x),0\n')
    known = read_tags(tmp_path / "t.csv", "f")
    assert Choice(known, section()).of([1.0, 1.0, 1.0]) == ["a b[31m", "$(touch x)"]


# --- where a model lies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", ["", "nothing here", "../x", "a/b/c", "/nonexistent/model.onnx", "a/..", "https://h/x", "a;b/c"]
)
def test_models_that_are_none(tmp_path: Path, model: str) -> None:
    with pytest.raises(UserError, match=r"tag\.model.*no file or folder"):
        tagging.look(section(path=str(tmp_path), model=model))


def test_a_model_that_is_not_here_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking says that it would be fetched; offline the message says what to get and where to put it."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    report = tagging.look(section(path=str(tmp_path), model="SmilingWolf/wd-vit-tagger-v3"))
    assert "would be fetched" in str(report.remarks[0]) and report.remarks[0].severity == "note"
    from limner.tools.caption_models import fetch

    with pytest.raises(UserError) as caught:
        fetch("SmilingWolf/wd-vit-tagger-v3", ["model.onnx", "selected_tags.csv"], ["model.onnx"], "tag.model")
    remedy = caught.value.findings[0].remedy
    assert "model.onnx, selected_tags.csv of huggingface.co/SmilingWolf/wd-vit-tagger-v3" in remedy
    assert str(runs.home() / "models" / "wd-vit-tagger-v3") in remedy


# --- a real model -----------------------------------------------------------------------------------------------------


def build(folder: Path, side: int = SIDE, batch: Any = "N", scale: float = 20.0, last: bool = True) -> Path:
    """A tagger that looks at the mean colour: each tag's probability is the logistic function of one channel's share.

    It reads (N, H, W, BGR), or (N, BGR, H, W) unless `last`: red is channel 2. miku is there where it is red and blue.
    """
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weights = (
        np.array(  # from (blue, green, red), each 0..1
            [[1, 1, 1], [-1, -1, -1], [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0], [1, -1, 1]], dtype=np.float32
        ).T
        * scale
    )
    bias = np.array([-0.5, 0.5, -0.5, -0.5, -0.5, -1, -1], dtype=np.float32) * scale
    given = {"weights": weights / 255, "bias": bias, "axes": np.array([1, 2] if last else [2, 3], dtype=np.int64)}
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes, "tagger",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, side, side, 3] if last else [batch, 3, side, side])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, 7])],
        [numpy_helper.from_array(v, k) for k, v in given.items()],
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "model.onnx")
    (folder / "selected_tags.csv").write_text(CSV)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pytest.importorskip("onnxruntime")
    return build(tmp_path / "tagger")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    root.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 20), colour).save(root / f"{name}.png")
    Image.new("RGB", (20, 20), (255, 0, 255)).save(root / "violet.png")
    return root


def quiet(done: int, total: int, words: str = "") -> None:
    pass


def run(folder: Path, model: Path, progress: Callable[..., None] = quiet, **options: Any) -> Report:
    return tagging.run(section(path=str(folder), model=str(model), **options), progress)


def texts(folder: Path) -> dict[str, str]:
    return {p.stem: p.read_text("utf-8").rstrip("\n") for p in folder.glob("*.txt")}


RIGHT = {"red": "red", "green": "dark green", "blue": "blue", "violet": "red, blue, miku (vocaloid)"}


@pytest.mark.parametrize(("batch", "batch_size"), [("N", 1), ("N", 3), ("N", 64), (1, 4), (3, 1)])
def test_a_tagger_sees_the_colours_that_are_there(folder: Path, model: Path, batch: Any, batch_size: int) -> None:
    """Whatever the batch, also if the model takes batches of one size only."""
    report = run(folder, build(model, batch=batch), batch_size=batch_size, order="model")
    assert texts(folder) == RIGHT and report.lines[0] == "4 pictures got a caption."


def test_its_sureness_is_what_the_arithmetic_says(folder: Path, tmp_path: Path, model: Path) -> None:
    """A picture that is half red, half padded white: shares of red 1, of green and blue 1/2; against float64 by hand."""
    wide = tmp_path / "wide"
    wide.mkdir()
    Image.new("RGB", (16, 8), COLOURS["red"]).save(wide / "a.png")
    build(model, side=16, scale=3.0)
    sure = {"red": 1 / (1 + math.exp(-3.0 * 0.5)), "blue": 0.5}
    for threshold, tags in ((0.499, "red, dark green, blue"), (0.501, "red"), (sure["red"] - 1e-4, "red")):
        run(wide, model, general_threshold=threshold, existing="replace", characters="off")
        assert texts(wide) == {"a": tags}
    report = run(wide, model, general_threshold=sure["red"] + 1e-4, existing="replace", characters="off")
    assert texts(wide) == {"a": "red"} and "the answer is empty" in str(report.remarks[0])


def test_the_file_may_be_given_instead_of_the_folder(folder: Path, model: Path) -> None:
    (model / "selected_tags.csv").rename(model / "other.csv")
    with pytest.raises(UserError, match=r"selected_tags\.csv does not exist"):
        tagging.look(section(path=str(folder), model=str(model / "model.onnx")))
    run(folder, model / "model.onnx", tags_file=str(model / "other.csv"), order="model")
    assert texts(folder) == RIGHT


def test_tags_are_added_to_those_that_are_there_once(folder: Path, model: Path) -> None:
    (folder / "violet.txt").write_text("zwx, Blue")
    (folder / "red.txt").write_text("zwx")
    (folder / "green.txt").write_text("dark green,zwx")
    for _ in range(2):
        run(folder, model, existing="append", order="model")
        assert texts(folder) == {
            **RIGHT,
            "violet": "zwx, Blue, red, miku (vocaloid)",
            "red": "zwx, red",
            "green": "dark green,zwx",
        }


def test_tags_are_put_before_those_that_are_there(folder: Path, model: Path) -> None:
    (folder / "violet.txt").write_text("zwx, Blue")
    run(folder, model, existing="prepend", order="model", separator="; ")
    assert texts(folder)["violet"] == "red; blue; miku (vocaloid); zwx, Blue"
    assert texts(folder)["red"] == "red"


def test_a_second_run_keeps_all_and_undo_takes_all_back(folder: Path, model: Path) -> None:
    (folder / "red.txt").write_text("mine")
    with pytest.raises(StopRequested):
        run(folder, model, stop_after(1), batch_size=1)
    assert len(texts(folder)) == 2
    run(folder, model, order="confidence")
    assert texts(folder)["red"] == "mine" and len(texts(folder)) == 4
    report = tagging.look(section(path=str(folder), model=str(model)))
    assert report.lines == ["0 pictures would get a caption.", "4 pictures had a caption, which was kept."]
    outcome = Journal(runs.home() / "undo").undo(folder, lambda path: True)
    assert outcome is not None and outcome.changed == 3 and texts(folder) == {"red": "mine"}
    assert outcome.entry.kind == "tag"


def stop_after(count: int) -> Callable[..., None]:
    def progress(done: int, total: int, words: str = "") -> None:
        if done >= count:
            raise StopRequested

    return progress


def test_a_stop_ends_a_batch_that_takes_long(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tagger is asked to end in the middle: it would take minutes."""
    import time

    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["x_in", "x_in"], ["y"]),
            helper.make_node("Tanh", ["y"], ["x_out"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_in", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_out", TensorProto.FLOAT, None),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["input"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Loop", ["times", "", "planes"], ["out"], body=body),
            helper.make_node("ReduceMean", ["out", "axes"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "weights"], ["product"]),
            helper.make_node("Sigmoid", ["product"], ["output"]),
        ],
        "slow",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 64, 64, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 7])],
        [
            helper.make_tensor("times", TensorProto.INT64, [], [100_000_000]),
            helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
            helper.make_tensor("weights", TensorProto.FLOAT, [3, 7], [1.0] * 21),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), model / "model.onnx")
    began = time.monotonic()

    def progress(done: int, total: int, words: str = "") -> None:
        if time.monotonic() - began > 1:
            raise StopRequested

    with pytest.raises(StopRequested):
        run(folder, model, progress)
    assert time.monotonic() - began < 10 and not texts(folder)


@pytest.mark.parametrize("content", [b"", b"\x08", b"onnx" * 1000, b"PK\x03\x04"])
def test_files_that_are_no_models(folder: Path, model: Path, content: bytes) -> None:
    (model / "model.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"tag\.model.*model\.onnx"):
        run(folder, model)
    assert not texts(folder)


def test_a_list_that_is_not_the_models_is_told(folder: Path, model: Path) -> None:
    (model / "selected_tags.csv").write_text(CSV + "8,more,0,1\n")
    with pytest.raises(UserError, match="knows 7 tags, but 8 are listed"):
        run(folder, model)


def test_a_model_of_another_form_is_told(folder: Path, model: Path) -> None:
    with pytest.raises(UserError, match=r"is no WD14 tagger"):
        run(folder, build(model, last=False))


def test_a_device_that_is_not_there(folder: Path, model: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("it is there")
    with pytest.raises(UserError, match=r"no cuda \(it has .*cpu.*onnxruntime-gpu"):
        run(folder, model, device="cuda")


def test_without_onnxruntime_it_is_said_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"limner\[tag\]"):
        run(folder, Path("SmilingWolf/wd-vit-tagger-v3"))
