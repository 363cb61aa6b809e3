"""The benchmark on a GPU, at a tiny size here: it runs, and its table says what was measured and what was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def full_size() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import full_size
    finally:
        sys.path.remove(str(BENCHMARKS))
    return full_size


def test_the_table():
    rows = [
        {"loop": "reference", "batch": 4, "seconds_per_step_median": 0.2, "most_memory_mib": 900, "flops_per_step": 40e12},
        {"loop": "Limner", "batch": 4, "seconds_per_step_median": 0.1, "most_memory_mib": 800},
        {"loop": "Limner, graph", "batch": 4, "failed": "x"},
    ]
    lines = full_size().figures_table(rows, 989).splitlines()
    assert lines[2] == "| reference | 4 | 50.0 | 900 | 20.2 % |"  # 40e12 / 0.2 / 989e12
    assert lines[3] == "| Limner | 4 | 25.0 | 800 | 40.4 % |"
    assert lines[4] == "| Limner, graph | 4 | not measured | not measured | not measured |"
    assert full_size().figures_table(rows, None).splitlines()[2].endswith("| not measured |")


@pytest.mark.long
def test_it_runs_on_a_tiny_model(tmp_path: Path):
    model, out = tiny.build(tmp_path / "sdxl", family="sdxl"), tmp_path / "out.json"
    words = [sys.executable, str(BENCHMARKS / "full_size.py"), "sdxl", str(model), "--figures", "--plain"]
    words += ["--resolution", "64", "--steps", "400", "--tflops", "0", "--out", str(out)]
    done = subprocess.run(words, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    runs = json.loads(out.read_text(encoding="utf-8"))["runs"]
    assert [(r["loop"], r["batch"]) for r in runs] == [("reference", 1), ("Limner", 1), ("reference", 4), ("Limner", 4)]
    assert not [r["failed"] for r in runs if "failed" in r]
    reference = [r for r in runs if r["loop"] == "reference"]
    assert all(r["seconds_per_step_median"] > 0 and r["most_memory_mib"] > 0 for r in reference)
    # four pictures are four times the work of one
    assert reference[1]["flops_per_step"] == pytest.approx(4 * reference[0]["flops_per_step"], rel=0.01)
    table = out.with_suffix(".md").read_text(encoding="utf-8").splitlines()[2:]
    assert len(table) == 6 and all(line.count("|") == 6 for line in table)
    assert all(line.endswith("| not measured |") for line in table[2:])
