"""The exact commands: lists of words, and lines that survive being pasted."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from limner import launch
from limner.config import Config, files

RUN = Path("/runs/a b")
CONFIG = Config()


def with_launch(**values) -> Config:
    return files.build({"launch": values}, {})


def test_one_process_is_this_python():
    for device in ("cpu", "cuda", "mps"):
        assert launch.argv(CONFIG, RUN, device) == [sys.executable, "-m", "limner.engine", "/runs/a b"]


def test_several_processes_on_a_cpu_are_torchruns():
    expected = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=3",
        "-m",
        "limner.engine",
        "/runs/a b",
    ]
    assert launch.argv(with_launch(num_processes=3), RUN, "cpu") == expected


def test_several_processes_on_gpus_are_accelerates():
    expected = [
        sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--multi_gpu", "-m", "limner.engine", "/runs/a b",
    ]  # fmt: skip
    assert launch.argv(with_launch(num_processes=2), RUN, "cuda") == expected


def test_accelerate_knows_every_option_we_give():
    from accelerate.commands.launch import launch_command_parser

    words = launch.argv(with_launch(num_processes=2), RUN, "cuda")[3:]
    parsed = launch_command_parser().parse_args(words)
    assert (parsed.num_processes, parsed.multi_gpu, parsed.mixed_precision) == (2, True, "no")
    assert (parsed.module, parsed.training_script, parsed.training_script_args) == (True, "limner.engine", ["/runs/a b"])


def test_the_environment(monkeypatch):
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    always = {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
    malloc = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "268435456"}
    assert launch.environment(CONFIG, "cuda") == always
    assert launch.environment(CONFIG, "cpu") == always | malloc
    assert launch.environment(with_launch(num_threads=5), "cuda") == always | {"OMP_NUM_THREADS": "5"}
    assert launch.environment(with_launch(num_processes=3), "cpu") == always | malloc | {"OMP_NUM_THREADS": "2"}
    assert launch.environment(with_launch(num_processes=16), "cpu")["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("MALLOC_TOP_PAD_", "7")
    assert launch.environment(CONFIG, "cpu") == always | {k: v for k, v in malloc.items() if k != "MALLOC_TOP_PAD_"}
    monkeypatch.setattr(sys, "platform", "win32")
    assert launch.environment(CONFIG, "cpu") == always


PATHS = ["/a b/c", "/it's", '/say "hi"', "/$HOME/`id`/;rm -rf/&&", "/катя 猫/é", "/back\\slash", "/new\nline", "/*?[a]!", "/-m"]


@pytest.mark.parametrize("path", PATHS)
def test_the_shown_line_splits_into_the_same_words(path):
    words = launch.argv(with_launch(num_processes=2), Path(path), "cpu")
    env = {"A": "1", "B": path}
    assert shlex.split(launch.shown(words, env)) == ["A=1", f"B={path}", *words]


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("path", PATHS)
def test_a_shell_runs_the_shown_line_as_meant(path):
    script = "import os, sys; sys.stdout.buffer.write(repr((sys.argv[1:], os.environ['B'])).encode())"
    line = launch.shown([sys.executable, "-S", "-E", "-c", script, path, "x y"], {"B": path, "PYTHONUTF8": "1"})
    answer = subprocess.run(["/bin/sh", "-c", line], capture_output=True, check=True)
    assert answer.stdout.decode() == repr(([path, "x y"], path))
