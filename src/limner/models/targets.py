"""The layers that adapters change, and their names in LoRA files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from limner.formats.layout import There
from limner.models.encoders import TextEncoder
from limner.models.family import Target

_TEXT_BLOCKS = ("CLIPAttention", "CLIPMLP")


def denoiser_targets(
    denoiser: nn.Module, folder: str, blocks: Sequence[str], places: Mapping[str, tuple[str, str]]
) -> list[Target]:
    """The Linear and Conv2d layers inside blocks of these classes that have a place in a LoRA file."""
    out = []
    for name, layer in _layers_within(denoiser, blocks):
        if name in places:
            in_file, piece = places[name]
            out.append(Target("denoiser", name, in_file, piece, f"{folder}.{name}", layer, _is_spatial(layer)))
    return out


def text_targets(part: TextEncoder, model: nn.Module) -> list[Target]:
    """The layers of a CLIP. A part that is not adapted has none."""
    out = []
    for name, layer in _layers_within(model, _TEXT_BLOCKS):
        dotted = f"text_model.{name.removeprefix('text_model.')}"  # every other program expects the level in the name
        in_file = f"{part.in_lora}_{dotted.replace('.', '_')}"
        out.append(Target(part.name, name, in_file, "", f"{part.name}.{dotted}", layer, is_spatial=False))
    return out


def by_own_names(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Module of the denoiser -> (its name in a LoRA file, ""), where files go by diffusers' names."""
    modules = {name.rpartition(".")[0] for name in names}
    return {module: (f"lora_unet_{module.replace('.', '_')}", "") for module in modules}


def by_original_names(places: Mapping[str, There]) -> dict[str, tuple[str, str]]:
    """Module of the denoiser -> (its name in a LoRA file, its piece), where files go by the original layout's names."""
    members = dict[There, list[str]]()
    for own, there in places.items():
        if own.endswith(".weight"):
            members.setdefault(there, []).append(own.removesuffix(".weight"))
    out = {}
    for there, modules in members.items():
        in_file = f"lora_unet_{there.name.removesuffix('.weight').replace('.', '_')}"
        for i, module in enumerate(modules):
            out[module] = (in_file, str(i) if len(modules) > 1 else "swapped" if there.lies == "swapped" else "")
    return out


def _is_spatial(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)


def _layers_within(model: nn.Module, blocks: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """The Linear and Conv2d layers inside blocks of these classes, by name, each once, in order of definition."""
    found: dict[str, nn.Module] = {}
    for block_name, block in model.named_modules():
        if type(block).__name__ in blocks:
            for name, layer in block.named_modules(prefix=block_name):
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    found[name] = layer
    return list(found.items())
