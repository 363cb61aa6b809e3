"""[train]: how long, how many at once, from which seed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from limner.config.base import Above0, Section, option


class Train(Section):
    """Length, batch, seed and precision."""

    steps: int | None = option(None, ge=1, le=10_000_000, kohya="max_train_steps")
    """Optimiser updates. When neither steps nor epochs are given: as many as show each picture about 100 times,
    at least 500 and at most 3000."""

    epochs: int | None = option(None, ge=1, le=100_000, kohya="max_train_epochs")
    """Times that every picture is shown, repeats included. Give either steps or epochs."""

    batch_size: int = option(1, ge=1, le=4096, kohya="train_batch_size")
    """Pictures in a micro-batch, on each device."""

    accumulation: int = option(1, ge=1, le=4096, kohya="gradient_accumulation_steps")
    """Micro-batches whose gradients are added up before one step."""

    seed: int = option(0, ge=0, le=2**63 - 1, kohya="seed")
    """Where all randomness comes from. The same seed on the same machine gives the same file; on a GPU one that differs by
    rounding."""

    precision: Literal["fp32", "bf16", "fp16"] | None = option(None, kohya="mixed_precision")
    """Precision of the arithmetic. When not given: bf16 where the device has it, fp32 on a CPU."""

    clip_norm: Above0 | Literal["off"] = option(1.0, kohya="max_grad_norm")
    """Gradients longer than this are shortened to it; "off" leaves them."""

    on_nan: Literal["skip", "stop"] = option("skip", advanced=True)
    """When the loss or the gradients are not numbers any more (NaN), or the loss explodes: "skip" goes back to the last
    training state and leaves the pictures of that step out; the second time within 100 steps the run stops. "stop" stops at
    once."""

    ema: Annotated[float, Field(gt=0, lt=1)] | Literal["off"] = option("off", advanced=True)
    """Decay of an exponential moving average of the trained weights, which is then what checkpoints hold; "off" for none."""

    ema_device: Literal["same", "cpu"] = option("same", advanced=True, when="train.ema")
    """Where the average is kept: beside the weights, or in the computer's memory."""
