"""Which family a LoRA file was trained for, told by the names and widths of its tensors, else by its metadata. No torch.

Names are compared with dots as underscores, so that kohya's (`lora_unet_..._attn2_to_k.lora_down.weight`) and those of
diffusers and PEFT (`unet.....attn2.to_k.lora_A.weight`) are the same. A layer's width is what its down matrix, (rank, width),
takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from limner.errors import wrong
from limner.formats.header import Header, TensorInfo
from limner.formats.known import FAMILIES

_DOWN = re.compile(r".*(_lora\d?_(down|A)(_default)?_weight|_hada_w1_b)")
_UNET = re.compile(r".*(down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks)_.*")
_ATTENDS_TO_TEXT = re.compile(r".*_attn2_(processor_)?to_[kv]_.*")
# kohya calls SDXL's blocks as Stability does, those of other UNets as diffusers; and only SDXL has several transformers in one
_SDXL = re.compile(r"lora_unet_(input_blocks|middle_block|output_blocks)_.*|.*_transformer_blocks_[1-9].*")
_TEXT_ENCODER = re.compile(r"lora_te_text_model_encoder_.*_self_attn_[qkv]_proj_.*")
_BLOCK = re.compile(r"(?:.*?_)??(double_blocks|single_blocks|joint_blocks|(?:single_|joint_)?transformer_blocks)_(\d+)_.*")

_TEXT_WIDTHS = {known.text_width: family for family, known in FAMILIES.items() if known.text_width}
_TEXT_ENCODER_WIDTHS = {768: "sd1", 1024: "sd2"}
_SD3_WIDTHS = {1536, 4 * 1536, 2432, 4 * 2432}  # of medium and of large
_FLUX_WIDTHS = {3072, 4 * 3072, 5 * 3072}
_FLUX_BLOCKS = {  # HunyuanVideo's and Qwen's have the same names and widths; they have more of them
    "double_blocks": 19, "transformer_blocks": 19, "single_blocks": 38, "single_transformer_blocks": 38,
}  # fmt: skip

_SAYS = ("ss_base_model_version", "modelspec.architecture")
_MEANS = {
    "sdxl": r"sdxl|stable-diffusion-xl",
    "sd3": r"sd_?3|stable-diffusion-3",
    "sd2": r"sd_?v?2|stable-diffusion-v?2",
    "sd1": r"sd_?v?1|stable-diffusion-v?1",
    "flux": r"flux[._-]?1",
}
_LIKE_FLUX = r"chroma|hunyuan|flux[._-]?2"


def family_of_lora(header: Header) -> str | None:
    """The key of FAMILIES; None where it cannot be told: the layers that differ are missing, or it is another model's."""
    said = [header.metadata[key] for key in _SAYS if key in header.metadata]
    found = _by_tensors({name.replace(".", "_"): info for name, info in header.tensors.items()})
    if found == "flux" and any(re.match(_LIKE_FLUX, text, re.IGNORECASE) for text in said):
        return None
    return found or next((f for text in said for f, means in _MEANS.items() if re.match(means, text, re.IGNORECASE)), None)


def require_family(header: Header, family: str, name: str, field: str) -> None:
    """Raise UserError (under `field`) if the LoRA file called `name` is another family's. One that cannot be told passes."""
    found = family_of_lora(header)
    if found is not None and found != family:
        its, wanted = FAMILIES[found].title, FAMILIES[family].title
        said = f"{name} is a LoRA for {its}, the base model is {wanted}."
        raise wrong(field, said, f"Choose a LoRA for {wanted}, or a base model that is {its}.")


def _by_tensors(tensors: Mapping[str, TensorInfo]) -> str | None:
    unet = [name for name in tensors if _UNET.fullmatch(name)]
    if unet:
        text = _widths(tensors, (name for name in unet if _ATTENDS_TO_TEXT.fullmatch(name)))
        if text:
            return _TEXT_WIDTHS.get(max(text))
        return "sdxl" if any(_SDXL.fullmatch(name) for name in unet) else None
    blocks = {name: match for name in tensors if (match := _BLOCK.fullmatch(name))}
    if blocks:
        return _by_blocks(blocks.values(), _widths(tensors, blocks))
    return _TEXT_ENCODER_WIDTHS.get(max(_widths(tensors, filter(_TEXT_ENCODER.fullmatch, tensors)), default=0))


def _widths(tensors: Mapping[str, TensorInfo], names: Iterable[str]) -> set[int]:
    return {tensors[name].shape[1] for name in names if _DOWN.fullmatch(name) and len(tensors[name].shape) >= 2}


def _by_blocks(blocks: Iterable[re.Match[str]], widths: set[int]) -> str | None:
    """SD 3 or Flux, by the names, numbers and widths of a transformer's blocks."""
    counts = dict[str, int]()
    for block in blocks:
        kind, number = block[1], int(block[2][:4])
        counts[kind] = max(counts.get(kind, 0), number + 1)
    if "joint_blocks" in counts:
        return "sd3"
    is_named = counts.keys() != {"transformer_blocks"}  # which both have, and others
    if is_named or widths:
        if widths <= _FLUX_WIDTHS and all(count <= _FLUX_BLOCKS.get(kind, 0) for kind, count in counts.items()):
            return "flux"
        if not is_named and widths <= _SD3_WIDTHS:
            return "sd3"
    return None
