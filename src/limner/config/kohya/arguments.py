"""Arguments of sd-scripts become Limner's options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limner.config.kohya import base_model, network, optimizing, whole
from limner.config.kohya.reader import Reader
from limner.config.kohya.report import Report
from limner.config.kohya.scripts import SCRIPTS, Script
from limner.config.kohya.topics import TOPICS

SCRIPT = "_script"
"""The name under which the script stands among the arguments, where it is known."""
_OF_MODULE = {"networks.lora_sd3": "sd3", "networks.lora_flux": "flux", "networks.oft_flux": "flux"}
_SIGNS = {
    "flux": ("ae", "guidance_scale", "model_prediction_type", "timestep_sampling"),
    "sd3": ("clip_g", "training_shift", "apply_lg_attn_mask"),
}


def to_values(arguments: Mapping[str, Any], report: Report, *, complete: bool = False) -> dict[str, dict[str, Any]]:
    """Nested tables of options, as `files.build` takes them. Every argument gets a line in the report, under its own name;
    each "name=value" of a list one as `list.name`. Values of a wrong type are said and left out.

    `complete`: it is all that the trainer is told, so that what is not given has sd-scripts' default; else it is a part, such
    as a preset, and what is not given stays open.
    """
    before = dict(report.lines)
    given = {str(name): value for name, value in arguments.items()}
    script = _script(given, report)
    r = Reader(given, report, script, complete)
    r.spread("network_args")
    r.kind = _kind(r)
    r.family = _family(r)
    is_network = r.kind not in ("none", "embedding")
    base_model.read(r)
    (network if is_network else whole).read(r)
    optimizing.read(r)
    for topic in TOPICS:
        topic.read(r)
    _sort(report, before, given)
    return r.values


def _script(given: Mapping[str, Any], report: Report) -> Script | None:
    name = given.get(SCRIPT)
    if name is None:
        return None
    script = SCRIPTS.get(str(name).replace("\\", "/").rpartition("/")[2])
    if script is None:
        report.say(SCRIPT, name, "unknown", why="It is no training script of sd-scripts 0.10.1.")
    elif script.trains == "control":
        report.say(SCRIPT, name, "unsupported", why="ControlNets are not trained.")
    elif not script.families:
        report.say(SCRIPT, name, "unsupported", why="Limner does not train this family.")
    else:
        report.say(SCRIPT, name, "converted", "adapter.kind", "model.family", why="It says what is trained.")
    return script


def _kind(r: Reader) -> str:
    if r.script and r.script.trains in ("whole", "embedding"):
        return "none" if r.script.trains == "whole" else "embedding"
    if r.script is None and not r.has("network_module"):
        if r.has("token_string"):
            return "embedding"
        if any(r.has(n) for n in ("train_text_encoder", "learning_rate_te", "learning_rate_te1", "stop_text_encoder_training")):
            return "none"
    return network.kind_of(r.text("network_module") or "", r.text("network_args.algo") or "") or "lora"


def _family(r: Reader) -> str:
    """The family, "" where nothing says it."""
    second = bool(r.flag("v2"))
    if r.script is not None:
        families = r.script.families
        return "sd2" if second and "sd2" in families else families[0] if families else ""
    module = r.text("network_module") or ""
    found = _OF_MODULE.get(module) or next((f for f, signs in _SIGNS.items() if any(map(r.has, signs))), "")
    return found or ("sd2" if second else "")


def _sort(report: Report, before: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """The lines in the order of the arguments, what was not given behind them."""
    order = {name: i for i, name in enumerate(given)}
    new = [line for key, line in report.lines.items() if key not in before]
    new.sort(key=lambda line: order.get(line.key, order.get(line.key.partition(".")[0], len(order))))
    report.lines = {**{key: report.lines[key] for key in before}, **{line.key: line for line in new}}
