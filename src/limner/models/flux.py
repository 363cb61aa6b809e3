"""Flux.1: a flow between pictures and noise, a transformer over 2x2 patches of 16-channel latents, CLIP-L and T5 for the text.

T5's hidden states are the text; CLIP-L gives one pooled vector. The dev variant is told the guidance that it was distilled with
(`Base.takes_guidance`), so that no negative prompt is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from limner.diffusion.process import Flow
from limner.formats.ahead import Ahead
from limner.formats.base import Base
from limner.formats.flux import transformer_names
from limner.models.encoders import clip_l, t5
from limner.models.family import Conditioning, Keep
from limner.models.parts import Parts

_T5_TOKENS = 512


class Flux(Parts):
    """The family `flux`."""

    denoiser_class = FluxTransformer2DModel
    denoiser_names = staticmethod(transformer_names)
    pipeline = "FluxPipeline"
    scheduler_class = "FlowMatchEulerDiscreteScheduler"
    layers = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
    text_parts = (clip_l("CLIPTextModel", "lora_te1"), t5("_2"))

    def __init__(self, base: Base, keep: Keep, ahead: Ahead | None = None) -> None:
        super().__init__(base, keep, ahead)
        assert isinstance(self.process, Flow)
        self.process = replace(self.process, least_sigma=None)

    def encode_captions(self, captions: Sequence[str]) -> Conditioning:
        pooled = self._encode("text_encoder", captions).pooler_output
        return {"text": self._encode("text_encoder_2", captions, _T5_TOKENS).last_hidden_state, "pooled": pooled}

    def is_too_long(self, caption: str) -> bool:
        return len(self.tokenizers["text_encoder_2"](caption).input_ids) > _T5_TOKENS

    def predict(self, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        height, width = noisy.shape[-2] // 2, noisy.shape[-1] // 2
        places = torch.zeros(height, width, 3, device=noisy.device)
        places[..., 1] += torch.arange(height, device=noisy.device)[:, None]
        places[..., 2] += torch.arange(width, device=noisy.device)
        pred = self.denoiser(
            hidden_states=_packed(noisy),
            timestep=timesteps / 1000,
            guidance=cond["guidance"] if self.base.takes_guidance else None,
            pooled_projections=cond["pooled"],
            encoder_hidden_states=cond["text"],
            txt_ids=torch.zeros(cond["text"].shape[1], 3, device=noisy.device),
            img_ids=places.flatten(0, 1),
            return_dict=False,
        )[0]
        return _unpacked(pred, height, width)

    def blocks_of(self, denoiser: Any) -> list[nn.Module]:
        return [*denoiser.transformer_blocks, *denoiser.single_transformer_blocks]


def _packed(latents: Tensor) -> Tensor:
    """(B, C, 2h, 2w) -> (B, h w, 4C): each 2x2 patch one token."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 2 * (w // 2), 4 * c)


def _unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `_packed`; height and width in tokens."""
    b, _, c = tokens.shape
    patches = tokens.view(b, height, width, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(b, c // 4, 2 * height, 2 * width)
