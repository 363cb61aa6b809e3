"""What Limner's own files say of how a flow was trained (formats/objective_keys.py), in sd-scripts' words and yet exactly.

sd-scripts has other keys for Stable Diffusion 3 and counts the other way in its mode "sigma", so its files are read as its
arguments are; its own mark, `ss_sd_scripts_commit_hash`, tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limner.config.kohya.loose import as_number
from limner.config.kohya.reader import Reader
from limner.config.kohya.report import Report

KEYS = (
    "ss_timestep_sampling", "ss_weighting_scheme", "ss_logit_mean", "ss_logit_std", "ss_sigmoid_scale", "ss_mode_scale",
    "ss_discrete_flow_shift", "ss_model_prediction_type",
)  # fmt: skip


def is_own(metadata: Mapping[str, Any]) -> bool:
    """Whether a file that tells of a flow was written by Limner."""
    return "ss_timestep_sampling" in metadata and "ss_sd_scripts_commit_hash" not in metadata


def read(metadata: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Options of [objective]; each of KEYS that there is is said."""
    check, out = Reader({}, report, None, False), dict[str, Any]()
    sampling, scheme = metadata["ss_timestep_sampling"], metadata.get("ss_weighting_scheme")
    shift = _number(metadata, "ss_discrete_flow_shift")
    # "cosmap" may stand for either; that timesteps are weighed so is the commoner
    weighs = scheme in ("sigma_sqrt", "cosmap")
    if sampling == "sigma":
        has_mean, has_mode = (_number(metadata, k) is not None for k in ("ss_logit_mean", "ss_mode_scale"))
        out["timesteps"] = "logit_normal" if has_mean else "mode" if has_mode else "uniform" if weighs else scheme
    else:
        out["timesteps"] = "uniform" if sampling == "uniform" else "logit_normal"
    out["shift"] = {"uniform": 1.0, "sigmoid": 1.0, "flux_shift": "resolution"}.get(sampling, shift or "resolution")
    names = {"logit_normal": ("logit_mean", "logit_std"), "mode": ("mode_scale",)}.get(str(out["timesteps"]), ())
    out |= {name: value for name in names if (value := _number(metadata, f"ss_{name}")) is not None}
    if weighs:
        out["weighting"] = scheme
    out = {name: value for name, value in out.items() if not check.fault(f"objective.{name}", value)}
    for key in KEYS:
        if key in metadata:
            report.say(key, metadata[key], "converted", *(f"objective.{name}" for name in out), why="Read together.")
    return out


def _number(metadata: Mapping[str, Any], key: str) -> float | None:
    found = as_number(metadata.get(key))
    return None if found is None else float(found)
