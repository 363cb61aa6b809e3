"""The optimiser and its schedule: classes that are not there, and what cannot be had together."""

from __future__ import annotations

from collections.abc import Iterable

from limner.config import Config, Lora, NoAdapter, defaults
from limner.config.optimizers import PACKAGES, TABLE, facts, package_of, parse_arguments
from limner.errors import Finding
from limner.machine import Machine
from limner.preflight.packages import is_installed
from limner.preflight.records import Records

_ONE_BY_ONE = ", ".join(kind for kind, known in TABLE.items() if known.one_by_one)
_OWN_RATE_LEAST = 0.1


def check_optimizer(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """What the chosen optimiser needs, and takes."""
    del machine, records
    section, known = config.optimizer, facts(config.optimizer)
    yield from _check_class(config)
    try:
        given = parse_arguments(section.arguments)
    except ValueError as error:
        yield Finding("optimizer.arguments", f"{error}.", 'One "name=value" each, such as "d_coef=2".')
        given = {}
    for name in given:
        if name in known.takes or name in ("lr", "params"):
            option = known.takes.get(name, "optimizer.lr")
            yield Finding("optimizer.arguments", f"{name} is decided by {option}.", "Set it there.")
    if section.kind == "sgd" and section.lr is None:
        yield Finding("optimizer.lr", "there is no usual learning rate for sgd.", "Set one; 0.01 is a start.")
    if known.finds_rate:
        yield from _check_own_rate(config)
    if known.averages:
        if section.schedule != "constant":
            said = f"{section.kind} keeps an average in place of a schedule, and {section.schedule} would spoil it."
            yield Finding("optimizer.schedule", said, 'Set it to "constant"; a warm-up may stay.')
        if config.train.ema != "off":
            said = f"{section.kind} keeps an average of the weights already."
            yield Finding("train.ema", said, 'Set it to "off".')


def _check_class(config: Config) -> Iterable[Finding]:
    section, path = config.optimizer, facts(config.optimizer).path
    if section.kind == "other":
        if not path:
            yield Finding("optimizer.class_path", "is needed.", 'Set it, for example to "pytorch_optimizer.SOAP".')
            return
        if package_of(path) is None:
            said = f"{path} is in none of the packages that classes may come from."
            yield Finding("optimizer.class_path", said, f"Name a class of {', '.join(PACKAGES)}.")
            return
    package = path.partition(".")[0]
    if not is_installed(config, package):
        field = "optimizer.class_path" if section.kind == "other" else "optimizer.kind"
        remedy = "pip install limner[8bit]" if package == "bitsandbytes" else f"Install the package that has {package}."
        yield Finding(
            field, f"{section.kind if section.kind != 'other' else path} needs {package}, which is not installed.", remedy
        )


def _check_own_rate(config: Config) -> Iterable[Finding]:
    section, adapter = config.optimizer, config.adapter
    name = section.class_path if section.kind == "other" else section.kind
    if section.lr is not None and section.lr < _OWN_RATE_LEAST:
        said = f"{name} finds the learning rate itself, and {section.lr:g} would multiply it."
        yield Finding("optimizer.lr", said, "Remove it, or set it to 1.", "warning")
    if adapter.text_encoder and section.text_encoder_lr not in (None, section.lr or 1.0):
        yield Finding("optimizer.text_encoder_lr", f"{name} finds one learning rate for all.", "Remove it.")
    is_beside = config.embedding.token is not None and adapter.kind != "embedding"
    if is_beside and config.embedding.lr not in (None, section.lr or 1.0):
        yield Finding("embedding.lr", f"{name} finds one learning rate for all.", "Remove it.")
    if any("lr_factor" in rule for rule in getattr(adapter, "rules", ())):
        yield Finding("adapter.rules", f"{name} finds one learning rate for all; lr_factor cannot be.", "Remove lr_factor.")
    if isinstance(adapter, Lora) and adapter.up_lr_ratio != 1:
        yield Finding("adapter.up_lr_ratio", f"{name} finds one learning rate for all.", "Set it to 1.")


def check_one_by_one(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """What weights moved in the backward pass, and weights in bf16, do not go with."""
    del records
    section, train, adapter = config.optimizer, config.train, config.adapter
    in_bf16 = isinstance(adapter, NoAdapter) and adapter.weights == "bf16"
    kind = section.class_path if section.kind == "other" else section.kind
    if section.in_backward:
        if not facts(section).one_by_one:
            said = f"{kind} needs all gradients at once, or is not known to do without."
            yield Finding("optimizer.in_backward", said, f"Set it to false, or optimizer.kind to one of {_ONE_BY_ONE}.")
        if train.accumulation > 1:
            said = "gradients of several micro-batches must be kept to be added up."
            yield Finding("optimizer.in_backward", said, "Set train.accumulation = 1, or this to false.")
        if train.clip_norm != "off":
            said = "the length of all gradients is known only when none is forgotten."
            yield Finding("optimizer.in_backward", said, 'Set train.clip_norm = "off", or this to false.')
        if config.launch.num_processes > 1:
            said = "gradients of several processes must be kept to be added up."
            yield Finding("optimizer.in_backward", said, "Set launch.num_processes = 1, or this to false.")
        if train.precision == "fp16":
            said = "in fp16 gradients are looked at before they are used."
            yield Finding("optimizer.in_backward", said, 'Set train.precision = "bf16" or "fp32", or this to false.')
    if in_bf16:
        if not facts(section).one_by_one:
            said = f"{kind} cannot move weights in bf16."
            yield Finding("adapter.weights", said, f'Set it to "fp32", or optimizer.kind to one of {_ONE_BY_ONE}.')
        precision = _precision(config, machine)
        if precision not in (None, "bf16"):
            said = f"the arithmetic is in {precision}, and weights in bf16 need it in bf16."
            yield Finding("adapter.weights", said, 'Set train.precision = "bf16", or this to "fp32".')


def _precision(config: Config, machine: Machine | None) -> str | None:
    """The arithmetic's; None if it depends on a machine that is not known."""
    if config.train.precision is not None or machine is None:
        return config.train.precision
    device = machine.kind(config.launch.device)
    found = machine.first(device)
    return defaults.precision(config, device, found is not None and found.bf16)


def check_schedule(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine
    section = config.optimizer
    if section.warmup_steps and section.warmup_share:
        said = "both warmup_steps and warmup_share are given."
        yield Finding("optimizer.warmup_share", said, "Remove one of them.")
    ends: list[int] = []
    if section.schedule == "piecewise":
        try:
            ends = [end for end, _ in section.parsed_pieces() if end is not None]
        except ValueError as error:
            remedy = 'For example ["100:1", "500:0.1", "0.01"].'
            yield Finding("optimizer.pieces", f"{error}.", remedy)
    if records.dataset is None:
        return
    total = records.dataset.total_steps
    warmup = section.num_warmup_steps(total)
    if warmup >= total:
        said = f"the warm-up of {warmup} steps is as long as the whole training of {total}."
        yield Finding("optimizer.warmup_steps", said, "Make it shorter.")
    if section.warmup_share and not warmup:
        said = f"{section.warmup_share:g} of {total} steps is less than one step."
        yield Finding("optimizer.warmup_share", said, "Make it larger, or remove it.", "warning")
    if ends and ends[-1] >= total:
        said = f"step {ends[-1]} is never reached: the training has {total}."
        yield Finding("optimizer.pieces", said, "", "warning")
    if section.schedule == "warmup_stable_decay" and warmup + section.decay_share * total > total:
        said = f"the warm-up leaves only {total - warmup} steps for it."
        yield Finding("optimizer.decay_share", said, "Make one of them shorter.", "warning")
