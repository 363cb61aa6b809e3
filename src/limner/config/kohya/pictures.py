"""Folders, captions, sizes and masks <-> [data], where they are not the same under another name."""

from __future__ import annotations

from math import isqrt

from limner.config import Data
from limner.config.kohya.reader import Reader
from limner.config.kohya.writer import Writer

ARGUMENTS = (
    "caption_extension", "caption_extention", "resolution", "token_warmup_step", "alpha_mask", "masked_loss", "dataset_config",
    "train_data_dir", "reg_data_dir", "in_json", "conditioning_data_dir", "bucket_reso_steps", "min_bucket_reso",
    "max_bucket_reso",
)  # fmt: skip
OPTIONS = (
    "data.caption_extensions", "data.resolution", "data.tag_warmup_steps", "data.masks", "data.mask_path", "data.subsets",
    "data.path", "data.class_path", "data.metadata", "data.bucket_step_px", "data.bucket_min_px", "data.bucket_max_px",
    "data.trigger",
)  # fmt: skip
_SIZES = {"sd1": (512, 64), "sd2": (768, 64), "sdxl": (1024, 32), "sd3": (1024, 32), "flux": (1024, 32)}
"""Usual resolution and step of a family's buckets, in px."""
_FOLDERS = (("train_data_dir", "data.path"), ("reg_data_dir", "data.class_path"), ("in_json", "data.metadata"))
_BUCKETS = (
    ("bucket_reso_steps", "data.bucket_step_px"), ("min_bucket_reso", "data.bucket_min_px"),
    ("max_bucket_reso", "data.bucket_max_px"),
)  # fmt: skip


def read(r: Reader) -> None:
    """Set where the pictures are, and their sizes."""
    subsets = r.text("dataset_config")
    if subsets:
        r.take("dataset_config", {"data.subsets": subsets})
    for name, option in _FOLDERS:
        if subsets:
            r.idle(name, "dataset_config takes precedence.")
        elif path := r.text(name):
            r.take(name, {option: path})
    for name in ("caption_extension", "caption_extention"):
        ending = r.text(name)
        if name == "caption_extention" and "caption_extension" in r.given:
            r.idle(name, "It is caption_extension, misspelt.")
        elif ending:
            r.take(name, {"data.caption_extensions": [ending]})
    _read_resolution(r)
    _read_buckets(r)
    _read_warmup(r)
    _read_masks(r)


def _read_buckets(r: Reader) -> None:
    cut, kept = r.flag("enable_bucket") is False, r.flag("bucket_no_upscale")
    for name, option in _BUCKETS:
        size = r.integer(name)
        if size is None or size <= 0:
            r.idle(name, "It is not given.")
        elif cut:
            r.idle(name, "There are no buckets: enable_bucket is off.")
        elif kept and name != "bucket_reso_steps":
            r.idle(name, "bucket_no_upscale is on, and then buckets have no such limit, there as here.")
        else:
            r.take(name, {option: size})


def _read_resolution(r: Reader) -> None:
    sides = r.numbers("resolution")
    if sides is None:
        return
    if len(sides) > 2 or not all(0 < side < 1e6 for side in sides):
        r.refuse("resolution", "is neither a side nor width and height.")
        return
    width, height = int(sides[0]), int(sides[-1])
    said = "The side of the square of the same area." if width != height else ""
    if said and not r.flag("enable_bucket"):
        said += " Without buckets pictures are cut square here."
    r.take("resolution", {"data.resolution": isqrt(width * height)}, said)


def _read_warmup(r: Reader) -> None:
    steps = r.number("token_warmup_step")
    total = r.value("train.steps")
    if steps is None:
        return
    if 0 < steps < 1 and not total:
        r.unsupported("token_warmup_step", "Set data.tag_warmup_steps: how many steps there are is not known.")
    elif 0 < steps < 1:
        r.take("token_warmup_step", {"data.tag_warmup_steps": int(steps * total)}, "A share of the training.")
    else:
        r.take("token_warmup_step", {"data.tag_warmup_steps": int(steps)})


def _read_masks(r: Reader) -> None:
    alpha, masked, folder = r.flag("alpha_mask"), r.flag("masked_loss"), r.text("conditioning_data_dir")
    if masked and folder:
        pairs = {"data.masks": "folder"}
        r.take("masked_loss", pairs)
        r.take("conditioning_data_dir", {"data.mask_path": folder})
        r.idle("alpha_mask", "conditioning_data_dir takes precedence.")
        return
    r.idle("conditioning_data_dir", "It is for masked_loss and ControlNets.")
    if alpha:
        r.take("alpha_mask", {"data.masks": "alpha"})
        r.idle("masked_loss", "alpha_mask is enough.")
    else:
        r.idle("alpha_mask", "It is off.")
        r.idle("masked_loss", "There are no masks." if masked else "It is off.")


def write(w: Writer) -> None:
    """The arguments of the pictures."""
    data, (side, step) = w.config.data, _SIZES[w.family]
    if w.facts.dataset_config or data.subsets:
        w.put("dataset_config", w.facts.dataset_config or str(data.subsets), "data.subsets")
    else:
        for name, option in _FOLDERS:
            path = getattr(data, option.removeprefix("data."))
            w.put(name, None if path is None else str(path), option)
        if data.trigger is not None:
            w.lose(
                "data.trigger", "is for sd-scripts the name of a folder, 10_trigger.", "Rename it so, or use a dataset file."
            )
    _write_captions(w)
    resolution = data.resolution or side
    w.put("resolution", str(resolution), "data.resolution")
    if data.buckets:
        step = data.bucket_step_px or step
        w.put("bucket_reso_steps", step, "data.bucket_step_px")
        w.put("min_bucket_reso", data.bucket_min_px or max(step, resolution // 2 // step * step), "data.bucket_min_px")
        w.put("max_bucket_reso", data.bucket_max_px or resolution * 2 // step * step, "data.bucket_max_px")
    _write_masks(w)


def _write_captions(w: Writer) -> None:
    data = w.config.data
    w.put("caption_extension", data.caption_extensions[0] if data.caption_extensions else None, "data.caption_extensions")
    if len(data.caption_extensions) != 1:
        said = f"sd-scripts looks for captions with one ending, {data.caption_extensions[0]}." if data.caption_extensions else (
            "is empty, and sd-scripts would look for .caption files."
        )  # fmt: skip
        severity = "note" if data.caption_extensions == Data().caption_extensions else "warning"
        w.lose("data.caption_extensions", said, 'Set it to one, such as [".txt"].', severity=severity)
    w.put("token_warmup_step", data.tag_warmup_steps, "data.tag_warmup_steps")


def _write_masks(w: Writer) -> None:
    data = w.config.data
    if data.masks == "off":
        return
    if data.masks == "alpha":
        w.put("alpha_mask", True, "data.masks")
        return
    w.put("masked_loss", True, "data.masks")
    w.put("conditioning_data_dir", None if data.mask_path is None else str(data.mask_path), "data.mask_path")
    if not w.facts.dataset_config:
        said = "sd-scripts reads masks of a folder only from a dataset file."
        w.lose("data.masks", said, "Use data.subsets with conditioning_data_dir.", severity="warning")
