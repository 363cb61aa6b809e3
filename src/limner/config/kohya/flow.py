"""How timesteps of flows are drawn, shifted and weighed (Stable Diffusion 3, Flux.1) <-> [objective].

sd-scripts measures the errors of Stable Diffusion 3 in the picture: they are sigma times those of the velocity, so its
"sigma_sqrt" (1 / sigma²) is what Limner calls uniform (sd3_train_network; kohya.md §3, 36 to 38). Of Flux.1 only
model_prediction_type "raw" compares what belongs together, and there weights are not used at all. In its mode "sigma" the
drawn number counts timesteps from noise to picture, so that logit_mean has the other sign than in Limner.
"""

from __future__ import annotations

from typing import Any

from limner.config.kohya.reader import Reader
from limner.config.kohya.writer import Writer
from limner.config.objective import Objective

ARGUMENTS = (
    "timestep_sampling", "sigmoid_scale", "discrete_flow_shift", "training_shift", "weighting_scheme", "logit_mean",
    "logit_std", "mode_scale", "model_prediction_type", "guidance_scale", "model_type",
)  # fmt: skip
OPTIONS = (
    "objective.timesteps", "objective.logit_mean", "objective.logit_std", "objective.mode_scale", "objective.shift",
    "objective.guidance",
)  # fmt: skip
_SHIFT = {"sd3": 3.0, "flux": "resolution"}
"""Of the usual models of a family; arXiv:2403.03206 and Flux.1 dev's own scheduler."""


def read(r: Reader) -> None:
    """Set how a flow is trained."""
    if r.family not in ("sd3", "flux"):
        for name in ARGUMENTS:
            r.idle(name, "It is for flows (Stable Diffusion 3, Flux.1).")
        return
    guidance = r.number("guidance_scale")
    if guidance is not None:
        r.take("guidance_scale", {"objective.guidance": guidance})
    if (model := r.text("model_type")) not in (None, "flux"):
        r.unsupported("model_type", f"Limner does not train {model}.")
    else:
        r.idle("model_type", "It is Flux.1.")
    kind = r.text("model_prediction_type")
    if kind is not None and kind != "raw":
        said = "It compares a picture with a velocity. What Limner does is raw."
        r.unsupported("model_prediction_type", said)
    else:
        r.idle("model_prediction_type", "It is so in any case.")
    if r.family == "sd3":
        _read_density(r, 1)
        shift = r.number("training_shift")
        if shift is not None:
            r.take("training_shift", {"objective.shift": shift})
        return
    _read_flux(r)


def _read_flux(r: Reader) -> None:
    sampling = r.text("timestep_sampling")
    shift, scale = r.number("discrete_flow_shift"), r.number("sigmoid_scale")
    if sampling == "sigma":
        r.account("timestep_sampling", "converted", "objective.timesteps", why="weighting_scheme says how they are drawn.") if (
            r.has("timestep_sampling")
        ) else None
        _read_density(r, -1)
    elif sampling == "uniform":
        r.take("timestep_sampling", {"objective.timesteps": "uniform", "objective.shift": 1.0})
    elif sampling in ("sigmoid", "shift", "flux_shift"):
        pairs: dict[str, Any] = {"objective.timesteps": "logit_normal", "objective.logit_mean": 0.0}
        if sampling != "shift":
            pairs["objective.shift"] = 1.0 if sampling == "sigmoid" else "resolution"
        r.take("timestep_sampling", pairs)
    elif sampling is not None:
        r.refuse("timestep_sampling", "is not known.")
    if sampling not in ("sigma", None):
        for name in ("weighting_scheme", "logit_mean", "logit_std", "mode_scale"):
            r.idle(name, 'It counts where timestep_sampling is "sigma".')
    if sampling in ("sigma", "shift", None) and shift is not None:
        r.take("discrete_flow_shift", {"objective.shift": shift})
    else:
        r.idle("discrete_flow_shift", f"{sampling} has its own.")
    if sampling not in ("sigma", "uniform") and scale is not None:
        r.take("sigmoid_scale", {"objective.logit_std": scale})
    else:
        r.idle("sigmoid_scale", f"It is not for {sampling}.")


def _read_density(r: Reader, sign: int) -> None:
    """weighting_scheme; `sign`: that of the logit's mean."""
    scheme = r.text("weighting_scheme")
    names = {"logit_normal": ("logit_mean", "logit_std"), "mode": ("mode_scale",)}.get(scheme or "", ())
    for name in ("logit_mean", "logit_std", "mode_scale"):
        if scheme is not None and name not in names:
            r.idle(name, f"It is not for {scheme}.")
        elif (value := r.number(name)) is not None:
            said = "The drawn number counts from noise to picture there." if name == "logit_mean" and sign < 0 and value else ""
            r.take(name, {f"objective.{name}": value * sign if name == "logit_mean" and value else value}, said)
    if scheme is None:
        return
    if scheme not in ("sigma_sqrt", "logit_normal", "mode", "cosmap", "none", "uniform"):
        r.refuse("weighting_scheme", "is not known.")
        return
    pairs = {"objective.timesteps": scheme if names else "uniform"}
    said = ""
    if r.family == "sd3":
        pairs["objective.weighting"] = "cosmap" if scheme == "cosmap" else "uniform"
        said = (
            "There it undoes the factor sigma² that errors of the picture have; Limner's errors have none."
            if scheme == "sigma_sqrt"
            else "sd-scripts weighs by sigma² besides, since it measures errors of the picture; Limner does not."
        )
    elif scheme in ("sigma_sqrt", "cosmap"):
        said = 'It draws evenly; its weights count only with model_prediction_type = "sigma_scaled".'
    r.take("weighting_scheme", pairs, said)


def write(w: Writer) -> None:
    """The arguments of a flow."""
    section = w.config.objective
    if w.family not in _SHIFT:
        for name in ("guidance", "shift"):
            if getattr(section, name) is not None:
                w.lose(f"objective.{name}", "has no effect for this family.", severity="warning")
        return
    if w.family == "sd3" and section.guidance is not None:
        w.lose("objective.guidance", "has no effect for this family.", severity="warning")
    if section.timesteps is None:
        section = section.model_copy(update={"timesteps": "logit_normal", "logit_mean": 0.0, "logit_std": 1.0})
    shift = section.shift if section.shift is not None else w.facts.flow_shift or _SHIFT[w.family]
    if section.timesteps == "cosmap":
        w.lose("objective.timesteps", "sd-scripts draws no timesteps so.", 'Set it to "logit_normal".')
        return
    if w.family == "sd3":
        _write_sd3(w, section, shift)
        return
    w.put("model_type", "flux", "model.family")
    w.put("model_prediction_type", "raw", "objective.prediction")
    w.put("guidance_scale", 1.0 if section.guidance is None else section.guidance, "objective.guidance")
    if section.weighting != "uniform":
        w.lose("objective.weighting", "sd-scripts weighs no timesteps of Flux.1 that is trained as it should be.")
    _write_flux(w, section, shift)


def _write_sd3(w: Writer, section: Objective, shift: float | str) -> None:
    if shift == "resolution":
        w.lose("objective.shift", "sd-scripts shifts Stable Diffusion 3 by a number.", "Set it to 3.0.")
    else:
        w.put("training_shift", shift, "objective.shift")
    density = section.timesteps
    if section.weighting == "cosmap" and density == "uniform":
        scheme = "cosmap"
    elif section.weighting == "uniform":
        scheme = "sigma_sqrt" if density == "uniform" else density
    else:
        w.lose("objective.weighting", "sd-scripts either weighs timesteps or draws them otherwise than evenly.")
        return
    w.put("weighting_scheme", scheme, "objective.timesteps")
    if scheme != "sigma_sqrt":
        said = "sd-scripts weighs by sigma² besides: it measures errors of the picture, not of the velocity."
        w.lose("objective.timesteps", said, 'Set it to "uniform" for the same weights.', severity="warning")
    _write_shape(w, section, 1)


def _write_flux(w: Writer, section: Objective, shift: float | str) -> None:
    density, mean = section.timesteps, section.logit_mean
    is_plain = density == "logit_normal" and mean == 0
    if is_plain:
        name = "flux_shift" if shift == "resolution" else "sigmoid" if shift == 1 else "shift"
        w.put("timestep_sampling", name, "objective.timesteps")
        w.put("sigmoid_scale", section.logit_std, "objective.logit_std")
        w.put("discrete_flow_shift", shift if name == "shift" else None, "objective.shift")
        return
    if shift == "resolution":
        w.lose("objective.shift", "sd-scripts shifts so only with logit_normal timesteps of mean 0.", "Set it to a number.")
        return
    if density == "uniform" and shift == 1:
        w.put("timestep_sampling", "uniform", "objective.timesteps")
        return
    w.put("timestep_sampling", "sigma", "objective.timesteps")
    w.put("discrete_flow_shift", shift, "objective.shift")
    w.put("weighting_scheme", density, "objective.timesteps")
    _write_shape(w, section, -1)


def _write_shape(w: Writer, section: Objective, sign: int) -> None:
    if section.timesteps == "logit_normal":
        w.put("logit_mean", sign * section.logit_mean, "objective.logit_mean")
        w.put("logit_std", section.logit_std, "objective.logit_std")
    elif section.timesteps == "mode":
        w.put("mode_scale", section.mode_scale, "objective.mode_scale")
