"""Take what sd-scripts wrote into the run's folders, under the names that Limner looks for; each thing once it is whole.

Checkpoints are linked, not moved: sd-scripts deletes older ones by their names, and then ours goes too. Training states and
samples are moved. Only what is finished is taken: a safetensors file by its header and size, a picture by its last bytes, the
rest once sd-scripts has gone on to something else.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from limner import disk
from limner.errors import UserError
from limner.formats.header import read_header
from limner.sdscripts.output import Told
from limner.sdscripts.record import Record

_KEPT_STATES = 2
_STEP = re.compile(r"-step(\d{8,12})$")
_REST = re.compile(r"(?:-step\d{8,12}|-\d{6,9})?(?:-state)?(?:\.safetensors|\.ckpt|\.pt)?")
"""What may stand behind output.name."""
_SAMPLE = re.compile(r"_(e?)(\d{6,12})_(\d{2,4})_\d{14}(?:_(\d{1,20}))?\.png")
_ENDINGS = (".safetensors", ".ckpt", ".pt")
_PNG_END = b"IEND\xaeB`\x82"


@dataclass
class Collector:
    """Looks after the output folder of one session of sd-scripts."""

    folder: Path
    """Where it writes."""
    target: Path
    """Where finished files go."""
    record: Record
    name: str
    """output.name."""
    first_step: int
    """The run's step at which the session began."""
    own_first_step: int = 0
    """What sd-scripts itself counts from, see :func:`limner.sdscripts.resume.own_first_step`."""
    prompts: Sequence[str] = ()
    _linked: dict[Path, Path] = field(default_factory=dict)
    """What sd-scripts wrote -> ours."""
    _refused: set[Path] = field(default_factory=set)

    def look(self, told: Told, *, finished: bool = False) -> None:
        """Take what is new. `finished`: sd-scripts has come to a good end, so that all is whole."""
        is_saving = told.phase == "saving" and not finished
        for path in _entries(self.folder):
            if path in self._linked or path in self._refused or not self._is_ours(path.name):
                continue
            step = self._step_of(_stem(path), told)
            if path.name.endswith("-state"):
                if finished or (not is_saving and is_whole_state(path)):
                    self._take_state(path, step)
            elif finished or is_whole(path):
                self._take_checkpoint(path, step)
        self._take_samples(told)
        for source, ours in list(self._linked.items()):
            if not source.exists():
                _remove(ours)
                del self._linked[source]

    def close(self) -> None:
        """Let go of the session's own names of what is kept; the files stay."""
        for source in self._linked:
            _remove(source)
        self._linked.clear()
        with contextlib.suppress(OSError):
            (self.folder / "sample").rmdir()
        with contextlib.suppress(OSError):  # what was not taken stays
            self.folder.rmdir()

    @property
    def has_final(self) -> bool:
        """Whether the finished file is there."""
        return any(_stem(path) == self.name for path in self._linked)

    def _is_ours(self, name: str) -> bool:
        return name.startswith(self.name) and bool(_REST.fullmatch(name.removeprefix(self.name)))

    def _step_of(self, stem: str, told: Told) -> int:
        stem = stem.removesuffix("-state")
        if found := _STEP.search(stem):
            return max(0, self.first_step + int(found[1]) - self.own_first_step)
        return self.first_step + told.step

    def _take_state(self, path: Path, step: int) -> None:
        states = self.record.run.states
        target = states / f"step-{step:08d}"
        shutil.rmtree(target, ignore_errors=True)
        os.replace(path, target)
        for old in sorted(p for p in states.glob("step-*") if p.is_dir())[:-_KEPT_STATES]:
            shutil.rmtree(old, ignore_errors=True)

    def _take_checkpoint(self, path: Path, step: int) -> None:
        name = path.name
        if _STEP.search(stem := _stem(path)):  # under the run's own step, which a resumed sd-scripts does not know
            name = f"{self.name}-step{step:08d}{path.name.removeprefix(stem)}"
        ours = self.target / name
        try:
            if path.is_dir():
                disk.write_folder(ours, lambda temporary: _move_all(path, temporary))
                path.rmdir()
            else:
                _link(path, ours)
                self._linked[path] = ours
        except OSError as error:
            self._refused.add(path)
            self.record.warn(f"{path} stays where it is: {ours} cannot be written ({error.strerror or error})")
            return
        self.record.event("checkpoint", step=step, path=str(ours))

    def _take_samples(self, told: Told) -> None:
        for path in _entries(self.folder / "sample"):
            found = _SAMPLE.fullmatch(path.name.removeprefix(self.name))
            if found is None or not _is_whole_picture(path):
                continue
            number, seed = int(found[3]), found[4]
            step = self.first_step + told.step if found[1] else self._sample_step(int(found[2]))
            name = f"step-{step:08d}_{number:02d}.png"
            os.replace(path, self.record.run.samples / name)
            prompt = self.prompts[number] if number < len(self.prompts) else ""
            values = {} if seed is None else {"seed": int(seed)}
            self.record.event("sample", step=step, path=name, prompt=prompt, **values)

    def _sample_step(self, said: int) -> int:
        return max(0, self.first_step + said - self.own_first_step)


def is_whole(path: Path) -> bool:
    """Whether a file was written to its end, as far as that can be told; of a folder it cannot."""
    if path.suffix == ".safetensors":
        try:
            read_header(path)
        except UserError:
            return False
        return True
    return path.is_file() and zipfile.is_zipfile(path)


def is_whole_state(folder: Path) -> bool:
    """Whether a training state of accelerate's was written to its end: the generators' states come last."""
    generators = list(folder.glob("random_states_*.pkl"))
    moments = [*folder.glob("optimizer*.bin"), *generators]
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    return bool(generators and weights) and all(map(zipfile.is_zipfile, moments)) and all(map(is_whole, weights))


def _is_whole_picture(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, oldest first; links are no outputs."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = [e for e in entries if not e.is_symlink()]
        return [Path(e.path) for e in sorted(found, key=lambda e: (e.stat().st_mtime_ns, e.name))]
    return []


def _stem(path: Path) -> str:
    return path.name.removesuffix(path.suffix) if path.suffix in _ENDINGS else path.name


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, in place of what may be there; a copy where the disk has no links, or is another one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = disk.temporary_name(target)
    try:
        os.link(source, temporary)
    except OSError:
        with disk.replacing(target) as copied:
            shutil.copyfile(source, copied)
        return
    os.replace(temporary, target)


def _move_all(source: Path, target: Path) -> None:
    for path in list(source.iterdir()):
        shutil.move(path, target / path.name)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
