"""Stable Diffusion XL (arXiv:2307.01952): CLIP-L and OpenCLIP-bigG side by side, and a UNet that is told sizes and cut.

The UNet attends to the last but one hidden states of both encoders, joined to 768 + 1280 numbers a token. Beside the timestep
it gets bigG's pooled vector and six numbers: the picture's height and width, top and left of the cut, its own height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from limner.models.emphasis import Pieces
from limner.models.encoders import clip_l, open_clip
from limner.models.family import Conditioning
from limner.models.stable_diffusion import StableDiffusion


class StableDiffusionXL(StableDiffusion):
    """The family `sdxl`."""

    pipeline = "StableDiffusionXLPipeline"
    text_parts = (
        clip_l("CLIPTextModel", "lora_te1"),
        open_clip("CLIPTextModelWithProjection", "_2", "lora_te2"),
    )
    without: ClassVar[dict[str, Any]] = {}
    lora_layout = "original"

    def _conditioning(self, texts: Sequence[Pieces], count: int) -> Conditioning:
        (first, _), (second, found) = (self._encode_chunks(t, texts, count) for t in self.text_parts)
        return {"text": torch.cat([first, second], dim=-1), "pooled": found.text_embeds[::count]}  # that of the first chunk

    def _attended(self, model: Any, found: Any) -> Tensor:
        del model
        return found.hidden_states[-2]

    def predict(self, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        told = {"text_embeds": cond["pooled"], "time_ids": cond["geometry"]}
        text = cond["text"]
        return self.denoiser(noisy, timesteps, encoder_hidden_states=text, added_cond_kwargs=told, return_dict=False)[0]
