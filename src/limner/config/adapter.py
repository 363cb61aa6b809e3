"""[adapter]: what is trained: something small beside the model, an embedding alone, or the model itself ("none")."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from limner.config.base import Above0, FilePath, Section, Texts, option


class _Kind(Section):
    trains_base: ClassVar[bool] = False
    """Whether the base model's own weights are trained: they are kept in full then, and saved as a whole model."""

    @property
    def draws(self) -> bool:
        """Whether its layers compute something else in each micro-batch."""
        return any(getattr(self, name, 0) for name in ("module_dropout", "rank_dropout", "dropout"))

    @property
    def trains_in_fp32(self) -> bool:
        """Whether the base model is loaded in float32, because its weights are trained so."""
        return False


class _Layers(_Kind):
    """What all adapters of the model's layers have."""

    denoiser: bool = option(True, kohya="network_train_text_encoder_only", inverted=True, advanced=True)
    """Adapt the denoiser (UNet or transformer)."""

    text_encoder: bool = option(False, kohya="network_train_unet_only", inverted=True)
    """Adapt the text encoder as well. Captions are then encoded anew at every step."""

    rules: Texts = option((), kohya="block_dims", advanced=True)
    """Exceptions for some layers, one text each: a pattern of their names with * and ?, a colon, and what holds there: "off",
    or any of rank=, alpha= and lr_factor=, which multiplies the learning rate. "denoiser.up_blocks.*: rank=8 lr_factor=0.5";
    "denoiser.mid_block.*: off". Of several that fit a layer, later ones take precedence."""

    module_dropout: float = option(0.0, ge=0, lt=1, kohya="module_dropout", advanced=True)
    """Share of the layers whose change is left out, drawn anew at each step."""

    start: FilePath | None = option(None, kohya="network_weights", advanced=True)
    """An adapter file of the same kind to go on from, such as one trained before."""


class _LowRank(_Kind):
    """What adapters with a rank have."""

    rank: int = option(16, ge=1, le=1024, kohya="network_dim")
    """Rank of each update: how much can be learnt, and how large the file gets."""

    alpha: float | None = option(None, gt=0, le=4096, kohya="network_alpha")
    """The update is scaled by alpha / rank. Equal to the rank when not given."""

    conv_rank: int | None = option(None, ge=1, le=1024, kohya="conv_dim", advanced=True)
    """Also adapt the 3x3 convolutions, with this rank (LoCon). Linear and 1x1 layers only when not given."""

    conv_alpha: float | None = option(None, gt=0, le=4096, kohya="conv_alpha", advanced=True, when="adapter.conv_rank")
    """Alpha of the convolutions. Equal to conv_rank when not given."""

    @property
    def convolutions(self) -> bool:
        """Whether the 3x3 convolutions are adapted too."""
        return self.conv_rank is not None

    def rank_and_scale(self, *, spatial: bool) -> tuple[int, float]:
        """(rank, factor of the update) of a layer; `spatial` for 3x3 convolutions."""
        rank, alpha = (self.conv_rank, self.conv_alpha) if spatial else (self.rank, self.alpha)
        assert rank is not None, "3x3 convolutions are not adapted"
        alpha = float(rank) if alpha is None else alpha
        return rank, alpha / self.divisor(rank)

    def divisor(self, rank: int) -> float:
        """What alpha is divided by."""
        return rank

    def file_alpha(self, *, spatial: bool) -> float:
        """The alpha that the file says: alpha / rank is the scale every reader will use, whatever rule it came from."""
        rank, scale = self.rank_and_scale(spatial=spatial)
        return scale * rank


class _Regularised(_LowRank):
    rank_dropout: float = option(0.0, ge=0, lt=1, kohya="rank_dropout", advanced=True)
    """Share of the ranks that are left out, drawn anew for each layer at each step."""

    max_norm: Above0 | Literal["off"] = option("off", kohya="scale_weight_norms", advanced=True)
    """Shrink each layer's change to this norm after every step; 1 is usual."""


class Lora(_Layers, _Regularised):
    """A low-rank adapter (LoRA, arXiv:2106.09685): small, and loads beside the base model."""

    kind: Literal["lora"] = "lora"

    dora: bool = option(False, kohya="dora_wd", advanced=True)
    """Learn direction and magnitude apart (DoRA, arXiv:2402.09353). Slower, sometimes closer to full training."""

    rank_stabilized: bool = option(False, kohya="rs_lora", advanced=True)
    """Scale by alpha / sqrt(rank) instead of alpha / rank (rsLoRA, arXiv:2312.03732). The file's alpha is converted, so
    other programs need not know."""

    up_lr_ratio: float = option(1.0, gt=0, le=1000, kohya="loraplus_lr_ratio", advanced=True)
    """The up matrices learn so many times as fast as the down matrices (LoRA+, arXiv:2402.12354); 16 is usual."""

    freeze_down: bool = option(False, kohya="networks.lora_fa", advanced=True)
    """Train the up matrices alone (LoRA-FA, arXiv:2308.03303): less memory."""

    dropout: float = option(0.0, ge=0, lt=1, kohya="network_dropout", advanced=True)
    """Share of the values between the two matrices that are left out, drawn anew at each step."""

    def divisor(self, rank: int) -> float:
        return math.sqrt(rank) if self.rank_stabilized else rank


class Loha(_Layers, _Regularised):
    """Two low-rank products multiplied entry by entry (LoHa, arXiv:2108.06098): rank squared for twice the size."""

    kind: Literal["loha"] = "loha"


class Lokr(_Layers, _Regularised):
    """A Kronecker product (LoKr, arXiv:2212.10650): very small files."""

    kind: Literal["lokr"] = "lokr"

    factor: int = option(-1, ge=-1, le=1024, kohya="factor", advanced=True)
    """Size of the smaller of the two matrices, or the nearest below that divides the layer; -1: as near to a square as can be.
    A small factor makes a large file that can learn much."""

    decompose_both: bool = option(False, kohya="decompose_both", advanced=True)
    """Make the smaller matrix a low-rank product, too."""


class Oft(_Layers):
    """Turns each layer's outputs without changing their angles to one another (orthogonal fine-tuning, arXiv:2306.07280)."""

    kind: Literal["oft"] = "oft"

    block: int = option(4, ge=2, le=1024, kohya="network_dim")
    """Size of the blocks of outputs that turn together, or the nearest below that divides a layer: how much can be learnt."""

    butterfly: bool = option(False, kohya="boft", advanced=True)
    """Turn several times, each time in other blocks (BOFT, arXiv:2311.06243). A layer whose width does not divide into
    butterflies is turned once."""

    constraint: float = option(0.0, ge=0, le=1000, kohya="constraint", advanced=True)
    """How far a turn may go, for each output; 0 is as far as it likes."""

    convolutions: bool = option(False, kohya="enable_conv", advanced=True)
    """Adapt the 3x3 convolutions as well."""


class Ia3(_Layers):
    """Learn one factor for each input or output of some layers ((IA)³, arXiv:2205.05638): the smallest files."""

    kind: Literal["ia3"] = "ia3"

    convolutions: ClassVar[bool] = False


class Glora(_Layers, _LowRank):
    """A low-rank update and a low-rank change of the weights' own directions (GLoRA, arXiv:2306.07967)."""

    kind: Literal["glora"] = "glora"


class Dylora(_Layers, _LowRank):
    """A LoRA of which any smaller rank is good by itself (DyLoRA, arXiv:2210.07558): choose the size afterwards."""

    kind: Literal["dylora"] = "dylora"

    unit: int = option(4, ge=1, le=1024, kohya="unit", advanced=True)
    """Ranks are trained in groups of this size. It must divide the rank."""

    @property
    def draws(self) -> bool:
        return True


class Full(_Layers):
    """The whole change of each layer's weights, not of low rank (LyCORIS "full"): large, but loads like a LoRA."""

    kind: Literal["full"] = "full"

    convolutions: bool = option(False, advanced=True)
    """Adapt the 3x3 convolutions as well."""


class EmbeddingOnly(_Kind):
    """Nothing but an embedding (textual inversion, arXiv:2208.01618): the word of [embedding]."""

    kind: Literal["embedding"] = "embedding"

    denoiser: ClassVar[bool] = False
    text_encoder: ClassVar[bool] = False


class NoAdapter(_Kind):
    """No adapter: the weights of the model itself are trained (fine-tuning, DreamBooth)."""

    trains_base: ClassVar[bool] = True

    kind: Literal["none"] = "none"

    denoiser: bool = option(True, kohya="train_unet", advanced=True)
    """Train the denoiser (UNet or transformer)."""

    text_encoder: bool = option(False, kohya="train_text_encoder")
    """Train the text encoder as well."""

    rules: Texts = option((), kohya="block_lr", advanced=True)
    """Exceptions for some weights, one text each: a pattern of their names with * and ?, a colon, and "off" (they are not
    trained) or lr_factor=, which multiplies the learning rate. "denoiser.down_blocks.*: off". Later ones take precedence."""

    weights: Literal["fp32", "bf16"] = option("fp32", kohya="full_bf16", advanced=True)
    """Precision of the weights that are trained. In bf16, half the memory, updates are rounded up or down at random, so that
    small ones are not lost (stochastic rounding, arXiv:2010.06192). With train.precision = "bf16", and the optimisers that
    optimizer.in_backward is for."""

    @property
    def trains_in_fp32(self) -> bool:
        return self.weights == "fp32"
