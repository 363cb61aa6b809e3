"""Options as they become arguments of sd-scripts: only what the script knows, and a finding for what it cannot do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from limner.config import Config
from limner.config.kohya.reader import options_of
from limner.config.kohya.scripts import Script, accepts, arguments
from limner.errors import Finding, Severity


@dataclass(frozen=True)
class Facts:
    """What the arguments need that no option says. Paths are texts; "" where there is none."""

    output_dir: str = ""
    """Where sd-scripts writes; output.path when not given."""
    base: str = ""
    """The base model as sd-scripts finds it; model.base when not given."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Files of parts of the model that the configuration leaves to be found: {"clip_l": path}, by the options of [model]."""
    dataset_config: str = ""
    """A dataset file that is to be used instead of data.path, data.class_path and data.metadata."""
    sample_prompts: str = ""
    """A prompt file with sample.prompts, sizes, steps and the like; sample.prompt_file when not given."""
    logging_dir: str = ""
    total_steps: int | None = None
    """Where neither train.steps nor train.epochs is given."""
    precision: str = "bf16"
    """Where train.precision is not given: fp32, fp16 or bf16."""
    prediction: str | None = None
    """Where objective.prediction is not given: epsilon or v_prediction, as the model has it. None: what is usual."""
    flow_shift: float | Literal["resolution"] | None = None
    """Where objective.shift is not given: the model's own. None: what is usual."""


class Writer:
    """What is known of a configuration while it becomes arguments."""

    def __init__(self, config: Config, family: str, script: Script, facts: Facts) -> None:
        self.config, self.family, self.script, self.facts = config, family, script, facts
        self.arguments: dict[str, Any] = {}
        self.losses: list[Finding] = []

    def knows(self, name: str) -> bool:
        return accepts(self.script, name)

    def put(self, name: str, value: Any, option: str, *, severity: Severity = "error") -> None:
        """Set an argument; where the script does not know it, say so of the option that wants it. Nothing is set for what is
        not given, off or empty, unless the trainer's default is another."""
        known = arguments()[name]
        if value is None or value is False or value in ("", [], ()):
            return
        is_nothing = not isinstance(value, str | list | bool) and value == 0 and _number(known.default) == 0
        if is_nothing and name != "seed":
            return
        if not self.knows(name):
            self.lose(option, f"{self.script.name} has no {name}.", severity=severity)
        else:
            self.arguments[name] = value

    def lose(self, option: str, message: str, remedy: str = "", *, severity: Severity = "error") -> None:
        """An option asks for what sd-scripts does not do."""
        known = options_of(self.config.adapter.kind).get(option)
        usual = known.default if known else None
        remedy = remedy or ("Leave it out" if usual is None else f"Set it to {_said(usual)}") + ", or train with Limner."
        self.losses.append(Finding(option, message, remedy, severity))


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def _said(value: Any) -> str:
    if isinstance(value, tuple):
        return str(list(value))
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
