"""The page's presets: what they set and what they are for, and how the user's own are kept. See `limner.config.presets`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body

from limner import disk, runs
from limner.config import files, presets
from limner.errors import UserError, printable, wrong
from limner.web.asked import Values, config_of
from limner.web.context import Context
from limner.web.intake import harmless
from limner.web.places import can_be_named


def router(context: Context) -> APIRouter:
    """The routes of the presets."""
    routes = APIRouter(prefix="/api/presets")

    @routes.get("")
    def listed() -> list[dict[str, Any]]:
        """All presets; one that does not load says why instead of its values. Those that `adds` are laid over what is set."""
        told = [_told(file) for file in presets.all_files(_own()) if can_be_named(file.name)]
        return [one | {"about": context.words(one["about"])} for one in told]

    @routes.post("/save")
    def save(values: Values, name: Annotated[str, Body()]) -> dict[str, Any]:
        """Keep the values as a preset of the user's; one of that name is replaced."""
        _check_length(sum(len(path) + len(text) for path, text in values.items()))
        config = config_of(values, context)
        file, text = _file(name), f"# {printable(name)}\n{files.render_changes(config)}"
        _check_length(len(text.encode()))
        disk.write_text(file, text)
        return _told(file)

    @routes.post("/delete")
    def delete(name: Annotated[str, Body(embed=True)]) -> dict[str, str]:
        """Remove a preset of the user's."""
        file = _file(name)
        if not file.is_file():
            raise wrong("preset", f"there is none called {printable(name, 60)!r}.", "Choose one of the list.")
        file.unlink()
        return {"name": name}

    return routes


def _check_length(size: int) -> None:
    """Raises UserError for what would be refused when it is read again."""
    if size > files.MAX_BYTES:
        said = f"would be longer than {files.MAX_BYTES >> 20} MiB."
        raise wrong("preset", said, "Keep long lists of prompts in a file, and name it in sample.prompt_file.")


def _own() -> Path:
    return runs.home() / "presets"


def _file(name: str) -> Path:
    """The file of a preset of the user's."""
    if not name or harmless(f"{name}.toml") != f"{name}.toml":
        raise wrong("preset", f"{printable(name, 60)!r} cannot be its name.", "Use letters, digits, spaces, - and _.")
    return _own() / f"{name}.toml"


def _told(file: Path) -> dict[str, Any]:
    is_own, name = file.parent != presets.SHIPPED, file.stem
    families = () if is_own else presets.families_of(name)
    told: dict[str, Any] = {"name": name, "own": is_own, "families": families, "adds": presets.is_added(name)}
    told |= {"about": "", "values": {}, "problem": ""}
    try:
        told["about"] = presets.about(file)
        told["values"] = presets.stated(file)
    except UserError as error:
        told["problem"] = str(error.findings[0])
    return told
