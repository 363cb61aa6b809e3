"""What Stable Diffusion 1, 2 and XL have in common: a UNet that attends to CLIP's hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from limner.errors import wrong
from limner.formats.original import unet_names
from limner.models import emphasis
from limner.models.chunks import chunked, emphasised, joined, room
from limner.models.emphasis import Pieces
from limner.models.encoders import TextEncoder
from limner.models.family import Conditioning, Part
from limner.models.parts import Parts
from limner.models.words import token_ids


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

    def load(self, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        super().load(part, dtype, device)
        text: Any
        for text in self.text_encoders.values():
            layers = text.config.num_hidden_layers
            if self.base.clip_skip > layers:
                said = f"{self.base.clip_skip} is more than the {layers} layers of this model's text encoder."
                raise wrong("model.clip_skip", said, f"Use at most {layers}.")

    def encode_captions(self, captions: Sequence[str]) -> Conditioning:
        return self._conditioning([self._pieces(caption) for caption in captions], self.base.text_chunks)

    def encode_prompt(self, prompt: str, negative: str) -> tuple[Conditioning, Conditioning]:
        first, second = emphasis.parse(prompt), emphasis.parse(negative)
        count = max(self.base.text_chunks, self._chunks_needed(first), self._chunks_needed(second))
        return self._conditioning([first], count), self._conditioning([second], count)

    def is_too_long(self, caption: str) -> bool:
        return self._chunks_needed(self._pieces(caption)) > self.base.text_chunks

    def _pieces(self, caption: str) -> Pieces:
        return emphasis.parse(caption) if self.base.weighted_captions else [(caption, 1.0)]

    def _chunks_needed(self, pieces: Pieces) -> int:
        return max(-(-len(self._tokens(text, pieces)) // room(self.tokenizers[text.name])) for text in self.text_parts)

    def _tokens(self, text: TextEncoder, pieces: Pieces) -> list[tuple[int, float]]:
        """Token ids with their weights, without start and end."""
        tokenizer = self.tokenizers[text.name]
        return [(token, weight) for piece, weight in pieces for token in token_ids(piece, self.words, tokenizer)]

    def _conditioning(self, texts: Sequence[Pieces], count: int) -> Conditioning:
        """What texts become in `count` chunks each."""
        return {"text": self._encode_chunks(self.text_parts[0], texts, count)[0]}

    def _encode_chunks(self, text: TextEncoder, texts: Sequence[Pieces], count: int) -> tuple[Tensor, Any]:
        """(B, 75 count + 2, W) states that are attended to, and all that the encoder says of the (B count) chunks."""
        model: Any = self.text_encoders[text.name]
        tokens = [self._tokens(text, pieces) for pieces in texts]
        ids = chunked([[token for token, _ in row] for row in tokens], self.tokenizers[text.name], count)
        found = model(ids.to(next(model.parameters()).device), output_hidden_states=True)
        weights = [[weight for _, weight in row] for row in tokens]
        return emphasised(joined(self._attended(model, found), count), weights), found

    def _attended(self, model: Any, found: Any) -> Tensor:
        """Of CLIP's hidden states those that the UNet attends to."""
        return model.final_layer_norm(found.hidden_states[-self.base.clip_skip])

    def predict(self, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        return self.denoiser(noisy, timesteps, encoder_hidden_states=cond["text"], return_dict=False)[0]

    def blocks_of(self, denoiser: Any) -> list[nn.Module]:
        out = list[nn.Module]()
        for block in (*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks):
            attentions = list(getattr(block, "attentions", ()))
            for i, resnet in enumerate(block.resnets):
                out += [resnet, *(attentions[i].transformer_blocks if i < len(attentions) else ())]
        return out
