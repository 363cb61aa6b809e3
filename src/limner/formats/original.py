"""Names of tensors in a single-file Stable Diffusion 1, 2 or XL checkpoint, CompVis' layout, from diffusers' names. No torch.

Such a file holds its parts one beside the other, told apart by the first words of a name: `UNET`, `VAE`, and for the text
`TEXT` (SD 1), `OPEN_TEXT` (SD 2; see `formats.openclip`), `SDXL_TEXT` and `SDXL_OPEN_TEXT`. Each function takes all names
of one part and gives their places behind those words. Nothing but the names is asked: how many blocks there are, how many
layers a block has and where it attends can be read off them, so that models of unusual shape work, too.

The tensors are the same ones in both layouts, but that the VAE's attention is made of 1x1 convolutions. Not in the mapping,
since no module of diffusers or transformers has them: the schedule (`betas` and the like), `model_ema.*`, and CLIP's
`position_ids`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from limner.formats.layout import There

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer."
OPEN_TEXT = "cond_stage_model.model."
SDXL_TEXT = "conditioner.embedders.0.transformer."
SDXL_OPEN_TEXT = "conditioner.embedders.1.model."

_LAYER = re.compile(r"(.+\.(resnets|attentions|downsamplers|upsamplers)\.\d+)\.(.+)")
_POINTWISE = re.compile(r"(encoder|decoder)\.mid\.attn_\d+\.(q|k|v|proj_out)\.weight")

# Inside one layer: diffusers' name -> the original's. None: the same names in both layouts.
_Leaves = Mapping[str, Mapping[str, str] | None]
_UNET_LEAVES: _Leaves = {
    "resnets": {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    },
    "attentions": None,
    "downsamplers": {"conv": "op"},
    "upsamplers": {"conv": "conv"},
}
_VAE_LEAVES: _Leaves = {
    "resnets": {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"},
    "attentions": {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"},
    "downsamplers": {"conv": "conv"},
    "upsamplers": {"conv": "conv"},
}


def unet_names(names: Iterable[str]) -> dict[str, There]:
    """The places of the UNet's tensors. Raises ValueError for a name that the original layout has no place for.

    The original counts steps, not blocks: `input_blocks.0` is the first convolution, then comes one number per resnet and one
    per downsampling, through all blocks; `output_blocks` has one number per resnet. Within a number, 0 is the resnet (or the
    downsampling) and 1 the attention; upsampling has no number of its own, but is the last entry of the block's last step.
    """
    names = list(names)
    layers = _layers(names)
    places = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",  # SDXL: pooled text, size and cut
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    step = 1
    for block in _numbered("down_blocks", layers):
        for i, resnet in enumerate(_numbered(f"{block}.resnets", layers)):
            places[resnet] = f"input_blocks.{step}.0"
            places[f"{block}.attentions.{i}"] = f"input_blocks.{step}.1"
            step += 1
        for downsampler in _numbered(f"{block}.downsamplers", layers):
            places[downsampler] = f"input_blocks.{step}.0"
            step += 1
    for i, resnet in enumerate(_numbered("mid_block.resnets", layers)):
        places[resnet] = f"middle_block.{2 * i}"
        places[f"mid_block.attentions.{i}"] = f"middle_block.{2 * i + 1}"
    step = 0
    for block in _numbered("up_blocks", layers):
        attends = False
        for i, resnet in enumerate(_numbered(f"{block}.resnets", layers)):
            attention = f"{block}.attentions.{i}"
            attends = attention in layers
            places[resnet] = f"output_blocks.{step}.0"
            places[attention] = f"output_blocks.{step}.1"
            step += 1
        places[f"{block}.upsamplers.0"] = f"output_blocks.{step - 1}.{2 if attends else 1}"
    return _renamed(names, places, _UNET_LEAVES)


def vae_names(names: Iterable[str]) -> dict[str, There]:
    """The places of the VAE's tensors. Raises ValueError for a name that the original layout has no place for.

    Both layouts count levels and the resnets in them. The original numbers the decoder's levels as the encoder's, 0 being the
    finest, so that the decoder passes them from the last to the first; diffusers numbers them in order of use.
    """
    names = list(names)
    layers = _layers(names)
    same = ("quant_conv", "post_quant_conv", "encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out")
    places = {name: name for name in same}
    for side, sampling in (("encoder", "down"), ("decoder", "up")):
        places[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        blocks = list(_numbered(f"{side}.{sampling}_blocks", layers))
        for i, block in enumerate(blocks):
            level = f"{side}.{sampling}.{i if sampling == 'down' else len(blocks) - 1 - i}"
            for j, resnet in enumerate(_numbered(f"{block}.resnets", layers)):
                places[resnet] = f"{level}.block.{j}"
            places[f"{block}.{sampling}samplers.0"] = f"{level}.{sampling}sample"
        for kind, word in (("resnets", "block"), ("attentions", "attn")):
            for j, layer in enumerate(_numbered(f"{side}.mid_block.{kind}", layers)):
                places[layer] = f"{side}.mid.{word}_{j + 1}"
    return _renamed(names, places, _VAE_LEAVES)


def text_names(names: Iterable[str]) -> dict[str, There]:
    """The places of a CLIP text encoder's tensors: their own names.

    The file has the level `text_model.`, which transformers left out of its module names in 5.6; names with it are taken, too.
    """
    return {name: There(_with_level(name)) for name in names}


def _with_level(name: str) -> str:
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


def _layers(names: Iterable[str]) -> set[str]:
    """The layers that names lie in, and all levels above: "up_blocks", "up_blocks.0", ..., "up_blocks.0.resnets.1"."""
    found = {match[1] for name in names if (match := _LAYER.fullmatch(name))}
    return {layer.rsplit(".", i)[0] for layer in found for i in range(layer.count(".") + 1)}


def _numbered(prefix: str, layers: set[str]) -> Iterator[str]:
    """`prefix.0`, `prefix.1`, ... as far as there are."""
    i = 0
    while (name := f"{prefix}.{i}") in layers:
        yield name
        i += 1


def _renamed(names: Iterable[str], places: Mapping[str, str], leaves: _Leaves) -> dict[str, There]:
    out = {}
    for name in names:
        module, _, kind = name.rpartition(".")  # kind: weight or bias
        if match := _LAYER.fullmatch(module):
            layer, sort, leaf = match.groups()
            table = leaves[sort]
            parts = [places.get(layer), leaf if table is None else table.get(leaf), kind]
        else:
            parts = [places.get(module), kind]
        if None in parts:
            raise ValueError(f"the original layout of Stable Diffusion has no place for {name!r}")
        there = ".".join(p for p in parts if p is not None)
        out[name] = There(there, "pointwise" if _POINTWISE.fullmatch(there) else "same")
    return out
