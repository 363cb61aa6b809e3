"""How an option is declared: a typed field whose docstring is its help, and whose metadata serve every rendering."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from limner.errors import Finding, UserError, printable


class Section(BaseModel):
    """A frozen group of options. An unknown key is an error, a wrong type is an error, nothing is coerced silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)


def option(
    default: Any = ...,
    *,
    unit: str = "",
    kohya: str = "",
    inverted: bool = False,
    advanced: bool = False,
    when: str = "",
    files: bool = False,
    **limits: Any,
) -> Any:
    """Declare an option.

    `unit` is shown behind the name; `kohya` is the option's name in kohya_ss or sd-scripts, `inverted` if true there is
    false here; `advanced` folds it away; `when` is the condition on other options without which this one has no effect, in
    the words of `fields.holds`; `files` tells of a list of texts that each is a file, alone or with its strength
    (:func:`files_with_strengths`), or of a text that is a path or a name on the hub;
    `limits` are pydantic's (ge, gt, le, lt).
    """
    metadata: dict[str, Any] = {"unit": unit, "kohya": kohya, "inverted": inverted, "advanced": advanced, "when": when}
    if files:
        metadata["files"] = True
    return Field(default, json_schema_extra=metadata, **limits)


def clean(text: str) -> str:
    """`text` itself. Raises ValueError if it holds a control character."""
    for character in text:
        if character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cs"):
            raise ValueError(f"holds the control character U+{ord(character):04X}")
    return text


def to_path(value: Any) -> Any:
    """A typed path, `~` expanded. Raises ValueError if it cannot be one."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        raise ValueError("is empty")
    path = Path(clean(value))
    try:
        path = path.expanduser()
    except RuntimeError:
        raise ValueError("names a home folder that does not exist") from None
    if any(len(os.fsencode(part)) > 255 for part in path.parts) or len(os.fsencode(path)) > 4000:
        raise ValueError("is longer than systems allow")
    return path


def to_tuple(value: Any) -> Any:
    """A list as a tuple; for options that are lists."""
    return tuple(value) if isinstance(value, list) else value


def files_with_strengths(texts: Iterable[str], field: str) -> list[tuple[Path, float]]:
    """The files that texts such as "style.safetensors @ 0.8" name, with their strengths. Raises UserError with all faults."""
    out, faults = [], list[Finding]()
    for text in texts:
        path, at, said = text.rpartition(" @ ")
        try:
            strength = _strength(said) if at else 1.0
            out.append((to_path((path if at else text).strip()), strength))
        except ValueError as error:
            said = f"{printable(text, 80)!r}: {error}."
            faults.append(Finding(field, said, 'Write "file.safetensors" or "file.safetensors @ 0.8".'))
    if faults:
        raise UserError(faults)
    return out


def _strength(text: str) -> float:
    try:
        strength = float(text)
    except ValueError:
        strength = math.nan
    if not -10 <= strength <= 10:
        raise ValueError(f"{text!r} is no strength from -10 to 10")
    return strength


Text = Annotated[str, AfterValidator(clean), Field(max_length=20_000)]
"""Text without control characters."""

FilePath = Annotated[Path, BeforeValidator(to_path)]
"""A path as typed; `~` is expanded. Whether it exists is for preflight to say."""

Above0 = Annotated[float, Field(gt=0)]
"""A positive number; for options that are a number or a word, where a limit on the whole would also meet the word."""

Texts = Annotated[tuple[Text, ...], BeforeValidator(to_tuple)]
