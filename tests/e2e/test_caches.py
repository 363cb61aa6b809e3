"""Caches change no number, and hold nothing stale."""

from __future__ import annotations

import os
import shutil

import pytest
from PIL import Image

import tiny
from trainer import Moment, config, losses, new_run, result, train


def run_once(tiny_model, pictures, **sections):
    run = new_run(config(tiny_model, pictures, **{"train": {"steps": 6}, **sections}))
    assert train(run) == 0, run.tail()
    return run


def cached(run) -> list[tuple[int, int]]:
    return [(e["latents"], e["captions"]) for e, _ in run.events() if e["event"] == "cached"]


@pytest.fixture
def first(tiny_model, pictures):
    return run_once(tiny_model, pictures)


@pytest.mark.slow
def test_with_and_without_caches_to_the_bit(tiny_model, pictures, first):
    without = run_once(tiny_model, pictures, memory={"cache_latents": False, "cache_text": False})
    assert cached(first) == [(4, 4)] and cached(without) == []
    assert losses(without) == losses(first) and len(losses(first)) == 6


def test_a_warm_cache_encodes_nothing(tiny_model, pictures, first):
    again = run_once(tiny_model, pictures)
    assert cached(again) == []
    assert losses(again) == losses(first)


@pytest.mark.slow
def test_what_was_edited_is_encoded_anew(tiny_model, pictures, first):
    (pictures / "p1.txt").write_text("something else", encoding="utf-8")
    caption = run_once(tiny_model, pictures)
    assert cached(caption) == [(0, 1)]
    assert losses(caption) != losses(first)
    Image.new("RGB", (40, 40), (200, 30, 30)).save(pictures / "p0.png")
    picture = run_once(tiny_model, pictures)
    assert cached(picture) == [(1, 0)]
    assert losses(picture) != losses(caption)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "cut off", "gone"])
def test_a_damaged_shard_is_made_again(tiny_model, pictures, first, home, damage):
    for shard in (home / "cache").glob("*.safetensors"):
        content = bytearray(shard.read_bytes())
        content[-3] ^= 255
        if damage == "gone":
            shard.unlink()
        else:
            shard.write_bytes(content if damage == "flipped" else content[:-40])
    again = run_once(tiny_model, pictures)
    assert losses(again) == losses(first)


@pytest.mark.slow
def test_damage_is_noticed_before_the_start(tiny_model, pictures, first, home):
    for shard in (home / "cache").glob("*.safetensors"):
        content = bytearray(shard.read_bytes())
        content[-3] ^= 255
        shard.write_bytes(content)
    again = run_once(tiny_model, pictures, memory={"verify": True})
    assert cached(again) == [(1, 1)]  # one of each shard
    assert losses(again) == losses(first)
    assert cached(run_once(tiny_model, pictures, memory={"verify": True})) == []


@pytest.mark.slow
def test_a_change_that_leaves_no_trace(tiny_model, pictures):
    (path := pictures / "p0.png").unlink()
    Image.new("RGB", (40, 40), (200, 30, 30)).save(path := path.with_suffix(".bmp"))
    first, stat = run_once(tiny_model, pictures), path.stat()
    with path.open("r+b") as file:
        Image.new("RGB", (40, 40), (30, 30, 200)).save(file, format="BMP")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_ino) == (stat.st_size, stat.st_ino)
    unseen = run_once(tiny_model, pictures)
    assert cached(unseen) == [] and losses(unseen) == losses(first)
    seen = run_once(tiny_model, pictures, memory={"verify": True})
    assert cached(seen) == [(1, 0)] and losses(seen) != losses(first)


@pytest.mark.slow
def test_mirrored_pictures_with_and_without_caches_to_the_bit(tiny_model, pictures, first):
    plain = result(run_once(tiny_model, pictures))
    flipped = run_once(tiny_model, pictures, data={"flip": True})
    assert cached(flipped) == [(4, 0)]  # the pictures as they are were there
    without = run_once(tiny_model, pictures, data={"flip": True}, memory={"cache_latents": False, "cache_text": False})
    assert result(without) == result(flipped)
    assert result(flipped)["weights"] != plain["weights"]


@pytest.mark.slow
def test_mirrored_pictures_when_resumed(tiny_model, pictures):
    chosen = config(tiny_model, pictures, data={"flip": True}, train={"steps": 6, "accumulation": 2})
    whole, resumed = new_run(chosen), new_run(chosen)
    assert train(whole) == 0 and train(resumed, Moment("kill", "step", 5)) != 0 and train(resumed) == 0
    assert result(resumed) == result(whole)


@pytest.mark.slow
def test_an_index_that_is_no_database_is_begun_anew(tiny_model, pictures, first, home):
    for file in (home / "cache").glob("index.sqlite*"):
        file.write_bytes(b"not a database, by any means" * 300)
    again = run_once(tiny_model, pictures)
    assert cached(again) == [(4, 4)] and losses(again) == losses(first)


@pytest.mark.long
@pytest.mark.slow
def test_another_folder_and_another_model(tiny_model, pictures, tmp_path):
    run_once(tiny_model, pictures)
    elsewhere = run_once(tiny_model, pictures, memory={"cache_path": str(tmp_path / "elsewhere")})
    assert cached(elsewhere) == [(4, 4)] and (tmp_path / "elsewhere" / "index.sqlite").exists()
    model = tiny.build(tmp_path / "model", seed=1)
    assert cached(run_once(model, pictures)) == [(4, 4)]
    moved = tmp_path / "moved"
    shutil.copytree(tiny_model, moved)
    assert cached(run_once(moved, pictures)) == []  # it is the content that counts, not the place
