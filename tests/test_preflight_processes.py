"""What is found before the start of several processes, on the machine that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner import launch, preflight
from limner.config import files
from limner.machine import Device, Machine

_CARD = Device("cuda", "H200", 140_000, True)
CPU = Machine("2.13.0", "cpu", (Device("cpu", "x86", 16_000, True),), 4, 16_000, "")
FOUR = Machine("2.13.0", "12.8", (*CPU.devices, _CARD, _CARD, _CARD, _CARD), 16, 64_000, "")
MAC = Machine("2.13.0", "", (*CPU.devices, Device("mps", "M3", 64_000, True)), 8, 64_000, "")
TWO = {"num_processes": 4, "num_machines": 2, "main_process_ip": "10.0.0.1"}
NONE = {"adapter": {"kind": "none"}}

CASES = [
    (CPU, {"num_processes": 4, "restarts": 3}, {}, []),
    (CPU, {"restarts": 3}, {}, [("restarts", "warning", "single process")]),
    (CPU, {"extra": ["--monitor_interval=1"]}, {}, [("extra", "warning", "single process")]),
    (CPU, {"num_processes": 2, "extra": ["--nnodes=3"]}, {}, [("extra", "error", "not among the arguments")]),
    (CPU, {"num_processes": 2, "extra": ["--monitor_interval=x"]}, {}, [("extra", "error", "takes seconds")]),
    (CPU, {"num_processes": 2, "extra": ["--enable_cpu_affinity"]}, {}, [("extra", "error", "is for accelerate")]),
    (FOUR, {"num_processes": 2, "extra": ["--enable_cpu_affinity"]}, {}, []),
    (FOUR, {"num_processes": 2, "extra": ["--numa_binding=node"]}, {}, [("extra", "error", "is for torchrun")]),
    (FOUR, {**TWO, "extra": ["--numa_binding=node"]}, {}, []),
    (FOUR, {"num_processes": 5}, {}, [("num_processes", "error", "5 processes, but 4")]),
    (FOUR, {"num_processes": 8, "num_machines": 2, "main_process_ip": "main"}, {}, []),
    (FOUR, {**TWO, "machine_rank": 2}, {}, [("machine_rank", "error", "0 to 1")]),
    (FOUR, {**TWO, "num_processes": 3}, {}, [("num_processes", "error", "evenly among 2 machines")]),
    (FOUR, {"num_processes": 2, "num_machines": 2}, {}, [("main_process_ip", "error", "where the main one is")]),
    (FOUR, {**TWO, "main_process_ip": "a b"}, {}, [("main_process_ip", "error", "no machine's name")]),
    (FOUR, {"machine_rank": 1}, {}, [("machine_rank", "warning", "one machine")]),
    (FOUR, {"num_processes": 2, "gpu_ids": "1,3"}, {}, []),
    (FOUR, {"num_processes": 2, "gpu_ids": "all"}, {}, []),
    (FOUR, {"num_processes": 2, "gpu_ids": "1"}, {}, [("gpu_ids", "error", "1 GPUs are named for 2")]),
    (FOUR, {"num_processes": 2, "gpu_ids": "1,4"}, {}, [("gpu_ids", "error", "no GPU 4")]),
    (FOUR, {"num_processes": 2, "gpu_ids": "1,1"}, {}, [("gpu_ids", "error", "no list of GPUs")]),
    (FOUR, {"num_processes": 2, "gpu_ids": "GPU-1;ls"}, {}, [("gpu_ids", "error", "no list of GPUs")]),
    (CPU, {"num_processes": 2, "gpu_ids": "0,1"}, {}, [("gpu_ids", "error", "trains on cpu")]),
    (FOUR, {"num_processes": 2, "shard": "full"}, NONE, []),
    (FOUR, {"num_processes": 2, "shard": "full"}, {}, [("shard", "error", "an adapter is small")]),
    (FOUR, {"shard": "full"}, NONE, [("shard", "warning", "one process")]),
    (FOUR, {"num_processes": 2, "shard": "full"}, {"adapter": {"kind": "none", "text_encoder": True}},
     [("shard", "error", "text encoders")]),
    (FOUR, {"num_processes": 2, "shard": "full"}, NONE | {"optimizer": {"kind": "adafactor"}}, [("shard", "error", "slices")]),
    (FOUR, {"num_processes": 2, "shard": "full"}, NONE | {"train": {"precision": "fp16"}}, [("shard", "error", "fp16")]),
]  # fmt: skip


@pytest.mark.parametrize(("machine", "launched", "sections", "found"), CASES)
def test_each_finding(machine, launched, sections, found):
    config = files.build({"launch": launched, "output": {"layout": "diffusers"}, **sections}, {})
    all_found = [f for f in preflight.examine(config, machine)[0] if f.field.startswith("launch.")]
    assert [(f.field[7:], f.severity) for f in all_found] == [(field, severity) for field, severity, _ in found], all_found
    assert all(words in f.message for f, (_, _, words) in zip(all_found, found, strict=True)), all_found
    if not any(f.severity == "error" for f in all_found):
        launch.argv(config, Path("/runs/x"), machine.best().kind)  # what is found good can be started


def test_a_mac_has_one_gpu():
    config = files.build({"launch": {"num_processes": 2}}, {})
    messages = [f.message for f in preflight.examine(config, MAC)[0] if f.field == "launch.num_processes"]
    assert "there is one GPU on a Mac." in messages
