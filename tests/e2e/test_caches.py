"""Caches change no number, and hold nothing stale."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image
from trainer import config, losses, new_run, train

import tiny


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
def test_an_index_that_is_no_database_is_begun_anew(tiny_model, pictures, first, home):
    for file in (home / "cache").glob("index.sqlite*"):
        file.write_bytes(b"not a database, by any means" * 300)
    again = run_once(tiny_model, pictures)
    assert cached(again) == [(4, 4)] and losses(again) == losses(first)


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
