"""Dataset files of sd-scripts (`dataset_config`, .toml or .json): several folders, each with settings of its own.

What a subset does not say is looked up in its dataset, then in [general], then in the configuration's [data], as there. No key
is passed over in silence: each is taken over, refused, or named in a warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from limner import parsing
from limner.config import Data
from limner.config.files import read_text
from limner.data.subset import Subset
from limner.errors import Finding, UserError, wrong

_SAME = {
    "color_aug": "colour",
    "flip_aug": "flip",
    "num_repeats": "repeats",
    "random_crop": "random_crop",
    "shuffle_caption": "shuffle_tags",
    "keep_tokens": "keep_tags",
    "keep_tokens_separator": "keep_separator",
    "secondary_separator": "secondary_separator",
    "caption_separator": "caption_separator",
    "enable_wildcard": "wildcards",
    "token_warmup_min": "tag_warmup_least",
    "token_warmup_step": "tag_warmup_steps",
    "caption_prefix": "caption_prefix",
    "caption_suffix": "caption_suffix",
    "caption_dropout_every_n_epochs": "caption_dropout_epochs",
    "caption_dropout_rate": "caption_dropout",
    "caption_tag_dropout_rate": "tag_dropout",
    "class_tokens": "trigger",
    "enable_bucket": "buckets",
    "min_bucket_reso": "bucket_min_px",
    "max_bucket_reso": "bucket_max_px",
    "bucket_reso_steps": "bucket_step_px",
}
"""sd-scripts' key -> the option that it becomes as it is."""

_PATHS = {"image_dir": "path", "metadata_file": "metadata", "conditioning_data_dir": "mask_path"}
_OTHERS = {"caption_extension", "is_reg", "alpha_mask", "resolution", "bucket_no_upscale"}
_IDLE = {
    "batch_size": "train.batch_size holds for all.",
    "face_crop_aug_range": "Limner does not look for faces: see data.random_crop.",
    "custom_attributes": "nothing reads them.",
    "cache_info": "Limner remembers large folders in any case.",
    "resize_interpolation": "pictures are always resized by Lanczos' filter.",
    "network_multiplier": "every picture counts the same.",
    "validation_seed": "the seed of the training draws what is held out.",
    "validation_split": "see validation.share.",
}
"""What is not taken over, and why."""

_KNOWN = {*_SAME, *_PATHS, *_OTHERS, *_IDLE}
_REMEDY = "Mend it there."


def read(path: Path, data: Data) -> tuple[list[Subset], list[Finding]]:
    """The subsets of a dataset file, and warnings. Raises UserError that names every fault at once."""
    raw = _parsed(path)
    faults, subsets, warnings = list[Finding](), list[Subset](), dict[str, Finding]()
    if data.path is not None:
        said = "is not read: data.subsets names the folders."
        warnings["path"] = Finding("data.path", said, "Remove it.", "warning")
    for where, layers in _layered(raw, faults):
        values: dict[str, Any] = {}
        for layer in layers:
            values |= layer
        for key in values:
            if key in _IDLE:
                said = f"{path}: {key} is not taken over: {_IDLE[key]}"
                warnings[key] = Finding("data.subsets", said, "Remove it, if you do not need it.", "warning")
            elif key not in _KNOWN:
                faults.append(_fault(where, f"{key!r} is no key of a dataset file."))
        found = _subset(where, values, data, path.absolute().parent, faults)
        if found is not None:
            subsets.append(found)
    if faults:
        raise UserError([Finding(f.field, f"{path}: {f.message}", f.remedy) for f in faults[:20]])
    if not subsets:
        raise wrong("data.subsets", f"{path} names no subset.", "Add [[datasets.subsets]] with an image_dir.")
    return subsets, list(warnings.values())


def _parsed(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        found = parsing.json_value(text) if path.suffix.lower() == ".json" else parsing.toml(text)
    except ValueError as error:
        kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
        raise wrong("data.subsets", f"{path} is not valid {kind}: {error}.", "Mend that line.") from None
    if not isinstance(found, dict):
        raise wrong("data.subsets", f"{path} holds no tables.", "Give a dataset file of sd-scripts.")
    return found


def _layered(raw: dict[str, Any], faults: list[Finding]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(where, [general], its dataset without subsets, itself) for each subset."""
    faults += [_fault("the file", f"{k!r} is no table of a dataset file.") for k in raw if k not in ("general", "datasets")]
    general = raw.get("general", {})
    if not isinstance(general, dict):
        faults.append(_fault("general", "is no table."))
        return
    for i, dataset in enumerate(_tables(raw.get("datasets", []), "datasets", faults), 1):
        own = {k: v for k, v in dataset.items() if k != "subsets"}
        for j, subset in enumerate(_tables(dataset.get("subsets", []), f"dataset {i}: subsets", faults), 1):
            yield f"dataset {i}, subset {j}", [general, own, subset]


def _tables(value: Any, where: str, faults: list[Finding]) -> list[dict[str, Any]]:
    if isinstance(value, list) and all(isinstance(v, dict) for v in value):
        return value
    faults.append(_fault(where, "is no list of tables."))
    return []


def _subset(where: str, values: dict[str, Any], data: Data, folder: Path, faults: list[Finding]) -> Subset | None:
    before, out, origin = len(faults), dict[str, Any](), dict[str, str]()
    for key, value in values.items():
        name = _SAME.get(key) or _PATHS.get(key)
        if name is not None:
            out[name], origin[name] = str(folder / value) if key in _PATHS and isinstance(value, str) else value, key
    out |= _translated(where, values, data, faults)
    if "image_dir" not in values:
        faults.append(_fault(where, "has no image_dir."))
    if "conditioning_data_dir" in values and data.masks != "folder":
        said = 'conditioning_data_dir is for masks, and data.masks is not "folder"; ControlNets are not trained.'
        faults.append(_fault(where, said))
    if not isinstance(values.get("is_reg", False), bool):
        faults.append(_fault(where, "is_reg is neither true nor false."))
    given = _validated(where, out, origin, faults)
    if given is None or len(faults) > before:
        return None
    changed = {name: getattr(given, name) for name in out}
    return Subset(data.model_copy(update=changed | {"subsets": None}), values.get("is_reg", False))


def _validated(where: str, options: dict[str, Any], origin: dict[str, str], faults: list[Finding]) -> Data | None:
    try:
        return Data.model_validate(options)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            name = str(fault["loc"][0])
            remedy = "Give whole steps." if name == "tag_warmup_steps" else _REMEDY
            said = f"{origin.get(name, name)} = {fault['input']!r}: {fault['msg'].removeprefix('Value error, ')}."
            faults.append(_fault(where, said, remedy))
        return None


def _translated(where: str, values: dict[str, Any], data: Data, faults: list[Finding]) -> dict[str, Any]:
    """The options of the keys that mean something else than they are called."""
    out: dict[str, Any] = {}
    if "caption_extension" in values:
        out["caption_extensions"] = [values["caption_extension"]]
    if "bucket_no_upscale" in values:
        no_upscale = values["bucket_no_upscale"]
        out["upscale"] = not no_upscale if isinstance(no_upscale, bool) else no_upscale
    if "alpha_mask" in values:
        alpha = values["alpha_mask"]
        if not isinstance(alpha, bool):
            faults.append(_fault(where, "alpha_mask is neither true nor false."))
        out["masks"] = "alpha" if alpha else data.masks if data.masks == "folder" else "off"
    if "resolution" in values:
        size = values["resolution"]
        sides: list[Any] = size if isinstance(size, list) and len(size) == 2 else [size, size]
        if not all(isinstance(side, int) and side > 0 for side in sides):
            faults.append(_fault(where, f"resolution = {size!r} is neither a number nor [width, height]."))
        elif sides[0] != sides[1] and not values.get("enable_bucket", data.buckets):
            faults.append(_fault(where, f"resolution = {size!r}: without buckets all pictures are cut square."))
        else:
            out["resolution"] = isqrt(sides[0] * sides[1])
    return out


def _fault(where: str, said: str, remedy: str = _REMEDY) -> Finding:
    return Finding("data.subsets", f"{where}: {said}", remedy)
