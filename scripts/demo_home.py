"""A home for pictures and layout tests of the page: pictures, finished runs, a failed and a waiting one, all of them real."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from limner import jobs, queue
from limner.config import files
from limner.pocket import PICTURES
from limner.runs import Run

PROMPTS = ["a large zibbo in the middle on a beige background", "a small zibbo on the left on a green background", "a red cube"]


def fill(folder: Path, steps: int = 60) -> None:
    """Make `folder`/home (for LIMNER_HOME) and `folder`/pictures. Two runs are trained on the pocket model: about a minute."""
    os.environ["LIMNER_HOME"] = str(folder / "home")
    clean, untidy = folder / "pictures" / "zibbo", folder / "pictures" / "untidy"
    shutil.copytree(PICTURES, clean)
    _untidy(shutil.copytree(PICTURES, untidy))
    _train(_prepare(clean, "first-try", {"train.steps": str(steps // 2), "optimizer.lr": "2e-4"}))
    _train(_prepare(clean, "zibbo", {"train.steps": str(steps)}))
    gone = shutil.copytree(PICTURES, folder / "pictures" / "on-a-stick")
    failing = _prepare(gone, "from-a-stick", {"train.steps": str(steps)})
    shutil.rmtree(gone)
    _train(failing)
    for name in ("tonight", "a-rather-long-name-for-a-run-that-waits"):
        queue.enqueue(_prepare(clean, name, {"train.steps": "4000"}))


def _untidy(folder: Path) -> None:
    """What the page Dataset is for: no caption, no trigger, too small, broken, nearly the same."""
    (folder / "zibbo_01.txt").unlink()
    (folder / "zibbo_02.txt").write_text("a thing on a table\n", encoding="utf-8")
    with Image.open(folder / "zibbo_03.png") as picture:
        picture.resize((24, 24)).save(folder / "zibbo_03.png")
        picture.save(folder / "zibbo_04_again.jpg", quality=90)
        picture.resize((160, 48)).save(folder / "zibbo_05_wide.png")
    (folder / "zibbo_99.png").write_bytes(b"\x89PNG\r\n")


def _prepare(pictures: Path, name: str, over: dict[str, str]) -> Run:
    raw: dict[str, Any] = {
        "data": {"path": str(pictures), "trigger": "zibbo"},
        "train": {"batch_size": 8},
        "optimizer": {"lr": 8e-4},
        "sample": {"prompts": PROMPTS, "steps": 12, "every_steps": 10},
        "output": {"name": name},
        "launch": {"device": "cpu", "num_threads": 2},
    }
    return jobs.prepare(files.build(raw, over))


def _train(run: Run) -> None:
    process = jobs.start(run, "cpu")
    assert process is not None
    jobs.note_exit(run, process.pid, process.wait())
