"""Names in LoRA files: a module's dotted diffusers name <-> kohya's name.

kohya writes `<prefix>_<dotted name with underscores>` and the three tensors `lora_down.weight`, `lora_up.weight`, `alpha`
(and `dora_scale` for DoRA, as LyCORIS does). SD 1 uses diffusers' own module names.
"""

from __future__ import annotations

PREFIXES = {"denoiser": "lora_unet", "text_encoder": "lora_te"}


def kohya_name(part: str, module: str) -> str:
    """The name of a module's update in a kohya file, for example `lora_unet_mid_block_attentions_0_proj_in`.

    transformers >= 5.6 has no `text_model.` level in CLIPTextModel; every other program expects it in the name.
    """
    if part == "text_encoder" and not module.startswith("text_model."):
        module = f"text_model.{module}"
    return f"{PREFIXES[part]}_{module.replace('.', '_')}"
