"""[optimizer]: how the weights are moved, and how fast over time."""

from __future__ import annotations

from typing import Literal

from limner.config.base import Section, option


class Optimizer(Section):
    """The optimiser and its learning-rate schedule."""

    kind: Literal["adamw"] = option("adamw", kohya="optimizer_type")
    """The optimiser: AdamW (arXiv:1711.05101)."""

    lr: float | None = option(None, gt=0, le=10, kohya="learning_rate")
    """Learning rate. When not given: 1e-4 for a LoRA, 5e-6 for a whole SD 1 model (1e-3 and 2e-4 for the pocket model)."""

    text_encoder_lr: float | None = option(None, gt=0, le=10, kohya="text_encoder_lr", when="adapter.text_encoder")
    """Learning rate of the text encoder. Half of lr when not given."""

    weight_decay: float = option(0.01, ge=0, le=1, kohya="weight_decay")
    """Decoupled weight decay."""

    beta1: float = option(0.9, ge=0, lt=1, advanced=True)
    """Decay of the running mean of gradients."""

    beta2: float = option(0.999, ge=0, lt=1, advanced=True)
    """Decay of the running mean of squared gradients."""

    eps: float = option(1e-8, gt=0, le=1, advanced=True)
    """Added to the denominator."""

    schedule: Literal["constant", "cosine"] = option("cosine", kohya="lr_scheduler")
    """How the learning rate changes after the warm-up: not at all, or down to zero along half a cosine."""

    warmup_steps: int = option(0, ge=0, le=10_000_000, kohya="lr_warmup_steps")
    """Steps over which the learning rate rises from zero."""
