"""Live changes: what a running job can be told to do otherwise from its next step on.

Asked for by a file in `control/`, checked by the schema before it is written and again by the trainer, then recorded as an
event with its step before it takes effect. A resumed run reads those events: what was changed up to its training state holds
from the start, what was changed later is done again at the same step. `config.toml` never changes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tomlkit

from limner import disk
from limner.config import Config, defaults, files
from limner.config.fields import applies, condition_words, walk
from limner.config.optimizers import facts
from limner.config.prompts import all_prompts
from limner.errors import UserError, wrong
from limner.runs import LIVE, Run

CHANGEABLE = (
    "optimizer.lr", "optimizer.text_encoder_lr",
    "train.steps", "train.epochs",
    "sample.prompts", "sample.negative", "sample.width", "sample.height", "sample.steps", "sample.guidance", "sample.solver",
    "sample.seed", "sample.every_steps", "sample.every_epochs",
    "output.save_every_steps", "output.save_every_epochs", "output.keep_last", "output.state_every_steps",
    "validation.every_steps", "validation.every_epochs",
)  # fmt: skip

Options = dict[str, Any]
"""Dotted name -> plain value, as in TOML; "" for what shall not be given any more."""


@dataclass(frozen=True)
class Change:
    """A change that was accepted; it holds from behind `step` on."""

    step: int
    id: str
    options: Options


def what_can_be() -> str:
    """The changeable options in words."""
    sections: dict[str, list[str]] = {}
    for name in CHANGEABLE:
        section, _, rest = name.partition(".")
        sections.setdefault(section, []).append(rest)
    return "; ".join(f"{section}: {', '.join(names)}" for section, names in sections.items())


def changed(config: Config, options: Mapping[str, Any]) -> Config:
    """The config with a change laid over it. Raises UserError, naming every fault, if it is not allowed.

    Either of train.steps and train.epochs replaces the other; sample.prompts replaces a prompt file, too.
    """
    known = {option.path: option for option in walk()}
    if unknown := [name for name in options if name not in known]:
        files.build({}, dict.fromkeys(unknown, "0"))  # raises: it names the nearest that there are
    for name in options:
        if name not in CHANGEABLE:
            raise wrong(name, "cannot be changed while a run goes on.", f"What can be: {what_can_be()}.")
    if not options:
        raise wrong("change", "nothing is to be changed.", "Give options as name=value.")
    given = {name: value for name, value in options.items() if value != ""}
    built = _laid_over(config, options, given)
    # the other sections stay the very same, whatever may have changed on the disk that they name
    new = config.model_copy(update={name.partition(".")[0]: getattr(built, name.partition(".")[0]) for name in options})
    if new.train.steps is None and new.train.epochs is None and {"train.steps", "train.epochs"} & options.keys():
        raise wrong("train.steps", "cannot be left empty: the run would have no end.", "Give a number.")
    return new


def require_effect(config: Config, options: Mapping[str, Any]) -> None:
    """Raise UserError for a change that would do nothing in a run whose config it has become. Asked when a change is made, not
    when it is made again: others may have come between."""
    known = {option.path: option for option in walk()}
    for name in (n for n, value in options.items() if value != ""):
        if not applies(known[name], config):
            raise wrong(name, f"has no effect unless {condition_words(known[name].when)}.", "Leave it out.")
        if name.startswith("validation.") and not config.validation.share and config.validation.path is None:
            raise wrong(name, "this run holds no pictures out.", "Leave it out, or start a new run with validation.share.")
        if name == "optimizer.text_encoder_lr" and facts(config.optimizer).finds_rate:
            raise wrong(name, f"{config.optimizer.kind} finds one learning rate for all.", "Change optimizer.lr.")
    if options.get("optimizer.lr") == "" and config.optimizer.kind == "sgd":
        raise wrong("optimizer.lr", "SGD has none of its own.", "Give a number.")


def _laid_over(config: Config, options: Mapping[str, Any], given: Mapping[str, Any]) -> Config:
    if {"train.steps", "train.epochs"} <= given.keys():
        raise wrong("train.epochs", "both steps and epochs are given.", "Remove one of them.")
    replaced = set(options)
    replaced |= {"train.epochs"} if "train.steps" in given else set()
    replaced |= {"train.steps"} if "train.epochs" in given else set()
    replaced |= {"sample.prompt_file"} if "sample.prompts" in options else set()
    raw: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        section, _, rest = name.partition(".")
        raw.setdefault(section, {})[rest] = value
    return files.build(raw, {name: text for name, text in files.overrides_of(config).items() if name not in replaced})


def recorded(run: Run) -> list[Change]:
    """The changes that a run's events tell of, in the order in which they took effect. One done again counts once."""
    found: dict[str, Change] = {}
    for event, _ in run.events():
        step, name, options = event.get("step"), event.get("id"), event.get("options")
        if event.get("event") != "change":
            continue
        if isinstance(step, int) and isinstance(name, str) and isinstance(options, dict):
            found.setdefault(name, Change(step, name, options))
    return sorted(found.values(), key=lambda change: change.step)


def config_at(run: Run, step: int | None = None) -> Config:
    """The config with what was changed up to `step`; with all changes if it is not given."""
    return with_changes(run.config(), recorded(run), step)


def with_changes(config: Config, made: Iterable[Change], step: int | None = None) -> Config:
    """A config with the changes made up to `step`; with all of them if it is not given."""
    for change in made:
        if step is None or change.step <= step:
            config = changed(config, change.options)
    return config


# --- asking -----------------------------------------------------------------------------------------------------------


def typed(run: Run, texts: Mapping[str, str]) -> Options:
    """Options from typed texts; of a learning rate "*0.5" is half of what it is now."""
    out: Options = {}
    for name, text in texts.items():
        value = files.value_of(name, text)
        if name in ("optimizer.lr", "optimizer.text_encoder_lr") and text.startswith("*"):
            value = _rate_now(run, name) * _factor(name, text)
        out[name] = value
    return out


def _factor(name: str, text: str) -> float:
    try:
        return float(text[1:])
    except ValueError:
        raise wrong(name, f"{text!r} is no factor.", "Write for example *0.5 for half of what it is now.") from None


def _rate_now(run: Run, name: str) -> float:
    section = config_at(run).optimizer
    lr = section.lr if section.lr is not None else run.plan().get("lr")
    if not isinstance(lr, float):
        raise wrong(name, "is not known yet.", "Wait until the training has begun, or give the rate itself.")
    return lr if name == "optimizer.lr" else defaults.text_encoder_rate(section, lr)


def request(run: Run, options: Options) -> None:
    """Ask a running trainer for a change. Raises UserError if it is not allowed, or if the run is not running."""
    state = run.state()
    if state.status not in LIVE:
        raise wrong("run", f"{run.id} is not running.", "Only a run that trains can be changed; duplicate it instead.")
    new = changed(config_at(run), options)
    require_effect(new, options)
    steps = new.train.steps
    if "train.steps" in options and steps is not None and steps < state.step:
        raise too_few(steps, state.step)
    if "sample.prompts" in options:
        resolution = run.plan().get("resolution")
        all_prompts(new, resolution if isinstance(resolution, int) else 512, 8)  # raises if one is not understood
    document = tomlkit.document()
    for name, value in options.items():
        section, _, rest = name.partition(".")
        document.setdefault(section, tomlkit.table())[rest] = value
    (run.path / "control").mkdir(exist_ok=True)
    disk.write_text(run.path / "control" / f"change-{time.time_ns()}.toml", tomlkit.dumps(document))


def too_few(steps: int, done: int) -> UserError:
    return wrong("train.steps", f"{steps} is less than the {done} steps that are done.", "Give more, or stop the run.")


def parse(text: str, source: str) -> Options:
    """The options that a request's file asks for. Raises UserError if it is not such a file."""
    out: Options = {}
    for section, values in files.parse(text, source).items():
        if not isinstance(values, dict):
            raise wrong(section, "is not a section.", "Write options below their section: [optimizer].")
        out |= {f"{section}.{name}": value for name, value in values.items()}
    return out
