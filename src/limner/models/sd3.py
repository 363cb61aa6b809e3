"""Stable Diffusion 3 and 3.5 (arXiv:2403.03206): a flow, a transformer over 2x2 patches of latents, CLIP-L, bigG and T5.

The text is the two CLIPs' last but one hidden states side by side, filled up with zeros to T5's width, and behind them T5's;
the pooled vector is both CLIPs' together. Each of the three can be missing: then there are zeros in its place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from limner.formats.ahead import Ahead
from limner.formats.base import Base
from limner.formats.original import text_names
from limner.formats.sd3 import transformer_names
from limner.models.encoders import TextEncoder, clip_l, open_clip, t5
from limner.models.family import Conditioning, Keep
from limner.models.parts import CONFIGS, Parts

_T5_TOKENS = 256
_CLIP_TOKENS = 77
_CLIPS = (
    clip_l("CLIPTextModelWithProjection", "lora_te1"),
    open_clip("CLIPTextModelWithProjection", "_2", "lora_te2", text_names),
)
_T5 = t5("_3")


class StableDiffusion3(Parts):
    """The family `sd3`."""

    denoiser_class = SD3Transformer2DModel
    denoiser_names = staticmethod(transformer_names)
    pipeline = "StableDiffusion3Pipeline"
    scheduler_class = "FlowMatchEulerDiscreteScheduler"
    layers = ("JointTransformerBlock",)
    text_parts = (*_CLIPS, _T5)

    def __init__(self, base: Base, keep: Keep, ahead: Ahead | None = None) -> None:
        super().__init__(base, keep, ahead)
        self._width = self.config("transformer")["joint_attention_dim"]

    def encode_captions(self, captions: Sequence[str]) -> Conditioning:
        count, like = len(captions), next(next(iter(self.text_encoders.values())).parameters())
        states, pooled = list[Tensor](), list[Tensor]()
        for clip in _CLIPS:
            if clip.name in self.text_encoders:
                found = self._encode(clip.name, captions, output_hidden_states=True)
                states.append(found.hidden_states[-2])
                pooled.append(found.text_embeds)
            else:
                hidden, projected = self._widths(clip)
                states.append(like.new_zeros(count, _CLIP_TOKENS, hidden))
                pooled.append(like.new_zeros(count, projected))
        clips = torch.cat(states, dim=-1)
        clips = F.pad(clips, (0, self._width - clips.shape[-1]))
        if _T5.name in self.text_encoders:
            words = self._encode(_T5.name, captions, _T5_TOKENS).last_hidden_state
        else:
            words = clips.new_zeros(count, _T5_TOKENS, self._width)
        return {"text": torch.cat([clips, words.to(clips.dtype)], dim=1), "pooled": torch.cat(pooled, dim=-1)}

    def _widths(self, clip: TextEncoder) -> tuple[int, int]:
        """Of a CLIP that is missing: numbers for each token, and in the pooled vector."""
        usual = json.loads((CONFIGS / "sd3" / clip.name / "config.json").read_text(encoding="utf-8"))
        return usual["hidden_size"], usual["projection_dim"]

    def is_too_long(self, caption: str) -> bool:
        longest, limit = self.text_parts[-1].name, _T5_TOKENS if self.base.t5 else _CLIP_TOKENS
        return len(self.tokenizers[longest](caption).input_ids) > limit

    def predict(self, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        return self.denoiser(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=cond["text"],
            pooled_projections=cond["pooled"],
            return_dict=False,
        )[0]

    def blocks_of(self, denoiser: Any) -> list[nn.Module]:
        return list(denoiser.transformer_blocks)
