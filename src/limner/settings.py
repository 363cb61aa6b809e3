"""The user's own defaults, in `settings.toml` in Limner's home: folders, roots, theme, language, where forms start from."""

from __future__ import annotations

import contextlib
import reprlib
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import tomlkit

from limner import disk, parsing
from limner.errors import Finding, wrong

NAME = "settings.toml"
THEMES = ("system", "light", "dark")
LANGUAGES = ("en", "ja", "zh-CN")
LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class Settings:
    """What the page starts from."""

    pictures: Path | None = None
    models: Path | None = None
    output: Path | None = None
    roots: tuple[Path, ...] = ()
    """More folders that people at the page may read from and write to."""
    hosts: tuple[str, ...] = ()
    """More names this server answers to, such as the public name of a reverse proxy before it."""
    programs: tuple[Path, ...] = ()
    """Folders whose programs runs may start, such as a checkout of sd-scripts. No configuration can add one, nor the page."""
    theme: str = "system"
    language: str = "en"
    defaults: Mapping[str, str] = field(default_factory=dict)
    """What forms start from: the dotted name of an option -> its value as text."""


def read(home: Path, *, aside: bool = False) -> tuple[Settings, list[Finding]]:
    """The settings kept in `home`, and what is wrong with them. What is wrong is left out; nothing here is fatal.

    A file that cannot be read as a whole is one finding, of the field NAME; with `aside` it is renamed, too.
    """
    path = home / NAME
    try:
        return parse(_raw(path))
    except OSError as error:
        return Settings(), [Finding(NAME, f"cannot be read: {error.strerror}.", "Its defaults are used.", "warning")]
    except (ValueError, RecursionError):
        pass
    with contextlib.ExitStack() as stack:
        if aside:  # another server may put it right just now
            with contextlib.suppress(OSError):  # where nothing can be written, nothing can be renamed: that is said
                stack.enter_context(_turn(home))
        try:
            return parse(_raw(path))
        except (ValueError, RecursionError) as error:
            return Settings(), [_aside(path, error) if aside else Finding(NAME, f"is damaged: {error}.", _MEND, "warning")]


def _raw(path: Path) -> dict[str, Any]:
    """What the file says; {} if there is none. Raises OSError if it cannot be read, ValueError or RecursionError if it is
    damaged."""
    if path.is_dir():
        raise ValueError("it is a folder")
    try:
        with path.open("rb") as file:
            content = file.read(LIMIT_BYTES + 1)
    except FileNotFoundError:
        return {}
    if len(content) > LIMIT_BYTES:
        raise ValueError("it is longer than 1 MiB")
    return parsing.toml(content.decode("utf-8"))


@contextlib.contextmanager
def _turn(home: Path) -> Iterator[None]:
    """One process at a time changes the settings. Raises OSError where the home cannot be written, or another takes too
    long."""
    with disk.lock(disk.own_folder(home / "locks") / "settings.lock", _TURN_SECONDS):
        yield


_MEND = "Mend it, or start Limner again: it keeps the file aside."
_TURN_SECONDS = 10.0


def _aside(path: Path, why: Exception) -> Finding:
    """Rename a damaged file, so that the next write does not destroy what the user may want to mend."""
    try:
        kept = disk.set_aside(path)
    except OSError as error:
        return Finding(NAME, f"is damaged ({why}) and cannot be renamed: {error.strerror}.", "Mend or delete it.", "warning")
    said = f"It is kept as {kept.name}; the defaults are used." if kept else "The defaults are used."
    return Finding(NAME, f"is damaged: {why}.", said, "warning")


def parse(raw: Mapping[str, Any]) -> tuple[Settings, list[Finding]]:
    """Settings from plain values, and one finding for each that is unknown or wrong (its default is used)."""
    values: dict[str, Any] = {}
    findings: list[Finding] = []
    for key, value in raw.items():
        if key not in _READERS:
            findings.append(Finding(f"{NAME}: {key}", "is no setting.", f"There are: {', '.join(_READERS)}.", "warning"))
            continue
        try:
            values[key] = _READERS[key](value)
        except ValueError as error:
            findings.append(Finding(f"{NAME}: {key}", f"{reprlib.repr(value)} {error}.", "Its default is used.", "warning"))
    return Settings(**values), findings


def plain(settings: Settings) -> dict[str, Any]:
    """The settings as JSON and TOML know values; what is not given is None."""

    def simple(value: Any) -> Any:
        if isinstance(value, tuple):
            return [simple(v) for v in value]
        return str(value) if isinstance(value, Path) else dict(value) if isinstance(value, Mapping) else value

    return {f.name: simple(getattr(settings, f.name)) for f in fields(Settings)}


def change(home: Path, alter: Callable[[Settings, list[Finding]], Settings]) -> None:
    """Replace the settings by what `alter` makes of them and of what is wrong with them, so that of two who change them at
    the same time neither loses what the other wrote. Raises what `alter` raises, and what `write` does."""
    with _turn(home):
        write(home, alter(*read(home)))


def write(home: Path, settings: Settings) -> None:
    """Replace what `home` keeps, whole or not at all. Comments and keys we do not know stay, and so does a wrong value that
    nothing takes the place of: it is its owner's to mend."""
    path = home / NAME
    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        document = tomlkit.document()
    except (ValueError, RecursionError):
        raise wrong(NAME, "was damaged since the start.", _MEND) from None
    usual = plain(Settings())
    for key, value in plain(settings).items():
        before = document.get(key)
        if value == usual[key]:
            if key in document and not _is_wrong(key, before):
                del document[key]
        elif isinstance(value, dict) and isinstance(before, dict):
            _change(before, value)
        elif before != value:
            document[key] = value
    text = tomlkit.dumps(document)
    if len(text.encode()) > LIMIT_BYTES:  # it would be taken for damaged at the next start
        raise wrong(NAME, f"would be longer than {LIMIT_BYTES >> 20} MiB.", "Keep long texts in a preset.")
    disk.write_text(path, text)


def _is_wrong(key: str, value: Any) -> bool:
    try:
        _READERS[key](value.unwrap() if hasattr(value, "unwrap") else value)
    except ValueError:
        return True
    return False


def is_trusted(home: Path, program: Path) -> bool:
    """Whether a program, or a folder of them, lies in one of the folders that the user trusts."""
    trusted = {place for folder in read(home)[0].programs for place in (folder.resolve(), _place(folder))}
    place = _place(program)
    return any(path in trusted for path in (place, *place.parents))


def _place(path: Path) -> Path:
    """Where a path lies, without links and `..` on the way. Itself it may be a link, as a virtual environment's Python is: who
    trusts a folder trusts what is linked in it, while a link from elsewhere to what is trusted stands among other files."""
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def _change(table: Any, values: dict[str, str]) -> None:
    for key in [k for k in table if k not in values]:
        del table[key]
    for key, value in values.items():
        if table.get(key) != value:
            table[key] = value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is not text")
    if len(value) > 4096 or "\n" in value or "\t" in value:
        raise ValueError("is too long or holds control characters")
    return _long_text(value)


def _long_text(value: str) -> str:
    if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in value):
        raise ValueError("holds control characters")
    return value


def _folder(value: Any) -> Path | None:
    if value is None or not _text(value):
        return None
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        raise ValueError("names a home folder that does not exist") from None
    if not path.is_absolute():
        raise ValueError("is not a full path")
    return path


def _folders(value: Any) -> tuple[Path, ...]:
    if not isinstance(value, list):
        raise ValueError("is not a list of folders")
    return tuple(filter(None, map(_folder, value)))


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("is not a list of names")
    return tuple(_text(name).lower() for name in value)


def _one_of(*choices: str) -> Callable[[Any], str]:
    def reader(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"is none of {', '.join(choices)}")
        return value

    return reader


def _defaults(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("is not a table")
    if bad := [k for k, v in value.items() if not isinstance(v, str)]:
        raise ValueError(f'must hold texts, as in "optimizer.lr" = "1e-4" (name and value in quotes); wrong: {bad[0]}')
    return {_text(k): _long_text(v) for k, v in value.items()}


_READERS: dict[str, Callable[[Any], Any]] = {
    "pictures": _folder,
    "models": _folder,
    "output": _folder,
    "roots": _folders,
    "hosts": _names,
    "programs": _folders,
    "theme": _one_of(*THEMES),
    "language": _one_of(*LANGUAGES),
    "defaults": _defaults,
}
