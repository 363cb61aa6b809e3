"""What is said before the start of the options of [data]: each that has no effect here, or would train something else."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import tiny
from limner.config import files
from limner.errors import Finding
from limner.preflight import examine


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tiny.pictures(tmp_path / "pics")


@pytest.fixture
def look(tiny_model: Path, pictures: Path):
    def findings(deep: bool = False, memory: dict | None = None, adapter: dict | None = None, **data) -> list[Finding]:
        raw = {"model": {"base": str(tiny_model)}, "data": {"path": str(pictures)} | data, "train": {"steps": 5}}
        raw |= {"memory": memory or {}, "adapter": adapter or {"kind": "lora"}}
        return examine(files.build(raw, {}), None, deep=deep)[0]

    return findings


def said(findings: list[Finding], field: str) -> list[tuple[str, str]]:
    return [(f.severity, f.message) for f in findings if f.field == field]


@pytest.mark.parametrize(
    ("options", "field", "severity", "words"),
    [
        ({"keep_separator": "|||"}, "data.keep_separator", "warning", "stands in no caption"),
        ({"secondary_separator": ";;;"}, "data.secondary_separator", "warning", "stands in no caption"),
        ({"wildcards": True}, "data.wildcards", "warning", "no caption has {several|words}"),
        ({"weighted_captions": True}, "data.weighted_captions", "warning", "no caption has a weight"),
        ({"shuffle_tags": True}, "data.shuffle_tags", "warning", "no caption is parted by ','"),
        ({"tag_dropout": 0.1}, "data.tag_dropout", "warning", "no caption is parted by ','"),
        ({"wildcards": True}, "memory.cache_text", "note", "text encoders stay in memory"),
        ({"more_resolutions": ["big"]}, "data.more_resolutions", "error", "'big' is no resolution"),
        ({"more_resolutions": ["16"]}, "data.more_resolutions", "error", "'16' is no resolution"),
        (
            {"more_resolutions": ["64"], "resolution": 128, "bucket_min_px": 96, "bucket_max_px": 160},
            "data.bucket_min_px",
            "error",
            "the resolution 64 lies outside 96..160",
        ),
        ({"masks": "folder"}, "data.mask_path", "error", "no folder of masks is given"),
        ({"masks": "folder", "mask_path": "gone"}, "data.mask_path", "error", "gone is no folder"),
        ({"masks": "alpha"}, "data.masks", "error", "no picture is transparent"),
        ({"caption_separator": "", "shuffle_tags": True}, "data.caption_separator", "error", "is empty"),
        ({"metadata": "gone.json"}, "data.metadata", "error", "cannot be read"),
        ({"subsets": "gone.toml"}, "gone.toml", "error", "is not a file"),
    ],
)
def test_what_would_not_do_what_is_meant(look, options: dict, field: str, severity: str, words: str) -> None:
    assert [s for s, message in said(look(**options), field) if words in message] == [severity]


@pytest.mark.parametrize("text", ["a {red|blue} (cat:1.2), x|||y;;;z, w"])
def test_signs_that_captions_have_are_no_matter(look, pictures: Path, text: str) -> None:
    for file in pictures.glob("*.txt"):
        file.write_text(text)
    options = {"keep_separator": "|||", "secondary_separator": ";;;", "wildcards": True, "weighted_captions": True}
    found = look(shuffle_tags=True, tag_dropout=0.1, caption_dropout=0.1, **options)
    assert [f.field for f in found] == ["memory.cache_text"] and found[0].severity == "note"


def test_dropped_captions_stay_cached(look) -> None:
    assert look(caption_dropout=0.1, caption_prefix="photo,", caption_dropout_epochs=3) == []


def test_nothing_is_cut(look, pictures: Path) -> None:
    assert look(random_crop=True) == []
    for file in pictures.glob("*.png"):
        Image.new("RGB", (32, 32)).save(file)
    assert [s for s, m in said(look(random_crop=True), "data.random_crop") if "nothing is cut" in m] == ["warning"]


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    (folder := tmp_path / "masks").mkdir()
    return folder


def test_masks_of_some_none_and_odd_ones(look, masks: Path) -> None:
    options = {"masks": "folder", "mask_path": str(masks)}
    assert [s for s, m in said(look(**options), "data.mask_path") if "no picture has a mask" in m] == ["error"]
    Image.new("L", (40, 40), 255).save(masks / "p0.png")
    assert said(look(**options), "data.masks") == [("note", "3 of 4 pictures have no mask; they are learnt from everywhere.")]
    Image.new("L", (60, 40), 0).save(masks / "p1.jpg")
    Image.new("L", (60, 40), 9).save(masks / "p2.bmp")
    (masks / "p3.png").write_bytes(b"no picture")
    found = look(**options)
    assert said(found, "data.masks") == []
    assert [s for s, m in said(found, str(masks / "p1.jpg")) if "black everywhere" in m] == ["warning"]
    assert [s for s, m in said(found, str(masks / "p2.bmp")) if "60 x 40, of another shape" in m] == ["warning"]
    assert [s for s, m in said(found, str(masks / "p3.png")) if "does not open" in m] == ["error"]
    assert len(found) == 3


def test_transparency(look, pictures: Path) -> None:
    Image.new("RGBA", (40, 40), (1, 2, 3, 0)).save(pictures / "p0.png")
    found = look(masks="alpha")
    assert said(found, "data.masks") == [("note", "3 of 4 pictures have no transparency; they are learnt from everywhere.")]
    assert [s for s, m in said(found, str(pictures / "p0.png")) if "transparent everywhere" in m] == ["warning"]


def test_dataset_files_give_their_pictures(look, tmp_path: Path) -> None:
    (file := tmp_path / "set.toml").write_text(
        '[[datasets]]\nresolution = 64\nbatch_size = 4\n[[datasets.subsets]]\nimage_dir = "pics"\nnum_repeats = 2\n'
    )
    found = look(subsets=str(file))
    assert [s for s, m in said(found, "data.subsets") if "batch_size is not taken over" in m] == ["warning"]
    assert [s for s, m in said(found, "data.path") if "is not read" in m] == ["warning"]


def test_masks_behind_links_that_may_not_be_followed(tiny_model: Path, pictures: Path, masks: Path, tmp_path: Path) -> None:
    Image.new("L", (40, 40), 255).save(tmp_path / "secret.png")
    (masks / "p0.png").symlink_to(tmp_path / "secret.png")
    Image.new("L", (60, 40), 255).save(masks / "p1.png")
    data = {"path": str(pictures), "masks": "folder", "mask_path": str(masks)}
    config = files.build({"model": {"base": str(tiny_model)}, "data": data}, {})
    found, _ = examine(config, None, may_follow=lambda path: "p0" not in path)
    assert [s for s, m in said(found, str(masks / "p0.png")) if "outside the allowed folders" in m] == ["error"]
