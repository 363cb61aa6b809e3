"""The programs that rivals.py compares: how each is told to train the same LoRA, and where its step times and file are read.

Each keeps what it may keep from one run to the next (caches) in a folder of its own, its place. All are started by their
Python directly: `accelerate launch`, which the rivals' manuals use, takes some seconds more.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from limner.config import files
from limner.runs import Run

RANK, SEED, LR = 16, 0, 1e-3
"""The rate is high, so that the losses show within few steps whether the same is learnt."""

_BAR = re.compile(r"[Ss]teps: .*\| *(\d+)/\d+ \[")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Task:
    """What all of them are to do, at batch 1."""

    file: Path
    """The model as one file, and the same as a folder of diffusers:"""
    folder: Path
    pictures: Path
    """Of the size to train at, captioned."""
    side_px: int
    precision: str
    """fp32, or bf16: frozen weights in bf16, the LoRA in fp32."""
    steps: int


@dataclass(frozen=True)
class Start:
    words: list[str]
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)


Readings = dict[int, float]
"""Finished steps -> when the last of them was told, in seconds since the epoch."""


class Program(Protocol):
    name: str

    def prepare(self, place: Path, task: Task) -> Start:
        """Make the place ready, which is not timed; raises LookupError if the program is not what it should be."""
        ...

    def model(self, task: Task) -> Path:
        """Which of the model's two forms it reads."""
        ...

    def pids(self, place: Path) -> Iterable[int]:
        """Processes that work for it without being its descendants."""
        ...

    def readings(self, place: Path, lines: list[tuple[float, str]]) -> Readings: ...

    def losses(self, place: Path, lines: list[tuple[float, str]]) -> list[float]:
        """Each step's, of programs that can be told which draws to use."""
        ...

    def output(self, place: Path) -> Path | None: ...

    def version(self) -> str: ...


class _Foreign:
    """What is the same for programs that know nothing of Limner."""

    def pids(self, place: Path) -> Iterable[int]:  # noqa: ARG002
        return ()

    def losses(self, place: Path, lines: list[tuple[float, str]]) -> list[float]:  # noqa: ARG002
        return []

    def readings(self, place: Path, lines: list[tuple[float, str]]) -> Readings:  # noqa: ARG002
        return bar_readings(lines)


def bar_readings(lines: list[tuple[float, str]]) -> Readings:
    """When a progress bar that is called steps first showed each count."""
    out = Readings()
    for when, text in lines:
        if (match := _BAR.search(text)) and int(match[1]):
            out.setdefault(int(match[1]), when)
    return out


class Limner:
    """`limner train` with its defaults, but for what must be alike."""

    name = "Limner"

    def prepare(self, place: Path, task: Task) -> Start:
        raw: dict[str, Any] = {
            "model": {"base": str(task.file)},
            "data": {"path": str(task.pictures), "resolution": task.side_px},
            "adapter": {"kind": "lora", "rank": RANK},
            "optimizer": {"lr": LR, "schedule": "constant"},
            "train": {"steps": task.steps, "seed": SEED, "precision": task.precision},
            "memory": {"vae_dtype": task.precision},  # as sd-scripts has it
            "output": {"dtype": "fp32"},
            "launch": {"device": "cpu"},
        }
        config = place / "config.toml"
        config.write_text(files.render(files.build(raw, {}), advanced=False), encoding="utf-8")
        home = {"LIMNER_HOME": str(place / "home"), "PYTHONUNBUFFERED": "1"}
        return Start([sys.executable, "-m", "limner.cli", "train", str(config)], place, home)

    def model(self, task: Task) -> Path:
        return task.file

    def _run(self, place: Path) -> Run | None:
        found = [p for p in (place / "home" / "runs").glob("*") if (p / "state.json").exists()]
        return Run(max(found, key=lambda p: p.stat().st_ctime_ns)) if found else None

    def pids(self, place: Path) -> Iterable[int]:
        run = self._run(place)
        return [run.state().pid] if run and run.state().pid else []

    def _events(self, place: Path) -> list[dict[str, Any]]:
        run = self._run(place)
        return run.history() if run else []  # without what was done again

    def readings(self, place: Path, lines: list[tuple[float, str]]) -> Readings:  # noqa: ARG002
        # losses are read back at most once a second; each time is followed by a note of the memory
        return {e["step"]: e["time"] for e in self._events(place) if e["event"] == "memory"}

    def losses(self, place: Path, lines: list[tuple[float, str]]) -> list[float]:  # noqa: ARG002
        return [e["loss"] for e in self._events(place) if e["event"] == "step"]

    def output(self, place: Path) -> Path | None:
        run = self._run(place)
        return next(run.checkpoints.glob("*.safetensors"), None) if run else None

    def version(self) -> str:
        return versions_of(sys.executable, "limner", "torch", "diffusers", "transformers")


class Bare:
    """The plainest loop: bare_loop.py beside this file."""

    name = "bare loop"

    def prepare(self, place: Path, task: Task) -> Start:
        script = Path(__file__).parent / "bare_loop.py"
        words = [sys.executable, str(script), str(task.folder), str(task.pictures), "--steps", str(task.steps)]
        words += ["--precision", task.precision, "--rank", str(RANK), "--lr", str(LR), "--seed", str(SEED)]
        return Start(words, place, _OFFLINE)

    def model(self, task: Task) -> Path:
        return task.folder

    def pids(self, place: Path) -> Iterable[int]:  # noqa: ARG002
        return ()

    def told(self, lines: list[tuple[float, str]], key: str) -> dict[int, float]:
        """Step -> what the loop said of it under a key."""
        out = dict[int, float]()
        for _, text in lines:
            if text.startswith('{"step"') and text.endswith("}"):
                said = json.loads(text)
                if key in said:
                    out[said["step"]] = said[key]
        return out

    def readings(self, place: Path, lines: list[tuple[float, str]]) -> Readings:  # noqa: ARG002
        return self.told(lines, "time")

    def losses(self, place: Path, lines: list[tuple[float, str]]) -> list[float]:  # noqa: ARG002
        return list(self.told(lines, "loss").values())

    def output(self, place: Path) -> Path | None:  # noqa: ARG002
        return None

    def version(self) -> str:
        return versions_of(sys.executable, "torch", "diffusers")


@dataclass
class SdScripts(_Foreign):
    """train_network.py of a checkout of sd-scripts. The text encoder encodes at every step: for SD 1.5 it has no cache."""

    checkout: Path
    python: str
    name: str = "sd-scripts"

    def prepare(self, place: Path, task: Task) -> Start:
        if not (self.checkout / "train_network.py").is_file():
            raise LookupError(f"there is no train_network.py in {self.checkout.name}")
        pictures = place / "pictures" / "1_bench"
        if not pictures.exists():
            shutil.copytree(task.pictures, pictures)
            _clip_tokenizer(place / "tokenizer" / "openai_clip-vit-large-patch14")
        shutil.rmtree(place / "out", ignore_errors=True)
        words = [
            *_launched(self.python, task), "train_network.py",
            "--pretrained_model_name_or_path", str(task.file), "--caption_extension", ".txt",
            "--train_data_dir", str(pictures.parent), "--resolution", f"{task.side_px},{task.side_px}",
            "--output_dir", str(place / "out"), "--output_name", "lora", "--save_model_as", "safetensors",
            "--network_module", "networks.lora", "--network_dim", str(RANK), "--network_alpha", str(RANK),
            "--network_train_unet_only", "--optimizer_type", "AdamW", "--learning_rate", str(LR),
            "--lr_scheduler", "constant", "--max_train_steps", str(task.steps), "--train_batch_size", "1",
            "--mixed_precision", _mixed(task), "--seed", str(SEED), "--sdpa",
            "--cache_latents", "--cache_latents_to_disk", "--max_data_loader_n_workers", "0",
            "--tokenizer_cache_dir", str(place / "tokenizer"),
        ]  # fmt: skip
        return Start(words, self.checkout, {**_OFFLINE, "HF_HOME": str(place / "hub")})

    def model(self, task: Task) -> Path:
        return task.file

    def output(self, place: Path) -> Path | None:
        return next((place / "out").glob("*.safetensors"), None)

    def version(self) -> str:
        packages = versions_of(self.python, "torch", "diffusers", "transformers", "accelerate")
        return f"{commit_of(self.checkout / 'train_network.py')}; {packages}"


_THEIR_TARGETS = 'target_modules=["to_k", "to_q", "to_v", "to_out.0"]'
_SAME_TARGETS = r'target_modules=r".*(to_[qkv]|to_out\.0|ff\.net\.0\.proj|ff\.net\.2|attentions\.\d+\.proj_(in|out))"'


@dataclass
class DiffusersScript(_Foreign):
    """examples/text_to_image/train_text_to_image_lora.py of diffusers, one line of it changed: which layers are adapted. It
    encodes pictures and captions at every step: it has no caches."""

    script: Path
    python: str
    name: str = "diffusers script"

    def prepare(self, place: Path, task: Task) -> Start:
        text = self.script.read_text(encoding="utf-8") if self.script.is_file() else ""
        if text.count(_THEIR_TARGETS) != 1:
            raise LookupError(f"{self.script.name} is not there, or has no line {_THEIR_TARGETS}")
        changed = place / self.script.name
        changed.write_text(text.replace(_THEIR_TARGETS, _SAME_TARGETS), encoding="utf-8")
        pictures = place / "pictures"
        if not pictures.exists():
            shutil.copytree(task.pictures, pictures, ignore=shutil.ignore_patterns("*.txt"))
            rows = [
                json.dumps({"file_name": p.name, "text": p.with_suffix(".txt").read_text(encoding="utf-8")})
                for p in sorted(task.pictures.glob("*.png"))
            ]
            (pictures / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        shutil.rmtree(place / "out", ignore_errors=True)
        words = [
            *_launched(self.python, task), str(changed),
            "--pretrained_model_name_or_path", str(task.folder), "--train_data_dir", str(pictures),
            "--caption_column", "text", "--resolution", str(task.side_px), "--train_batch_size", "1",
            "--max_train_steps", str(task.steps), "--rank", str(RANK), "--learning_rate", str(LR),
            "--lr_scheduler", "constant", "--lr_warmup_steps", "0", "--seed", str(SEED), "--output_dir", str(place / "out"),
            "--mixed_precision", _mixed(task), "--dataloader_num_workers", "0",
            "--checkpointing_steps", "1000000",
        ]  # fmt: skip
        return Start(words, place, {**_OFFLINE, "HF_HOME": str(place / "hub")})

    def model(self, task: Task) -> Path:
        return task.folder

    def output(self, place: Path) -> Path | None:
        return next((place / "out").glob("*.safetensors"), None)

    def version(self) -> str:
        packages = versions_of(self.python, "torch", "diffusers", "transformers", "accelerate", "peft")
        return f"{commit_of(self.script)}; {packages}"


def _launched(python: str, task: Task) -> list[str]:
    """How their manuals, and the page of kohya_ss, start a script: by accelerate, told what it would ask for."""
    return [
        python, "-m", "accelerate.commands.launch", "--quiet", "--cpu", "--num_processes", "1", "--num_machines", "1",
        "--dynamo_backend", "no", "--mixed_precision", _mixed(task),
        "--num_cpu_threads_per_process", os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
    ]  # fmt: skip


def _mixed(task: Task) -> str:
    """Their word for a precision."""
    return "no" if task.precision == "fp32" else task.precision


def _clip_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer in the two files that every version of transformers reads."""
    from limner.models.text import clip_tokenizer  # torch comes with it

    folder.mkdir(parents=True)
    model = json.loads(clip_tokenizer().backend_tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}), encoding="utf-8")


def versions_of(python: str, *packages: str) -> str:
    """What a Python has of these packages, as "torch 2.13.0, ..."."""
    code = (
        "import sys\nfrom importlib.metadata import PackageNotFoundError, version\n"
        "for name in sys.argv[1:]:\n try: print(name, version(name))\n except PackageNotFoundError: pass"
    )
    try:
        done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{Path(python).name} cannot be started: {error.strerror}"
    return ", ".join(done.stdout.split("\n")).strip(", ")


def commit_of(script: Path) -> str:
    """The commit of the checkout in which a script lies, or what the script itself hashes to."""
    words = ["git", "-C", str(script.parent), "rev-parse", "--short=12", "HEAD"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "GIT_CEILING_DIRECTORIES": ""})
    if done.returncode == 0:
        return f"commit {done.stdout.strip()}"
    digest = hashlib.sha256(script.read_bytes()).hexdigest() if script.is_file() else "missing"
    return f"{script.name} {digest[:12]}"
