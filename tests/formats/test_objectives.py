"""What of the objective a model cannot be taught, or what would have no effect, is said before the start."""

from __future__ import annotations

import json
from typing import Any

import pytest

import tiny
from limner.config import files
from limner.errors import Finding
from limner.preflight import examine

PREDICTIONS = {"eps": ("sd1", "epsilon"), "v": ("sdxl", "v_prediction"), "flow": ("sd3", "flow")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("models")
    out = {name: str(tiny.build(path / name, prediction, family=family)) for name, (family, prediction) in PREDICTIONS.items()}
    for name in ("eps", "v"):
        zero = tiny.build(path / f"{name} zero", PREDICTIONS[name][1])
        scheduler = zero / "scheduler" / "scheduler_config.json"
        scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"rescale_betas_zero_snr": True}))
        out[f"{name} zero"] = str(zero)
    return out


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.pictures(tmp_path_factory.mktemp("pictures")))


def look(model: str, pictures: str, objective: dict[str, Any]) -> list[Finding]:
    raw = {"model": {"base": model}, "data": {"path": pictures}, "train": {"steps": 5}, "objective": objective}
    return [f for f in examine(files.build(raw, {}), None)[0] if f.field.startswith(("objective.", "model."))]


FINDINGS = [
    ("flow", {"noise_offset": 0.1}, "objective.noise_offset", "error"),
    ("flow", {"noise_offset_adaptive": 0.1}, "objective.noise_offset_adaptive", "error"),
    ("flow", {"pyramid_levels": 3}, "objective.pyramid_levels", "error"),
    ("flow", {"zero_terminal_snr": True}, "objective.zero_terminal_snr", "error"),
    ("flow", {"v_share": 0.5}, "objective.v_share", "error"),
    ("flow", {"prediction": "epsilon"}, "objective.prediction", "error"),
    *(
        ("flow", {"weighting": w}, "objective.weighting", "error")
        for w in ("min_snr", "soft_min_snr", "debiased", "v_as_epsilon")
    ),
    *((m, {"weighting": w}, "objective.weighting", "error") for w in ("sigma_sqrt", "cosmap") for m in ("eps", "v")),
    ("eps", {"weighting": "v_as_epsilon"}, "objective.weighting", "error"),
    ("eps", {"zero_terminal_snr": True}, "objective.zero_terminal_snr", "error"),
    ("eps", {"shift": 3.0}, "objective.shift", "warning"),
    ("eps", {"shift": "resolution"}, "objective.shift", "warning"),
    ("v", {"v_share": 0.5}, "objective.v_share", "error"),
    ("v", {"zero_terminal_snr": True, "weighting": "min_snr"}, "objective.weighting", "warning"),
    ("v zero", {"weighting": "soft_min_snr"}, "objective.weighting", "warning"),
    ("eps zero", {}, "model.base", "error"),
    ("v", {"least_timestep": 500, "most_timestep": 500}, "objective.least_timestep", "error"),
    ("v", {"noise_offset_random": True}, "objective.noise_offset_random", "warning"),
    ("v", {"pyramid_discount": 0.5}, "objective.pyramid_discount", "warning"),
    ("v", {"input_perturbation_random": True}, "objective.input_perturbation_random", "warning"),
    ("v", {"huber_schedule": "snr"}, "objective.huber_schedule", "warning"),
    ("v", {"logit_std": 0.5}, "objective.logit_std", "warning"),
    ("v", {"mode_scale": 0.5}, "objective.mode_scale", "warning"),
    ("v", {"snr_gamma": 4.0}, "objective.snr_gamma", "warning"),
]


@pytest.mark.parametrize(("model", "objective", "field", "severity"), FINDINGS)
def test_what_is_said(models, pictures, model, objective, field, severity):
    assert [(f.field, f.severity) for f in look(models[model], pictures, objective)] == [(field, severity)]


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        ("eps", {"noise_offset": 0.05, "noise_offset_random": True, "pyramid_levels": 6, "pyramid_discount": 0.4}),
        ("eps", {"weighting": "min_snr", "snr_gamma": 3.0, "v_share": 0.5}),
        ("eps", {"noise_offset_adaptive": 0.1, "timesteps": "mode", "mode_scale": 1.0}),
        ("v", {"zero_terminal_snr": True, "weighting": "debiased"}),
        ("v", {"weighting": "v_as_epsilon", "least_timestep": 499, "most_timestep": 500}),
        ("v zero", {}),
        ("v zero", {"zero_terminal_snr": True}),
        ("flow", {"timesteps": "logit_normal", "logit_mean": 0.5, "shift": "resolution", "weighting": "cosmap"}),
        ("flow", {"input_perturbation": 0.1, "loss": "huber", "huber_schedule": "snr"}),
    ],
)
def test_of_what_makes_sense_nothing_is_said(models, pictures, model, objective):
    assert look(models[model], pictures, objective) == []


def test_a_flows_own_logit_normal_can_be_shaped(models, pictures):
    """It is what is drawn from when nothing is given, but then its shape must be asked for with its name."""
    assert [f.field for f in look(models["flow"], pictures, {"logit_std": 0.5})] == ["objective.logit_std"]


def test_a_model_that_says_the_wrong_thing_can_be_corrected(models, pictures):
    found = look(models["eps zero"], pictures, {"prediction": "v_prediction"})
    assert [f.severity for f in found] == ["warning"] and found[0].field == "objective.prediction"
