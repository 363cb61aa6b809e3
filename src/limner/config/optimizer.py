"""[optimizer]: how the weights are moved, and how fast over time."""

from __future__ import annotations

from typing import Literal

from limner.config.base import Section, Text, Texts, option


def _any(option: str, words: str) -> str:
    """The condition that an option is one of these words."""
    return " or ".join(f"{option} = {word}" for word in words.split())


_EPS = _any("optimizer.kind", "adamw adamw_8bit paged_adamw_8bit prodigy dadapt_adam schedule_free")
_BETAS = f"{_EPS} or {_any('optimizer.kind', 'lion lion_8bit dadapt_lion came')}"
_FALLING = _any("optimizer.schedule", "linear cosine cosine_restarts polynomial warmup_stable_decay")


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
    """Learning rate. When not given: 1e-4 for a LoRA, 5e-6 for a whole SD 1 model (1e-3 and 2e-4 for the pocket model); a third
    of that for Lion, a tenth for CAME. For optimisers that find the rate themselves 1, by which that rate is multiplied. SGD's
    must be given. A word has its own, embedding.lr."""

    text_encoder_lr: float | None = option(None, gt=0, le=10, kohya="text_encoder_lr", when="adapter.text_encoder")
    """Learning rate of the text encoder. Half of lr when not given; lr itself for optimisers that find the rate themselves."""

    weight_decay: float = option(0.01, ge=0, le=1, kohya="weight_decay")
    """Share of each weight, times the learning rate, that is taken away at each step (decoupled, arXiv:1711.05101). With sgd it
    is part of the gradient instead. Of "other", what its class makes of it."""

    beta1: float = option(0.9, ge=0, lt=1, advanced=True, when=_BETAS)
    """Decay of the running mean of gradients."""

    beta2: float | None = option(None, ge=0, lt=1, advanced=True, when=_BETAS)
    """Decay of the running mean of squared gradients; of Lion that of the gradients themselves. When not given: 0.999, for Lion
    0.99."""

    eps: float = option(1e-8, gt=0, le=1, advanced=True, when=_EPS)
    """Added to the denominator."""

    momentum: float | None = option(None, ge=0, lt=1, advanced=True, when="optimizer.kind = sgd or optimizer.kind = muon")
    """Share of the last update that goes on (Nesterov). When not given: 0.9, for Muon 0.95."""

    in_backward: bool = option(False, kohya="fused_backward_pass", advanced=True)
    """Move each weight as soon as its gradient is there, and forget the gradient: the memory of all gradients is saved. Not for
    optimisers that need all gradients at once (prodigy, dadapt_adam, dadapt_lion, schedule_free, muon, paged_adamw_8bit,
    other), nor with train.accumulation, train.clip_norm, fp16 or several processes."""

    schedule: Literal[
        "constant", "linear", "cosine", "cosine_restarts", "polynomial", "inverse_sqrt", "warmup_stable_decay", "piecewise",
        "adafactor",
    ] = option("cosine", kohya="lr_scheduler")  # fmt: skip
    """How the learning rate changes after the warm-up: not at all; down along a line, half a cosine, several of them, or a
    power; by 1 / sqrt(step); staying and then falling at the end; in given pieces; or as Adafactor's paper has it: not for
    10,000 steps, then by 1 / sqrt(step). schedule_free wants "constant"."""

    warmup_steps: int = option(0, ge=0, le=10_000_000, kohya="lr_warmup_steps")
    """Steps over which the learning rate rises from zero."""

    warmup_share: float = option(0.0, ge=0, lt=1, kohya="lr_warmup_steps", advanced=True)
    """The same as a share of the whole training, in place of warmup_steps."""

    schedule_floor: float = option(0.0, ge=0, lt=1, kohya="lr_scheduler_min_lr_ratio", advanced=True, when=_FALLING)
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

    def num_warmup_steps(self, total: int) -> int:
        """Steps of warm-up in a training of `total` steps."""
        return self.warmup_steps or int(self.warmup_share * total)

    def kohya_schedule(self) -> str:
        """The schedule's name in sd-scripts."""
        if self.schedule == "constant" and (self.warmup_steps or self.warmup_share):
            return "constant_with_warmup"
        if self.schedule == "cosine" and self.schedule_floor:
            return "cosine_with_min_lr"
        return {"cosine_restarts": "cosine_with_restarts", "piecewise": "piecewise_constant"}.get(self.schedule, self.schedule)

    def parsed_pieces(self) -> list[tuple[int | None, float]]:
        """[(last step, factor)] of `pieces`, None for the last. Raises ValueError if they are not written so."""
        out: list[tuple[int | None, float]] = []
        for number, piece in enumerate(self.pieces):
            end, found, factor = piece.rpartition(":")
            is_last = number == len(self.pieces) - 1
            try:
                out.append((None if is_last else int(end), float(factor)))
            except ValueError:
                raise ValueError(f'"{piece}" is not of the form step:factor') from None
            if is_last == bool(found):
                raise ValueError(f'the last is a factor alone, the others are step:factor; "{piece}" is not')
            if not 0 <= out[-1][1] <= 1000:
                raise ValueError(f'the factor of "{piece}" is not between 0 and 1000')
        ends = [end for end, _ in out if end is not None]
        if ends != sorted(set(ends)) or (ends and ends[0] < 1):
            raise ValueError("the steps do not rise")
        if not out:
            raise ValueError("there are none")
        return out
