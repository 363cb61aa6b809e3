"""The flow among the pocket models: what it is, and what it paints."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limner.config import files
from limner.config.prompts import Prompt
from limner.engine import paint, sampling
from limner.engine.runtime import Runtime
from limner.formats.base import recognise
from limner.pocket import FLOW_MODEL, exam


def test_what_it_is():
    base = recognise("pocket-flow")
    assert (base.family, base.prediction, base.resolution_px, base.latent_channels) == ("sd3", "flow", 64, 4)
    assert base.is_pocket and base.path == FLOW_MODEL


def test_it_is_small_and_not_a_pickle():
    found = [p for p in FLOW_MODEL.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in found) <= 8_000_000
    assert {p.suffix for p in found} <= {".json", ".safetensors", ".txt"}


@pytest.mark.long
@torch.no_grad()
def test_it_paints_what_captions_say():
    runtime = Runtime(torch.device("cpu"), "fp32")
    family = sampling.load_whole(files.build({"model": {"base": "pocket-flow"}}, {}), runtime)
    wanted = exam.held_out_scenes(40, seed=78)
    prompts = [Prompt(caption, "", 64, 64, 20, 4.0, 5000 + i, None) for i, (_, caption) in enumerate(wanted)]
    encoded = paint.encode_prompts(family, runtime, prompts)
    pictures = [np.asarray(paint.to_image(p)) for p in paint.paint(family, runtime, prompts, encoded, together=40)]
    score = exam.score_scenes(pictures, wanted)
    assert score["right"] >= 0.25, score
    assert score["colour"] >= 0.85 and score["background"] >= 0.85, score
    assert score["chance"] <= 0.1, score
