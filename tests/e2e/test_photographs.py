"""Real photographs of many sizes and shapes train through the same command as drawn pictures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from safetensors.torch import load_file

from limner.data.dataset import bucket_rule
from limner.formats.base import recognise
from limner.runs import Run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forks")]

# colour photographs, greys, a scanned page; landscape, portrait and square
PHOTOGRAPHS = {
    "skimage.data": [
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "rocket.jpg",
        "coins.png",
        "page.png",
        "hubble_deep_field.jpg",
    ],
    "sklearn.datasets.images": ["china.jpg", "flower.jpg"],
}


def photographs(folder: Path) -> Path:
    """The photographs that ship inside scikit-image and scikit-learn, three of them captioned."""
    folder.mkdir(parents=True)
    for package, names in PHOTOGRAPHS.items():
        for name in names:
            with resources.as_file(resources.files(package) / name) as path:
                shutil.copy(path, folder / name)
    for name, caption in (("astronaut", "a woman in an orange suit"), ("chelsea", "a cat"), ("china", "a temple, colourful")):
        (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    return folder


def test_photographs_train_through_the_command(tmp_path: Path):
    pictures = photographs(tmp_path / "my photos, été")
    home = tmp_path / "home"
    words = ["train", "--data.path", str(pictures), "--data.trigger", "zibbo", "--train.steps", "6", "--train.batch_size", "2"]
    words += ["--output.name", "photos", "--sample.prompts", "a zibbo --s 2", "--adapter.rank", "4", "--data.resolution", "96"]
    environment = {**os.environ, "LIMNER_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-m", "limner.cli", *words], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr + done.stdout

    (run,) = (Run(p) for p in (home / "runs").iterdir())
    plan = json.loads((run.path / "plan.json").read_text(encoding="utf-8"))
    assert plan["num_pictures"] == 9
    # each stands in the bucket that its own size asks for
    config = run.config()
    rule = bucket_rule(config, recognise("pocket", None, None))
    sizes = {"astronaut": (512, 512), "chelsea": (451, 300), "coffee": (600, 400), "rocket": (640, 427), "coins": (384, 303)}
    sizes |= {"page": (384, 191), "retina": (1411, 1411), "china": (640, 427), "flower": (640, 427)}
    expected: dict[str, int] = {}
    for size in sizes.values():
        bucket = "x".join(map(str, rule.fit(*size).bucket))
        expected[bucket] = expected.get(bucket, 0) + 1
    assert plan["buckets"] == expected and len(expected) >= 3

    losses = [e["loss"] for e in run.history() if e["event"] == "step"]
    assert len(losses) == 6 and all(0 < loss < 10 for loss in losses)
    tensors = load_file(run.checkpoints / "photos.safetensors")
    assert any(t.abs().max() > 0 for k, t in tensors.items() if k.endswith("lora_up.weight"))
    assert [p.name for p in run.samples.iterdir()] == ["step-00000006_00.png"]


def test_check_names_every_photograph_that_is_damaged(tmp_path: Path):
    pictures = photographs(tmp_path / "photos")
    whole = (pictures / "china.jpg").read_bytes()
    (pictures / "china.jpg").write_bytes(whole[: len(whole) // 2])
    (pictures / "flower.jpg").write_bytes(b"")
    environment = {**os.environ, "LIMNER_HOME": str(tmp_path / "home")}
    words = [sys.executable, "-m", "limner.cli", "check", "--data.path", str(pictures), "--data.trigger", "zibbo", "--deep"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 2 and "china.jpg" in "".join(errors) and "flower.jpg" in "".join(errors), done.stderr
