"""optimizer_type, optimizer_args and the learning rates <-> [optimizer]."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

from limner.config.defaults import learning_rate, text_encoder_rate
from limner.config.kohya.reader import Reader
from limner.config.kohya.writer import Writer
from limner.config.optimizer import Optimizer
from limner.config.optimizers import PACKAGES, beta2, facts, momentum, package_of, parse_arguments

ARGUMENTS = (
    "optimizer_type", "optimizer_args", "learning_rate", "unet_lr", "text_encoder_lr", "learning_rate_te", "learning_rate_te1",
    "learning_rate_te2", "learning_rate_te3", "use_8bit_adam", "use_lion_optimizer", "max_grad_norm",
)  # fmt: skip
OPTIONS = (
    "optimizer.kind", "optimizer.class_path", "optimizer.arguments", "optimizer.lr", "optimizer.text_encoder_lr",
    "optimizer.weight_decay", "optimizer.beta1", "optimizer.beta2", "optimizer.eps", "optimizer.momentum", "train.clip_norm",
)  # fmt: skip


@dataclass(frozen=True)
class _Kind:
    """One of Limner's optimisers as sd-scripts has it."""

    kohya: str
    decay: float = 0.0
    """weight_decay that its class there has when it is not given."""
    told: dict[str, str] = field(default_factory=dict)
    """What its class there must be told to do the same: {argument: value}."""
    names: dict[str, str] = field(default_factory=dict)
    """Arguments that are called otherwise: {there: here}."""


_DECOUPLED = {"decouple": "weight_decouple", "use_bias_correction": "bias_correction"}
_KINDS = {
    "adamw": _Kind("AdamW", 0.01),
    "adamw_8bit": _Kind("AdamW8bit", 0.01),
    "paged_adamw_8bit": _Kind("PagedAdamW8bit", 0.01),
    "lion": _Kind("Lion"),
    "lion_8bit": _Kind("Lion8bit"),
    "adafactor": _Kind("Adafactor"),
    "prodigy": _Kind("Prodigy", names=_DECOUPLED),
    "dadapt_adam": _Kind("DAdaptAdam", told={"decouple": "True"}, names=_DECOUPLED),
    "dadapt_lion": _Kind("DAdaptLion"),
    "schedule_free": _Kind("AdamWScheduleFree"),
    "came": _Kind("pytorch_optimizer.CAME"),
    "sgd": _Kind("SGDNesterov"),
}
_OF_KOHYA = {kind.kohya.lower(): name for name, kind in _KINDS.items()} | {
    "": "adamw", "came": "came", "torch.optim.adamw": "adamw", "dadaptation": "dadapt_adam",
    "dadaptadampreprint": "dadapt_adam",
    "bitsandbytes.optim.adamw8bit": "adamw_8bit", "bitsandbytes.optim.pagedadamw8bit": "paged_adamw_8bit",
    "bitsandbytes.optim.lion8bit": "lion_8bit", "transformers.optimization.adafactor": "adafactor",
}  # fmt: skip
_CLASSES = {
    "pagedadamw": "bitsandbytes.optim.PagedAdamW", "pagedadamw32bit": "bitsandbytes.optim.PagedAdamW32bit",
    "pagedlion8bit": "bitsandbytes.optim.PagedLion8bit", "sgdnesterov8bit": "bitsandbytes.optim.SGD8bit",
    "dadaptadagrad": "pytorch_optimizer.DAdaptAdaGrad", "dadaptadan": "pytorch_optimizer.DAdaptAdan",
    "dadaptadanip": "pytorch_optimizer.DAdaptAdan", "dadaptsgd": "pytorch_optimizer.DAdaptSGD",
    "radamschedulefree": "schedulefree.RAdamScheduleFree", "sgdschedulefree": "schedulefree.SGDScheduleFree",
}  # fmt: skip
_RELATIVE_RATE = 1e-2  # Adafactor's own, arXiv:1804.04235, section 8
_RELATIVE_WARMUP = 10_000  # steps over which its warmup_init reaches it
_CAME_BETA3 = 0.9999


def read(r: Reader) -> None:
    """Set the optimiser, what it is told, and the learning rates."""
    keys = r.spread("optimizer_args")
    kind = _read_kind(r)
    for key in keys:
        _read_argument(r, key, kind)
    known = _KINDS.get(kind)
    if known and r.value("optimizer.weight_decay") is None and (r.complete or r.has("optimizer_type")):
        r.put("optimizer.weight_decay", known.decay)
    is_relative = kind == "adafactor" and _read_adafactor(r)
    if kind == "dadapt_adam" and r.value("optimizer.weight_decay") and "optimizer_args.decouple" not in r.given:
        _add(r, "weight_decouple=False")
    _read_rates(r, is_relative)
    norm = r.number("max_grad_norm")
    if norm is not None:
        r.take("max_grad_norm", {"train.clip_norm": norm if norm > 0 else "off"})


def _read_kind(r: Reader) -> str:
    name = (r.text("optimizer_type") or "").strip()
    for flag, old in (("use_8bit_adam", "AdamW8bit"), ("use_lion_optimizer", "Lion")):
        if not r.flag(flag):
            r.idle(flag, "It is off.")
        elif not name:
            r.take(flag, {"optimizer.kind": _OF_KOHYA[old.lower()]}, "An old name of optimizer_type.")
            return _OF_KOHYA[old.lower()]
        else:
            r.idle(flag, "optimizer_type takes precedence.")
    kind, path = _OF_KOHYA.get(name.lower()), _CLASSES.get(name.lower())
    if kind is not None:
        if name or r.complete:
            r.put("optimizer.kind", kind)
        if r.has("optimizer_type"):
            said = "The nearest that Limner has." if name.lower() in ("dadaptation", "dadaptadampreprint") else ""
            r.take("optimizer_type", {"optimizer.kind": kind}, said)
        return kind
    # sd-scripts looks for a bare name in torch.optim
    path = path or (name if "." in name else f"torch.optim.{name}")
    if package_of(path) is None:
        r.put("optimizer.kind", "adamw")
        r.unsupported("optimizer_type", f"Classes are taken from {', '.join(PACKAGES)} alone; AdamW is taken.")
        return "adamw"
    r.take("optimizer_type", {"optimizer.kind": "other", "optimizer.class_path": path})
    return "other"


_SO_IN_ANY_CASE = (("sgd", "nesterov", True), ("dadapt_adam", "decouple", True), ("adafactor", "scale_parameter", False))


def _read_argument(r: Reader, key: str, kind: str) -> None:
    place = f"optimizer_args.{key}"
    text = str(r.given[place])
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        r.refuse(place, "is not a value.")
        return
    section = Optimizer(kind=kind, class_path="torch.optim.AdamW") if kind == "other" else Optimizer(kind=kind)  # type: ignore[arg-type]
    takes = {"weight_decay"} if kind == "other" else set(facts(section).takes)
    if key == "weight_decay":
        r.take(place, {"optimizer.weight_decay": value})
    elif key == "betas" and "betas" in takes and isinstance(value, tuple | list) and len(value) in (2, 3):
        third = f" The third is always {_CAME_BETA3}." if len(value) == 3 and value[2] != _CAME_BETA3 else ""
        r.take(place, {"optimizer.beta1": value[0], "optimizer.beta2": value[1]}, f"One option for each.{third}")
    elif key == "eps" and "eps" in takes:
        r.take(place, {"optimizer.eps": value})
    elif key == "momentum" and "momentum" in takes:
        r.take(place, {"optimizer.momentum": value})
    elif kind == "adafactor" and key in ("relative_step", "warmup_init"):
        pass  # with the learning rate
    elif (kind, key, value) in _SO_IN_ANY_CASE:
        r.idle(place, "It is so in any case.")
    else:
        own = _KINDS[kind].names.get(key, key) if kind in _KINDS else key
        if "=" in own or not own.isidentifier():
            r.refuse(place, "is no argument.")
        elif _add(r, f"{own}={text}"):
            r.account(place, "taken" if own == key else "converted", "optimizer.arguments")
        else:
            r.refuse(place, "cannot be an argument.")


def _add(r: Reader, text: str) -> bool:
    found = [*(r.value("optimizer.arguments") or []), text]
    if r.fault("optimizer.arguments", found):
        return False
    r.put("optimizer.arguments", found)
    return True


def _read_adafactor(r: Reader) -> bool:
    """Whether it finds the rate itself. Then it is 1e-2 for 10,000 steps, and 1 / sqrt(step) afterwards."""
    relative, warmup = (f"optimizer_args.{n}" for n in ("relative_step", "warmup_init"))
    given = r.has("optimizer_args") or r.complete or r.has("optimizer_type")
    is_relative = given and r.flag(relative) is not False
    if given and "optimizer_args.scale_parameter" not in r.given:
        _add(r, "scale_parameter=True")  # its class's default, and not Limner's
    if not is_relative:
        r.idle(relative, "It is so in any case.")
        r.idle(warmup, "It goes with relative_step.")
        return False
    r.put("optimizer.lr", _RELATIVE_RATE)
    r.put("optimizer.schedule", "adafactor")
    said = "The same rate: 1e-2, after 10,000 steps 1 / sqrt(step)."
    if r.has(relative):
        r.account(relative, "converted", "optimizer.lr", "optimizer.schedule", why=said)
    else:
        r.report.say(relative, True, "converted", "optimizer.lr", "optimizer.schedule", why=f"Not given, so it is on. {said}")
    if r.flag(warmup):
        r.take(warmup, {"optimizer.warmup_steps": _RELATIVE_WARMUP})
    else:
        r.idle(warmup, "It is off.")
    return True


def _read_rates(r: Reader, is_relative: bool) -> None:
    if is_relative:
        for name in (
            "learning_rate",
            "unet_lr",
            "text_encoder_lr",
            "learning_rate_te",
            "learning_rate_te1",
            "learning_rate_te2",
        ):
            r.idle(name, "Adafactor with relative_step finds the rate itself.")
        return
    if r.kind == "embedding":
        rate = r.number("learning_rate")
        if rate is not None:
            r.take("learning_rate", {"embedding.lr": rate})
        return
    own, common = r.number("unet_lr"), r.number("learning_rate")
    if own:
        r.take("unet_lr", {"optimizer.lr": own})
        if "learning_rate" in r.given:
            r.idle("learning_rate", "unet_lr takes precedence.")
    else:
        r.idle("unet_lr", "0: the denoiser stands still." if own == 0 else "It is not given.")
        if common:
            r.take("learning_rate", {"optimizer.lr": common})
        else:
            r.idle("learning_rate", "0 moves nothing. It is left out.")
    _read_text_rates(r, common)


def _read_text_rates(r: Reader, common: float | None) -> None:
    names = [n for n in ("text_encoder_lr", "learning_rate_te", "learning_rate_te1") if r.has(n)]
    others = [n for n in ("learning_rate_te2", "learning_rate_te3") if r.has(n)]
    rates = [rate for n in (*names, *others) for rate in (r.numbers(n) or [])]
    if not r.value("adapter.text_encoder") and (r.complete or r.values.get("adapter", {}).get("text_encoder") is False):
        for name in (*names, *others):
            r.idle(name, "The text encoder is not trained.")
        return
    moving = [rate for rate in rates if rate > 0]
    if not moving:
        # there it is the denoiser's when not given, here half of that
        if common and r.value("adapter.text_encoder") and not r.fault("optimizer.text_encoder_lr", common):
            r.put("optimizer.text_encoder_lr", common)
        return
    said = "" if len(set(rates)) == 1 else "All text encoders have one: the first that is not 0."
    for name in (*names, *others):
        r.take(name, {"optimizer.text_encoder_lr": moving[0]}, said)


def write(w: Writer) -> float:
    """The optimiser's arguments. Returns the denoiser's learning rate."""
    section = w.config.optimizer
    known = _KINDS.get(section.kind)
    lr = learning_rate(w.config, is_pocket=False)
    if section.kind == "muon":
        w.lose("optimizer.kind", "sd-scripts cannot tell Muon which weights are matrices.", "Choose another optimiser.")
        return lr
    args = _arguments_of(w, section)
    if section.kind == "adafactor":
        args = _write_adafactor(w, args)
    w.put("optimizer_type", known.kohya if known else section.class_path, "optimizer.kind")
    w.put("optimizer_args", [f"{name}={value}" for name, value in args.items()], "optimizer.arguments")
    w.put("max_grad_norm", 0.0 if section_clip(w) is None else section_clip(w), "train.clip_norm")
    if w.config.adapter.kind == "embedding":
        return lr
    w.put("learning_rate", lr, "optimizer.lr")
    if w.config.adapter.text_encoder:
        _write_text_rate(w, text_encoder_rate(section, lr), lr)
    return lr


def section_clip(w: Writer) -> float | None:
    """The longest gradient, None for no limit."""
    return None if w.config.train.clip_norm == "off" else w.config.train.clip_norm


def _write_text_rate(w: Writer, rate: float, lr: float) -> None:
    names = [n for n in ("text_encoder_lr", "learning_rate_te", "learning_rate_te1", "learning_rate_te2") if w.knows(n)]
    for name in names:
        w.put(name, [rate] if name == "text_encoder_lr" else rate, "optimizer.text_encoder_lr")
    if not names and rate != lr:
        w.lose("optimizer.text_encoder_lr", f"{w.script.name} has one learning rate.")


def _arguments_of(w: Writer, section: Optimizer) -> dict[str, Any]:
    """optimizer_args as text."""
    try:
        more = parse_arguments(section.arguments)
    except ValueError as error:
        w.lose("optimizer.arguments", f"{error}.", "Mend it.")
        more = {}
    if section.kind == "other":
        return {"weight_decay": section.weight_decay} | {k: repr(v) for k, v in more.items()}
    known = _KINDS[section.kind]
    takes, out = facts(section).takes, dict[str, Any]()
    if "weight_decay" in takes:
        out["weight_decay"] = section.weight_decay
    if "betas" in takes and section.kind != "adafactor":
        third = f",{_CAME_BETA3}" if section.kind == "came" else ""
        out["betas"] = f"({section.beta1},{beta2(section)}{third})"
    if "eps" in takes:
        out["eps"] = section.eps
    if "momentum" in takes:
        out["momentum"] = momentum(section)
    theirs = {ours: name for name, ours in known.names.items()}
    given = {theirs.get(name, name): repr(value) for name, value in more.items()}
    if section.kind == "prodigy" and (section.warmup_steps or section.warmup_share):
        given.setdefault("safeguard_warmup", "True")
    if section.kind == "schedule_free" and section.warmup_steps:
        given.setdefault("warmup_steps", str(section.warmup_steps))
    return out | known.told | given


def _write_adafactor(w: Writer, args: dict[str, Any]) -> dict[str, Any]:
    section = w.config.optimizer
    args = {"scale_parameter": "False"} | args
    if section.schedule != "adafactor":
        return args | {"relative_step": "False", "warmup_init": "False"}
    if section.lr != _RELATIVE_RATE or section.warmup_steps not in (0, _RELATIVE_WARMUP) or section.warmup_share:
        w.lose("optimizer.schedule", "Adafactor's own schedule begins at 1e-2 there, with a warm-up of 10,000 steps or none.")
    return args | {"relative_step": "True", "warmup_init": str(bool(section.warmup_steps))}
