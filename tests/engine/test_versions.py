"""What is shown of a picture each time: cut and coloured otherwise, masked, at several resolutions, under which caption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from limner.config import files
from limner.data import images, tags
from limner.data.buckets import Fit
from limner.data.cache import Cache
from limner.data.dataset import assemble
from limner.data.looks import Look, colour_matrix
from limner.data.scan import scan
from limner.engine.fetching import find_base, keep_of
from limner.engine.runtime import Runtime
from limner.engine.samples import Samples
from limner.models import family as families

CPU = torch.device("cpu")
SIZES = ((60, 40), (40, 56), (48, 40))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tiny.pictures(tmp_path / "pictures", SIZES)
    for file in sorted(root.glob("*.png")):
        file.with_suffix(".txt").write_text("red, green, blue, white")
    return root


@pytest.fixture
def make(tiny_model, folder, tmp_path):
    def samples(memory: dict | None = None, train: dict | None = None, **data) -> Samples:
        data = {"path": str(folder), "resolution": 32, "buckets": False, "bucket_step_px": 8} | data
        raw = {"model": {"base": str(tiny_model)}, "data": data, "memory": memory or {}, "train": train or {}}
        config = files.build(raw, {})
        base = find_base(config)
        family = families.make(base, keep_of(config))
        for part in ("vae", "text"):
            family.load(part, torch.float32, CPU)
        dataset = assemble(config, base, scan(config.data).pictures)
        return Samples(config, dataset, family, Runtime(CPU, "fp32"), Cache(tmp_path / "cache"))

    return samples


def fill(samples: Samples) -> int:
    return samples.fill_latents(lambda *_: None)


def mean_of(samples: Samples, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return samples.family.encode_pixels(pixels[None])[0][0]


# --- cuts -------------------------------------------------------------------------------------------------------------


def cut_by_hand(samples: Samples, index: int, left: int, top: int, mirrored: bool = False) -> torch.Tensor:
    picture, fit = samples.dataset.pictures[index], samples.dataset.fits[index]
    whole = Image.open(picture.path).convert("RGB").resize(fit.resized, Image.Resampling.LANCZOS)
    array = np.asarray(whole, dtype=np.float64)[top : top + fit.bucket[1], left : left + fit.bucket[0]]
    array = array[:, ::-1] if mirrored else array
    return torch.from_numpy((array / 127.5 - 1).astype(np.float32)).permute(2, 0, 1)


@pytest.mark.parametrize("cached", [True, False])
def test_what_is_shown_is_cut_where_the_geometry_says(make, cached: bool) -> None:
    samples = make(memory={"cache_latents": cached}, random_crop=True, flip=True, variants=3)
    fill(samples)
    seen = set()
    for step in range(24):
        batch = samples.batch([0], step, 0)
        height, width, top, left, bucket_height, bucket_width = (int(v) for v in batch.told["geometry"][0])
        assert (height, width, bucket_height, bucket_width) == (40, 60, 32, 32)
        room = samples.dataset.fits[0].resized[0] - 32
        assert room == 16 and 0 <= left <= room and top == 0
        means = [
            mean_of(samples, cut_by_hand(samples, 0, room - left if mirrored else left, top, mirrored))
            for mirrored in (False, True)
        ]
        shown = [torch.allclose(batch.mean[0], m, atol=1e-5) for m in means]
        assert sum(shown) == 1
        seen.add((left, shown[1]))
    assert {mirrored for _, mirrored in seen} == {False, True}
    assert len({left if not m else 16 - left for left, m in seen}) == 3 if cached else len(seen) > 8


def test_so_many_versions_are_encoded_and_kept(make) -> None:
    samples = make(random_crop=True, colour=True, variants=3, flip=True)
    assert samples.missing()[0] == 3 * 3 * 2 and fill(samples) == 18
    again = make(random_crop=True, colour=True, variants=3, flip=True)
    assert again.missing()[0] == 0
    assert make(random_crop=True, colour=True, variants=4, flip=True).missing()[0] == 6, "the first three stay of use"
    assert make(random_crop=True, colour=True, variants=3, flip=True, more_resolutions=["48"]).missing()[0] == 18


def test_what_is_not_cut_is_encoded_once(make, folder) -> None:
    for file in folder.glob("*.png"):
        Image.new("RGB", (40, 40), (9, 90, 200)).save(file)
    assert make(random_crop=True, variants=5).missing()[0] == 1


@pytest.mark.parametrize("cached", [True, False])
def test_a_draw_depends_on_seed_step_and_position_alone(make, cached: bool) -> None:
    options = {"random_crop": True, "colour": True, "variants": 6, "flip": True}
    samples = make(memory={"cache_latents": cached}, **options)
    fill(samples)
    shown = [samples.batch([0, 1], step, 2) for step in range(5)]
    again = make(memory={"cache_latents": cached}, **options)
    for step in (4, 2):
        for place, index in enumerate((0, 1)):
            alone = again.batch([index], step, 2 + place)
            assert torch.equal(alone.mean[0], shown[step].mean[place])
            assert torch.equal(alone.told["geometry"][0], shown[step].told["geometry"][place])
    other = make(memory={"cache_latents": cached}, train={"seed": 8}, **options)
    fill(other)
    assert any(not torch.equal(other.batch([0, 1], s, 2).mean, shown[s].mean) for s in range(5))


def test_versions_stay_of_use_when_pictures_are_added(make, folder) -> None:
    options = {"random_crop": True, "colour": True}
    fill(make(**options))
    Image.new("RGB", (60, 40)).save(folder / "0000.png")  # the first, so that every other's place is another
    assert make(**options).missing()[0] == 4


# --- colours ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [(0.0, 1.0, 1.0), (16.0, 1.0, 1.0), (-9.0, 0.9, 1.05), (0.0, 1.1, 0.95)])
def test_colours_are_turned_in_yiq(colour: tuple[float, float, float], tmp_path: Path) -> None:
    hue, saturation, brightness = colour
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
    turn = np.deg2rad(hue)
    rotation = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    expected = np.linalg.inv(to_yiq) @ np.diag([1, saturation, saturation]) @ rotation @ to_yiq * brightness
    assert np.allclose(colour_matrix(*colour), expected, atol=1e-12)
    array = np.random.default_rng(0).integers(60, 180, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    shown = images.load(tmp_path / "a.png", Fit((16, 16), (16, 16)), Look(colour=colour))
    reference = np.clip(array.astype(np.float64) / 255 @ expected.T, 0, 1) * 2 - 1
    assert np.allclose(shown.permute(1, 2, 0).numpy(), reference, atol=1e-5)


def test_colours_change_a_little_and_greys_keep_theirs(make) -> None:
    samples = make(colour=True, variants=50)
    for version in range(50):
        _, look = samples._look(6 * version)
        hue, saturation, brightness = look.colour
        assert abs(hue) <= 16 and abs(saturation - 1) <= 0.1 and abs(brightness - 1) <= 0.05
        assert np.allclose(np.array(colour_matrix(hue, saturation, 1.0)) @ np.ones(3), 1, atol=1e-5)
    assert len({samples._look(6 * v)[1].colour for v in range(50)}) == 50


# --- masks ------------------------------------------------------------------------------------------------------------


def left_half(size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


@pytest.fixture(params=["alpha", "folder"])
def masked(request, folder, tmp_path) -> dict:
    """Options under which the first picture's left half counts."""
    first = sorted(folder.glob("*.png"))[0]
    (tmp_path / "masks").mkdir()
    if request.param == "alpha":
        picture = Image.open(first).convert("RGB")
        picture.putalpha(left_half(picture.size))
        picture.save(first)
    else:
        left_half(SIZES[0]).convert("RGB").save(tmp_path / "masks" / f"{first.stem}.bmp")
    return {"masks": request.param, "mask_path": str(tmp_path / "masks")}


def averaged(samples: Samples, left: int, mirrored: bool) -> np.ndarray:
    """The first picture's mask at the latents' size, in float64: resized, cut, mirrored, and each cell averaged."""
    fit = samples.dataset.fits[0]
    grey = np.asarray(left_half(SIZES[0]).resize(fit.resized, Image.Resampling.BILINEAR), dtype=np.float64) / 255
    grey = grey[:32, left : left + 32]
    grey = grey[:, ::-1] if mirrored else grey
    size = samples.batch([0], 0, 0).mean.shape[-1]
    cell = 32 // size
    return grey.reshape(size, cell, size, cell).mean((1, 3))


@pytest.mark.parametrize("cached", [True, False])
def test_masks_come_along_to_the_latents(make, masked, cached: bool) -> None:
    samples = make(memory={"cache_latents": cached}, random_crop=True, flip=True, variants=8, mask_floor=0.25, **masked)
    fill(samples)
    for step in range(12):
        batch = samples.batch([0, 1], step, 0)
        assert batch.mask is not None and batch.mask.dtype == torch.float32
        assert batch.mask.shape == (2, 1, *batch.mean.shape[-2:])
        assert (batch.mask[1] == 1).all(), "a picture without a mask is learnt from everywhere"
        left = int(batch.told["geometry"][0, 3])
        mirrored = bool(samples._look(samples._variant(0, step, 0))[1].mirrored)
        expected = 0.25 + 0.75 * averaged(samples, 16 - left if mirrored else left, mirrored)
        assert np.allclose(batch.mask[0, 0].numpy(), expected, atol=1e-5)


def test_another_mask_is_another_entry(make, masked, folder, tmp_path) -> None:
    samples = make(**masked)
    assert fill(samples) == 3
    assert make().missing()[0] == (3 if masked["masks"] == "alpha" else 1)  # a PNG may be transparent
    if masked["masks"] == "folder":
        [mask] = (tmp_path / "masks").iterdir()
        left_half(SIZES[0]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mask)
        assert make(**masked).missing()[0] == 1


def test_without_masks_there_is_none(make) -> None:
    samples = make()
    fill(samples)
    assert samples.batch([0, 1], 0, 0).mask is None


# --- captions ---------------------------------------------------------------------------------------------------------


def same(a: dict, b: dict) -> bool:
    return all(torch.allclose(a[k], b[k], atol=1e-5) for k in b)


def encoded(samples: Samples, captions: list[str]) -> dict:
    with torch.no_grad():
        rows = [samples.family.encode_captions([c]) for c in captions]
    return {k: torch.cat([r[k] for r in rows]) for k in rows[0]}


def test_captions_that_vary_are_encoded_as_they_are_shown(make) -> None:
    samples = make(shuffle_tags=True, tag_dropout=0.2, keep_tags=1, caption_prefix="photo,")
    assert not samples.caches_text and samples.missing()[1] == 0
    fill(samples)
    seen = set()
    for step in range(6):
        batch = samples.batch([0, 1], step, 4)
        for place, caption in enumerate(batch.captions):
            draw = tags.draw_for(0, step, 4 + place)
            data = samples.config.data
            assert caption == tags.shown("red, green, blue, white", data, draw, epoch=0, step=step)
            assert caption.startswith("photo, ")
        assert batch.cond is not None and same(batch.cond, encoded(samples, batch.captions))
        seen |= set(batch.captions)
    assert len(seen) > 4


def test_dropped_captions_stay_cached(make) -> None:
    samples = make(caption_dropout=0.5, caption_suffix="end")
    assert samples.caches_text and samples.missing()[1] == 2
    assert samples.fill_texts(lambda *_: None) == 2
    fill(samples)
    samples.family.free("text")
    shown = [samples.batch([0], step, 0) for step in range(40)]
    assert {b.captions[0] for b in shown} == {"", "red, green, blue, white end"}
    assert 8 < sum(b.captions[0] == "" for b in shown) < 32
    samples.family.load("text", torch.float32, CPU)
    for batch in shown[:6]:
        assert same(batch.cond, encoded(samples, batch.captions))


def test_every_second_epoch_goes_without(make) -> None:
    samples = make(train={"batch_size": 2, "accumulation": 3}, caption_dropout_epochs=2)
    samples.fill_texts(lambda *_: None)
    fill(samples)
    order = samples.dataset.order
    per_epoch, number, words = order.num_micro_batches, 0, {True: 0, False: 0}
    for step in range(6):
        position = 0
        for indices in order.step(step):
            captions = samples.batch(indices, step, position).captions
            is_without = (number // per_epoch) % 2 == 1
            assert all((c == "") == is_without for c in captions), (step, number)
            words[is_without] += 1
            position += len(indices)
            number += 1
    assert min(words.values()) > 4


def test_weights_in_captions_are_those_of_prompts(make, folder) -> None:
    for file in folder.glob("*.txt"):
        file.write_text("a (red:1.5) thing")
    weighted, plain = make(weighted_captions=True), make()
    for samples in (weighted, plain):
        samples.fill_texts(lambda *_: None)
        fill(samples)
    with torch.no_grad():
        as_prompt = weighted.family.encode_prompt("a (red:1.5) thing", "")[0]["text"]
    assert torch.allclose(weighted.batch([0], 0, 0).cond["text"], as_prompt, atol=1e-5)
    assert not torch.allclose(plain.batch([0], 0, 0).cond["text"], as_prompt, atol=1e-3)


# --- resolutions ------------------------------------------------------------------------------------------------------


def test_each_picture_at_every_resolution(make) -> None:
    samples = make(more_resolutions=["48", "32"])
    assert samples.dataset.bucket_counts() == {(32, 32): 3, (48, 48): 3} and samples.dataset.num_pictures == 3
    assert fill(samples) == 6
    epoch = samples.dataset.order.epoch(0)
    assert sorted(i for batch in epoch for i in batch) == list(range(6))
    for index, side in ((0, 32), (3, 48)):
        batch = samples.batch([index], 0, 0)
        assert batch.told["geometry"][0, 4:].tolist() == [side, side]
        assert torch.allclose(
            batch.mean[0], mean_of(samples, images.load(samples.dataset.pictures[index].path, samples.dataset.fits[index]))
        )
