"""sd-scripts' dataset files: what is taken over, from which level, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from limner.config import Data, files
from limner.data import subsets
from limner.data.dataset import assemble
from limner.data.scan import scan
from limner.errors import UserError
from limner.formats.base import Base

BASE = Base("x", None, "folder", "sd1", "epsilon", 512, 64, 8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("cats/a.png", "cats/b.png", "cats/5_deep/c.png", "dogs/d.png"):
        (path := tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (128, 128)).save(path)
    (tmp_path / "cats" / "a.caption").write_text("a cat, sitting")
    return tmp_path


def write(root: Path, text: str, name: str = "set.toml") -> Path:
    (file := root / name).write_text(text)
    return file


WHOLE = """
[general]
shuffle_caption = true
keep_tokens = 1
num_repeats = 3

[[datasets]]
resolution = 256
keep_tokens = 2
enable_bucket = true
bucket_no_upscale = true
min_bucket_reso = 128
max_bucket_reso = 768
bucket_reso_steps = 32

  [[datasets.subsets]]
  image_dir = "cats"
  class_tokens = "sks cat"
  keep_tokens = 4
  flip_aug = true
  color_aug = true
  random_crop = true
  caption_extension = ".caption"
  caption_separator = ";"
  keep_tokens_separator = "|||"
  secondary_separator = ";;;"
  enable_wildcard = true
  token_warmup_min = 2
  token_warmup_step = 100
  caption_prefix = "p"
  caption_suffix = "s"
  caption_dropout_every_n_epochs = 2
  caption_dropout_rate = 0.1
  caption_tag_dropout_rate = 0.2
  alpha_mask = true

  [[datasets.subsets]]
  image_dir = "dogs"
  class_tokens = "dog"
  is_reg = true
  num_repeats = 1

[[datasets]]
resolution = [512, 512]

  [[datasets.subsets]]
  image_dir = "dogs"
"""


def test_every_level_is_looked_up(root: Path) -> None:
    data = Data(subsets=write(root, WHOLE), keep_tags=9, mask_floor=0.25)
    (cats, dogs, again), warnings = subsets.read(data.subsets, data)
    assert not warnings
    own = cats.data
    assert own.path == root / "cats" and own.trigger == "sks cat" and own.repeats == 3 and not cats.is_class
    assert (own.shuffle_tags, own.keep_tags, own.flip, own.colour, own.random_crop) == (True, 4, True, True, True)
    assert (own.caption_extensions, own.caption_separator) == ((".caption",), ";")
    assert (own.keep_separator, own.secondary_separator, own.wildcards) == ("|||", ";;;", True)
    assert (own.tag_warmup_least, own.tag_warmup_steps) == (2, 100)
    assert (own.caption_prefix, own.caption_suffix) == ("p", "s")
    assert (own.caption_dropout_epochs, own.caption_dropout, own.tag_dropout) == (2, 0.1, 0.2)
    assert own.masks == "alpha" and own.mask_floor == 0.25
    assert (own.resolution, own.buckets, own.upscale) == (256, True, False)
    assert (own.bucket_min_px, own.bucket_max_px, own.bucket_step_px) == (128, 768, 32)
    assert dogs.is_class and dogs.data.repeats == 1 and dogs.data.keep_tags == 2 and not dogs.data.flip
    assert again.data.resolution == 512 and again.data.keep_tags == 1 and again.data.repeats == 3 and again.data.upscale


def test_the_pictures_of_a_folder_alone_with_their_subset(root: Path) -> None:
    text = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "cats"\nclass_tokens = "t"\nnum_repeats = 4\n'
    found = scan(Data(subsets=write(root, text)))
    assert [(Path(p.path).name, p.caption, p.repeats) for p in found.pictures] == [
        ("a.png", "a cat, sitting", 4),
        ("b.png", "t", 4),
    ]
    [subset] = {p.subset for p in found.pictures}
    assert subset is not None and subset.data.path == root / "cats"


def test_json_says_the_same(root: Path) -> None:
    raw = {"datasets": [{"resolution": 64, "subsets": [{"image_dir": str(root / "dogs"), "num_repeats": 2}]}]}
    [subset], _ = subsets.read(write(root, json.dumps(raw), "set.json"), Data())
    assert subset.data.repeats == 2 and subset.data.resolution == 64


def test_each_dataset_at_its_own_resolution(root: Path) -> None:
    text = "".join(
        f'[[datasets]]\nresolution = {r}\n[[datasets.subsets]]\nimage_dir = "{name}"\n'
        for r, name in ((128, "cats"), (256, "dogs"), (512, "dogs"))
    )
    config = files.build({"data": {"subsets": str(write(root, text))}}, {})
    data = assemble(config, BASE, scan(config.data).pictures)
    assert data.bucket_counts() == {(128, 128): 2, (256, 256): 1, (512, 512): 1}
    assert data.num_pictures == 4


IDLE = ("batch_size", "face_crop_aug_range", "custom_attributes", "cache_info", "resize_interpolation")
IDLE += ("network_multiplier", "validation_seed", "validation_split")


@pytest.mark.parametrize("key", IDLE)
def test_what_is_not_taken_over_is_named(root: Path, key: str) -> None:
    text = f'[general]\n{key} = 1\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = "cats"\n'
    _, [finding] = subsets.read(write(root, text), Data())
    assert finding.severity == "warning" and f": {key} is not taken over" in finding.message


def test_every_key_of_sd_scripts_is_known() -> None:
    table = """color_aug face_crop_aug_range flip_aug num_repeats random_crop shuffle_caption keep_tokens keep_tokens_separator
    secondary_separator caption_separator enable_wildcard token_warmup_min token_warmup_step caption_prefix caption_suffix
    custom_attributes resize_interpolation caption_dropout_every_n_epochs caption_dropout_rate caption_tag_dropout_rate
    image_dir caption_extension class_tokens is_reg alpha_mask cache_info metadata_file conditioning_data_dir batch_size
    resolution enable_bucket min_bucket_reso max_bucket_reso bucket_reso_steps bucket_no_upscale network_multiplier
    validation_seed validation_split"""
    assert set(table.split()) == subsets._KNOWN


FAULTS = {
    "num_repeat = 2": "'num_repeat' is no key",
    'num_repeats = "2"': "num_repeats = '2'",
    "num_repeats = 0": "num_repeats = 0",
    "token_warmup_step = 0.5": "token_warmup_step = 0.5",
    "caption_dropout_rate = 1.5": "caption_dropout_rate = 1.5",
    "flip_aug = 1": "flip_aug = 1",
    "is_reg = 1": "is_reg",
    "alpha_mask = 1": "alpha_mask",
    "bucket_no_upscale = 1": "upscale = 1",
    "resolution = [512, 256, 3]": "resolution",
    "resolution = [512, 256]\nenable_bucket = false": "cut square",
    'conditioning_data_dir = "x"': "ControlNets are not trained",
}


@pytest.mark.parametrize("line", FAULTS)
def test_faults_are_told_with_their_place(root: Path, line: str) -> None:
    file = write(root, f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "cats"\n{line}\n')
    with pytest.raises(UserError) as raised:
        scan(Data(subsets=file))
    assert len(raised.value.findings) == 1
    said = str(raised.value)
    assert "data.subsets" in said and "dataset 1, subset 1" in said and FAULTS[line] in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[datasets", "not valid TOML"),
        ("", "names no subset"),
        ("datasets = 3", "no list of tables"),
        ("general = 3", "is no table"),
        ("[other]\nx = 1\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'cats'", "'other' is no table"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 1", "has no image_dir"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'birds'", "does not exist"),
    ],
)
def test_what_is_no_dataset_file(root: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        scan(Data(subsets=write(root, text)))


def test_a_folder_beside_it_is_not_read_and_it_says_so(root: Path) -> None:
    file = write(root, '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "dogs"\n')
    found = scan(Data(path=root / "cats", subsets=file))
    assert [Path(p.path).name for p in found.pictures] == ["d.png"]
    assert next(f.field for f in found.warnings if f.severity == "warning") == "data.path"


def test_masks_of_a_folder(root: Path) -> None:
    file = write(root, '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "cats"\nconditioning_data_dir = "dogs"\n')
    [subset], _ = subsets.read(file, Data(masks="folder"))
    assert subset.data.mask_path == root / "dogs" and subset.data.masks == "folder"


def test_folders_that_may_not_be_read_are_refused(root: Path) -> None:
    file = write(root, '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "cats"\n')
    assert len(scan(Data(subsets=file), lambda path: path.startswith(str(root))).pictures) == 2
    with pytest.raises(UserError, match="outside the allowed folders"):
        scan(Data(subsets=file), lambda path: path.startswith(str(root / "dogs")))
