"""[extract] and [resize]: LoRA files by singular value decomposition."""

from __future__ import annotations

from typing import ClassVar, Literal

from limner.config.base import FilePath, Text, option
from limner.config.tools.base import Writing

Rule = Literal["rank", "energy", "sv_fro", "sv_ratio", "sv_cumulative", "threshold"]
Dtype = Literal["fp32", "fp16", "bf16"]
Device = Literal["cpu", "cuda"]


class Extract(Writing):
    """Make a LoRA from two models: what was learnt on the way from the base to the tuned one, as far as its rank reaches."""

    title: ClassVar = "Extract a LoRA"
    group: ClassVar[str] = "LoRAs"
    done_by: ClassVar = "extract"

    base: Text = option(files=True, kohya="model_org")
    """The model that training began with: a single file, a diffusers folder, or a Hugging Face id that is on this machine. The
    denoiser alone is enough."""

    tuned: Text = option(files=True, kohya="model_tuned")
    """The model that came of it, of the same family."""

    output: FilePath = option(kohya="save_to")
    """The LoRA file to write, .safetensors."""

    rule: Rule = option("rank")
    """How many ranks each layer gets. rank: the same for all. Others, with `value`, as many as needed, at most `rank`: so that
    a share of the change is kept, of its squares (energy), of its Frobenius norm (sv_fro, the root of energy) or of the sum of
    its singular values (sv_cumulative); or all singular values that are larger than the largest divided by the value
    (sv_ratio), or than the value itself (threshold)."""

    value: float | None = option(None, gt=0, kohya="linear_threshold", when="not extract.rule = rank")
    """What the rule goes by: a share up to 1, or a ratio or threshold. Usual are 0.8 to 0.95 for energy and sv_fro, 10 to 50
    for sv_ratio."""

    rank: int = option(64, ge=1, le=100_000, kohya="dim")
    """Rank of the layers; the most of one where a rule decides."""

    conv_rank: int | None = option(None, ge=1, le=100_000, kohya="conv_dim")
    """The same for 3x3 convolutions, and for what else a LoCon adapts. They are left out when not given. Transformers have
    none."""

    min_diff: float = option(0.01, ge=0, kohya="min_diff", advanced=True)
    """Leave a text encoder out in which no weight has changed by more than this. With 0 only one that has not changed."""

    clamp_quantile: float = option(1.0, gt=0, le=1, kohya="clamp_quantile", advanced=True)
    """Clamp the numbers of each layer to this quantile of theirs, as kohya does with 0.99. It costs likeness to the tuned
    model: 1 does not clamp."""

    config: FilePath | None = option(None, advanced=True)
    """A diffusers folder whose configuration files describe single files of unusual shape."""

    dtype: Dtype = option("fp16", kohya="save_precision")
    """Precision of the numbers in the file."""

    device: Device = option("cpu", kohya="device")
    """Where to compute. On cuda large models take minutes, on the CPU hours if the rank is not small."""

    verbose: bool = option(True, kohya="verbose")
    """Say of each layer which rank it got, and what share of its change that keeps."""


class Resize(Writing):
    """Make a LoRA smaller: give its layers fewer ranks, and lose as little as possible of what it does."""

    title: ClassVar = "Resize a LoRA"
    group: ClassVar[str] = "LoRAs"
    done_by: ClassVar = "resize"

    lora: FilePath = option(kohya="model")
    """The LoRA file, in kohya's or diffusers' names."""

    output: FilePath = option(kohya="save_to")
    """The LoRA file to write, .safetensors."""

    rule: Rule = option("rank", kohya="dynamic_method")
    """How many ranks each layer gets. rank: the same for all. Others, with `value`, as many as needed, at most `rank`: so that
    a share of the layer is kept, of its squares (energy), of its Frobenius norm (sv_fro, the root of energy) or of the sum of
    its singular values (sv_cumulative); or all singular values that are larger than the largest divided by the value
    (sv_ratio), or than the value itself (threshold)."""

    value: float | None = option(None, gt=0, kohya="dynamic_param", when="not resize.rule = rank")
    """What the rule goes by: a share up to 1, or a ratio or threshold. Usual are 0.8 to 0.95 for energy and sv_fro, 10 to 50
    for sv_ratio."""

    rank: int = option(ge=1, le=100_000, kohya="new_rank")
    """The new rank; the most of a layer where a rule decides. A layer that has fewer keeps them."""

    conv_rank: int | None = option(None, ge=1, le=100_000, kohya="new_conv_rank")
    """The same for 3x3 convolutions. That of the other layers when not given."""

    model: Text | None = option(None, files=True, advanced=True)
    """The model that the LoRA is for. Needed only for LoHa, LoKr and whole changes in a model of unusual shape."""

    dtype: Dtype = option("fp16", kohya="save_precision")
    """Precision of the numbers in the file."""

    device: Device = option("cpu", kohya="device")
    """Where to compute. The CPU does an ordinary LoRA in seconds."""

    verbose: bool = option(True, kohya="verbose")
    """Say of each layer its old and new rank, and what share of it that keeps."""
