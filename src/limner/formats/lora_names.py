"""What layers and their tensors are called in LoRA files: the spellings of all trainers brought to kohya's. No torch.

kohya: `lora_unet_<layer, underscores>.lora_down.weight`, `.lora_up.weight`, `.alpha`. PEFT: `<path>.lora_A.weight`, `lora_B`,
with the name of an adapter between them in some files, and `base_model.model.` in front. diffusers before 0.24:
`<path>.processor.to_q_lora.down.weight`, `<path>.lora.down.weight`, in text encoders `<path>.lora_linear_layer.down.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_TELLING = re.compile(
    r".*[._](lora_(down|up|A|B|mid|linear_layer)(\.\w+)?\.weight|lora\.(down|up)\.weight|lora_linear_layer\.(down|up)\.weight"
    r"|hada_w[12]_[ab]|lokr_w[12](_[ab])?|oft_blocks|oft_diag|a1\.weight|on_input|diff|dora_scale)"
    r"|.*_lora\.(down|up)\.weight",
    re.DOTALL,
)
_SPELLINGS = [
    (re.compile(pattern, re.DOTALL), layer)
    for pattern, layer in (
        (r"(.*?)(?:\.processor)?\.to_out_lora\.(down|up)\.weight", r"\1.to_out.0"),
        (r"(.*?)(?:\.processor)?\.(to_[qkv])_lora\.(down|up)\.weight", r"\1.\2"),
        (r"(.*)\.lora_linear_layer\.(down|up)\.weight", r"\1"),
        (r"(.*)\.lora\.(down|up)\.weight", r"\1"),
        (r"(.*)\.lora_(A|B)(?:\.[A-Za-z]\w*)?\.weight", r"\1"),
        (r"(.*)\.lora_(A|B)", r"\1"),
    )
]
_MATRICES = {"down": "lora_down.weight", "up": "lora_up.weight", "A": "lora_down.weight", "B": "lora_up.weight"}


def is_adapter(names: Iterable[str]) -> bool:
    """Whether these are the tensors of a LoRA or LyCORIS file."""
    return any(_TELLING.fullmatch(name) for name in names)


def layer_and_tensor(name: str) -> tuple[str, str]:
    """(layer, tensor as kohya and LyCORIS call it) of one name in a file; ("", name) for one that is none of an adapter's."""
    for pattern, layer in _SPELLINGS:
        if match := pattern.fullmatch(name):
            return match.expand(layer).removeprefix("base_model.model."), _MATRICES[match[match.lastindex or 0]]
    if "." not in name:
        return "", name
    first, _, rest = name.partition(".")
    if first.startswith(("lora_", "lycoris_")):
        return first, rest
    layer, _, last = name.rpartition(".")
    if last == "weight":
        layer, _, before = layer.rpartition(".")
        last = f"{before}.{last}"
    return layer.removeprefix("base_model.model."), last
