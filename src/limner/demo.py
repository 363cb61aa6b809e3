"""`limner demo`: the whole path on what ships in the package; no files, network or GPU needed.

Pictures of a new thing -> a LoRA by the same trainer process as any run -> pictures before and after -> a report.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from limner import disk, jobs, launch, machine, preflight, progress, queue, runs
from limner.config import Config, files
from limner.errors import UserError
from limner.pocket import PICTURES, world
from limner.pocket.exam import thing_scenes

NUM_SCENES = 200


def demo_config(steps: int | None) -> Config:
    """What the demo trains: the pocket model's own defaults, and three prompts to look at on the way."""
    raw = {
        "data": {"path": str(PICTURES), "trigger": world.TRIGGER},
        "train": {"batch_size": 8, "steps": 400 if steps is None else steps},
        "output": {"name": world.TRIGGER, "title": "Zibbo, the demo's little house", "license": "CC0-1.0"},
        "sample": {"prompts": [s.caption for s in thing_scenes()[1][:3]], "guidance": 4.0, "every_steps": 100},
    }
    return files.build(raw, {})


def run(out: Path, steps: int | None) -> int:
    """Train, examine, and write `<out>/zibbo.safetensors`, `before-after.png` and `report.json`. Returns the exit code."""
    started = time.monotonic()
    config = demo_config(steps)
    here = machine.describe(runs.home())
    findings, records = preflight.examine(config, here)
    if errors := [f for f in findings if f.severity == "error"]:
        raise UserError(errors)
    disk.write_json(out / "report.json", {"state": "training"})  # now, rather than after minutes, is the time to find out
    print(f"Teaching the pocket model a thing that it has never seen, called {world.TRIGGER!r}.")
    progress.say_plan(config, records)
    device = here.best().kind
    job = jobs.prepare(config)
    queue.enqueue(job)
    code = progress.follow(job)
    if code or job.state().status != "done":
        return code or 1
    trained = time.monotonic()
    lora = out / f"{world.TRIGGER}.safetensors"
    with disk.replacing(lora) as temporary:
        shutil.copyfile(job.checkpoints / lora.name, temporary)
    print("Painting before and after ...")
    # a process of its own, in the trainer's environment: the allocator settings make painting several times faster too
    words = [sys.executable, "-m", "limner.engine.examine", str(lora.absolute()), str(out.absolute()), str(NUM_SCENES)]
    if subprocess.run(words, check=False, env={**os.environ, **launch.environment(config, device)}).returncode:
        print(f"error: painting failed; the LoRA itself is {lora}.", file=sys.stderr)
        return 1
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    report["seconds"] = {"training": round(trained - started, 1), "in_all": round(time.monotonic() - started, 1)}
    report["run"] = job.id
    disk.write_json(out / "report.json", report)
    _say(out, report)
    return 0


def _say(out: Path, report: dict) -> None:
    thing, other = report["new_thing"], report["other_captions"]
    after = thing["after"]
    print(f"The LoRA is {out / (world.TRIGGER + '.safetensors')}, the pictures are in {out / 'before-after.png'}.")
    seen, count, base = after["recognised"], after["pictures"], thing["before"]["recognised"]
    print(f"Learnt: the new thing is in {seen} of {count} pictures; before, in {base}.")
    print(
        f"Kept: {other['after']['right']:.0%} of {other['after']['captions']} other captions are painted right; before, "
        f"{other['before']['right']:.0%}. All figures: {out / 'report.json'}"
    )
