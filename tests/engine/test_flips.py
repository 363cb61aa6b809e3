"""Mirrored pictures: encoded for themselves, shown half of the time, with the geometry of what is shown."""

from __future__ import annotations

import pytest
import torch

import tiny
from limner.config import files
from limner.data import images
from limner.data.buckets import Buckets
from limner.data.cache import Cache
from limner.data.dataset import Dataset
from limner.data.plan import Order
from limner.data.scan import scan
from limner.engine.fetching import find_base, keep_of
from limner.engine.runtime import Runtime
from limner.engine.samples import Samples
from limner.models import family as families

CPU = torch.device("cpu")
RULE = Buckets(resolution=32, step=8, minimum=16, maximum=64)


@pytest.fixture
def make(tiny_model, tmp_path):
    folder = tiny.pictures(tmp_path / "pictures", ((46, 40), (40, 40), (40, 40)))

    def samples(**sections) -> Samples:
        config = files.build({"model": {"base": str(tiny_model)}, "data": {"path": str(folder), **sections}}, {})
        family = families.make(find_base(config), keep_of(config))
        for part in ("vae", "text"):
            family.load(part, torch.float32, CPU)
        pictures = scan(config.data).pictures
        dataset = Dataset(pictures, [RULE.fit(p.width, p.height) for p in pictures], RULE, Order((), (), 1, 1, 0), 1)
        return Samples(config, dataset, family, Runtime(CPU, "fp32"), Cache(tmp_path / "cache"))

    return samples


def fill(samples: Samples) -> tuple[int, list[tuple[int, int]]]:
    said: list[tuple[int, int]] = []
    return samples.fill_latents(lambda *progress: said.append(progress)), said


def test_the_mirrored_picture_is_encoded_for_itself(make) -> None:
    plain, flipping = make(), make(flip=True)
    assert plain.missing()[0] == 3 and flipping.missing()[0] == 6
    assert fill(plain) == (3, [(3, 3)])
    assert plain.missing()[0] == 0 and flipping.missing()[0] == 3, "the pictures as they are have the same keys"
    assert fill(flipping) == (3, [(3, 3)])
    for i, (picture, fit) in enumerate(zip(flipping.dataset.pictures, flipping.dataset.fits, strict=True)):
        whole = images.load(picture.path, fit)
        for variant, pixels in ((i, whole), (i + 3, whole.flip(-1))):
            with torch.no_grad():
                mean, deviation = flipping.family.encode_pixels(pixels[None])
            entry = flipping.cache.get(flipping._latent_keys[variant])
            assert entry is not None
            assert torch.equal(entry["mean"], mean[0]) and torch.equal(entry["deviation"], deviation[0])
        as_it_is, mirrored = flipping._latents(i), flipping._latents(i + 3)
        assert not torch.allclose(mirrored["mean"], as_it_is["mean"].flip(-1), atol=1e-3)


def test_half_are_mirrored_and_no_draw_depends_on_its_batch(make) -> None:
    samples = make(flip=True)
    fill(samples)
    mirrored = 0
    for step in range(500):
        batch = samples.batch([0, 1], step, 2)
        for place, picture in enumerate([0, 1]):
            alone = samples.batch([picture], step, 2 + place)
            assert torch.equal(alone.mean[0], batch.mean[place])
            shown = [torch.equal(batch.mean[place], samples._latents(v)["mean"]) for v in (picture, picture + 3)]
            assert sum(shown) == 1
            mirrored += shown[1]
    assert 430 < mirrored < 570  # 4.4 standard deviations of 1000 fair draws


def test_the_seed_decides(make) -> None:
    samples = make(flip=True)
    drawn = [samples._variant(1, step, 0) for step in range(64)]
    assert set(drawn) == {1, 4} and drawn == [samples._variant(1, step, 0) for step in range(64)]
    assert drawn != [samples._variant(1, step, 1) for step in range(64)]
    other = samples.config.train.model_copy(update={"seed": 1})
    samples.config = samples.config.model_copy(update={"train": other})
    assert drawn != [samples._variant(1, step, 0) for step in range(64)]


def test_without_the_option_none_is(make) -> None:
    samples = make()
    assert [samples._variant(2, step, 0) for step in range(64)] == [2] * 64


def test_the_geometry_is_that_of_the_mirrored_picture(make) -> None:
    samples = make(flip=True)
    fit = samples.dataset.fits[0]
    assert (fit.resized, fit.bucket, fit.crop) == ((37, 32), (32, 32), (2, 0))  # 2 px are cut off left, 3 right
    told = samples._told([0, 3])["geometry"].tolist()
    assert told == [[40, 46, 0, 2, 32, 32], [40, 46, 0, 3, 32, 32]]


def test_a_damaged_variant_is_made_again(make) -> None:
    samples = make(flip=True)
    fill(samples)
    good = samples._latents(3)["mean"].clone()  # what was read may be a view of the file
    for shard in samples.cache.folder.glob("*.safetensors"):
        content = shard.read_bytes()
        begin = 8 + int.from_bytes(content[:8], "little")
        shard.write_bytes(content[:begin] + bytes(len(content) - begin))
    again = make(flip=True)
    assert torch.equal(again._latents(3)["mean"], good)
    assert again.cache.get(again._latent_keys[3]) is not None
