"""What kohya's `ss_*` keys say of the objective, in sd-scripts' words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limner.config.objective import Objective


def objective_keys(section: Objective, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Key -> value, None for what was not used. `facts` are those of `metadata.adapter_metadata`."""
    is_huber = section.loss in ("huber", "smooth_l1")
    values = {
        "ss_noise_offset": section.noise_offset or None,
        "ss_noise_offset_random_strength": bool(section.noise_offset) and section.noise_offset_random,
        "ss_adaptive_noise_scale": section.noise_offset_adaptive or None,
        # sd-scripts counts the full size as one of the layers
        "ss_multires_noise_iterations": section.pyramid_levels + 1 if section.pyramid_levels else None,
        "ss_multires_noise_discount": section.pyramid_discount,
        "ss_ip_noise_gamma": section.input_perturbation or None,
        "ss_ip_noise_gamma_random_strength": bool(section.input_perturbation) and section.input_perturbation_random,
        "ss_zero_terminal_snr": facts["has_zero_snr"],
        "ss_min_snr_gamma": section.snr_gamma if section.weighting == "min_snr" else None,
        "ss_debiased_estimation": section.weighting == "debiased",
        "ss_loss_type": section.loss,
        "ss_huber_schedule": section.huber_schedule if is_huber else None,
        "ss_huber_c": section.huber_threshold if is_huber else None,
        "ss_huber_scale": 1.0 if is_huber else None,
    }
    if facts["takes_guidance"]:
        values["ss_guidance_scale"] = 1.0 if section.guidance is None else section.guidance
    return values | _flow_keys(section, facts["flow_shift"]) if facts["prediction"] == "flow" else values


def _flow_keys(section: Objective, shift: float | str) -> dict[str, Any]:
    if section.timesteps is None:
        section = section.model_copy(update={"timesteps": "logit_normal", "logit_mean": 0.0, "logit_std": 1.0})
    distribution = section.timesteps
    is_logit = distribution == "logit_normal"
    weighs = section.weighting in ("sigma_sqrt", "cosmap")
    sampling = _sampling(section, shift)
    return {
        "ss_timestep_sampling": sampling,
        "ss_weighting_scheme": section.weighting if weighs else distribution if sampling == "sigma" else "none",
        "ss_logit_mean": section.logit_mean if is_logit else None,
        "ss_logit_std": section.logit_std if is_logit else None,
        "ss_sigmoid_scale": section.logit_std if is_logit else None,
        "ss_mode_scale": section.mode_scale if distribution == "mode" else None,
        "ss_discrete_flow_shift": None if shift == "resolution" else shift,
        "ss_model_prediction_type": "raw",
    }


def _sampling(section: Objective, shift: float | str) -> str:
    """sd-scripts has a word for each of some pairs of distribution and shift; "sigma" is the one for all others."""
    distribution = section.timesteps
    if distribution == "uniform" and shift == 1:
        return "uniform"
    if distribution == "logit_normal" and section.logit_mean == 0:
        return "flux_shift" if shift == "resolution" else "sigmoid" if shift == 1 else "shift"
    return "sigma"
