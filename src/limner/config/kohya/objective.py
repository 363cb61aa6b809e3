"""Prediction, loss, weights of timesteps and noise of models that are no flows <-> [objective]."""

from __future__ import annotations

from limner.config.kohya.reader import Reader
from limner.config.kohya.writer import Writer

ARGUMENTS = (
    "v_parameterization", "huber_scale", "huber_c", "huber_schedule", "min_snr_gamma", "debiased_estimation_loss",
    "scale_v_pred_loss_like_noise_pred", "v_pred_like_loss", "multires_noise_iterations", "multires_noise_discount",
    "noise_offset", "noise_offset_random_strength", "adaptive_noise_scale", "ip_noise_gamma",
    "ip_noise_gamma_random_strength", "zero_terminal_snr", "min_timestep", "max_timestep",
)  # fmt: skip
OPTIONS = (
    "objective.prediction", "objective.huber_threshold", "objective.huber_schedule", "objective.weighting",
    "objective.snr_gamma", "objective.v_share", "objective.pyramid_levels", "objective.pyramid_discount",
    "objective.noise_offset", "objective.noise_offset_random", "objective.noise_offset_adaptive",
    "objective.input_perturbation", "objective.input_perturbation_random", "objective.zero_terminal_snr",
    "objective.least_timestep", "objective.most_timestep",
)  # fmt: skip
FLOWS = ("sd3", "flux")
_IGNORED_BY_FLOWS = (
    "v_parameterization", "min_snr_gamma", "debiased_estimation_loss", "scale_v_pred_loss_like_noise_pred", "v_pred_like_loss",
    "multires_noise_iterations", "multires_noise_discount", "noise_offset", "noise_offset_random_strength",
    "adaptive_noise_scale", "zero_terminal_snr",
)  # fmt: skip
_NOISE = (
    ("noise_offset", "objective.noise_offset"),
    ("adaptive_noise_scale", "objective.noise_offset_adaptive"),
    ("ip_noise_gamma", "objective.input_perturbation"),
)
_SWITCHES = (
    ("noise_offset_random_strength", "objective.noise_offset_random"),
    ("ip_noise_gamma_random_strength", "objective.input_perturbation_random"),
    ("zero_terminal_snr", "objective.zero_terminal_snr"),
)
_WEIGHTINGS = {
    "min_snr_gamma": "min_snr",
    "debiased_estimation_loss": "debiased",
    "scale_v_pred_loss_like_noise_pred": "v_as_epsilon",
}
_OF_FLOW = "The trainer ignores it for flows (Stable Diffusion 3, Flux.1)."


def read(r: Reader) -> None:
    """Set the objective; what flows have on their own is for `flow`."""
    is_flow = r.family in FLOWS
    if is_flow:
        for name in _IGNORED_BY_FLOWS:
            r.idle(name, _OF_FLOW)
    _read_huber(r)
    _read_timesteps(r)
    for name, option in (*_NOISE, *_SWITCHES):
        if is_flow and name in _IGNORED_BY_FLOWS:
            continue
        if name == "adaptive_noise_scale" and not r.number("noise_offset"):
            r.idle(name, "It counts only beside noise_offset; alone the trainer refuses it.")
        elif name == "ip_noise_gamma" and r.family == "sd3":
            r.idle(name, "The trainer ignores it for Stable Diffusion 3.")
        elif (name, option) in _SWITCHES:
            if (switch := r.flag(name)) is not None:
                r.take(name, {option: switch})
        elif (value := r.number(name)) is not None:
            r.take(name, {option: value})
    if not is_flow:
        _read_prediction(r)
        _read_weighting(r)
        _read_pyramid(r)


def _read_prediction(r: Reader) -> None:
    velocity = r.flag("v_parameterization")
    if velocity is not None:
        r.take("v_parameterization", {"objective.prediction": "v_prediction" if velocity else "epsilon"})
    share = r.number("v_pred_like_loss")
    if share is not None:
        r.take("v_pred_like_loss", {"objective.v_share": share if share > 0 else "off"})


def _read_weighting(r: Reader) -> None:
    """One weighting here; they are multiplied there."""
    gamma = r.number("min_snr_gamma")
    used = [n for n in _WEIGHTINGS if (n == "min_snr_gamma" and gamma) or (n != "min_snr_gamma" and r.flag(n))]
    for name in _WEIGHTINGS:
        if name not in used:
            r.idle(name, "It is off.")
        elif name != used[0]:
            r.unsupported(name, f"Two weightings are not multiplied; {used[0]} is taken.")
    if used and used[0] == "min_snr_gamma":
        r.take("min_snr_gamma", {"objective.weighting": "min_snr", "objective.snr_gamma": gamma})
    elif used:
        r.take(used[0], {"objective.weighting": _WEIGHTINGS[used[0]]})
    elif r.complete:
        r.put("objective.weighting", "uniform")


def _read_pyramid(r: Reader) -> None:
    layers = r.integer("multires_noise_iterations")
    if layers is not None:
        said = "sd-scripts counts the full size as a layer; it is not added a second time here."
        r.take("multires_noise_iterations", {"objective.pyramid_levels": max(0, layers - 1)}, said)
    discount = r.number("multires_noise_discount")
    if discount is not None and (layers or "multires_noise_discount" not in r.given) and 0 < discount < 1:
        r.take("multires_noise_discount", {"objective.pyramid_discount": discount})
    elif discount is not None and (layers or 0) < 2:
        r.idle("multires_noise_discount", "There are no layers of noise.")
    elif discount is not None:
        r.unsupported("multires_noise_discount", "Layers become weaker here: it is more than 0 and less than 1.")


def _read_huber(r: Reader) -> None:
    """huber_scale multiplies the threshold."""
    loss, schedule = r.text("loss_type"), r.text("huber_schedule")
    threshold, scale = r.number("huber_c"), r.number("huber_scale")
    is_used = loss in ("huber", "smooth_l1")
    if loss is not None and not is_used:
        for name in ("huber_schedule", "huber_c", "huber_scale"):
            r.idle(name, f"{loss} has none.")
        return
    if schedule is not None:
        r.take("huber_schedule", {"objective.huber_schedule": schedule})
    if scale is None or scale == 1 or not is_used or schedule == "snr":
        r.idle("huber_scale", "It changes nothing with these settings.")
    elif schedule == "constant" and threshold is not None and not r.fault("objective.huber_threshold", threshold * scale):
        threshold *= scale
        r.account("huber_scale", "converted", "objective.huber_threshold", why="It multiplies huber_c.")
    else:
        r.unsupported("huber_scale", "There is objective.huber_threshold alone.")
    if threshold is not None:
        r.take("huber_c", {"objective.huber_threshold": threshold})


def _read_timesteps(r: Reader) -> None:
    for name, option in (("min_timestep", "objective.least_timestep"), ("max_timestep", "objective.most_timestep")):
        if r.family == "flux":
            r.idle(name, "The trainer ignores it for Flux.1.")
        elif (value := r.integer(name)) is not None:
            r.take(name, {option: value})


def write(w: Writer) -> None:
    """The arguments of the objective; flows' own are written by `flow`."""
    section, is_flow = w.config.objective, w.family in FLOWS
    if section.loss in ("huber", "smooth_l1"):
        w.put("huber_schedule", section.huber_schedule, "objective.huber_schedule")
        w.put("huber_c", section.huber_threshold, "objective.huber_threshold")
        w.put("huber_scale", 1.0, "objective.huber_threshold")
        if is_flow and section.huber_schedule == "snr":
            w.lose("objective.huber_schedule", "sd-scripts stops with an error for flows.", 'Set it to "constant".')
    _write_noise(w, is_flow)
    if w.family == "flux" and (section.least_timestep, section.most_timestep) != (0, 1000):
        w.lose("objective.least_timestep", "sd-scripts trains Flux.1 at all timesteps.")
    elif (section.least_timestep, section.most_timestep) != (0, 1000):
        w.put("min_timestep", section.least_timestep, "objective.least_timestep")
        w.put("max_timestep", section.most_timestep, "objective.most_timestep")
    if is_flow:
        if section.prediction is not None:
            w.lose("objective.prediction", "has no effect for flows.", severity="warning")
        if section.v_share != "off":
            w.lose("objective.v_share", "has no effect for flows.", severity="warning")
        return
    usual = w.facts.prediction or ("v_prediction" if w.family == "sd2" else "epsilon")
    prediction = section.prediction or usual
    w.put("v_parameterization", prediction == "v_prediction", "objective.prediction")
    w.put("v_pred_like_loss", None if section.v_share == "off" else section.v_share, "objective.v_share")
    if section.timesteps not in (None, "uniform"):
        w.lose("objective.timesteps", "sd-scripts draws all timesteps alike, but for flows.")
    _write_weighting(w, prediction)


def _write_weighting(w: Writer, prediction: str) -> None:
    section = w.config.objective
    names = {weighting: name for name, weighting in _WEIGHTINGS.items()}
    if section.weighting == "uniform":
        return
    if section.weighting not in names:
        w.lose("objective.weighting", f'sd-scripts has no "{section.weighting}" here.')
    elif section.weighting == "v_as_epsilon" and prediction != "v_prediction":
        w.lose("objective.weighting", "sd-scripts wants a model that predicts v for it.")
    else:
        value = section.snr_gamma if section.weighting == "min_snr" else True
        w.put(names[section.weighting], value, "objective.weighting")


def _write_noise(w: Writer, is_flow: bool) -> None:
    section = w.config.objective
    flowing = ("noise_offset", "noise_offset_adaptive", "pyramid_levels", "zero_terminal_snr")
    used = [n for n in flowing if getattr(section, n)] if is_flow else []
    if w.family == "sd3" and section.input_perturbation:
        used.append("input_perturbation")
    for name in used:
        w.lose(f"objective.{name}", "sd-scripts ignores it for this family.")
    if section.input_perturbation and w.family != "sd3":
        w.put("ip_noise_gamma", section.input_perturbation, "objective.input_perturbation")
        w.put("ip_noise_gamma_random_strength", section.input_perturbation_random, "objective.input_perturbation_random")
    if is_flow:
        return
    w.put("zero_terminal_snr", section.zero_terminal_snr, "objective.zero_terminal_snr")
    if section.noise_offset:
        w.put("noise_offset", section.noise_offset, "objective.noise_offset")
        w.put("noise_offset_random_strength", section.noise_offset_random, "objective.noise_offset_random")
        w.put("adaptive_noise_scale", section.noise_offset_adaptive, "objective.noise_offset_adaptive")
    elif section.noise_offset_adaptive:
        w.lose("objective.noise_offset_adaptive", "sd-scripts has none without a noise offset.", "Set objective.noise_offset.")
    if section.pyramid_levels:
        w.put("multires_noise_iterations", section.pyramid_levels + 1, "objective.pyramid_levels")
        w.put("multires_noise_discount", section.pyramid_discount, "objective.pyramid_discount")
        said = "sd-scripts adds a second full-size noise to the coarser ones, so that they are weaker."
        w.lose("objective.pyramid_levels", said, severity="warning")
