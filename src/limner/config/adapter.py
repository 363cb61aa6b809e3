"""[adapter]: what is trained: a LoRA beside the model, or the model itself ("none")."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from limner.config.base import Section, option


class Lora(Section):
    """A low-rank adapter (LoRA, arXiv:2106.09685): small, and loads beside the base model."""

    trains_base: ClassVar[bool] = False

    kind: Literal["lora"] = "lora"

    rank: int = option(16, ge=1, le=1024, kohya="network_dim")
    """Rank of each update: how much can be learnt, and how large the file gets."""

    alpha: float | None = option(None, gt=0, le=4096, kohya="network_alpha")
    """The update is scaled by alpha / rank. Equal to the rank when not given."""

    conv_rank: int | None = option(None, ge=1, le=1024, kohya="conv_dim", advanced=True)
    """Also adapt the 3x3 convolutions, with this rank (LoCon). Linear and 1x1 layers only when not given."""

    conv_alpha: float | None = option(None, gt=0, le=4096, kohya="conv_alpha", advanced=True, when="adapter.conv_rank")
    """Alpha of the convolutions. Equal to conv_rank when not given."""

    dora: bool = option(False, kohya="dora_wd", advanced=True)
    """Learn direction and magnitude apart (DoRA, arXiv:2402.09353). Slower, sometimes closer to full training."""

    rank_stabilized: bool = option(False, kohya="rs_lora", advanced=True)
    """Scale by alpha / sqrt(rank) instead of alpha / rank (rsLoRA, arXiv:2312.03732). The file's alpha is converted, so
    other programs need not know."""

    denoiser: bool = option(True, kohya="network_train_text_encoder_only", inverted=True, advanced=True)
    """Adapt the denoiser (UNet or transformer)."""

    text_encoder: bool = option(False, kohya="network_train_unet_only", inverted=True)
    """Adapt the text encoder as well. Captions are then encoded anew at every step."""

    def rank_and_scale(self, *, spatial: bool) -> tuple[int, float]:
        """(rank, factor of the update) of a layer; `spatial` for 3x3 convolutions."""
        rank, alpha = (self.conv_rank, self.conv_alpha) if spatial else (self.rank, self.alpha)
        assert rank is not None, "3x3 convolutions are not adapted"
        alpha = float(rank) if alpha is None else alpha
        return rank, alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def file_alpha(self, *, spatial: bool) -> float:
        """The alpha that the file says: alpha / rank is the scale every reader will use, whatever rule it came from."""
        rank, scale = self.rank_and_scale(spatial=spatial)
        return scale * rank


class NoAdapter(Section):
    """No adapter: the weights of the model itself are trained (fine-tuning, DreamBooth)."""

    trains_base: ClassVar[bool] = True
    """Whether the base model's own weights are trained: they are kept in float32 then, and saved as a whole model."""

    kind: Literal["none"] = "none"

    denoiser: bool = option(True, kohya="train_unet", advanced=True)
    """Train the denoiser (UNet or transformer)."""

    text_encoder: bool = option(False, kohya="train_text_encoder")
    """Train the text encoder as well."""
