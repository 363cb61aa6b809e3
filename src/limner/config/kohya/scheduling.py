"""lr_scheduler and how long the training is <-> [optimizer] schedule and [train] steps."""

from __future__ import annotations

import ast
from contextlib import suppress

from limner.config.kohya.reader import Reader
from limner.config.kohya.writer import Writer

ARGUMENTS = (
    "lr_scheduler", "lr_scheduler_args", "lr_scheduler_type", "lr_scheduler_num_cycles", "lr_scheduler_power",
    "lr_scheduler_timescale", "lr_scheduler_min_lr_ratio", "lr_warmup_steps", "lr_decay_steps", "max_train_steps",
    "max_train_epochs",
)  # fmt: skip
OPTIONS = (
    "optimizer.schedule", "optimizer.warmup_steps", "optimizer.warmup_share", "optimizer.schedule_floor",
    "optimizer.schedule_cycles", "optimizer.schedule_power", "optimizer.schedule_timescale", "optimizer.decay_share",
    "optimizer.pieces", "train.steps", "train.epochs",
)  # fmt: skip
_SCHEDULES = {
    "constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine",
    "cosine_with_restarts": "cosine_restarts", "polynomial": "polynomial", "inverse_sqrt": "inverse_sqrt",
    "cosine_with_min_lr": "cosine", "warmup_stable_decay": "warmup_stable_decay", "piecewise_constant": "piecewise",
    "adafactor": "adafactor",
}  # fmt: skip
_FLOORED = ("cosine_with_min_lr", "warmup_stable_decay")
_WAVES = ("cosine_with_min_lr", "warmup_stable_decay")
"""Their cosine falls and rises again lr_scheduler_num_cycles times there; once is what Limner's does."""


def read(r: Reader) -> None:
    """Set the schedule, and the length of the training."""
    _read_length(r)
    keys = r.spread("lr_scheduler_args")
    name = r.text("lr_scheduler") or ""
    if (own := r.text("lr_scheduler_type")) and own.strip():
        r.unsupported("lr_scheduler_type", "Schedules are Limner's own; see optimizer.schedule.")
    if r.value("optimizer.schedule") == "adafactor":
        r.idle("lr_scheduler", "Adafactor with relative_step has its own schedule.")
        name = "adafactor"
    elif r.value("optimizer.kind") == "schedule_free":
        r.put("optimizer.schedule", "constant")
        r.idle("lr_scheduler", "A schedule-free optimiser wants none.")
        name = "constant_with_warmup"
    elif name in _SCHEDULES:
        r.take("lr_scheduler", {"optimizer.schedule": _SCHEDULES[name]})
    elif name:
        r.refuse("lr_scheduler", "is no schedule.")
    _read_shape(r, name)
    _read_warmup(r, name)
    for key in keys:
        place = f"lr_scheduler_args.{key}"
        if key == "step_rules" and name == "piecewise_constant":
            _read_pieces(r, place)
        else:
            r.unsupported(place, "Schedules take Limner's own options.")


def _read_length(r: Reader) -> None:
    epochs, steps = r.integer("max_train_epochs"), r.integer("max_train_steps")
    if epochs:
        r.take("max_train_epochs", {"train.epochs": epochs})
        r.idle("max_train_steps", "max_train_epochs takes precedence.")
        return
    r.idle("max_train_epochs", "It is not given.")
    if steps:
        r.take("max_train_steps", {"train.steps": steps})
    else:
        r.idle("max_train_steps", "0 is no length. Limner finds one.")


def _read_shape(r: Reader, name: str) -> None:
    """What belongs to one schedule alone."""
    uses = {
        "lr_scheduler_num_cycles": ("optimizer.schedule_cycles", name == "cosine_with_restarts", r.integer),
        "lr_scheduler_power": ("optimizer.schedule_power", name == "polynomial", r.number),
        "lr_scheduler_timescale": ("optimizer.schedule_timescale", name == "inverse_sqrt", r.integer),
        "lr_scheduler_min_lr_ratio": ("optimizer.schedule_floor", name in _FLOORED, r.number),
    }
    for argument, (option, is_used, typed) in uses.items():
        if argument == "lr_scheduler_num_cycles" and name in _WAVES and r.integer(argument) not in (None, 1):
            r.unsupported(argument, 'The rate falls once. optimizer.schedule = "cosine_restarts" has cycles.')
        elif not is_used and name:
            r.idle(argument, f"It is not for {name}.")
        elif (value := typed(argument)) is not None:
            r.take(argument, {option: value})
    decay = r.number("lr_decay_steps")
    if name and name != "warmup_stable_decay":
        r.idle("lr_decay_steps", f"It is not for {name}.")
    elif decay is not None and 0 < decay < 1:
        r.take("lr_decay_steps", {"optimizer.decay_share": decay})
    elif decay and (total := r.value("train.steps")):
        r.take("lr_decay_steps", {"optimizer.decay_share": decay / total}, "As a share of the training.")
    elif decay:
        r.unsupported("lr_decay_steps", "Set optimizer.decay_share: how many steps there are is not known.")
    else:
        r.idle("lr_decay_steps", "It is 0.")


def _read_warmup(r: Reader, name: str) -> None:
    warmup = r.number("lr_warmup_steps")
    if warmup is None:
        return
    if name in ("constant", "adafactor") and warmup:
        r.idle("lr_warmup_steps", f"{name} has none there: the trainer refuses it.")
    elif 0 < warmup < 1:
        r.take("lr_warmup_steps", {"optimizer.warmup_share": warmup})
    else:
        r.take("lr_warmup_steps", {"optimizer.warmup_steps": int(warmup)})


def _read_pieces(r: Reader, place: str) -> None:
    """step_rules is "factor:steps,...,factor", pieces are "step:factor" each."""
    text = r.text(place) or ""
    with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # it stands there without quotes
        text = str(ast.literal_eval(text))
    *first, last = (part.strip() for part in text.split(","))
    pairs = [part.partition(":") for part in first]
    if not last or not all(colon for _, colon, _ in pairs):
        r.refuse(place, 'is not of the form "1:100,0.1:500,0.01".')
        return
    r.take(place, {"optimizer.pieces": [*(f"{steps}:{factor}" for factor, _, steps in pairs), last]})


def write(w: Writer) -> None:
    """The schedule and the length."""
    section, train = w.config.optimizer, w.config.train
    total = train.steps if train.steps is not None else w.facts.total_steps
    if train.epochs is not None and train.steps is None:
        w.put("max_train_epochs", train.epochs, "train.epochs")
    elif total is None:
        w.lose("train.steps", "is not given, and sd-scripts would train 1600.", "Set it, or train.epochs.")
    else:
        w.put("max_train_steps", total, "train.steps")
    name = section.kohya_schedule()
    if section.kind == "adafactor" and name == "adafactor":
        name = "constant"  # its class has the schedule itself
    elif name == "adafactor":
        w.lose("optimizer.schedule", "is for Adafactor alone there.")
        return
    elif section.kind == "schedule_free":
        name = "constant"
    w.put("lr_scheduler", name, "optimizer.schedule")
    if name not in ("constant", "adafactor"):
        w.put("lr_warmup_steps", section.warmup_steps or section.warmup_share, "optimizer.warmup_steps")
    elif section.kind == "schedule_free" and section.warmup_share:
        w.lose(
            "optimizer.warmup_share", "A schedule-free optimiser is told its warm-up in steps.", "Set optimizer.warmup_steps."
        )
    _write_shape(w, name)


def _write_shape(w: Writer, name: str) -> None:
    section = w.config.optimizer
    if section.schedule_floor and section.schedule in ("linear", "cosine_restarts", "polynomial"):
        w.lose("optimizer.schedule_floor", f"{name} falls to zero there.")
    if name in _FLOORED:
        w.put("lr_scheduler_min_lr_ratio", section.schedule_floor, "optimizer.schedule_floor")
    if name == "cosine_with_restarts":
        w.put("lr_scheduler_num_cycles", section.schedule_cycles, "optimizer.schedule_cycles")
    if name == "polynomial":
        w.put("lr_scheduler_power", section.schedule_power, "optimizer.schedule_power")
    if name == "inverse_sqrt":
        w.put("lr_scheduler_timescale", section.schedule_timescale, "optimizer.schedule_timescale")
    if name == "warmup_stable_decay":
        w.put("lr_decay_steps", section.decay_share, "optimizer.decay_share")
        if section.decay_share == 1:
            w.lose("optimizer.decay_share", "A share is less than 1 there.", "Set it to 0.99, or use cosine.")
    if name == "piecewise_constant":
        try:
            section.parsed_pieces()
        except ValueError as error:
            w.lose("optimizer.pieces", f"{error}.", "Mend it.")
            return
        pairs = (piece.replace(" ", "").rpartition(":") for piece in section.pieces)
        rules = ",".join(f"{factor}:{end}" if end else factor for end, _, factor in pairs)
        w.put("lr_scheduler_args", [f"step_rules='{rules}'"], "optimizer.pieces")
        if section.warmup_steps or section.warmup_share:
            w.lose("optimizer.warmup_steps", "piecewise_constant has no warm-up there.")
