"""Stable Diffusion 2: a UNet that predicts noise (512 px) or v (768 px), the last but one layer of OpenCLIP-H for the text."""

from __future__ import annotations

from torch import Tensor

from limner.formats.original import OPEN_TEXT
from limner.models.encoders import open_clip
from limner.models.stable_diffusion import StableDiffusion

_LAYERS = f"{OPEN_TEXT}transformer.resblocks."


class StableDiffusion2(StableDiffusion):
    """The family `sd2`. Its text encoder's configuration has one layer fewer than the weights, so that the last one counts."""

    text_parts = (open_clip("CLIPTextModel", "", "lora_te"),)

    def complete(self, state: dict[str, Tensor]) -> None:
        # readers of single files build one layer more than they look at; what it holds does not matter
        count = self.config("text_encoder")["num_hidden_layers"]
        last, extra = f"{_LAYERS}{count - 1}.", f"{_LAYERS}{count}."
        if not any(n.startswith(extra) for n in state):  # the file that it came from had one
            state |= {n.replace(last, extra): t.clone() for n, t in state.items() if n.startswith(last)}
