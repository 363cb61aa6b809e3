"""Limner against a bare loop, sd-scripts and diffusers' script: the same LoRA of SD 1.5, trained in turns, each in a process.

    python benchmarks/rivals.py                                        Limner and the bare loop
    python benchmarks/rivals.py --sd-scripts CHECKOUT --sd-scripts-python PY
                                --diffusers-script FILE --diffusers-python PY

What is measured, and how, stands in benchmarks/README.md. The model has random weights (scripts/random_model.py) unless
--model-file and --model-folder give one: as a single file, and the same as a folder of diffusers. Results go to
benchmarks/results/: rivals.json has everything, rivals.md and rivals.svg show it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from full_size import pictures
from limner.formats.header import read_header
from overhead import machine_words
from programs import Bare, DiffusersScript, Limner, Program, Readings, SdScripts, Task
from standings import drawn, summarise, table
from watch import Watched, watch

_SETTLED = 2
"""Steps that are not counted: the first ones still allocate."""


def step_seconds(readings: Readings) -> list[float]:
    """Of each step after the first ones. Steps told together are all taken to be alike."""
    out = list[float]()
    for (first, began), (last, ended) in pairwise(sorted(readings.items())):
        if first >= _SETTLED:
            out += [(ended - began) / (last - first)] * (last - first)
    return out


def processor_seconds(readings: Readings, seen: Watched) -> float | None:
    """Of a step, on average over those that are counted."""
    counted = [step for step in readings if step >= _SETTLED]
    if len(counted) < 2:
        return None
    first, last = min(counted), max(counted)
    return round((seen.computed_by(readings[last]) - seen.computed_by(readings[first])) / (last - first), 3)


def forget(paths: Iterable[Path]) -> None:
    """Drop files out of the system's cache, where it can be asked to."""
    if hasattr(os, "posix_fadvise"):
        for path in paths:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def recall(paths: Iterable[Path]) -> None:
    """Have files in the system's cache, which others may have pushed out of it."""
    piece = bytearray(8 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(piece):
                pass


@contextlib.contextmanager
def held(lock: Path | None) -> Iterator[None]:
    """Wait for a lock file as flock(1) does: measurements that take turns by it never meet."""
    if lock is None:
        yield
        return
    import fcntl  # not on Windows

    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(program: Program, place: Path, task: Task, limit_seconds: float, *, is_cold: bool) -> dict[str, Any]:
    """One process of one program; its row in the results."""
    if is_cold:
        shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, exist_ok=True)
    row = {"program": program.name, "precision": task.precision, "is_cold": is_cold, "steps": task.steps}
    try:
        start = program.prepare(place, task)
    except LookupError as error:
        return row | {"failed": str(error)}
    model = program.model(task)
    files = [p for p in (model, *model.rglob("*")) if p.is_file()]
    (forget if is_cold else recall)(files)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    seen = watch(start.words, start.folder, start.environment, limit_seconds, lambda: program.pids(place))
    (place / "output.txt").write_text("\n".join(text for _, text in seen.lines), encoding="utf-8")
    readings, output = program.readings(place, seen.lines), program.output(place)
    told = max(readings, default=0)
    trouble = seen.trouble or ("" if told == task.steps else f"step {told} of {task.steps} was the last one told")
    if trouble:
        return row | {"failed": trouble}
    row |= {
        "first_step_seconds": round(readings[min(readings)] - seen.began, 2),
        "step_seconds": [round(s, 3) for s in step_seconds(readings)],
        "processor_first_step_seconds": round(seen.computed_by(readings[min(readings)]), 2),
        "processor_step_seconds": processor_seconds(readings, seen),
        "peak_mib": seen.peak_mib,
        "losses": program.losses(place, seen.lines),
        "load_before": load,
    }
    if isinstance(program, Bare):
        row["losses_without"] = program.told(seen.lines, "loss_without")
    if output is not None:
        names = read_header(output).tensors
        row |= {
            "file_mb": round(output.stat().st_size / 1e6, 1),
            "layers": sum(n.endswith(("up.weight", "lora_B.weight")) for n in names),
        }
    return row


def models(folder: Path, args: argparse.Namespace) -> tuple[Path, Path]:
    """The model as a file and as a folder, as given or made with random weights."""
    if args.model_file and args.model_folder:
        return args.model_file.absolute(), args.model_folder.absolute()
    file, whole = folder / "sd15.safetensors", folder / "sd15"
    if not file.exists():
        script = Path(__file__).parents[1] / "scripts" / "random_model.py"
        subprocess.run([sys.executable, str(script), "sd1", str(file)], check=True)
    if not whole.exists():
        words = ["tools", "convert", "--file", str(file), "--output", str(whole), "--layout", "diffusers"]
        environment = {**os.environ, "LIMNER_HOME": str(folder / "home")}
        subprocess.run([sys.executable, "-m", "limner.cli", *words], check=True, env=environment, stdout=subprocess.DEVNULL)
    return file, whole


def rivals(args: argparse.Namespace) -> tuple[list[Program], list[str]]:
    """(those to measure beside Limner, the names of those that are not given)."""
    out, absent = list[Program]([Bare()]), []
    if args.sd_scripts:
        out.append(SdScripts(args.sd_scripts.absolute(), args.sd_scripts_python or sys.executable))
    else:
        absent.append("sd-scripts")
    if args.diffusers_script:
        out.append(DiffusersScript(args.diffusers_script.absolute(), args.diffusers_python or sys.executable))
    else:
        absent.append("diffusers script")
    return out, absent


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All runs, in turns; each round has Limner first and the others in an order that turns round."""
    file, folder = models(work, args)
    data = pictures(work / "pictures", args.side, count=16)
    others, absent = rivals(args)
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M"), "machine": machine_words(), "system": platform.platform(),
        "python": platform.python_version(), "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "settings": {"side_px": args.side, "batch": 1, "pictures": 16, "steps": args.steps, "rounds": args.rounds},
        "versions": {p.name: p.version() for p in (Limner(), *others)}, "absent": absent, "runs": [],
    }  # fmt: skip

    def note(program: Program, precision: str, number: int | str, steps: int, *, is_cold: bool) -> None:
        task = Task(file, folder, data, args.side, precision, steps)
        place = work / precision / program.name.replace(" ", "-")
        with held(args.lock):
            row = {"round": number, **run(program, place, task, args.limit, is_cold=is_cold)}
        report["runs"].append(row)
        write(report, args.out)
        shown = row.get("failed") or {k: row[k] for k in ("first_step_seconds", "step_seconds", "peak_mib")}
        print(f"{precision} round {number} {program.name}: {shown}", flush=True)

    for precision in args.precisions:
        for number in range(args.rounds):
            for program in (Limner(), *(others if number % 2 == 0 else reversed(others))):
                note(program, precision, number, args.steps, is_cold=number % 2 == 0)
        if args.curve_steps and precision == "fp32":
            for program in (Limner(), Bare()):
                note(program, precision, "curve", args.curve_steps, is_cold=False)
    return report


def write(report: dict[str, Any], out: Path) -> None:
    """The results so far: what was measured before a run is broken off is not lost."""
    report["standings"] = summarise(report["runs"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "rivals.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "rivals.md").write_text(table(report), encoding="utf-8")
    (out / "rivals.svg").write_text(drawn(report), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sd-scripts", type=Path, metavar="CHECKOUT")
    parser.add_argument("--sd-scripts-python", metavar="PY")
    parser.add_argument("--diffusers-script", type=Path, metavar="FILE", help="its train_text_to_image_lora.py")
    parser.add_argument("--diffusers-python", metavar="PY")
    parser.add_argument("--model-file", type=Path)
    parser.add_argument("--model-folder", type=Path)
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--side", type=int, default=256, help="of the pictures, in pixels")
    parser.add_argument("--steps", type=int, default=10, help="of each process")
    parser.add_argument("--rounds", type=int, default=3, help="with cold caches and with warm ones in turns")
    parser.add_argument("--curve-steps", type=int, default=50, help="of one more pair whose losses are compared; 0: none")
    parser.add_argument("--limit", type=float, default=600, help="seconds until a process is given up")
    parser.add_argument("--lock", type=Path, help="a file locked while a process runs: measurements beside this one then wait")
    parser.add_argument("--work", type=Path, help="where models and caches are left; nowhere when not given")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="the folder for the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        print(table(measure(args, work)))


if __name__ == "__main__":
    main()
