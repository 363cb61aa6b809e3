"""[objective]: what the model is asked to predict, of which pictures with how much noise, and how errors are weighed."""

from __future__ import annotations

from typing import Literal

from limner.config.base import Above0, Section, option

_HUBER = "objective.loss = huber or objective.loss = smooth_l1"


class Objective(Section):
    """Prediction target, noise, timesteps and loss weights."""

    prediction: Literal["epsilon", "v_prediction"] | None = option(None, kohya="v_parameterization", advanced=True)
    """What the denoiser predicts: the noise, or the velocity v (arXiv:2202.00512). The model's own when not given."""

    guidance: float | None = option(None, ge=0, le=100, kohya="guidance_scale", advanced=True)
    """Flux.1 dev only: the guidance that the denoiser is told while it is trained. 1 when not given."""

    zero_terminal_snr: bool = option(False, kohya="zero_terminal_snr", advanced=True)
    """Train down to pure noise (arXiv:2305.08891), so that very dark and very bright pictures can be learnt. For models that
    predict v; Stable Diffusion 1, 2 and XL."""

    # --- how wrong a prediction is

    loss: Literal["l2", "l1", "huber", "smooth_l1"] = option("l2", kohya="loss_type", advanced=True)
    """How errors are measured: squared, absolute, or squared for small ones and absolute for large ones (Huber), which is less
    disturbed by pictures that do not belong."""

    huber_threshold: float = option(0.1, gt=0, le=1, kohya="huber_c", advanced=True, when=_HUBER)
    """Where a Huber loss turns from squared to absolute."""

    huber_schedule: Literal["constant", "exponential", "snr"] = option(
        "constant", kohya="huber_schedule", advanced=True, when=_HUBER
    )
    """Whether that threshold is the same for all timesteps, falls from 1 as noise grows, or follows the signal-to-noise ratio
    from 1 down."""

    weighting: Literal["uniform", "min_snr", "soft_min_snr", "debiased", "v_as_epsilon", "sigma_sqrt", "cosmap"] = option(
        "uniform", kohya="min_snr_gamma", advanced=True
    )
    """How much timesteps count. "min_snr" limits the weight of easy, little-noised ones (arXiv:2303.09556), "soft_min_snr" does
    so smoothly (arXiv:2401.11605), "debiased" weighs by 1 / sqrt(SNR) (arXiv:2310.08442), "v_as_epsilon" weighs a prediction of
    v as one of the noise. For flows: "sigma_sqrt" (1 / sigma²) and "cosmap" (arXiv:2403.03206)."""

    snr_gamma: float = option(
        5.0, gt=0, le=1000, kohya="min_snr_gamma", advanced=True,
        when="objective.weighting = min_snr or objective.weighting = soft_min_snr",
    )  # fmt: skip
    """The signal-to-noise ratio from which on timesteps count less; 5 is usual."""

    v_share: Above0 | Literal["off"] = option("off", kohya="v_pred_like_loss", advanced=True)
    """Models that predict the noise: add so much of the loss as a prediction of v would have it."""

    # --- which timesteps

    timesteps: Literal["uniform", "logit_normal", "mode", "cosmap"] | None = option(
        None, kohya="timestep_sampling", advanced=True
    )
    """How timesteps are drawn: evenly, most in the middle (logit_normal; kohya's sigmoid too), or as arXiv:2403.03206 has it
    (mode, cosmap). When not given: evenly, for Stable Diffusion 3 and Flux.1 logit_normal."""

    logit_mean: float = option(0.0, ge=-10, le=10, kohya="logit_mean", advanced=True, when="objective.timesteps = logit_normal")
    """Mean of logit_normal: above 0 more noise, below 0 less."""

    logit_std: float = option(1.0, gt=0, le=10, kohya="sigmoid_scale", advanced=True, when="objective.timesteps = logit_normal")
    """Deviation of logit_normal: smaller crowds the middle."""

    mode_scale: float = option(1.29, ge=-1, le=1.75, kohya="mode_scale", advanced=True, when="objective.timesteps = mode")
    """Scale of mode: above 0 the middle, below 0 the ends."""

    shift: Above0 | Literal["resolution"] | None = option(None, kohya="discrete_flow_shift", advanced=True)
    """Flows: draw noisier timesteps the larger this is; 1 shifts none, "resolution" the more the larger a picture is (as Flux.1
    dev does). The model's own when not given."""

    least_timestep: int = option(0, ge=0, le=999, kohya="min_timestep", advanced=True)
    """Train no timestep below this; 0 is no noise, 1000 is nothing but noise."""

    most_timestep: int = option(1000, ge=1, le=1000, kohya="max_timestep", advanced=True)
    """Train only timesteps below this."""

    # --- which noise

    noise_offset: float = option(0.0, ge=0, le=1, kohya="noise_offset", advanced=True)
    """Add so much of one number for each picture and channel to the noise, so that the overall brightness is learnt, too. 0.05
    is usual. Not for flows."""

    noise_offset_random: bool = option(
        False, kohya="noise_offset_random_strength", advanced=True, when="objective.noise_offset"
    )
    """Draw the offset's strength anew for each picture, from 0 to noise_offset."""

    noise_offset_adaptive: float = option(0.0, ge=-10, le=10, kohya="adaptive_noise_scale", advanced=True)
    """Add this times the size of each channel's mean to the offset."""

    pyramid_levels: int = option(0, ge=0, le=20, kohya="multires_noise_iterations", advanced=True)
    """Add so many coarser layers of noise (pyramid noise); 6 to 10 are usual, 0 adds none. Not for flows."""

    pyramid_discount: float = option(
        0.3, gt=0, lt=1, kohya="multires_noise_discount", advanced=True, when="objective.pyramid_levels"
    )
    """Each coarser layer of noise is so much weaker."""

    input_perturbation: float = option(0.0, ge=0, le=1, kohya="ip_noise_gamma", advanced=True)
    """Disturb what the model sees with so much more noise than it is asked to predict (arXiv:2301.11706); 0.1 is usual."""

    input_perturbation_random: bool = option(
        False, kohya="ip_noise_gamma_random_strength", advanced=True, when="objective.input_perturbation"
    )
    """Draw that strength anew for each picture, from 0 to input_perturbation."""

    # --- what the model shall not forget

    preserve: Above0 | Literal["off"] = option("off")
    """Weight of output preservation: for the same pictures under captions with data.class_words in the trigger's place the
    adapted model shall predict what the base model does, so that what it knew stays. 1 is usual; about twice as slow."""

    prior_weight: float = option(1.0, gt=0, le=100, kohya="prior_loss_weight", advanced=True, when="data.class_path")
    """How much the class pictures count beside the others (prior preservation, arXiv:2208.12242)."""
