"""Stable Diffusion 3 and 3.5 (arXiv:2403.03206): a flow, a transformer over 2x2 patches of latents, CLIP-L, bigG and T5.

The text is the two CLIPs' last but one hidden states side by side, filled up with zeros to T5's width, and behind them T5's;
the pooled vector is both CLIPs' together. A model without T5 gets zeros for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from limner.formats.base import Base, weight_files
from limner.formats.sd3 import transformer_names
from limner.models.family import Conditioning
from limner.models.parts import Parts, clip_l, open_clip, t5

_T5_TOKENS = 256
_CLIPS = (clip_l(CLIPTextModelWithProjection, "lora_te1"), open_clip(CLIPTextModelWithProjection, "_2", "lora_te2"))
_T5 = t5("_3")


class StableDiffusion3(Parts):
    """The family `sd3`."""

    denoiser_folder = "transformer"
    denoiser_class = SD3Transformer2DModel
    denoiser_names = staticmethod(transformer_names)
    pipeline = "StableDiffusion3Pipeline"
    scheduler_class = "FlowMatchEulerDiscreteScheduler"
    layers = ("JointTransformerBlock",)

    def __init__(self, base: Base) -> None:
        assert base.path is not None
        has_t5 = base.layout == "folder" and bool(weight_files(base.path, _T5.name))
        self.text_parts = (*_CLIPS, _T5) if has_t5 else _CLIPS
        self.without = {} if has_t5 else {_T5.name: None, _T5.tokenizer: None}  # type: ignore[misc]
        super().__init__(base)
        self._width = self.config("transformer")["joint_attention_dim"]

    def encode_captions(self, captions: Sequence[str]) -> Conditioning:
        first, second = (self._encode(t.name, captions, output_hidden_states=True) for t in _CLIPS)
        clips = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        clips = F.pad(clips, (0, self._width - clips.shape[-1]))
        if _T5.name in self.text_encoders:
            words = self._encode(_T5.name, captions, _T5_TOKENS).last_hidden_state
        else:
            words = clips.new_zeros(len(captions), _T5_TOKENS, self._width)
        pooled = torch.cat([first.text_embeds, second.text_embeds], dim=-1)
        return {"text": torch.cat([clips, words.to(clips.dtype)], dim=1), "pooled": pooled}

    def predict(self, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        return self.denoiser(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=cond["text"],
            pooled_projections=cond["pooled"],
            return_dict=False,
        )[0]

    def blocks(self) -> list[nn.Module]:
        return list(self.denoiser.transformer_blocks)

    def places_in_lora(self, names: Iterable[str]) -> dict[str, tuple[str, int | None]]:
        places = super().places_in_lora(names)
        # scale and shift of the last block's text side lie the other way round in files: not adapted yet
        places.pop(f"transformer_blocks.{len(self.denoiser.transformer_blocks) - 1}.norm1_context.linear", None)
        return places
