"""The pocket model and its picture set: small enough to ship, true enough to test on.

`MODEL` is a diffusers folder (real AutoencoderKL, CLIPTextModel, UNet2DConditionModel); `PICTURES` are the demo's
pictures of a thing that the model has never seen.
"""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).parent / "model"
PICTURES = Path(__file__).parent / "pictures"
