"""Rehearse a run and tell what it will take: `python -m limner.engine.estimate` reads a question and prints JSON.

`limner.estimate` asks and keeps the answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import psutil
import torch

from limner.config import Config, files
from limner.config.prompts import all_prompts
from limner.engine import (  # noqa: F401 (what a trainer has in memory, this has)
    checkpoint,
    fetching,
    trackers,
    train,
)
from limner.engine.ledger import Event
from limner.engine.rehearsal import Rehearsal, Scene
from limner.engine.timing import seconds_of

_OPERATIONS_SECONDS = 20.0
_READY_MIB, _MOST_READY_MIB = 50, 220
"""Tokenizers, and what the libraries make when they are first used; of larger models more, measured as well."""
_READY_SHARE = 0.05
_SLACK = 0.1
"""Of what comes and goes: how much more of the allocator's memory it takes than it asks for. On a CPU, measured (see
docs/planner.md); on a GPU not measured."""
_SLACK_OF_BROKEN_STEPS, _SLACK_OF_CHECKPOINTING = 0.5, 0.65
"""The same on a CPU where a step does not ask for what the last one gave back, in the same order: it leaves holes that fit
nothing."""
_COMES_AND_GOES = ("activations", "copies")


def slack_share(config: Config, device: str, *, paints: bool) -> float:
    """How much of what comes and goes the allocator takes beside it; `paints`: prompts, between the steps."""
    if device != "cpu":
        return _SLACK
    if config.memory.checkpointing:
        return _SLACK_OF_CHECKPOINTING
    return _SLACK_OF_BROKEN_STEPS if paints or config.memory.quantize != "off" else _SLACK


def phases_of(events: Sequence[Event], slack: float) -> list[dict[str, Any]]:
    """The worst moment of each phase, by parts, MiB."""
    live: dict[str, int] = {}
    total, worst = 0, dict[str, tuple[int, dict[str, int]]]()
    for event in events:
        total += event.num_bytes
        live[event.what] = live.get(event.what, 0) + event.num_bytes
        if event.num_bytes <= 0:
            continue
        name = event.what.partition("/")[0]
        if total > worst.get(name, (0, {}))[0]:
            worst[name] = total, dict(live)
    out = []
    for name, (_, parts) in worst.items():
        summed: dict[str, int] = {}
        for what, count in parts.items():
            part = what.partition("/")[2]
            summed[part] = summed.get(part, 0) + count
        moving = sum(summed.get(part, 0) for part in _COMES_AND_GOES)
        ready = min((_READY_MIB << 20) + int(_READY_SHARE * summed.get("weights", 0)), _MOST_READY_MIB << 20)
        summed["slack"] = int(slack * moving) + ready
        out.append({"name": name, "parts": {part: count >> 20 for part, count in summed.items() if count >> 20}})
    return out


def main(told: dict[str, Any]) -> dict[str, Any]:
    config, question = files.build({}, told["options"]), told["question"]
    scene = scene_of(config, question)
    if config.launch.num_threads is not None:
        torch.set_num_threads(config.launch.num_threads)
    rehearsal = Rehearsal(config, scene)
    process_mib = psutil.Process().memory_info().rss >> 20
    ledger = rehearsal.play()
    phases = phases_of(ledger.events, slack_share(config, question["device"], paints=bool(scene.prompts)))
    seconds = None
    if told["times"]:
        device = torch.device(question["device"])
        seconds = seconds_of(ledger.operations["step"], device, _OPERATIONS_SECONDS)
    return {"phases": phases, "process_mib": process_mib, "seconds_per_step": seconds}


def scene_of(config: Config, question: dict[str, Any]) -> Scene:
    base = fetching.find_base(config)
    prompts = all_prompts(config, question["resolution"], base.bucket_step_px)
    width, height = question["bucket"]
    return Scene(
        base, question["device"], question["precision"], (width, height), question["num_pictures"], question["num_captions"],
        prompts, question["caches_text"],
    )  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
