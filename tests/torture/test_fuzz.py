"""The parsers of strangers' texts fuzzed for LIMNER_FUZZ_SECONDS (60) each, along the code's branches where atheris is there.

`pip install atheris` (Linux); without it hypothesis draws the texts by their grammar alone. What is found stays in the folder
that is printed, for `python tests/fuzzing.py TARGET FILE`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import fuzz_targets
import fuzzing

SECONDS = float(os.environ.get("LIMNER_FUZZ_SECONDS", "60"))
TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_by_grammar(name: str) -> None:
    pytest.importorskip("hypothesis")
    tried = fuzzing.run(name, 1000, seed=time.time_ns() % 2**32, seconds=SECONDS)
    print(f"{name}: {tried} texts by grammar, no finding")


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_along_the_branches(name: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix=f"limner-fuzz-{name}-"))
    seeds = folder / "seeds"
    seeds.mkdir()
    for number, seed in enumerate(fuzz_targets.SEEDS[name]):
        (seeds / str(number)).write_bytes(seed)
    limits = [f"-max_total_time={int(SECONDS)}", "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]
    command = [sys.executable, str(TESTS / "fuzzing.py"), name, *limits, f"-artifact_prefix={folder}/", str(seeds)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=folder)
    count = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
    print(f"{name}: {count[1] if count else '?'} executions, {folder}")
    assert done.returncode == 0, done.stderr[-3000:]
