"""`limner demo` as a newcomer runs it, and what it must teach; and the pocket model's own examination."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limner.config import Config
from limner.config.prompts import Prompt
from limner.engine import paint, sampling
from limner.engine.runtime import Runtime
from limner.pocket import MODEL, exam

pytestmark = pytest.mark.long


@torch.no_grad()
def test_pocket_model_paints_what_its_captions_say():
    runtime = Runtime(torch.device("cpu"), "fp32")
    family = sampling.load_whole(Config(), runtime)
    wanted = exam.held_out_scenes(60, seed=78)
    prompts = [Prompt(caption, "", 64, 64, 20, 4.0, 5000 + i, "ddim") for i, (_, caption) in enumerate(wanted)]
    encoded = paint.encode_prompts(family, runtime, prompts)
    pictures = [np.asarray(paint.to_image(p)) for p in paint.paint(family, runtime, prompts, encoded, together=60)]
    score = exam.score_scenes(pictures, wanted)
    assert score["right"] >= 0.7, score  # 0.8 on 200 captions; 60 allow for four standard errors less
    assert score["chance"] <= 0.1, score


def test_pocket_model_is_small_and_not_a_pickle():
    files = [p for p in MODEL.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 12_000_000
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".txt"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    """(folder, report, what the terminal showed) of one demo."""
    out = tmp_path_factory.mktemp("demo") / "demo out"
    command = [sys.executable, "-m", "limner.cli", "demo", "--out", str(out)]
    # on one thread, as all tests: another process runs the other half of them, and threads that wait for each other cost most
    environment = {**os.environ, "LIMNER_HOME": str(out.parent / "home")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, stdin=subprocess.DEVNULL, env=environment)
    assert done.returncode == 0, done.stderr + done.stdout
    return out, json.loads((out / "report.json").read_text()), done.stdout


@pytest.mark.timeout(1600)
def test_demo_teaches_the_new_thing(demo):
    out, report, said = demo
    before, after = report["new_thing"]["before"], report["new_thing"]["after"]
    assert (before["pictures"], after["pictures"]) == (64, 64)
    assert before["recognised"] <= 3, report
    assert after["recognised"] >= 52, report
    assert after["background"] >= 0.6 * 64, report
    assert report["nearest_training_picture_rms"]["least"] > 0.02, report  # no copy of a training picture
    assert (out / "zibbo.safetensors").stat().st_size > 10_000
    with Image.open(out / "before-after.png") as grid:
        assert grid.width > 600
    assert len(said.strip().splitlines()[-3:]) == 3 and str(out) in said


def test_demo_keeps_the_rest(demo):
    kept = demo[1]["other_captions"]
    assert kept["before"]["captions"] == kept["after"]["captions"] == 200
    assert kept["after"]["right"] >= kept["before"]["right"] - 0.10
