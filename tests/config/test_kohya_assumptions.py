"""kohya_ss's form rests on ten assumptions about the machine and the trainer. What Limner does in place of each.

The import takes none of them over; where another part of Limner answers, that part is asked.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from limner import jobs, launch, runs
from limner.config import Config, Output, defaults, files
from limner.config.kohya.gui import read
from limner.config.kohya.report import Line
from limner.errors import UserError
from limner.machine import Device, Machine
from limner.preflight.device import check_device
from limner.preflight.output import writable
from limner.preflight.records import Records

CPU = Device("cpu", "x86", 16_000, True)
OLD_GPU = Machine("2.13.0", "12.8", (CPU, Device("cuda", "GTX 1080", 8_000, False)), 8, 16_000, "")


def look(**keys: Any) -> tuple[Any, dict[str, Line]]:
    got = read({"LoRA_type": "Standard", "model_list": "", **keys}, "form.json")
    assert got is not None
    return files.build(got.values, {}), got.report.lines


def found(config: Config) -> dict[str, str]:
    """{field: severity} of what is wrong with this machine."""
    return {f.field: f.severity for f in check_device(config, OLD_GPU, Records())}


def test_assumption_1_sd_scripts_lie_at_a_fixed_place(tmp_path: Path) -> None:
    """An imported run is trained by Limner itself: its command names this Python and a module of Limner's, no script."""
    config, _ = look(LoRA_type="Flux1", flux1_checkbox=True, train_data_dir=str(tmp_path))
    words = launch.argv(config, tmp_path / "run", "cuda")
    assert words == [sys.executable, "-m", launch.TRAINER, str(tmp_path / "run")]
    assert "sd-scripts" not in " ".join([*words, *launch.environment(config, "cuda").values()])


def test_assumption_2_prompts_lie_at_one_place(tmp_path: Path) -> None:
    """Prompts are part of the configuration: importing writes no file, also where sampling is off, and a prompt file can be
    used as it is."""
    config, _ = look(sample_prompts="a cat --s 20", output_dir=str(tmp_path), sample_every_n_steps=0)
    assert config.sample.prompts == ("a cat --s 20",)
    assert list(tmp_path.iterdir()) == []
    for name in ("p.txt", "p.toml", "p.json"):
        (file := tmp_path / name).write_text("a dog", encoding="utf-8")
        run = jobs.prepare(files.build({"sample": {"prompt_file": str(file)}}, {}))
        assert run.prompts == run.path / f"prompts{file.suffix}"


def test_assumption_3_there_are_as_many_gpus_as_processes() -> None:
    """The number is taken, and the preflight compares it with the machine."""
    config, lines = look(num_processes=2, multi_gpu=False, mixed_precision="fp16")
    assert config.launch.num_processes == 2
    assert lines["num_processes"].outcome == "taken"
    assert found(config) == {"launch.num_processes": "error"}
    assert found(look(num_processes=1, multi_gpu=True, mixed_precision="fp16")[0]) == {}


def test_assumption_4_unknown_keys_do_no_harm() -> None:
    """A key that nobody knows is said by the import, and ends a configuration of Limner's own."""
    _, lines = look(learnin_rate=1e-4)
    assert lines["learnin_rate"].outcome == "unknown"
    with pytest.raises(UserError, match=r"learnin_rate.*no such option"):
        files.build({"optimizer": {"learnin_rate": 1e-4}}, {})


def test_assumption_5_one_learning_rate_suits_all() -> None:
    """Where a form gives none, the rate follows what is trained and the optimiser."""
    for optimizer, rate in (("AdamW", 1e-4), ("Prodigy", 1.0), ("Lion", 1e-4 / 3), ("pytorch_optimizer.CAME", 1e-5)):
        config, _ = look(optimizer=optimizer)
        assert config.optimizer.lr is None
        assert defaults.learning_rate(config, is_pocket=False) == pytest.approx(rate)
    whole = read({"model_list": "", "optimizer": "AdamW", "train_text_encoder": True}, "form.json")
    assert whole is not None
    assert defaults.learning_rate(files.build(whole.values, {}), is_pocket=False) == pytest.approx(5e-6)


def test_assumption_6_the_process_is_the_one_that_was_started() -> None:
    """What is said of a run comes from its folder and the process table: another process of the same number is not it."""
    run = runs.create(Config(output=Output(name="cat")))
    mine = psutil.Process().create_time()
    run.write_state(runs.State(status="running", pid=os.getpid(), process_started=mine))
    assert runs.Run(run.path).state().status == "running"  # also for who opens the folder anew
    run.write_state(runs.State(status="running", pid=os.getpid(), process_started=mine - 1000))
    assert runs.Run(run.path).state().status == "failed"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    run.write_state(runs.State(status="running", pid=gone.pid, process_started=time.time()))
    assert runs.Run(run.path).state().status == "failed"


def test_assumption_7_folders_can_be_written(tmp_path: Path) -> None:
    """A file is really put there, below the nearest folder that exists, and taken away."""
    config, _ = look(output_dir=str(tmp_path / "new" / "out"))
    assert config.output.path == tmp_path / "new" / "out"
    assert list(writable("output.path", config.output.path)) == []
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "out", Path("/proc/none")):
        assert [f.severity for f in writable("output.path", folder)] == ["error"], folder


def test_assumption_8_every_gpu_has_every_precision() -> None:
    """bf16 on a GPU without it is refused before the start; fp8, which no trainer takes, by the import."""
    assert found(look(mixed_precision="bf16")[0]) == {"train.precision": "error"}
    assert found(look(mixed_precision="fp16")[0]) == {}
    config, lines = look(mixed_precision="fp8")
    assert (config.train.precision, lines["mixed_precision"].outcome) == (None, "unsupported")
    assert defaults.precision(config, "cuda", has_bf16=False) != "bf16"


def test_assumption_9_nobody_changes_the_prompts_of_a_running_training(tmp_path: Path) -> None:
    """Two runs with the same output folder have prompts of their own; a changed file changes neither."""
    (file := tmp_path / "prompt.txt").write_text("a cat", encoding="utf-8")
    config = files.build({"sample": {"prompt_file": str(file)}, "output": {"path": str(tmp_path)}}, {})
    first = jobs.prepare(config)
    file.write_text("a dog", encoding="utf-8")
    second = jobs.prepare(config)
    assert first.prompts is not None
    assert second.prompts is not None
    assert first.prompts.read_text(encoding="utf-8") == "a cat"
    assert second.prompts.read_text(encoding="utf-8") == "a dog"


def test_assumption_10_flags_of_sdxl_do_no_harm_elsewhere() -> None:
    """Encoding captions beforehand wins over training the text encoder, which is what the form begins with; without SDXL the
    flag does nothing; of two families that are ticked one is said to be idle."""
    keys: dict[str, Any] = {"sdxl_cache_text_encoder_outputs": True, "text_encoder_lr": 1e-4, "unet_lr": 1e-4, "clip_skip": 1}
    config, lines = look(sdxl=True, **keys)
    assert (config.memory.cache_text, config.adapter.text_encoder) == (True, False)
    assert "refuses to start" in lines["text_encoder_lr"].why
    config, lines = look(sdxl=False, **keys)
    assert config.adapter.text_encoder
    assert lines["sdxl_cache_text_encoder_outputs"].outcome == "idle"
    config, lines = look(sdxl=True, flux1_checkbox=True, **keys)
    assert (config.model.family, lines["flux1_checkbox"].outcome) == ("sdxl", "idle")
