"""Seconds a step, and memory, of LoRA runs on models of full size: Limner's own command, on random weights.

    python benchmarks/full_size.py sdxl MODEL.safetensors               every way of keeping the model in memory
    python benchmarks/full_size.py flux MODEL.safetensors --ways nf4    one of them

scripts/random_model.py writes the model. A short run first fills the caches and paints a picture, so that the timed runs hold
nothing but the denoiser; with --no-picture the first of these fills them. Steps are told from
the events that the trainer writes about once a second, when it waits for the device; the median is over steps, without the
first of them and without what the end takes. Where many small layers are computed it tells more of the processor, which orders
their kernels, than of the card.

Results are added to benchmarks/results/full_size.json, or to --out, after every run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from limner import jobs, machine, preflight, runs
from limner.config import files
from limner.runs import Run

_WARM_STEPS = 5
_LIMNER = "import sys; from limner.cli import main; sys.argv[0] = 'limner'; main()"
_PROMPT = "a photo of a cat"

RESOLUTIONS = {"sdxl": 1024, "flux": 512}
_AGAIN = {"checkpointing": True}
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "sdxl": {
        "bf16": {},
        "bf16, computed again": _AGAIN,
        "fp8": {**_AGAIN, "quantize": "fp8"},
        "nf4": {**_AGAIN, "quantize": "nf4"},
        "60 blocks swapped": {**_AGAIN, "swap_blocks": 60},
    },
    "flux": {
        "bf16, computed again": _AGAIN,
        "fp8": {**_AGAIN, "quantize": "fp8"},
        "30 blocks swapped": {**_AGAIN, "swap_blocks": 30},
        "nf4": {**_AGAIN, "quantize": "nf4"},
        "bf16": {},
        "fp8, 30 blocks swapped": {**_AGAIN, "quantize": "fp8", "swap_blocks": 30},
    },
}
"""Family -> name -> what [memory] says, in the order in which they are run."""


def pictures(folder: Path, side: int, count: int = 4) -> Path:
    """Smooth random pictures of one size, captioned."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for i in range(count):
        Image.frombytes("RGB", (16, 16), rng.randbytes(16 * 16 * 3)).resize((side, side)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{_PROMPT}, number {i}", encoding="utf-8")
    return folder


def config(model: Path, data: Path, side: int, memory: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": {"base": str(model)},
        "data": {"path": str(data), "resolution": side},
        "adapter": {"kind": "lora", "rank": 16},
        "optimizer": {"lr": 1e-4},
        "memory": memory,
        **sections,
    }


class Card:
    """What the card's driver says is in use, read while runs go on; None of it where there is no such card."""

    def __init__(self) -> None:
        self.most_mib = 0
        self._reader = None
        words = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0", "-lms", "1000"]
        try:
            self._reader = subprocess.Popen(words, stdout=subprocess.PIPE)
            assert self._reader.stdout is not None
            os.set_blocking(self._reader.stdout.fileno(), False)
        except OSError:
            pass

    def look(self) -> None:
        if self._reader is None or self._reader.stdout is None:
            return
        read = [int(w) for w in (self._reader.stdout.read() or b"").split() if w.isdigit()]
        self.most_mib = max([self.most_mib, *read])

    def close(self) -> None:
        if self._reader is not None:
            self._reader.terminate()
            self._reader.wait()


def train(raw: dict[str, Any], seconds: float) -> tuple[Run | None, dict[str, float], int, str]:
    """`limner train`: (its run, seconds in each phase, the most MiB in use on the card, what went wrong)."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml", delete=False, encoding="utf-8") as file:
        file.write(files.render(files.build(raw, {}), advanced=False))
    known, began = set(runs.all_runs()), time.monotonic()
    card, phases = Card(), dict[str, float]()
    process = subprocess.Popen([sys.executable, "-c", _LIMNER, "train", file.name], stderr=subprocess.PIPE)
    run, last, trouble = None, began, ""
    while process.poll() is None:
        time.sleep(0.05)
        run = run or next((r for r in runs.all_runs() if r not in known), None)
        state = run.state() if run else None
        name = (state.phase or state.status) if state else "checking"
        now = time.monotonic()
        phases[name] = phases.get(name, 0.0) + now - last
        last = now
        card.look()
        if now - began > seconds:
            trouble = f"not done in {seconds:.0f} s"
            if run:
                jobs.stop(run, now=True)
            process.kill()
    card.close()
    os.unlink(file.name)
    until = time.monotonic() + 30
    while run and runs.is_alive(run.state().pid, run.state().process_started) and time.monotonic() < until:
        time.sleep(0.1)  # the next run's readings are not to be this one's
    if process.returncode and not trouble:
        trouble = (process.communicate()[1] or b"").decode(errors="replace")[-2000:]
    return run, {k: round(v, 1) for k, v in phases.items()}, card.most_mib, trouble


def step_seconds(events: list[dict[str, Any]]) -> list[float]:
    """Of each timed step: readings are taken when the device has been waited for, and all steps between two are alike."""
    read = [(e["step"], e["time"]) for e in events if e["event"] == "memory"]
    out = list[float]()
    # without the last: it comes after everything is saved
    for (first, began), (last, ended) in pairwise(read[:-1]):
        if first >= _WARM_STEPS:
            out += [(ended - began) / (last - first)] * (last - first)
    return out


def measured(raw: dict[str, Any], seconds: float) -> dict[str, Any]:
    """One run's row in the results."""
    findings, records = preflight.examine(files.build(raw, {}), machine.describe(runs.home()))
    errors = [f.message for f in findings if f.severity == "error"]
    if errors:
        return {"failed": "; ".join(errors)}
    run, phases, card_mib, trouble = train(raw, seconds)
    events = [e for e, _ in run.events()] if run else []
    timed, memory = step_seconds(events), [e for e in events if e["event"] == "memory"]
    losses = [e["loss"] for e in events if e["event"] == "step"]
    row: dict[str, Any] = {"memory": raw["memory"]}
    if records.footprint is not None:
        row["predicted_weights_mib"] = asdict(records.footprint)
    row |= {
        "seconds_per_step_median": round(statistics.median(timed), 4) if timed else None,
        "steps_timed": len(timed),
        "most_allocated_on_card_mib": max((e.get("device_mib", 0) for e in memory), default=None),
        "most_in_use_on_card_mib": card_mib or None,
        "most_in_trainer_mib": max((e["memory_mib"] for e in memory), default=None),
        "seconds_in_phases": phases,
        "steps": len(losses),
        "first_losses": losses[:3],
        "last_loss": losses[-1] if losses else None,
        "warnings": [e["message"] for e in events if e["event"] == "warning"],
    }
    if trouble:
        row["failed"] = trouble + (run.tail(3000) if run else "")
    return row


def machine_words() -> dict[str, Any]:
    here = machine.describe(runs.home())
    best = here.best()
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, check=False
    ).stdout.strip() if best.kind == "cuda" else ""  # fmt: skip
    return {
        "device": best.name or best.kind, "device_mib": best.memory_mib, "driver": driver, "cores": here.cores,
        "memory_mib": here.memory_mib, "python": platform.python_version(), "torch": f"{here.torch} ({here.torch_build})",
        **{name: version(name) for name in ("diffusers", "transformers")},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=WAYS)
    parser.add_argument("model", type=Path)
    parser.add_argument("--ways", nargs="*")
    parser.add_argument("--no-picture", action="store_true")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--seconds", type=float, default=300, help="until a run is given up")
    parser.add_argument("--until", type=float, default=float("inf"), help="seconds after which no further run begins")
    parser.add_argument("--home", type=Path, help="where the runs are left; nowhere when not given")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "full_size.json")
    args = parser.parse_args()
    began, side = time.monotonic(), args.resolution or RESOLUTIONS[args.family]
    ways = WAYS[args.family]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIMNER_HOME"] = str(args.home or Path(folder) / "home")
        data = pictures(Path(folder) / "pictures", side)
        report = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {"runs": []}

        def note(row: dict[str, Any]) -> None:
            about = {"date": time.strftime("%Y-%m-%d"), "machine": machine_words(), "family": args.family}
            report["runs"].append({**about, "resolution": side, "batch": 1, "rank": 16, **row})
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            print(json.dumps(row), flush=True)

        sample = {"prompts": [f"{_PROMPT} --s 8 --w {side} --h {side}"], "every_steps": 2}
        first = config(args.model, data, side, ways[next(iter(ways))], train={"steps": 2}, sample=sample)
        if not args.no_picture:
            note({"way": "caches and a picture", **measured(first, args.seconds)})
        for name in args.ways or ways:
            if time.monotonic() - began > args.until:
                break
            raw = config(args.model, data, side, ways[name], train={"steps": args.steps}, output={"name": name.split(",")[0]})
            note({"way": name, **measured(raw, args.seconds)})


if __name__ == "__main__":
    main()
