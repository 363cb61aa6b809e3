"""Who else is told of a run: TensorBoard always, wandb and trackio when asked. Fed by the journal's events alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limner.config import Config
from limner.formats.event_file import EventFile
from limner.runs import Run

_PREFIXES = {"step": "", "memory": "", "speed": "speed/", "validation": "validation/"}


def numbers(kind: str, event: Mapping[str, Any]) -> dict[str, float]:
    """What an event says in numbers, by tag: `loss`, `lr/denoiser`, `validation/loss`. {} for an event of another kind."""
    if kind not in _PREFIXES:
        return {}
    flat: dict[str, Any] = {}
    for name, value in event.items():
        flat |= {f"{name}/{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return {_PREFIXES[kind] + t: float(v) for t, v in flat.items() if t != "step" and isinstance(v, int | float)}


def hyperparameters(config: Config) -> dict[str, bool | float | str]:
    """Every option that is set, by dotted name. Of a path only the last part: whole ones are nobody's business."""
    out: dict[str, bool | float | str] = {}
    for section, options in config:
        for name, value in options:
            if isinstance(value, Path) or (name == "base" and (value.startswith("~") or Path(value).is_absolute())):
                value = Path(value).name
            elif isinstance(value, tuple):
                value = ", ".join(value)
            if value is not None:
                out[f"{section}.{name}"] = value
    return out


class Tracker:
    """Follows one run. A subclass says how to begin, to tell numbers, to show a picture, and to end."""

    name: str
    faults: tuple[type[Exception], ...]
    """What may go wrong in it without being a fault of ours."""

    def __init__(self, config: Config, run: Run) -> None:
        self.config, self.run = config, run
        self.title = config.logging.run_name or run.id
        self.told = dict[str, int]()
        """The last step of which it was told, by what was told: all up to there were."""
        for event, _ in run.events():
            what, step = _what(event.get("event"), event), event.get("step")
            if isinstance(step, int):
                self.told[what] = max(step, self.told.get(what, step))

    def note(self, kind: str, event: Mapping[str, Any]) -> None:
        """Take in an event as the journal writes it. What a resumed run does again is not told again."""
        if kind in ("start", "resume"):
            self.begin(event["step"], is_resumed=kind == "resume")
        elif kind == "stop":
            self.end(has_failed=event["status"] == "failed")
        elif event.get("step", 0) <= self.told.get(_what(kind, event), -1):
            return
        elif kind == "sample":
            self.show(event["step"], _what(kind, event), self.run.samples / event["path"], event["prompt"])
        elif told := numbers(kind, event):
            self.tell(event["step"], told)

    def begin(self, step: int, *, is_resumed: bool) -> None:
        raise NotImplementedError

    def tell(self, step: int, told: dict[str, float]) -> None:
        raise NotImplementedError

    def show(self, step: int, tag: str, path: Path, prompt: str) -> None:
        raise NotImplementedError

    def end(self, *, has_failed: bool) -> None:
        """Finish; also called for a run that ends before it began."""
        raise NotImplementedError


def _what(kind: Any, event: Mapping[str, Any]) -> str:
    """What an event tells of, step for step: its kind, and of a sample also the number of its prompt."""
    return f"sample/{Path(str(event.get('path'))).stem.rpartition('_')[2]}" if kind == "sample" else str(kind)


class TensorBoard(Tracker):
    """Event files in the run's folder."""

    name = "TensorBoard"
    faults = (OSError,)
    _file: EventFile | None = None

    def begin(self, step: int, *, is_resumed: bool) -> None:
        # at step 0 there was no state yet: everything is done again
        purge_from = step + 1 if step else 0
        self.told = {what: min(last, purge_from - 1) for what, last in self.told.items()}
        self._file = EventFile(self.run.path / "tensorboard", purge_from if is_resumed else None)
        if not is_resumed or not step:
            self._file.hyperparameters(hyperparameters(self.config), self.title)

    def tell(self, step: int, told: dict[str, float]) -> None:
        assert self._file is not None
        self._file.scalars(step, told)

    def show(self, step: int, tag: str, path: Path, prompt: str) -> None:
        assert self._file is not None
        self._file.picture(step, tag, path, prompt)

    def end(self, *, has_failed: bool) -> None:
        del has_failed
        if self._file is not None:
            self._file.close()


class Service(Tracker):
    """A tracker by another hand: wandb and trackio share the interface. Neither can take back what it was told."""

    # Wide on purpose: a service whose process has died, whose database is locked or whose server answers nonsense raises
    # classes that it does not export and that share no base; none of them is worth a training.
    faults = (Exception,)
    _library: Any = None
    _told: Any = None

    def tell(self, step: int, told: dict[str, float]) -> None:
        self._told.log(told, step=step)

    def show(self, step: int, tag: str, path: Path, prompt: str) -> None:
        self._told.log({tag: self._library.Image(str(path), caption=prompt)}, step=step)


class Wandb(Service):
    """Weights & Biases. The key comes from WANDB_API_KEY or wandb's own login; WANDB_MODE=offline writes files only."""

    name = "wandb"

    def begin(self, step: int, *, is_resumed: bool) -> None:
        del step
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its analytics
        import wandb  # pyright: ignore[reportMissingImports]

        # the run's numbers and nothing of the machine's: neither what is printed nor the code in the current folder
        settings = wandb.Settings(console="off", disable_git=True, disable_code=True, finish_timeout=120)
        self._library = wandb
        self._told = wandb.init(
            project=self.config.logging.project,
            name=self.title,
            id=self.run.id,
            resume="allow" if is_resumed else "never",
            dir=self.run.path,
            config=hyperparameters(self.config),
            settings=settings,
        )

    def end(self, *, has_failed: bool) -> None:
        if self._told is not None:
            self._told.finish(exit_code=int(has_failed))


class Trackio(Service):
    """trackio: a database on this machine, in TRACKIO_DIR; elsewhere only if its own environment variables say so."""

    name = "trackio"

    def begin(self, step: int, *, is_resumed: bool) -> None:
        del step
        import trackio  # pyright: ignore[reportMissingImports]
        from huggingface_hub import constants

        self._library = trackio
        was_offline = constants.HF_HUB_OFFLINE
        if not os.environ.get("TRACKIO_SPACE_ID"):
            constants.HF_HUB_OFFLINE = True  # it asks the hub who is logged in, even to write to this machine only
        try:
            self._told = trackio.init(
                project=self.config.logging.project,
                name=self.title,
                config=hyperparameters(self.config),
                resume="allow" if is_resumed else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        finally:
            constants.HF_HUB_OFFLINE = was_offline

    def end(self, *, has_failed: bool) -> None:
        del has_failed
        if self._told is not None:
            self._told.finish()


TRACKERS: dict[str, type[Tracker]] = {"wandb": Wandb, "trackio": Trackio}


def make(config: Config, run: Run) -> list[Tracker]:
    """The trackers of a run, each asked for once however often it is named."""
    return [kind(config, run) for kind in (TensorBoard, *(TRACKERS[n] for n in dict.fromkeys(config.logging.trackers)))]
