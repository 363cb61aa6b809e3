"""The command line: `limner train|check|command|sample|tools|demo|web|config|doctor|runs`. Every option of a run is a flag."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from limner.cli.config import config_app
from limner.cli.runs import follow_to_its_end, go_on, runs_app
from limner.cli.words import Options, load, repeated
from limner.errors import Finding, UserError, printable, wrong

app = App(name="limner", help="Teach a diffusion model what you show it.", version_flags=["--version"])
app.command(config_app)
app.command(runs_app)


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


def _machine():
    from limner import machine, runs

    return machine.describe(runs.home())


def _report(findings: list[Finding]) -> bool:
    """Print findings; True if one of them forbids the start."""
    for finding in findings:
        print(finding, file=sys.stderr)
    return any(f.severity == "error" for f in findings)


@app.command
def train(*words: Options, resume: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Train: limner train CONFIG.toml [--section.option value ...]. Without a file, options alone.

    Parameters
    ----------
    resume: Go on with the newest run of this very configuration, if there is one: for a command that is started again.
    """
    from limner import early, jobs, runner, runs

    config = load(words)
    is_next = early.read_early(config) is not None
    if resume and (run := runs.newest_of(config)) is not None:
        return go_on(run)
    if is_next:
        with suppress(OSError, UserError):  # what is wrong with the home is for the checks to say
            runner.ensure_runner(is_early=True)
    from limner import preflight, progress  # beside the runner's own imports

    findings, records = preflight.examine(config, _machine())
    if _report(findings):
        return 2
    progress.say_plan(config, records)
    return follow_to_its_end(jobs.prepare(config))


@app.command
def check(*words: Options, deep: bool = False, quick: bool = False) -> int:
    """Find everything that is wrong with a configuration before the start, and reckon its memory and time.

    --deep decodes every picture; --quick reckons nothing.
    """
    from limner import expect, preflight, progress
    from limner.preflight.device import check_estimate

    config = load(words)
    found = _machine()
    findings, records = preflight.examine(config, found, deep=deep)
    if _report(findings):
        return 2
    is_known = records.estimate is not None and records.estimate.seconds_per_step is not None
    if not quick and not is_known and records.question is not None:
        print("Reckoning memory and time ...", file=sys.stderr)
        try:
            expect.reckon(config, records.question)
            more = [f for f in check_estimate(config, found, records) if f not in findings]
        except UserError as error:
            more = error.findings
        _report(more)
        findings += more
    progress.say_plan(config, records)
    print("Ready to train." if not findings else "Ready to train; see the remarks above.")
    return 0


@app.command
def command(*words: Options) -> int:
    """Prepare a run folder and print the exact command that trains it, to be pasted anywhere."""
    from limner import jobs, launch, preflight

    config = load(words)
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
    if out is None and found.subsets:
        raise wrong("out", "is needed: what a dataset file says is written beside the configuration.", "Give -o run.toml")
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
    return using.in_terminal(using.section(name, repeated(words)), only_look=look)


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
