"""Whole models written: as a single file in the family's original layout, or as a diffusers folder."""

from __future__ import annotations

import importlib
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from limner.formats.base import Base
from limner.formats.header import read_header
from limner.formats.known import FAMILIES, is_scale
from limner.models.weights import Weights, laid_out, with_prefix

if TYPE_CHECKING:
    from limner.models.parts import Parts

ZERO_SNR = ("v_pred", "ztsnr")
"""Empty tensors by which ComfyUI and others know a model that was trained down to a signal of zero."""
_CLIP_LEVELS = ("embeddings.", "encoder.layers.", "final_layer_norm.")


def save_file_of(family: Parts, path: Path, dtype: torch.dtype, metadata: dict[str, str]) -> None:
    """Write a single file: of a single file the parts that it held, of a folder those that such files usually hold."""
    base, state = family.base, dict[str, Tensor]()
    assert base.path is not None
    source = Weights([base.path]) if base.layout == "file" else {}
    for folder, prefix in prefixes_in_file(base, source).items():
        model, names = family.part(folder, dtype), family.names(folder)
        state |= laid_out(model.state_dict(), lambda own, names=names, p=prefix: with_prefix(names(own), p), dtype)
    # what such files hold beside the model: the schedule, marks, unused layers
    state |= {name: source[name] for name in source if name not in state and not is_left_out(name)}
    if base.has_zero_snr:
        state |= {mark: torch.zeros(0) for mark in ZERO_SNR}
    family.complete(state)
    save_file(state, path, metadata)


def prefixes_in_file(base: Base, names: Container[str]) -> dict[str, str]:
    """The parts that are written into a single file, by their folders, and the first words of their tensors' names there: of a
    single file, which has these `names`, those that it held, of a folder those that such files usually hold."""
    out = dict[str, str]()
    for folder, part in FAMILIES[base.family].parts.items():
        usual = None if part.is_apart else part.prefixes[0]
        prefix = part.prefix_in(names) if base.layout == "file" else usual
        if prefix is not None and folder not in base.absent:
            out[folder] = prefix
    return out


def is_left_out(name: str) -> bool:
    """Averages of former training, and the scales of numbers that are whole again."""
    return name.startswith("model_ema.") or is_scale(name)


def save_folder(family: Parts, path: Path, dtype: torch.dtype) -> None:
    """Write a diffusers folder."""
    present = [folder for folder in FAMILIES[family.base.family].parts if folder not in family.base.absent]
    parts = {folder: _own(family, folder, dtype) for folder in present}
    pipeline_of(family, parts).save_pretrained(path, safe_serialization=True)
    for text in family.text_parts:
        for file in (path / text.name).glob("*.safetensors"):
            _restore_text_model(file)


def pipeline_of(family: Parts, models: Mapping[str, nn.Module]) -> Any:
    """diffusers' pipeline of these parts, with the family's tokenizers and the schedule that belongs to the model."""
    diffusers = importlib.import_module("diffusers")  # its pipelines: seconds of import that training does not need
    base, parts = family.base, dict[str, Any](models)
    for text in family.text_parts:
        parts[text.tokenizer] = family.tokenizers[text.name]
    parts |= dict.fromkeys(base.absent) | {name.replace("text_encoder", "tokenizer"): None for name in base.absent}
    described = dict(family.scheduler)
    if base.prediction != "flow":
        described["prediction_type"] = base.prediction
    if base.has_zero_snr:
        described |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    parts["scheduler"] = getattr(diffusers, family.scheduler_class).from_config(described)
    return getattr(diffusers, family.pipeline)(**parts, **family.without)


def _own(family: Parts, folder: str, dtype: torch.dtype) -> nn.Module:
    """A part on the CPU in a dtype, to be written: read for it, or a copy of the one in memory."""
    held = family.held(folder)
    return family.part(folder, dtype) if held is None else _copy(held, dtype)


def _copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A model's copy on the CPU in another dtype, to be written; the model itself may be in training and stays as it is."""
    config: Any = model.config
    with torch.device("meta"):
        twin = type(model).from_config(config) if hasattr(model, "from_config") else type(model)(config)  # type: ignore
    twin.load_state_dict({k: v.detach().to("cpu", dtype, copy=True) for k, v in model.state_dict().items()}, assign=True)
    return twin


def _restore_text_model(file: Path) -> None:
    """Put the level `text_model.` back that transformers >= 5.6 leaves out of CLIP and every other program expects."""
    if any(k.startswith(_CLIP_LEVELS) for k in read_header(file).tensors):
        state = load(file.read_bytes())
        save_file({f"text_model.{k}" if k.startswith(_CLIP_LEVELS) else k: v for k, v in state.items()}, file, {"format": "pt"})
