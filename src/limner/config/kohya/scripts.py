"""sd-scripts' training scripts and the arguments that each knows (release 0.10.1), as its argparse declares them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

Trains = Literal["network", "whole", "embedding", "control"]


@dataclass(frozen=True)
class Script:
    """One script."""

    name: str
    code: str
    """Its short name in arguments.txt."""
    families: tuple[str, ...]
    """The families of Limner that it trains, () where Limner has none of them."""
    trains: Trains


@dataclass(frozen=True)
class Argument:
    """One argument, by its name without dashes."""

    name: str
    kind: str
    """str, int, float, int_or_float, Path, or flag: it takes no value."""
    is_list: bool
    default: str | None
    choices: tuple[str, ...]
    scripts: frozenset[str] | None
    """The codes of the scripts that know it; None: all."""


def _table(*rows: tuple[str, str, str, Trains]) -> dict[str, Script]:
    return {name: Script(name, code, tuple(families.split()), trains) for name, code, families, trains in rows}


SCRIPTS = _table(
    ("train_network.py", "n", "sd1 sd2", "network"),
    ("sdxl_train_network.py", "Xn", "sdxl", "network"),
    ("flux_train_network.py", "Fn", "flux", "network"),
    ("sd3_train_network.py", "3n", "sd3", "network"),
    ("lumina_train_network.py", "Ln", "", "network"),
    ("hunyuan_image_train_network.py", "Hn", "", "network"),
    ("anima_train_network.py", "An", "", "network"),
    ("train_db.py", "db", "sd1 sd2", "whole"),
    ("fine_tune.py", "ft", "sd1 sd2", "whole"),
    ("sdxl_train.py", "X", "sdxl", "whole"),
    ("sd3_train.py", "3", "sd3", "whole"),
    ("flux_train.py", "F", "flux", "whole"),
    ("lumina_train.py", "L", "", "whole"),
    ("anima_train.py", "A", "", "whole"),
    ("train_textual_inversion.py", "ti", "sd1 sd2", "embedding"),
    ("sdxl_train_textual_inversion.py", "Xti", "sdxl", "embedding"),
    ("train_control_net.py", "cn", "", "control"),
    ("sdxl_train_control_net.py", "Xcn", "", "control"),
    ("flux_train_control_net.py", "Fcn", "", "control"),
    ("sdxl_train_control_net_lllite.py", "Xll", "", "control"),
)


@cache
def arguments() -> dict[str, Argument]:
    """Every argument, by name."""
    text = files("limner.config.kohya").joinpath("arguments.txt").read_text("utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line and line[0] != "#")
    return {name: _argument(name, kind, default, choices, codes) for name, kind, default, choices, codes in rows}


def _argument(name: str, kind: str, default: str, choices: str, codes: str) -> Argument:
    return Argument(
        name,
        kind.rstrip("*"),
        kind.endswith("*"),
        None if default == "-" else default,
        () if choices == "-" else tuple(choices.split()),
        None if codes == "*" else frozenset(codes.split()),
    )


def accepts(script: Script, name: str) -> bool:
    """Whether a script knows an argument."""
    known = arguments().get(name)
    return known is not None and (known.scripts is None or script.code in known.scripts)


def script_for(family: str, kind: str, *, has_metadata: bool = False) -> Script | None:
    """The script that trains this family so, None if there is none. `has_metadata`: captions come from one .json file."""
    trains: Trains = "whole" if kind == "none" else "embedding" if kind == "embedding" else "network"
    suited = [s for s in SCRIPTS.values() if family in s.families and s.trains == trains]
    return suited[-1 if has_metadata else 0] if suited else None
