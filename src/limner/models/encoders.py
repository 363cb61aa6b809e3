"""Text encoders: what the families have of CLIP, OpenCLIP and T5."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import transformers

from limner.formats.layout import Names, There
from limner.formats.openclip import openclip_names
from limner.formats.original import text_names
from limner.models.text import END, EXCLAMATION, load_t5_tokenizer, load_tokenizer

_T5 = "T5EncoderModel"
_T5_TIED = ("encoder.embed_tokens.weight",)  # is `shared.weight`


@dataclass(frozen=True)
class TextEncoder:
    """One of a family's text encoders."""

    name: str
    """Its folder in a diffusers model, and its name among the family's parts."""
    tokenizer: str
    """Its tokenizer's folder."""
    model: str
    """transformers' class. By its name: to import it takes a second, which a run with cached captions does without."""
    load_tokenizer: Callable[[Path], Any]
    names: Names
    """Its tensors' places in a single file."""
    in_lora: str = ""
    """How its layers' names begin in a LoRA file. Empty: it is not adapted."""
    tied: tuple[str, ...] = ()
    """Tensors that are others of its own, and in no file."""

    @property
    def is_t5(self) -> bool:
        return self.model == _T5

    def make(self, config: dict[str, Any]) -> Any:
        kind = getattr(transformers, self.model)
        return kind(kind.config_class.from_dict(config))


def clip_l(model: str, in_lora: str) -> TextEncoder:
    """CLIP-L, the first text encoder of most families."""
    return TextEncoder("text_encoder", "tokenizer", model, partial(load_tokenizer, pad=END), text_names, in_lora)


def open_clip(model: str, number: str, in_lora: str, names: Names = openclip_names) -> TextEncoder:
    """An OpenCLIP encoder. `number` ends the folders' names: "" for the first, "_2" for the second."""
    load = partial(load_tokenizer, pad=EXCLAMATION)
    return TextEncoder(f"text_encoder{number}", f"tokenizer{number}", model, load, names, in_lora)


def t5(number: str) -> TextEncoder:
    """T5, which is never adapted."""
    folders = f"text_encoder{number}", f"tokenizer{number}"
    return TextEncoder(*folders, _T5, load_t5_tokenizer, _t5_names, tied=_T5_TIED)


def _t5_names(names: Iterable[str]) -> dict[str, There]:
    return {name: There(name) for name in names if name not in _T5_TIED}
