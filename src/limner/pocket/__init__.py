"""The pocket models and their picture set: small enough to ship, true enough to test on.

`MODEL` is a diffusers folder in Stable Diffusion 1's layout (real AutoencoderKL, CLIPTextModel, UNet2DConditionModel);
`FLOW_MODEL` is one of the same world in Stable Diffusion 3's; `PICTURES` are the demo's pictures of a thing that neither has
ever seen.
"""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).parent / "model"
FLOW_MODEL = Path(__file__).parent / "flow_model"
MODELS = {"pocket": MODEL, "pocket-flow": FLOW_MODEL}
"""By what `model.base` says."""
PICTURES = Path(__file__).parent / "pictures"
