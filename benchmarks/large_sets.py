"""What a very large set costs, all the way to the first step of a run: `python benchmarks/large_sets.py [--count N] [--distinct N]`.

Two parts, in one run; results go to benchmarks/results/pictures-million.json.

*The whole way*: `count` pictures (links to 25 small ones, with links to 25 captions, in folders of 5,000; ext4 allows 65,000 links
a file) and the pocket model. A first start in a new home, which looks at every file, encodes what is different and trains one
step; then a second start of another run in the same home. Each is a process of its own, the trainer's: seconds of each phase, and
the most memory that it ever held, Python and torch included.

*Caching*: `distinct` different pictures encoded by the pocket model's VAE into Limner's cache, against the usual one file a picture
(the .npz beside it that sd-scripts writes, and a .safetensors), with the same encoder and on the same disk, one after the other;
then what it takes to find all of it again, and to read 1,000 random entries.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

RESULTS = Path(__file__).parent / "results" / "pictures-million.json"
KINDS, FOLDER = 25, 5000
PHASES = (
    ("limner.data.scan", "scan"),
    ("limner.engine.prepare", "assemble"),
    ("limner.engine.samples", "Samples.__post_init__"),
    ("limner.engine.prepare", "_encode"),
    ("limner.engine.prepare", "_warn_of_words"),
    ("limner.engine.prepare", "metadata_facts"),
    ("limner.engine.prepare", "prepare"),
    ("limner.engine.train", "move_weights"),
    ("limner.engine.train", "save_weights"),
    ("limner.engine.train", "save_state"),
)


def fill(root: Path, count: int) -> Path:
    """`count` pictures and captions, which are hard links to 25 of each."""
    (originals := root / "originals").mkdir()
    for i in range(KINDS):
        kind = ("png", "jpg")[i % 2]
        Image.new("RGB", (64 + 8 * (i % 5), 64 + 8 * (i // 5)), (i * 9, 90, 2 * i)).save(originals / f"{i}.{kind}")
        (originals / f"{i}.txt").write_text(f"photo number {i} of a thing, outdoors, blue sky, tree, grass")
    time.sleep(4)  # what has just been written is not remembered: it may still change
    for first in range(0, count, FOLDER):
        (folder := root / "pictures" / f"part_{first // FOLDER:04d}").mkdir(parents=True)
        for i in range(first, min(first + FOLDER, count)):
            kind = ("png", "jpg")[i % KINDS % 2]
            os.link(originals / f"{i % KINDS}.{kind}", folder / f"picture_{i:07d}.{kind}")
            os.link(originals / f"{i % KINDS}.txt", folder / f"picture_{i:07d}.txt")
    return root / "pictures"


def memory_mib(what: str) -> int:
    """VmHWM (the most ever held) or VmRSS of this process; 0 where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith(what))


# --- the whole way ----------------------------------------------------------------------------------------------------


def start(folder: Path) -> dict[str, Any]:
    """In a process of its own: one run to its first step. Seconds and MiB of each phase."""
    began, phases = time.perf_counter(), dict[str, dict[str, float]]()
    import importlib

    from limner import jobs
    from limner.config import files
    from limner.engine import __main__ as engine
    from limner.engine import prepare, train  # noqa: F401

    imported = memory_mib("VmHWM"), time.perf_counter() - began
    for module, name in PHASES:
        owner: Any = importlib.import_module(module)
        *inside, last = name.split(".")
        for part in inside:
            owner = getattr(owner, part)
        setattr(owner, last, _timed(getattr(owner, last), name, phases))
    given = {
        "data": {"path": str(folder), "resolution": 64, "bucket_min_px": 32, "bucket_max_px": 128, "bucket_step_px": 8},
        "adapter": {"rank": 4},
        "train": {"steps": 1, "batch_size": 2},
        "output": {"name": "large"},
        "launch": {"device": "cpu"},
    }
    run = jobs.prepare(files.build(given, {}))
    code = engine.main(str(run.path))
    assert code == 0, run.tail()
    first_step = phases["prepare"]["seconds"] + phases["move_weights"]["seconds"]
    return {
        "import_seconds": round(imported[1], 2),
        "import_mib": imported[0],
        "to_first_step_seconds": round(imported[1] + first_step, 2),
        "most_mib": memory_mib("VmHWM"),
        "phases": phases,
    }


def _timed(function: Callable[..., Any], name: str, phases: dict[str, dict[str, float]]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        began, cpu = time.perf_counter(), time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            entry = phases.setdefault(name, {"seconds": 0.0, "cpu_seconds": 0.0, "rss_mib": 0, "most_mib": 0})
            entry["seconds"] = round(entry["seconds"] + time.perf_counter() - began, 2)
            entry["cpu_seconds"] = round(entry["cpu_seconds"] + time.process_time() - cpu, 2)
            entry["rss_mib"], entry["most_mib"] = memory_mib("VmRSS"), memory_mib("VmHWM")

    return timed


def started(folder: Path, home: Path) -> dict[str, Any]:
    environment = {**os.environ, "LIMNER_HOME": str(home)}
    words = [sys.executable, __file__, "--start", str(folder)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the start failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    asked = argparse.ArgumentParser()
    asked.add_argument("--start", type=Path)
    asked.add_argument("--home", type=Path)
    found = asked.parse_args()
    if found.start and not found.home:
        print(json.dumps(start(found.start)))
    else:
        for _ in range(2):
            print(json.dumps(started(found.start, found.home), indent=1))
