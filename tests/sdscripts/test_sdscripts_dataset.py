"""A configuration's pictures as a dataset file of sd-scripts, read back by Limner's own reader of such files."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

import fake_sd_scripts as fake
from limner.config import Data
from limner.data import subsets
from limner.data.scan import scan
from limner.errors import Finding, UserError
from limner.formats.base import base_of
from limner.sdscripts.dataset import write_dataset


def written(folder: Path, **data: Any) -> tuple[list[dict[str, Any]], list[Finding], int, str]:
    config = fake.config(folder, data=data)
    made = write_dataset(config, base_of(config.model), 64)
    return tomllib.loads(made.text)["datasets"], made.remarks, made.num_shown, made.text


VARIED: dict[str, Any] = {
    "colour": True, "flip": True, "random_crop": True, "shuffle_tags": True, "keep_tags": 2, "keep_separator": "|||",
    "secondary_separator": ";;;", "caption_separator": "|", "wildcards": True, "tag_warmup_least": 2, "tag_warmup_steps": 30,
    "caption_prefix": "a", "caption_suffix": "b", "caption_dropout_epochs": 3, "caption_dropout": 0.1, "tag_dropout": 0.2,
}  # fmt: skip


def test_what_is_written_reads_back_as_it_was(tmp_path: Path) -> None:
    fake.pictures(tmp_path / "p" / "10_cat")
    fake.pictures(tmp_path / "p" / "deep" / "er", 2)
    (tmp_path / "p" / "10_cat" / "p0.txt").unlink()
    (tmp_path / "p" / "deep" / "er" / "p1.txt").rename(tmp_path / "p" / "deep" / "er" / "p1.caption")
    (tmp_path / "p" / "deep" / "er" / "p0.txt").rename(tmp_path / "p" / "deep" / "er" / "p0.caption")
    data = Data(path=tmp_path / "p", **VARIED)
    _, remarks, shown, text = written(tmp_path, path=str(tmp_path / "p"), **VARIED)
    assert remarks == [] and shown == 5
    file = tmp_path / "dataset.toml"
    file.write_text(text, encoding="utf-8")
    parts, warnings = subsets.read(file, Data())
    assert [w.message for w in warnings if "batch_size" not in w.message] == []
    for part in parts:
        assert {name: getattr(part.data, name) for name in VARIED} == VARIED
    again = scan(Data(subsets=file)).pictures
    assert sorted((p.path, p.caption, p.repeats) for p in again) == sorted(
        (p.path, p.caption, p.repeats) for p in scan(data).pictures
    )
    assert {p.repeats for p in again} == {1, 10} and "cat" in {p.caption for p in again}


def test_resolutions_and_class_pictures(tmp_path: Path) -> None:
    fake.pictures(tmp_path / "reg", 2)
    (tmp_path / "reg" / "p0.txt").unlink()
    datasets, remarks, shown, _ = written(
        tmp_path, more_resolutions=["768"], class_path=str(tmp_path / "reg"), class_prompt="an animal", upscale=False
    )
    assert remarks == [] and shown == 6
    sizes = [(d["resolution"], d["bucket_reso_steps"], d["min_bucket_reso"], d["max_bucket_reso"]) for d in datasets]
    assert sizes == [(512, 64, 256, 1024), (768, 64, 384, 1536)] and datasets[0]["bucket_no_upscale"] is True
    classes = {"image_dir": str(tmp_path / "reg"), "num_repeats": 1, "is_reg": True, "caption_extension": ".txt"}
    assert all(d["subsets"][1] == classes | {"class_tokens": "an animal"} for d in datasets)
    square, _, _, _ = written(tmp_path, buckets=False)
    assert {k: v for k, v in square[0].items() if k != "subsets"} == {
        "resolution": 512, "enable_bucket": False, "batch_size": 1,
    }  # fmt: skip


def test_captions_in_a_file_of_metadata(tmp_path: Path) -> None:
    fake.pictures(tmp_path / "pictures")
    told = tmp_path / "m.json"
    told.write_text(json.dumps({"p0.png": {"caption": "x"}}), encoding="utf-8")
    datasets, remarks, _, _ = written(tmp_path, metadata=str(told))
    subset = {"image_dir": str(tmp_path / "pictures"), "num_repeats": 1, "metadata_file": str(told)}
    assert datasets[0]["subsets"] == [subset] and remarks == []
    _, remarks, _, _ = written(tmp_path, metadata=str(told), class_path=str(tmp_path / "pictures"))
    assert [f.field for f in remarks] == ["data.class_path"]


def test_masks(tmp_path: Path) -> None:
    """A subset with masks in a folder is of another kind there, which knows no class words."""
    datasets, _, _, _ = written(tmp_path, masks="alpha")
    assert datasets[0]["subsets"][0]["alpha_mask"] is True
    (tmp_path / "pictures" / "p0.txt").unlink()
    datasets, remarks, _, _ = written(tmp_path, masks="folder", mask_path=str(tmp_path / "masks"), trigger="xyz")
    (subset,) = datasets[0]["subsets"]
    assert subset["conditioning_data_dir"] == str(tmp_path / "masks") and "class_tokens" not in subset
    assert [(f.field, f.severity) for f in remarks] == [("data.trigger", "error")]


def test_captions_of_several_endings_in_one_folder_and_no_pictures(tmp_path: Path) -> None:
    fake.config(tmp_path)
    (tmp_path / "pictures" / "p0.txt").rename(tmp_path / "pictures" / "p0.caption")
    _, remarks, _, _ = written(tmp_path)
    assert [f.field for f in remarks] == ["data.caption_extensions"] and str(tmp_path / "pictures") in remarks[0].message
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"data\.path"):
        written(tmp_path, path=str(tmp_path / "none"))
