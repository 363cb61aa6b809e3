"""What is no number is noticed on a GPU in time, though nothing waits for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_cuda_speed import job_for

import tiny
from limner.engine.saving import save_state
from limner.engine.train import move_weights
from limner.engine.watch import LATE, Alarm


@pytest.mark.parametrize("limit", [1.0, "off"])
def test_in_time_and_without_waiting(tmp_path: Path, limit: Any) -> None:
    job = job_for(tiny.build(tmp_path / "model"), tiny.pictures(tmp_path / "pictures"), train={"clip_norm": limit})
    for step in range(8):
        move_weights(job, step)
    job.params[0].data.mul_(1e30)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(Alarm) as caught:
            for step in range(8, 8 + LATE + 1):
                move_weights(job, step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert caught.value.step == 9 and caught.value.noticed <= 9 + LATE
    job.saver.close()
    job.feed.close()


def test_a_save_looks_first(tmp_path: Path) -> None:
    job = job_for(tiny.build(tmp_path / "model"), tiny.pictures(tmp_path / "pictures"))
    move_weights(job, 0)
    job.params[0].data.view(-1)[0] = torch.nan
    with pytest.raises(Alarm):
        save_state(job, 1)
    assert not list(job.run.path.rglob("*.safetensors"))
    job.saver.close()
    job.feed.close()
