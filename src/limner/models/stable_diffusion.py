"""What Stable Diffusion 1, 2 and XL have in common: a UNet that attends to CLIP's hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from limner.formats.original import unet_names
from limner.models.family import Conditioning
from limner.models.parts import Parts


class StableDiffusion(Parts):
    """See `models.family.Family`."""

    denoiser_class = UNet2DConditionModel
    denoiser_names = staticmethod(unet_names)
    pipeline = "StableDiffusionPipeline"
    without: ClassVar[dict[str, Any]] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler_class = "DDIMScheduler"
    layers = ("Transformer2DModel",)
    lora_layout = "diffusers"
    convolutions = ("ResnetBlock2D", "Downsample2D", "Upsample2D")

    def encode_captions(self, captions: Sequence[str]) -> Conditioning:
        return {"text": self._encode("text_encoder", captions).last_hidden_state}

    def predict(self, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        return self.denoiser(noisy, timesteps, encoder_hidden_states=cond["text"], return_dict=False)[0]

    def blocks_of(self, denoiser: Any) -> list[nn.Module]:
        return [*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks]
