"""A model as its layers alone, without numbers: what tools that work on files ask of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from limner.errors import UserError, wrong
from limner.formats import base as bases
from limner.formats.base import Base
from limner.formats.known import FAMILIES

if TYPE_CHECKING:
    from pathlib import Path


@contextmanager
def named(fields: Mapping[str, str]) -> Iterator[None]:
    """Findings of [model] under the options of the tool that asked for it."""
    try:
        yield
    except UserError as error:
        raise UserError([replace(f, field=fields.get(f.field, f.field)) for f in error.findings]) from None


def base_here(source: str, config: Path | None, section: str) -> Base:
    """The base model that options `base` and `config` of a tool name, as far as it is in that one file or folder.

    Raises UserError.
    """
    with named({"model.base": f"{section}.base", "model.config": f"{section}.config"}):
        base = bases.recognise_alone(source, config)
    if base.path is None:
        said = f"{source} is neither a file, nor a folder, nor a model in the Hugging Face cache of this machine."
        raise wrong(f"{section}.base", said, "Check the path, or download the model first.")
    return base


def usual(family: str, config: Path | None = None) -> Base:
    """The usual model of a family, or the one that a diffusers folder of configuration files describes: shapes alone."""
    from limner.models.parts import CONFIGS

    known = FAMILIES[family]
    facts = (known.prediction, known.resolution_px, known.bucket_step_px)
    return Base(family, config or CONFIGS / family, "folder", family, *facts)


def outline(base: Base) -> Any:
    """The family with its denoiser and the text encoders that can be adapted, all of them on the meta device.

    Parts that are `absent` are left out.
    """
    from limner.models import family as families

    parts = FAMILIES[base.family].parts
    # T5 is never adapted, and its tokenizer need not be on this machine
    base = replace(base, absent=(*base.absent, *(name for name, part in parts.items() if part.option == "t5")))
    family: Any = families.make(base)
    made = family.empty()
    family.denoiser, _ = made.pop(family.denoiser_folder), made.pop("vae")
    family.text_encoders |= made
    return family
