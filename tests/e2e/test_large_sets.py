"""A set of thousands of pictures: what was done before a kill is not done again, and two trainers may prepare it at once."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import pytest

import tiny
from limner import runs
from trainer import Moment, config, launch, new_run, result, train

KINDS, FOLDER = 40, 2000
LONG_AGO = time.time() - 3600


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """4,000 pictures in two folders, links to 40 that are all different."""
    originals = tiny.pictures(tmp_path / "originals", ((40, 40), (60, 40), (40, 60), (33, 47)) * (KINDS // 4))
    for file in originals.iterdir():
        os.utime(file, (LONG_AGO, LONG_AGO))
    for part in ("a", "b"):
        (folder := tmp_path / "large" / part).mkdir(parents=True)
        for i in range(FOLDER):
            for ending in ("png", "txt"):
                os.link(originals / f"p{i % KINDS}.{ending}", folder / f"{i:05d}.{ending}")
    return tmp_path / "large"


def hashed() -> int:
    """Files whose hash is noted."""
    with sqlite3.connect(runs.home() / "cache" / "index.sqlite") as index:
        return index.execute("SELECT COUNT(*) FROM files WHERE CAST(path AS TEXT) LIKE '%/large/%'").fetchone()[0]


def cached(run: runs.Run) -> list[tuple[int, int]]:
    return [(e["latents"], e["captions"]) for e, _ in run.events() if e["event"] == "cached"]


@pytest.mark.long
def test_what_was_done_before_a_kill_stays(tiny_model: Path, large: Path, home: Path) -> None:
    chosen = config(tiny_model, large, train={"steps": 2})
    killed = new_run(chosen)
    assert train(killed, Moment("kill", "folder", 2)) != 0
    assert len(list((home / "cache" / "folders").iterdir())) == 1, "the first folder's look was not kept"
    assert train(killed, Moment("kill", "hashes", 30)) != 0
    assert len(list((home / "cache" / "folders").iterdir())) == 2
    assert 2000 <= hashed() < 3000
    assert train(killed, Moment("kill", "cache", 5)) != 0  # three files of captions, one of latents
    assert hashed() == 2 * FOLDER and cached(killed) == []
    assert train(killed) == 0, killed.tail()
    assert cached(killed) == [(KINDS - 16, 0)]
    again = new_run(chosen)
    assert train(again) == 0, again.tail()
    assert cached(again) == [] and result(again) == result(killed)


@pytest.mark.slow
def test_two_may_prepare_a_set_at_once(tiny_model: Path, large: Path) -> None:
    chosen = config(tiny_model, large, train={"steps": 2})
    both = [new_run(chosen), new_run(chosen)]
    processes = [launch(run) for run in both]
    for process in processes:
        process.join(300)
    assert [p.exitcode for p in processes] == [0, 0], [run.tail() for run in both]
    assert result(both[0]) == result(both[1])
    third = new_run(chosen)
    assert train(third) == 0 and cached(third) == [] and result(third) == result(both[0])


@pytest.mark.slow
def test_pictures_that_go_between_starts(tiny_model: Path, large: Path) -> None:
    run = new_run(config(tiny_model, large, train={"steps": 6}))
    assert train(run, Moment("kill", "step", 5)) != 0
    for i in range(100):
        (large / "b" / f"{i:05d}.png").unlink()
    assert train(run) == 0, run.tail()
    said = [e["message"] for e in run.history() if e["event"] == "warning"]
    assert any("pictures or captions changed" in m for m in said), said
