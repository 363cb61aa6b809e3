"""Which objectives make sense for which base model. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from limner.config import Config
from limner.errors import Finding
from limner.formats.base import Base
from limner.formats.known import FAMILIES

_OF_SNR = ("min_snr", "soft_min_snr", "debiased", "v_as_epsilon")
_OF_FLOWS = ("sigma_sqrt", "cosmap")


def unsuited_objective(config: Config, base: Base) -> Iterator[Finding]:
    """Findings at the options of [objective]; errors where the model would be taught something that has no meaning."""
    title = FAMILIES[base.family].title
    yield from _for_flows(config, title) if base.prediction == "flow" else _for_others(config, base, title)


def _for_flows(config: Config, title: str) -> Iterator[Finding]:
    objective = config.objective
    if objective.prediction is not None:
        yield Finding("objective.prediction", f"{title} predicts the flow's velocity, nothing else.", "Remove the line.")
    if objective.weighting in _OF_SNR:
        said = f"{objective.weighting} has no meaning for the flow of {title}."
        yield Finding("objective.weighting", said, 'Set "uniform", "sigma_sqrt" or "cosmap".')
    if objective.zero_terminal_snr:
        said = f"the flow of {title} ends in pure noise as it is."
        yield Finding("objective.zero_terminal_snr", said, "Set it to false.")
    if objective.v_share != "off":
        said = f"has no meaning for the flow of {title}: it predicts a velocity already."
        yield Finding("objective.v_share", said, 'Set it to "off".')
    for name in ("noise_offset", "noise_offset_adaptive", "pyramid_levels"):
        if getattr(objective, name):
            said = f"would teach {title} to start from other noise than it is painted from: a flow ends in plain noise."
            yield Finding(f"objective.{name}", said, "Set it to 0.")


def _for_others(config: Config, base: Base, title: str) -> Iterator[Finding]:
    objective = config.objective
    prediction = objective.prediction or base.prediction
    zero = objective.zero_terminal_snr or base.has_zero_snr
    if objective.weighting in _OF_FLOWS:
        said = f"{objective.weighting} is for flows, {title} is none."
        yield Finding("objective.weighting", said, 'Set "uniform", "min_snr", "soft_min_snr" or "debiased".')
    if objective.weighting == "v_as_epsilon" and prediction == "epsilon":
        said = "v_as_epsilon is for models that predict v, this one predicts the noise."
        yield Finding("objective.weighting", said, 'Set "uniform".')
    if objective.v_share != "off" and prediction == "v_prediction":
        said = "is for models that predict the noise, this one predicts v."
        yield Finding("objective.v_share", said, 'Set it to "off".')
    if objective.shift is not None:
        said = f"has no effect: it is for flows, {title} is none."
        yield Finding("objective.shift", said, "Remove it, or set objective.timesteps and logit_mean.", "warning")
    if zero and prediction == "epsilon":
        said = "pure noise says nothing of a picture to a model that predicts the noise; it must predict v."
        if objective.zero_terminal_snr:
            remedy = 'Set it to false, or objective.prediction = "v_prediction", which the model has to learn first.'
            yield Finding("objective.zero_terminal_snr", said, remedy)
        else:
            said = f"was trained down to pure noise, but {said}"
            yield Finding("model.base", said, 'Set objective.prediction = "v_prediction".')
    elif zero and objective.weighting in _OF_SNR and objective.weighting != "debiased":
        said = f"{objective.weighting} gives pure noise, which the model is trained down to, no weight."
        yield Finding("objective.weighting", said, 'Set "uniform" or "debiased".', "warning")
