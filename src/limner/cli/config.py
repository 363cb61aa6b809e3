"""`limner config`: configurations, options and presets as files and lists; what runs may start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from limner.errors import Finding, UserError, printable, wrong

config_app = App(name="config", help="Write and read configurations.")


@config_app.command(name="new")
def config_new(
    out: Path | None = None,
    *,
    family: str | None = None,
    kind: str = "lora",
    preset: Annotated[list[str] | None, Parameter(negative="")] = None,
    brief: bool = False,
) -> int:
    """Write a commented configuration, to a file or to the terminal.

    Parameters
    ----------
    family: The base model's. Left out: that of the presets, else sd1.
    preset: What `limner config presets` lists; can be given several times, later ones are laid over earlier ones.
    """
    from limner import disk, runs
    from limner.config import files, presets

    told = [family for name in preset or () for family in presets.families_of(name)[:1]]
    under = {"adapter.kind": kind, "model.family": family or (told[-1] if told else "sd1")}
    values = presets.laid(preset or (), runs.home() / "presets", under)
    text = files.render(files.build({}, values), advanced=not brief)
    if out is None:
        print(text, end="")
        return 0
    if out.exists():
        raise wrong(str(out), "exists already.", "Choose another name; nothing is overwritten.")
    disk.write_text(out, text)
    print(f"Wrote {out}")
    return 0


@config_app.command(name="trust")
def config_trust(folder: Path) -> int:
    """Let runs start the programs in a folder, such as a checkout of sd-scripts. No configuration can say so itself."""
    from limner import runs, settings

    place = folder.expanduser().absolute()
    if not place.is_dir():
        raise wrong("folder", f"{place} is not a folder.", "Give the folder of sd-scripts, or of its Python.")

    def trusting(kept: settings.Settings, findings: list[Finding]) -> settings.Settings:
        if findings:
            raise UserError([replace(finding, severity="error") for finding in findings])
        return replace(kept, programs=tuple(dict.fromkeys((*kept.programs, place))))

    settings.change(runs.home(), trusting)
    print(f"Runs may start the programs in {place}")
    return 0


@config_app.command(name="options")
def config_options(word: str = "") -> int:
    """List every option, or those whose name, kohya name or help holds a word."""
    from limner.config.fields import walk

    for option in walk():
        if word.lower() in f"{option.path} {option.kohya} {option.help}".lower():
            default = "" if option.default is None else f" [{option.default}]"
            print(f"--{option.path}{default}\n    {option.help}")
    return 0


@config_app.command(name="presets")
def config_presets() -> int:
    """List the presets, each with what it is for."""
    from limner import runs
    from limner.config import presets

    for file in presets.all_files(runs.home() / "presets"):
        try:
            said = presets.about(file)
        except UserError as error:  # the others are to be seen
            said = str(error.findings[0])
        print(f"{printable(file.stem, 80)}\n    {printable(said, 300)}")
    return 0


@config_app.command(name="docs")
def config_docs(folder: Path = Path("docs/reference")) -> int:
    """Write the reference page of all options."""
    from limner import disk
    from limner.config import files

    disk.write_text(folder / "options.md", files.render_reference())
    print(f"Wrote {folder / 'options.md'}")
    return 0
