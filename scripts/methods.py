"""What each way to teach learns of the demo's new thing on the pocket model, judged as the demo is, for docs/methods.md.

    python scripts/methods.py --out FOLDER [--only lora full ...] [--write]

Each method trains by the same process as any run and is judged by the same prompts and seeds. Figures go to FOLDER, one file a
method, so that it can be taken up again; --write puts those that are there into docs/methods.md and
benchmarks/results/methods.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limner import disk, jobs, preflight, runs
from limner.config import Config, files
from limner.errors import UserError
from limner.formats.header import read_header
from limner.formats.metadata import TRIGGER
from limner.pocket import exam, lesson, world
from limner.pocket.judge import judge

ROOT = Path(__file__).parents[1]
NUM_SCENES = 100
BEGIN, END = "<!-- measured: scripts/methods.py -->", "<!-- end -->"


@dataclass(frozen=True)
class Method:
    """A way to teach: what is asked of Limner, and what of the result."""

    title: str
    config: dict[str, dict[str, Any]]
    data: str = "mixed"
    """What it is shown: the demo's pictures with the known ones among them ("mixed"), the new thing alone ("thing"), that
    with the known ones as class pictures ("class"), or pictures of PAIR under the demo's word ("pair")."""
    least: float = 0.7
    """The share of the pictures in which the thing shall be."""
    keeps: bool = True
    """Whether other captions shall be painted as before, within 10 points."""
    steps: int = 500


_CONV = {"rank": 16, "conv_rank": 16}
_PAIRS = [f"{colour} {shape}" for colour, shape in world.seen_pairs()]

PAIR = min(world.UNSEEN_PAIRS)
"""What textual inversion is taught a word for: a colour and a shape that the base model has never seen together. It cannot
teach the demo's house, since nothing that the model can paint has two colours, and a word changes only what is asked for."""

METHODS: dict[str, Method] = {
    "lora": Method("LoRA", {"adapter": {"rank": 32}, "optimizer": {"lr": 1.5e-3}}),
    "locon": Method("LoCon (LoRA with convolutions)", {"adapter": _CONV, "optimizer": {"lr": 8e-4}}),
    "dora": Method("DoRA", {"adapter": {**_CONV, "dora": True}, "optimizer": {"lr": 8e-4}}),
    "loha": Method("LoHa", {"adapter": {"kind": "loha", "rank": 8, "conv_rank": 8}, "optimizer": {"lr": 2e-3}}),
    "lokr": Method(
        "LoKr", {"adapter": {"kind": "lokr", "rank": 16, "conv_rank": 16, "factor": 4}, "optimizer": {"lr": 2e-3}}
    ),
    "oft": Method("OFT", {"adapter": {"kind": "oft", "block": 16, "convolutions": True}, "optimizer": {"lr": 1e-3}}),
    "full": Method("full fine-tuning", {"adapter": {"kind": "none"}, "optimizer": {"lr": 2e-4}}),
    "dreambooth": Method(
        "DreamBooth with class pictures", {"adapter": {"kind": "none"}, "optimizer": {"lr": 2e-4}}, data="class"
    ),
    "preservation": Method(
        "output preservation, no class pictures",
        {
            "adapter": _CONV, "optimizer": {"lr": 8e-4}, "objective": {"preserve": 2.0}, "data": {"class_words": _PAIRS},
        },
        data="thing",
    ),
    "embedding": Method(
        "textual inversion",
        {"adapter": {"kind": "embedding"}, "embedding": {"token": world.TRIGGER, "vectors": 4, "lr": 2e-2}},
        data="pair",
        least=0.25,
    ),
    "pivotal": Method(
        "pivotal tuning (embedding and LoRA)",
        {
            "adapter": _CONV, "optimizer": {"lr": 8e-4}, "embedding": {"token": world.TRIGGER, "vectors": 2, "lr": 5e-3},
        },
    ),
}  # fmt: skip


def config_of(method: Method, folder: Path, steps: int | None = None) -> Config:
    """What Limner is asked for."""
    mixed = lesson.lay_out(folder / "pictures")
    things = next(p for p in sorted(mixed.iterdir()) if p.name.endswith(world.TRIGGER))
    if method.data == "pair":
        things = pair_pictures(folder / "pair")
    raw: dict[str, Any] = {
        "data": {"path": str(mixed if method.data == "mixed" else things), "trigger": world.TRIGGER},
        "train": {"batch_size": 16, "steps": steps or method.steps},
        "output": {"name": world.TRIGGER, "layout": "diffusers"} if method.config["adapter"].get("kind") == "none" else {
            "name": world.TRIGGER
        },
    }  # fmt: skip
    if method.data == "class":
        raw["data"]["class_path"] = str(mixed / "1_known")
    for section, values in method.config.items():
        raw[section] = {**raw.get(section, {}), **values}
    return files.build(raw, {})


def pair_pictures(folder: Path) -> Path:
    """Pictures of PAIR where the demo's show its new thing, under the same captions."""
    rng = random.Random(8)
    folder.mkdir(exist_ok=True)
    for i, scene in enumerate(exam.thing_scenes()[0]):
        shown = world.Scene(*PAIR, size=scene.size, place=scene.place, background=scene.background, ground=scene.ground)
        world.draw(shown, rng).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(scene.caption + "\n", encoding="utf-8")
    return folder


def learn(method: Method, folder: Path, steps: int | None = None) -> tuple[Config, runs.Run, float]:
    """Train; returns what was asked, the run and the seconds it took."""
    config = config_of(method, folder, steps)
    findings, _ = preflight.examine(config, None)
    if errors := [f for f in findings if f.severity == "error"]:
        raise UserError(errors)
    started = time.monotonic()
    run = jobs.prepare(config)
    process = jobs.start(run, "cpu")
    assert process is not None
    jobs.note_exit(run, process.pid, process.wait())
    if run.state().status != "done":
        raise SystemExit(f"{run.path} failed:\n{run.tail()}")
    return config, run, time.monotonic() - started


@dataclass
class Examiner:
    """Asks a taught model for the new thing and for other captions; what the base makes of them is asked once."""

    num_scenes: int = NUM_SCENES
    num_seeds: int = exam.NUM_SEEDS
    _before: dict[str, float] = field(default_factory=dict)

    def before(self) -> dict[str, float]:
        if not self._before:
            self._before = self._ask(Config(), [])
        return self._before

    def after(self, config: Config, run: runs.Run) -> dict[str, float]:
        written = sorted(run.checkpoints.iterdir())
        if config.adapter.trains_base:
            return self._ask(Config.model_validate({"model": {"base": str(written[0])}}), [])
        return self._ask(Config(), written)

    def _ask(self, config: Config, taught: list[Path]) -> dict[str, float]:
        import torch

        from limner.engine import examine, sampling
        from limner.engine.runtime import Runtime

        asked = [(scene, seed) for scene in exam.thing_scenes()[1] for seed in range(self.num_seeds)]
        wanted = exam.held_out_scenes(self.num_scenes)
        with torch.no_grad():
            runtime = Runtime(torch.device("cpu"), "fp32")
            family = sampling.load_whole(config, runtime)
            for path in taught:
                if world.TRIGGER in learnt_words(path):
                    sampling.load_embedding(family, f"{path}={world.TRIGGER}")
                else:
                    sampling.load_lora(family, path)
            things = examine.paint_all(family, runtime, [(scene.caption, 100 + seed) for scene, seed in asked])
            others = examine.paint_all(family, runtime, [(caption, 1000 + i) for i, (_, caption) in enumerate(wanted)])
        verdicts = [judge(picture) for picture in things]
        return {
            "recognised": sum(v.is_thing for v in verdicts) / len(things),
            "pair": sum((v.colour, v.shape) == PAIR for v in verdicts) / len(things),
            "right": exam.score_scenes(others, wanted)["right"],
        }


def learnt_words(path: Path) -> str:
    """The word that a file teaches; "" of one that holds none."""
    header = read_header(path)
    return header.metadata.get(TRIGGER, "") if {"emb_params", "clip_l"} & header.tensors.keys() else ""


def measure(name: str, folder: Path, examiner: Examiner) -> dict[str, Any]:
    """One row of the table."""
    method = METHODS[name]
    config, run, seconds = learn(method, folder)
    after = examiner.after(config, run)
    size = sum(p.stat().st_size for p in run.checkpoints.rglob("*") if p.is_file())
    return {
        "seconds": round(seconds, 1),
        "bytes": size,
        "steps": run.state().step,
        "before": examiner.before(),
        "after": after,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "config": method.config,
    }


def row(name: str, found: dict[str, Any]) -> str:
    method = METHODS[name]
    before, after = found["before"], found["after"]
    learnt = after["pair" if method.data == "pair" else "recognised"]
    return (
        f"| {method.title} | {learnt:.0%} | {before['right']:.0%} -> {after['right']:.0%} "
        f"| {found['steps']} | {found['seconds']:.0f} s | {found['bytes'] / 1e6:.2f} MB |"
    )


def table(found: dict[str, dict[str, Any]]) -> str:
    head = "| method | new thing | other captions | steps | training | file |\n|---|---|---|---|---|---|"
    return "\n".join([head, *(row(name, found[name]) for name in METHODS if name in found)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    examiner = Examiner()
    for name in asked.only:
        file = asked.out / f"{name}.json"
        if not file.exists():
            disk.write_json(file, measure(name, asked.out, examiner))
        print(row(name, json.loads(file.read_text(encoding="utf-8"))), flush=True)
    if asked.write:
        found = {n: json.loads(f.read_text(encoding="utf-8")) for n in METHODS if (f := asked.out / f"{n}.json").exists()}
        disk.write_json(ROOT / "benchmarks" / "results" / "methods.json", found)
        page = ROOT / "docs" / "methods.md"
        head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        page.write_text(f"{head}{BEGIN}\n\n{table(found)}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
