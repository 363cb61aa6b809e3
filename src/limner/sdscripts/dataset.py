"""The pictures of a configuration as a dataset file of sd-scripts (`dataset_config`): a subset for each folder.

Limner reads folders at any depth and looks for captions under several endings; a subset of sd-scripts is one folder and one
ending. So each folder that holds pictures becomes one, with its repeats and what stands in a caption's place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.config import Config, Data
from limner.data.classes import scan_classes
from limner.data.dataset import bucket_rules
from limner.data.scan import Picture, root_of, scan
from limner.errors import Finding, wrong
from limner.formats.base import Base
from limner.sdscripts import plain_toml

KEYS = {
    "colour": "color_aug", "flip": "flip_aug", "random_crop": "random_crop", "shuffle_tags": "shuffle_caption",
    "keep_tags": "keep_tokens", "keep_separator": "keep_tokens_separator", "secondary_separator": "secondary_separator",
    "caption_separator": "caption_separator", "wildcards": "enable_wildcard", "tag_warmup_least": "token_warmup_min",
    "tag_warmup_steps": "token_warmup_step", "caption_prefix": "caption_prefix", "caption_suffix": "caption_suffix",
    "caption_dropout_epochs": "caption_dropout_every_n_epochs", "caption_dropout": "caption_dropout_rate",
    "tag_dropout": "caption_tag_dropout_rate",
}  # fmt: skip
"""Option of [data] -> the key of a subset that it becomes as it is."""


@dataclass(frozen=True)
class DatasetFile:
    """A dataset file."""

    text: str
    num_shown: int
    """Pictures that an epoch shows, repeats not counted."""
    remarks: list[Finding]
    """What of the pictures sd-scripts sees otherwise."""


def write_dataset(config: Config, base: Base, step_px: int) -> DatasetFile:
    """The pictures of a configuration as sd-scripts takes them; `step_px` is what its buckets' sides are multiples of, where
    the configuration does not say. Raises UserError where there are no pictures.
    """
    remarks = list[Finding]()
    pictures = [*scan(config.data).pictures, *_classes(config.data, remarks)]
    num_own = sum(not p.is_class for p in pictures)
    if not num_own:
        raise wrong("data.path", "holds no usable picture.", "Give the folder that holds the pictures.")
    tables = dict[tuple, tuple[dict[str, Any], list[dict[str, Any]]]]()
    for data, folder, group in _groups(config, pictures):
        for rule in bucket_rules(data, base):
            sizes: dict[str, Any] = {"resolution": rule.resolution, "enable_bucket": rule.enabled}
            if rule.enabled:
                sizes |= {"bucket_reso_steps": data.bucket_step_px or step_px, "bucket_no_upscale": not rule.upscale}
                sizes |= {"min_bucket_reso": rule.minimum, "max_bucket_reso": rule.maximum}
            _, subsets = tables.setdefault(tuple(sizes.items()), (sizes, []))
            subsets.append(_subset(data, folder, group, remarks))
    datasets = [{**sizes, "batch_size": config.train.batch_size, "subsets": subsets} for sizes, subsets in tables.values()]
    for text in plain_toml.misread(datasets):
        remarks.append(Finding("data.path", f"sd-scripts would misread {text!r}.", "Begin it with another sign."))
    shown = 2 * num_own if num_own < len(pictures) else num_own
    return DatasetFile(plain_toml.dumps({"datasets": datasets}), shown, list(dict.fromkeys(remarks)))


def _groups(config: Config, pictures: Sequence[Picture]) -> Iterable[tuple[Data, Path, list[Picture]]]:
    """(what holds for them, their folder, the pictures), in the order in which they were found. Of captions that a file of
    metadata holds, the one folder that its names begin at."""
    if config.data.metadata is not None:
        return [(config.data, root_of(config.data), list(pictures))]
    groups = dict[tuple, list[Picture]]()
    for picture in pictures:
        folder = Path(picture.path).parent
        groups.setdefault((id(picture.settings(config.data)), folder, picture.repeats, picture.is_class), []).append(picture)
    return [(group[0].settings(config.data), folder, group) for (_, folder, _, _), group in groups.items()]


def _classes(data: Data, remarks: list[Finding]) -> list[Picture]:
    """The class pictures, where there can be any."""
    if data.class_path is not None and data.metadata is not None:
        said = "sd-scripts takes no class pictures beside a file of metadata."
        remarks.append(Finding("data.class_path", said, "Write the captions into .txt files, or train with Limner."))
        return []
    return scan_classes(data).pictures


def _subset(data: Data, folder: Path, group: list[Picture], remarks: list[Finding]) -> dict[str, Any]:
    """One folder as sd-scripts takes it."""
    first = group[0]
    out: dict[str, Any] = {"image_dir": str(folder.absolute()), "num_repeats": first.repeats}
    if len({p.repeats for p in group}) > 1:
        said = f"the folders in {folder} have different repeats; for sd-scripts they are one, beside a file of metadata."
        remarks.append(Finding("data.metadata", said, "Write the captions into .txt files, or rename the folders."))
    if first.is_class:
        out["is_reg"] = True
    if data.metadata is not None:
        out["metadata_file"] = str(data.metadata.absolute())
    else:
        out |= _captions(data, folder, group, remarks)
    usual = Data()
    for option, key in KEYS.items():
        if (value := getattr(data, option)) != getattr(usual, option):
            out[key] = value
    if data.masks == "alpha":
        out["alpha_mask"] = True
    elif data.masks == "folder" and data.mask_path is not None:
        out["conditioning_data_dir"] = str(data.mask_path.absolute())
        for key, field in (("class_tokens", "data.trigger"), ("is_reg", "data.class_path"), ("metadata_file", "data.metadata")):
            if out.pop(key, None):
                said = f"sd-scripts takes no {key} beside masks in a folder."
                remarks.append(Finding(field, said, "Give each picture a caption file, and leave it out."))
    return out


def _captions(data: Data, folder: Path, group: list[Picture], remarks: list[Finding]) -> dict[str, Any]:
    """Where the captions lie: the ending that most have, and the words that stand in for a missing one."""
    used, stands_in = Counter[str](), Counter[str]()
    for picture in group:
        stem = picture.path[: picture.path.rindex(".")]
        ending = next((e for e in data.caption_extensions if Path(stem + e).is_file()), None)
        if ending is not None:
            used[ending] += 1
        else:
            stands_in[picture.caption] += 1
    out: dict[str, Any] = {}
    if data.caption_extensions:
        out["caption_extension"] = used.most_common(1)[0][0] if used else data.caption_extensions[0]
    if len(used) > 1:
        said = f"{folder} has captions of several endings ({', '.join(sorted(used))}); sd-scripts reads one a folder."
        remarks.append(Finding("data.caption_extensions", said, "Rename them to one ending."))
    if stands_in and (words := stands_in.most_common(1)[0][0]):
        out["class_tokens"] = words
    return out
