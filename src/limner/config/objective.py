"""[objective]: what the model is asked to predict, and how errors are weighed."""

from __future__ import annotations

from typing import Literal

from limner.config.base import Above0, Section, option


class Objective(Section):
    """Prediction target and loss weights."""

    prediction: Literal["epsilon", "v_prediction"] | None = option(None, kohya="v_parameterization", advanced=True)
    """What the denoiser predicts: the noise, or the velocity v (arXiv:2202.00512). The model's own when not given."""

    guidance: float | None = option(None, ge=0, le=100, kohya="guidance_scale", advanced=True)
    """Flux.1 dev only: the guidance that the denoiser is told while it is trained. 1 when not given."""

    preserve: Above0 | Literal["off"] = option("off")
    """Weight of output preservation: for the same pictures under captions with data.class_words in the trigger's place the
    adapted model shall predict what the base model does, so that what it knew stays. 1 is usual; about twice as slow."""

    min_snr_gamma: Above0 | Literal["off"] = option("off", kohya="min_snr_gamma")
    """Limit the weight of easy, little-noised timesteps (Min-SNR, arXiv:2303.09556); 5 is usual, "off" weighs all alike."""
