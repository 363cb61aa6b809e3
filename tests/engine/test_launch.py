"""The exact commands: lists of words, and lines that survive being pasted."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from limner import disk, launch
from limner.config import Config, files
from limner.errors import UserError

RUN = Path("/runs/a b")
CONFIG = Config()


def with_launch(**values) -> Config:
    return files.build({"launch": values}, {})


def test_one_process_is_this_python():
    for device in ("cpu", "cuda", "mps"):
        assert launch.argv(CONFIG, RUN, device) == [sys.executable, "-m", "limner.engine", "/runs/a b"]


def test_several_processes_on_a_cpu_are_torchruns():
    expected = [
        sys.executable, "-m", "limner.engine.together", "/runs/a b", "2",
        "torch.distributed.run", "--standalone", "--nproc_per_node=3", "-m", "limner.engine", "/runs/a b",
    ]  # fmt: skip
    assert launch.argv(with_launch(num_processes=3, restarts=2), RUN, "cpu") == expected
    words = launch.argv(with_launch(num_processes=3, main_process_port=29511, extra=["--monitor_interval=2"]), RUN, "cpu")
    assert words[6:-3] == ["--master_addr=127.0.0.1", "--master_port=29511", "--nproc_per_node=3", "--monitor_interval=2"]


def test_several_processes_on_gpus_are_accelerates():
    expected = [
        sys.executable, "-m", "limner.engine.together", "/runs/a b", "0",
        "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
        "--dynamo_backend", "no", "--main_process_port", "0", "--multi_gpu", "-m", "limner.engine", "/runs/a b",
    ]  # fmt: skip
    assert launch.argv(with_launch(num_processes=2), RUN, "cuda") == expected


def test_several_machines_are_torchruns():
    machines = {"num_processes": 8, "num_machines": 2, "machine_rank": 1, "main_process_ip": "10.0.0.1"}
    words = launch.argv(with_launch(**machines), RUN, "cuda")[5:-3]
    assert words == [
        "torch.distributed.run", "--nnodes=2", "--node_rank=1", "--nproc_per_node=4", "--master_addr=10.0.0.1",
        "--master_port=29500",
    ]  # fmt: skip


@pytest.mark.parametrize("host", ["--rdzv_backend", "a b", "10.0.0.1;ls", "", "-x", "$(id)", "a\u00e9"])
def test_a_machines_name_is_one(host):
    machines = {"num_processes": 2, "num_machines": 2, "main_process_ip": host}
    with pytest.raises(UserError, match="main_process_ip"):
        launch.argv(with_launch(**machines), RUN, "cpu")


@pytest.mark.parametrize(
    "word", ["evil.py", "-m", "--no_python", "--monitor_interval", "--monitor_interval=1 -m os", "--log_dir=/x",
             "--rdzv_conf=a=../b", "--numa_binding=/bin/sh", "--enable_cpu_affinity=x", "--local_addr=-m", "--module=os"],
)  # fmt: skip
def test_no_free_word_reaches_a_launcher(word):
    for device in ("cpu", "cuda"):
        with pytest.raises(UserError, match=r"launch\.extra"):
            launch.argv(with_launch(num_processes=2, extra=[word]), RUN, device)


def test_torchrun_knows_every_argument_that_is_let_through():
    from torch.distributed.run import get_args_parser

    given = ["--monitor_interval=0.5", "--rdzv_conf=timeout=30,read_timeout=5", "--local_addr=10.0.0.2", "--numa_binding=node"]
    words = launch.argv(with_launch(num_processes=2, extra=given), RUN, "cpu")[6:]
    parsed = get_args_parser().parse_args(words)
    assert (parsed.monitor_interval, parsed.rdzv_conf, parsed.local_addr) == (0.5, "timeout=30,read_timeout=5", "10.0.0.2")
    assert (parsed.numa_binding, parsed.module, parsed.training_script) == ("node", True, "limner.engine")


def test_fewer_gpus_than_asked_for_share_out_the_same_steps(tmp_path):
    config = files.build({"launch": {"num_processes": 4}, "train": {"accumulation": 3}}, {})
    assert [launch.num_processes(config, tmp_path, "cuda", n) for n in (8, 4, 3, 2, 1, 0)] == [4, 4, 3, 2, 1, 1]
    config = files.build({"launch": {"num_processes": 4}}, {})
    assert [launch.num_processes(config, tmp_path, "cuda", n) for n in (8, 3, 1)] == [4, 2, 1]
    assert launch.num_processes(config, tmp_path, "cpu") == 4
    disk.write_json(tmp_path / "processes.json", 2)
    assert launch.num_processes(config, tmp_path, "cpu") == 2
    assert launch.num_processes(config, tmp_path, "cuda", 1) == 1


def test_accelerate_knows_every_option_we_give():
    from accelerate.commands.launch import launch_command_parser

    words = launch.argv(with_launch(num_processes=2, extra=["--monitor_interval=1", "--enable_cpu_affinity"]), RUN, "cuda")[6:]
    parsed = launch_command_parser().parse_args(words)
    assert (parsed.num_processes, parsed.multi_gpu, parsed.mixed_precision) == (2, True, "no")
    assert (parsed.module, parsed.training_script, parsed.training_script_args) == (True, "limner.engine", ["/runs/a b"])


def test_the_environment(monkeypatch):
    for name in launch._MALLOC:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    always = {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
    malloc = {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "100000000000",
        "MALLOC_TOP_PAD_": "268435456",
        "NUMPY_MADVISE_HUGEPAGE": "0",
        "GLIBC_TUNABLES": "glibc.malloc.mxfast=0:glibc.malloc.tcache_count=0",
    }
    assert launch.environment(CONFIG, "cuda") == always
    assert launch.environment(CONFIG, "cpu") == always | malloc
    assert launch.environment(with_launch(num_threads=5), "cuda") == always | {"OMP_NUM_THREADS": "5"}
    several = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "15"}
    assert launch.environment(with_launch(num_processes=3), "cpu") == always | malloc | several | {"OMP_NUM_THREADS": "2"}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    given = launch.environment(with_launch(gpu_ids="2, 0"), "cuda")
    assert given == always | {"CUDA_VISIBLE_DEVICES": "2,0", "LIMNER_VISIBLE_GPUS": "None"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-7")
    assert launch.environment(with_launch(gpu_ids="2,0"), "cuda")["CUDA_VISIBLE_DEVICES"] == "GPU-7,4"
    two = with_launch(num_processes=8, num_machines=2)
    assert launch.environment(two, "cpu")["OMP_NUM_THREADS"] == "2"
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
