"""What a model's configuration files may say before anything is built by them: no layers that no file holds, no odd numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limner.disk import read_json
from limner.errors import printable, wrong

_DEPTHS = ("num_hidden_layers", "num_layers", "num_single_layers", "layers_per_block", "transformer_layers_per_block")
_AGAIN = "Copy the model again."
_MOST_TIMESTEPS = 10_000


def table(path: Path, field: str) -> dict[str, Any]:
    """The table in a model's JSON file. Raises UserError if there is none."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise wrong(field, f"{path} is missing or is not JSON.", "A diffusers folder needs it; copy the model again.")
    return content


def check_depth(folder: Path, num_tensors: int, field: str) -> None:
    """Raises UserError if a part's configuration speaks of more layers than there are tensors in its files."""
    said = table(folder / "config.json", field)
    for name in _DEPTHS:
        if not _is_within(said.get(name), num_tensors):
            words = f"{folder / 'config.json'}: {name} speaks of more layers than the part's files hold."
            raise wrong(field, words, _AGAIN)


def _is_within(value: Any, most: int) -> bool:
    """Whether a number of layers, or those of each block, is not above `most`. What is none is for diffusers to say."""
    if isinstance(value, list):
        return len(value) <= most and all(_is_within(v, most) for v in value)
    return not isinstance(value, int | float) or 0 <= value <= most  # NaN is not


def check_scheduler(folder: Path, *, is_flow: bool, field: str) -> dict[str, Any]:
    """What a diffusers folder says of its noise schedule, {} if nothing. Raises UserError if that cannot be one."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not os.path.lexists(path):
        return {}
    said = table(path, field)  # one that is damaged may have said that the model predicts v
    if fault := (_fault_of_flow if is_flow else _fault_of_betas)(said):
        raise wrong(field, f"{path}: {fault}", _AGAIN)
    return said


def _fault_of_betas(said: Mapping[str, Any]) -> str:
    for name in ("beta_start", "beta_end"):
        if not _is_between(said.get(name), 0.0, 1.0):
            return f"{name} is no number above 0 and below 1."
    count, kind = said.get("num_train_timesteps", 1000), said.get("beta_schedule", "scaled_linear")
    if type(count) is not int or not 1 <= count <= _MOST_TIMESTEPS:
        return f"num_train_timesteps is no whole number from 1 to {_MOST_TIMESTEPS}."
    return "" if kind in ("scaled_linear", "linear") else f"the beta_schedule {printable(repr(kind), 40)} is not known."


def _fault_of_flow(said: Mapping[str, Any]) -> str:
    for name in ("shift", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"):
        if said.get(name) is not None and not _is_between(said[name], 0.0, 1e6):
            return f"{name} is no number above 0."
    return ""


def _is_between(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high
