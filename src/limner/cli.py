"""The command line: `limner train|check|command|sample|tools|demo|web|config|doctor|runs`. Every option of a run is a flag."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from limner.errors import Finding, UserError, printable, wrong

app = App(name="limner", help="Teach a diffusion model what you show it.", version_flags=["--version"])
config_app = App(name="config", help="Write and read configurations.")
runs_app = App(name="runs", help="List, show, stop, resume, change, queue and delete runs.")
app.command(config_app)
app.command(runs_app)

_OPTIONS = "Options by name, such as --optimizer.lr 1e-4, and --preset NAME, which can be given several times."
Options = Annotated[str, Parameter(allow_leading_hyphen=True, help=_OPTIONS)]


def main() -> None:
    """Run a command; a user's mistake ends in words and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    try:
        code = app()
    except UserError as error:
        for finding in error.findings:
            print(finding, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"error: {printable(where)}{error.strerror or error}. Choose another place, or free the one given.", file=sys.stderr
        )
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _overrides(words: tuple[str, ...]) -> dict[str, str]:
    """Options as a dict."""
    return dict(_pairs(words))


def _pairs(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(name, value) of `--a.b value`, `--a.b=value` and a bare `--a.b` (true). Raises UserError for anything else."""
    pending = list(words)
    while pending:
        word = pending.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise wrong(word, "is not an option.", "Options are written --section.name value.")
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = pending.pop(0) if pending and not pending[0].startswith("--") else "true"
        yield name, value


def _repeated(words: tuple[str, ...]) -> dict[str, list[str]]:
    """The same, where an option may come several times."""
    out: dict[str, list[str]] = {}
    for name, value in _pairs(words):
        out.setdefault(name, []).append(value)
    return out


def _load(words: tuple[str, ...]):
    """(config) from an optional TOML file, followed by presets and options. Presets count more than the file, later ones more
    than earlier ones, options most."""
    from limner import runs
    from limner.config import files, presets

    has_file = bool(words) and not words[0].startswith("--")
    given = list(_pairs(words[has_file:]))
    laid = presets.laid([value for name, value in given if name == "preset"], runs.home() / "presets")
    overrides = presets.lay(laid, {name: value for name, value in given if name != "preset"})
    return files.read(Path(words[0]), overrides) if has_file else files.build({}, overrides)


def _machine():
    from limner import machine, runs

    return machine.describe(runs.home())


def _train(run) -> int:
    """Put a run into the queue, and show it until it ends."""
    from limner import progress, queue

    queue.enqueue(run)
    return progress.follow(run)


def _report(findings: list[Finding]) -> bool:
    """Print findings; True if one of them forbids the start."""
    for finding in findings:
        print(finding, file=sys.stderr)
    return any(f.severity == "error" for f in findings)


@app.command
def train(*words: Options) -> int:
    """Train: limner train CONFIG.toml [--section.option value ...]. Without a file, options alone."""
    from limner import jobs, preflight, progress

    config = _load(words)
    findings, records = preflight.examine(config, _machine())
    if _report(findings):
        return 2
    progress.say_plan(config, records)
    return _train(jobs.prepare(config))


@app.command
def check(*words: Options, deep: bool = False) -> int:
    """Find everything that is wrong with a configuration before the start. --deep decodes every picture."""
    from limner import preflight, progress

    config = _load(words)
    findings, records = preflight.examine(config, _machine(), deep=deep)
    failed = _report(findings)
    if not failed:
        progress.say_plan(config, records)
        print("Ready to train." if not findings else "Ready to train; see the remarks above.")
    return 2 if failed else 0


@app.command
def command(*words: Options) -> int:
    """Prepare a run folder and print the exact command that trains it, to be pasted anywhere."""
    from limner import jobs, launch, preflight

    config = _load(words)
    machine = _machine()
    if _report(preflight.examine(config, machine)[0]):
        return 2
    device = machine.kind(config.launch.device)
    run = jobs.prepare(config)
    print(f"The run folder is {run.path}", file=sys.stderr)
    if config.launch.trainer == "sd-scripts":
        from limner.sdscripts import assemble

        assemble.assemble(config, run.path, machine).write()
        print("sd-scripts alone, without Limner looking after it:", file=sys.stderr)
        print(assemble.preview(config, run.path, machine))
        return 0
    print(launch.shown(launch.argv(config, run.path, device), launch.environment(config, device)))
    return 0


@app.command
def sample(
    prompt: str,
    *,
    model: str = "pocket",
    lora: Path | None = None,
    strength: float = 1.0,
    embedding: str | None = None,
    out: Path = Path("sample.png"),
    negative: str = "",
    width: int | None = None,
    height: int | None = None,
    steps: int = 20,
    guidance: float | None = None,
    seed: int = 0,
    solver: str | None = None,
    device: Literal["cpu", "cuda", "mps"] | None = None,
) -> int:
    """Paint one picture from a prompt, with or without a LoRA and an embedding (--embedding FILE, or FILE=word)."""
    from limner.engine import sampling

    return sampling.paint_one(
        model=model, lora=lora, strength=strength, embedding=embedding, out=out, device=device,
        values={"prompt": prompt, "negative": negative, "width": width, "height": height, "steps": steps,
                "guidance": guidance, "seed": seed, "solver": solver},
    )  # fmt: skip


@app.command(name="import")
def import_(
    *files: Annotated[Path, Parameter(allow_leading_hyphen=True)], out: Annotated[Path | None, Parameter(alias="-o")] = None
) -> int:
    """Make a configuration of what kohya_ss, sd-scripts or a LoRA say. The report tells what became of each key.

    Parameters
    ----------
    files: Configurations, dataset files, command lines (- reads one), LoRAs. The last counts most.
    out: The configuration to write. Without it, it goes to the terminal, and the report to the standard error.
    """
    from limner import importing
    from limner.config import files as config_files
    from limner.config.kohya import render_report

    if not files:
        raise wrong("import", "needs a file.", "For example: limner import lora.json -o run.toml")
    found = importing.together([
        ("-", importing.of_text(sys.stdin.read(config_files.MAX_BYTES + 1), "-")) if str(path) == "-" else
        (path.name, importing.of_file(path)) for path in files
    ])  # fmt: skip
    if out is None:
        print("\n".join(render_report(found.report)), file=sys.stderr)
        print(config_files.render_changes(config_files.build(found.values, {})), end="")
        return 0
    written = importing.write(found, out)
    print("\n".join(render_report(found.report)))
    print("".join(f"\nWrote {file}" for file in written))
    return 0


@app.command
def tools(name: str = "", *words: Options, look: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Work on files: limner tools lists what there is, limner tools NAME its options.

    Parameters
    ----------
    name: The tool.
    look: Only say what would be done; nothing is written.
    """
    from limner.tools import using

    if not name or not (words or look):
        print("\n".join(using.described(name) if name else using.listed()))
        return 0
    return using.in_terminal(using.section(name, _repeated(words)), only_look=look)


@app.command
def demo(*, out: Path = Path("demo"), steps: int | None = None) -> int:
    """Teach the pocket model a new thing, and show before and after. No files, network or GPU needed."""
    from limner import demo as demo_page

    return demo_page.run(out, steps)


@app.command
def web(
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    username: str = "",
    inbrowser: Annotated[bool, Parameter(negative="")] = False,
    root_path: str = "",
    allowed_path: Annotated[list[Path] | None, Parameter(negative="")] = None,
    language: Literal["en", "ja", "zh-CN"] | None = None,
    headless: Annotated[bool, Parameter(negative="")] = False,
    theme: Literal["system", "light", "dark"] | None = None,
    share: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Open the page: train, watch and look after your pictures in the browser.

    Parameters
    ----------
    host: The address to listen on. Anything but this machine's own needs a password in LIMNER_PASSWORD.
    port: The port, or 0 for any free one. Left out: the first free one from 7860 on.
    username: A name to be asked for with the password.
    inbrowser: Open the page in your browser.
    root_path: The folder of the address that a reverse proxy gives to Limner, such as /limner.
    allowed_path: A folder that the page may read and write; can be given several times.
    language: The language of the page.
    headless: Never open a browser.
    theme: Light or dark; "system" follows your browser.
    share: Say how to reach the page from elsewhere.
    """
    from limner.web import server

    return server.serve(
        server.Asked(
            host=host, port=port, username=username, inbrowser=inbrowser, root_path=root_path, headless=headless,
            allowed_path=tuple(allowed_path or ()), language=language, theme=theme, share=share,
        )
    )  # fmt: skip


@app.command
def doctor() -> int:
    """Describe this machine, and say what stands in the way."""
    from limner import doctor as doctor_page

    return doctor_page.run()


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
    kept, findings = settings.read(runs.home())
    if findings:
        raise UserError([replace(finding, severity="error") for finding in findings])
    settings.write(runs.home(), replace(kept, programs=tuple(dict.fromkeys((*kept.programs, place)))))
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
        print(f"{printable(file.stem, 80)}\n    {printable(presets.about(file), 300)}")
    return 0


@config_app.command(name="docs")
def config_docs(folder: Path = Path("docs/reference")) -> int:
    """Write the reference page of all options."""
    from limner import disk
    from limner.config import files

    disk.write_text(folder / "options.md", files.render_reference())
    print(f"Wrote {folder / 'options.md'}")
    return 0


@runs_app.command(name="list")
def runs_list() -> int:
    """List all runs."""
    from limner import runs

    found = runs.all_runs()
    for run in found:
        state = run.state()
        done = f"{state.step}/{state.steps}" if state.steps else ""
        print(f"{run.id:<44.44} {state.status:<9} {done:>12}")
    if not found:
        print(f"No runs yet in {runs.home() / 'runs'}.")
    return 0


@runs_app.command(name="show")
def runs_show(name: str) -> int:
    """Show one run: its state, its files, the end of its log if it failed."""
    from limner import progress, runs

    return progress.show(runs.find(name))


@runs_app.command(name="stop")
def runs_stop(name: str, *, now: bool = False) -> int:
    """Stop a run after the current step with its state saved, or at once. A waiting one leaves the queue."""
    from limner import jobs, runs

    state = jobs.stop(runs.find(name), now=now)
    print(f"{state.status} at step {state.step} of {state.steps}" if state.pid else f"{state.status}: it had not started")
    return 1 if state.status == "failed" else 0


@runs_app.command(name="resume")
def runs_resume(name: str) -> int:
    """Go on with a stopped or failed run from its newest training state."""
    from limner import runs

    return _train(runs.find(name))


@runs_app.command(name="queue")
def runs_queue() -> int:
    """List the waiting runs in their order, and see to it that they are served."""
    from limner import progress, queue, runner, runs

    queue.repair()
    names = queue.waiting()
    if names:
        runner.ensure_runner()
    for place, name in enumerate(names, 1):
        print(f"{place:>3}  {name:<44.44} {progress.why_waiting(runs.named(name))}")
    if not names:
        print("No run is waiting.")
    return 0


@runs_app.command(name="move")
def runs_move(name: str, position: int) -> int:
    """Give a waiting run another place in the queue; the first is 1."""
    from limner import queue, runs

    run, names = runs.find(name), queue.waiting()
    if run.id not in names:
        raise wrong("run", f"{run.id} is not waiting.", "`limner runs queue` shows which are.")
    if not 1 <= position <= len(names):
        raise wrong("position", f"there is no place {position}.", f"The queue has places 1 to {len(names)}.")
    names.remove(run.id)
    queue.reorder([*names[: position - 1], run.id, *names[position - 1 :]])
    return runs_queue()


def _ask(name: str, what: str) -> int:
    from limner import runs

    run = runs.find(name)
    if run.state().status not in runs.LIVE:
        raise wrong("run", f"{run.id} is not running.", "Only a run that trains can be asked.")
    run.request(what)
    print("Asked; it is done after the current step.")
    return 0


@runs_app.command(name="sample")
def runs_sample(name: str) -> int:
    """Have a running run paint its prompts now."""
    return _ask(name, "sample")


@runs_app.command(name="save")
def runs_save(name: str) -> int:
    """Have a running run save a checkpoint now."""
    return _ask(name, "save")


@runs_app.command(name="change")
def runs_change(name: str, *options: Options) -> int:
    """Change a running run from its next step on: limner runs change last optimizer.lr=5e-5 train.steps=4000

    The learning rate (*0.5 is half of what it is), steps or epochs, prompts, and how often it paints, saves and validates.
    """
    from limner import changes, runs

    run = runs.find(name)
    texts = {}
    for word in options:
        option, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            raise wrong(word, "is not name=value.", "For example: optimizer.lr=5e-5")
        texts[option] = value
    changes.request(run, changes.typed(run, texts))
    print("Asked; it holds from the next step on.")
    return 0


@runs_app.command(name="delete")
def runs_delete(name: str) -> int:
    """Move a run to the trash folder."""
    from limner import runs

    print(f"Moved to {runs.delete(runs.find(name))}")
    return 0


if __name__ == "__main__":
    main()
