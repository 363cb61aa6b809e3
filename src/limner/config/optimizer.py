"""[optimizer]: how the weights are moved, and how fast over time."""

from __future__ import annotations

from typing import Literal

from limner.config.base import Section, Text, Texts, option

_ADAM = " or ".join(
    f"optimizer.kind = {kind}"
    for kind in (
        "adamw", "adamw_8bit", "paged_adamw_8bit", "lion", "lion_8bit", "prodigy", "dadapt_adam", "dadapt_lion", "schedule_free",
        "came",
    )
)  # fmt: skip
_EPS = _ADAM.replace(" or optimizer.kind = lion_8bit", "").replace(" or optimizer.kind = lion", "")
_OWN_RATE = "optimizer.kind = prodigy or optimizer.kind = dadapt_adam or optimizer.kind = dadapt_lion"


class Optimizer(Section):
    """The optimiser and its learning-rate schedule."""

    kind: Literal[
        "adamw", "adamw_8bit", "paged_adamw_8bit", "lion", "lion_8bit", "adafactor", "prodigy", "dadapt_adam", "dadapt_lion",
        "schedule_free", "came", "muon", "sgd", "other",
    ] = option("adamw", kohya="optimizer_type")  # fmt: skip
    """The optimiser. AdamW (arXiv:1711.05101) is the usual one; its 8-bit form needs a quarter of the memory, the paged one
    moves to the computer's memory when the GPU is full. Adafactor (arXiv:1804.04235) and CAME (arXiv:2307.02047) need little
    memory; Lion (arXiv:2302.06675) wants a learning rate a third to a tenth as high; Prodigy (arXiv:2306.06101) and
    D-Adaptation (arXiv:2301.07733) find the rate themselves; schedule_free (arXiv:2405.15682) wants no schedule; Muon turns
    each update into an orthogonal matrix. "other": the class of optimizer.class_path."""

    class_path: Text | None = option(None, kohya="optimizer_type", advanced=True, when="optimizer.kind = other")
    """A class of torch.optim, pytorch_optimizer, transformers, bitsandbytes, schedulefree, prodigyopt or prodigyplus, such as
    "pytorch_optimizer.SOAP"."""

    arguments: Texts = option((), kohya="optimizer_args", advanced=True)
    """More of what the optimiser's class takes, one "name=value" each, such as "d_coef=2"."""

    lr: float | None = option(None, gt=0, le=10, kohya="learning_rate", when="not adapter.kind = embedding")
    """Learning rate; a word has its own, embedding.lr. When not given: 1e-4 for a LoRA, 5e-6 for a whole SD 1 model (1e-3 and
    2e-4 for the pocket model)."""

    text_encoder_lr: float | None = option(None, gt=0, le=10, kohya="text_encoder_lr", when="adapter.text_encoder")
    """Learning rate of the text encoder. Half of lr when not given."""

    weight_decay: float = option(0.01, ge=0, le=1, kohya="weight_decay")
    """Decoupled weight decay."""

    beta1: float = option(0.9, ge=0, lt=1, advanced=True, when=_ADAM)
    """Decay of the running mean of gradients."""

    beta2: float = option(0.999, ge=0, lt=1, advanced=True, when=_ADAM)
    """Decay of the running mean of squared gradients."""

    eps: float = option(1e-8, gt=0, le=1, advanced=True, when=_EPS)
    """Added to the denominator."""

    momentum: float = option(0.9, ge=0, lt=1, advanced=True, when="optimizer.kind = sgd or optimizer.kind = muon")
    """Share of the last update that goes on (Nesterov)."""

    in_backward: bool = option(False, kohya="fused_backward_pass", advanced=True)
    """Move each weight as soon as its gradient is there, and forget the gradient: the memory of all gradients is saved. Not
    with train.accumulation, train.clip_norm or several processes."""

    schedule: Literal[
        "constant", "linear", "cosine", "cosine_restarts", "polynomial", "inverse_sqrt", "warmup_stable_decay", "piecewise",
        "adafactor",
    ] = option("cosine", kohya="lr_scheduler")  # fmt: skip
    """How the learning rate changes after the warm-up: not at all; down along a line, half a cosine, several of them, or a
    power; by 1 / sqrt(step); staying and then falling at the end; in given pieces; or as Adafactor's paper has it."""

    warmup_steps: int = option(0, ge=0, le=10_000_000, kohya="lr_warmup_steps")
    """Steps over which the learning rate rises from zero."""

    warmup_share: float = option(0.0, ge=0, lt=1, kohya="lr_warmup_steps", advanced=True)
    """The same as a share of the whole training, in place of warmup_steps."""

    schedule_floor: float = option(
        0.0, ge=0, lt=1, kohya="lr_scheduler_min_lr_ratio", advanced=True,
        when="not optimizer.schedule = constant and not optimizer.schedule = inverse_sqrt and not optimizer.schedule = piecewise "
        "and not optimizer.schedule = adafactor",
    )  # fmt: skip
    """The schedule falls to this share of the learning rate instead of zero."""

    schedule_cycles: int = option(
        1, ge=1, le=1000, kohya="lr_scheduler_num_cycles", advanced=True, when="optimizer.schedule = cosine_restarts"
    )
    """How many cosines follow one another."""

    schedule_power: float = option(
        1.0, gt=0, le=20, kohya="lr_scheduler_power", advanced=True, when="optimizer.schedule = polynomial"
    )
    """The power of the polynomial: 1 is a line."""

    schedule_timescale: int | None = option(
        None, ge=1, le=10_000_000, kohya="lr_scheduler_timescale", advanced=True, when="optimizer.schedule = inverse_sqrt"
    )
    """Steps over which it begins to fall. The warm-up's length, or 10,000 without one, when not given."""

    decay_share: float = option(
        0.2, gt=0, le=1, kohya="lr_decay_steps", advanced=True, when="optimizer.schedule = warmup_stable_decay"
    )
    """Share of the training at its end over which the learning rate falls."""

    pieces: Texts = option((), advanced=True, when="optimizer.schedule = piecewise")
    """"step:factor" each, in order: up to that step the learning rate is multiplied by the factor; the last is a factor alone.
    For example "100:1", "500:0.1", "0.01"."""
