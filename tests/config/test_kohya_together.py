"""`limner import`: several files as one, files that say nothing, and what of a file is no option after all."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from limner import cli, importing
from limner.config.kohya import Imported, read_text
from limner.errors import UserError

LORA: dict[str, Any] = {"LoRA_type": "Standard", "max_resolution": "512,512", "optimizer": "AdamW"}


def gui(**keys: Any) -> Imported:
    return read_text(json.dumps(LORA | keys), "x.json")


def run(*words: str) -> int:
    return cli.app(["import", *words], result_action="return_value")


def lora(path: Path, metadata: dict[str, str] | None) -> Path:
    header: dict[str, Any] = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(header | ({} if metadata is None else {"__metadata__": metadata})).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    return path


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"ss_epoch": "3"}])
def test_a_lora_that_says_nothing_is_refused_by_name(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = lora(tmp_path / "bare.safetensors", metadata)
    with pytest.raises(UserError, match=r"bare\.safetensors: says nothing of its training"):
        importing.of_file(path)
    with pytest.raises(UserError, match="says nothing of its training"):
        importing.of_text(json.dumps(metadata or {}), "bare.safetensors")
    assert importing.of_file(lora(path, {"ss_network_dim": "7"})).values["adapter"]["rank"] == 7


def test_files_of_one_name_keep_all_their_lines() -> None:
    found = importing.together([("a.json", gui(network_dim=4)), ("a.json", gui(network_dim=8))])
    assert found.values["adapter"]["rank"] == 8
    assert len(found.report.lines) == 2 * (len(LORA) + 1)
    first, second = found.report.lines["a.json: network_dim"], found.report.lines["a.json (2): network_dim"]
    assert (first.value, first.outcome, first.becomes) == (4, "idle", ()) and "a.json (2) says otherwise" in first.why
    assert (second.value, second.outcome, second.becomes) == (8, "taken", ("adapter.rank",))
    # what both say alike is no contradiction
    assert found.report.lines["a.json: optimizer"].becomes == ("optimizer.kind",)


def test_options_of_another_kind_are_said_to_be_gone() -> None:
    found = importing.together([("a", gui(network_dim=4, rank_dropout=0.1)), ("b", gui(LoRA_type="LyCORIS/iA3"))])
    assert "rank" not in found.values["adapter"] and found.values["adapter"]["kind"] == "ia3"
    assert {found.report.lines[f"a: {key}"].outcome for key in ("network_dim", "rank_dropout", "LoRA_type")} == {"idle"}


def test_a_dataset_file_needs_a_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data.toml"
    path.write_text('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "/pictures"\n', encoding="utf-8")
    with pytest.raises(UserError, match="out: is needed"):
        run(str(path))
    assert run(str(path), "-o", str(tmp_path / "new" / "run.toml")) == 0
    assert (tmp_path / "new" / "run-subsets.json").is_file() and "Wrote" in capsys.readouterr().out


def test_adaptive_noise_is_idle_without_an_offset() -> None:
    alone = gui(noise_offset=0, adaptive_noise_scale=0.01, noise_offset_type="Original")
    assert "noise_offset_adaptive" not in alone.values.get("objective", {})
    assert alone.report.lines["adaptive_noise_scale"].outcome == "idle"
    beside = gui(noise_offset=0.05, adaptive_noise_scale=0.01, noise_offset_type="Original")
    assert beside.values["objective"] == {"noise_offset": 0.05, "noise_offset_adaptive": 0.01}


@pytest.mark.parametrize("schedule", ["cosine_with_min_lr", "warmup_stable_decay"])
def test_cycles_of_schedules_that_fall_once_here_are_said(schedule: str) -> None:
    found = gui(lr_scheduler=schedule, lr_scheduler_num_cycles=3).report.lines["lr_scheduler_num_cycles"]
    assert found.outcome == "unsupported" and "cosine_restarts" in found.why
    assert gui(lr_scheduler=schedule, lr_scheduler_num_cycles=1).report.lines["lr_scheduler_num_cycles"].outcome == "idle"


def test_sizes_of_buckets_are_idle_where_there_are_none() -> None:
    sizes: dict[str, Any] = {"min_bucket_reso": 256, "max_bucket_reso": 1024, "bucket_reso_steps": 64}
    off = gui(**sizes, enable_bucket=False, bucket_no_upscale=False)
    assert {off.report.lines[key].outcome for key in sizes} == {"idle"} and not any("bucket_" in o for o in off.values["data"])
    kept = gui(**sizes, enable_bucket=True, bucket_no_upscale=True)
    assert kept.values["data"]["bucket_step_px"] == 64 and "bucket_min_px" not in kept.values["data"]
    free = gui(**sizes, enable_bucket=True, bucket_no_upscale=False)
    assert (free.values["data"]["bucket_min_px"], free.values["data"]["bucket_max_px"]) == (256, 1024)


def test_batch_sizes_of_a_dataset_file_become_one_and_leave_it() -> None:
    raw = {"general": {"batch_size": 2}, "datasets": [{"batch_size": 4, "subsets": []}, {"batch_size": 4}, {"batch_size": 8}]}
    found = read_text(json.dumps(raw), "data.json")
    assert found.values == {"train": {"batch_size": 4}} and "batch_size" not in found.subsets
    outcomes = {key: line.outcome for key, line in found.report.lines.items() if key.endswith("batch_size")}
    assert outcomes == {
        "general.batch_size": "unsupported", "datasets[0].batch_size": "converted", "datasets[1].batch_size": "converted",
        "datasets[2].batch_size": "unsupported",
    }  # fmt: skip
    assert read_text(json.dumps({"general": {"batch_size": 2}, "datasets": []}), "d").values == {"train": {"batch_size": 2}}
    for wrong in (True, "4", 0, [1], None):
        odd = read_text(json.dumps({"datasets": [{"batch_size": wrong}]}), "d.json")
        assert odd.values == {} and odd.report.lines["datasets[0].batch_size"].outcome == "unsupported"
