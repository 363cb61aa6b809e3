"""Which arguments a script takes, read from the source of its argparse parser: nothing is run or imported.

Followed are the functions that `setup_parser` hands its parser to, in whatever file of the checkout they are, with the true
or false that they are called with. What cannot be told from the source alone is taken as "anything".
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.errors import wrong

_MAX_BYTES = 4 << 20
_DEEPEST = 12
_TYPES = {"int": (int,), "float": (int, float), "int_or_float": (int, float), "str": (str,), "Path": (str,)}
_WORDS = {"int": "a whole number", "float": "a number", "int_or_float": "a number", "str": "text", "Path": "a path"}


@dataclass(frozen=True)
class Argument:
    """One argument of a script."""

    name: str
    """As in its configuration file: without dashes at the front, `_` within."""
    type: str = ""
    """The name of its type in the source; "flag" for one that takes no value, "" where that cannot be told."""
    is_list: bool = False
    choices: tuple[Any, ...] = ()
    """None among them stands for "not given"."""
    default: Any = None

    def fault(self, value: Any) -> str:
        """What is wrong with a value, "" if nothing is. A configuration file's values go through no such check there."""
        if self.type == "flag":
            return "" if isinstance(value, bool) else "must be true or false"
        if self.is_list and not isinstance(value, list | tuple):
            return "must be a list"
        for entry in value if self.is_list else [value]:
            if self.type in _TYPES and (not isinstance(entry, _TYPES[self.type]) or isinstance(entry, bool)):
                return f"must be {'a list, each ' if self.is_list else ''}{_WORDS[self.type]}"
            if self.choices and entry not in self.choices:
                return f"must be one of {', '.join(str(c) for c in self.choices if c is not None)}"
        return ""


def read_arguments(checkout: Path, script: str) -> dict[str, Argument]:
    """The arguments of `checkout/script` by name. Raises UserError where its source cannot be read so."""
    source = _Source(checkout.absolute())
    module = source.module(Path(script))
    function = None if module is None else module.functions.get("setup_parser")
    if module is None or function is None:
        said = f"{script} has no function setup_parser that tells of its arguments."
        raise wrong("launch.sd_scripts", said, "Give a checkout of sd-scripts as it comes.")
    return {a.name: a for a in source.walk(module, function, {}, 0)}


@dataclass(frozen=True)
class _Module:
    """One file: its functions, and what the names in it stand for."""

    functions: Mapping[str, ast.FunctionDef]
    modules: Mapping[str, Path]
    """Name -> the file that it stands for."""
    members: Mapping[str, tuple[Path, str]]
    """Name -> the file and the function there that it may stand for."""


class _Source:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[Path, _Module | None] = {}

    def module(self, path: Path) -> _Module | None:
        """A file of the checkout; None if there is no such Python file."""
        if path not in self._known:
            self._known[path] = self._read(path)
        return self._known[path]

    def _read(self, path: Path) -> _Module | None:
        try:
            with (self._root / path).open("rb") as file:
                text = file.read(_MAX_BYTES + 1)
        except (OSError, ValueError):
            return None
        if len(text) > _MAX_BYTES:
            return None
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            said = f"{path} is not a Python file that can be read."
            raise wrong("launch.sd_scripts", said, "Give a checkout of sd-scripts as it comes.") from None
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        modules, members = dict[str, Path](), dict[str, tuple[Path, str]]()
        for node in tree.body:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    modules[alias.asname or alias.name] = _file(alias.name)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    modules[alias.asname or alias.name] = _file(f"{node.module}.{alias.name}")
                    members[alias.asname or alias.name] = _file(node.module), alias.name
        return _Module(functions, modules, members)

    def walk(self, module: _Module, function: ast.FunctionDef, given: Mapping[str, Any], depth: int) -> Iterator[Argument]:
        """The arguments that a function adds; `given` are those of its own parameters that are known."""
        if depth > _DEEPEST:
            return
        for call in _calls(function.body, given):
            if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
                if (found := _argument(call)) is not None:
                    yield found
            elif _takes_parser(call) or _name(call.func).endswith("setup_parser"):
                target = self._target(module, call.func)
                if target is not None:
                    yield from self.walk(*target, _given(target[1], call, given), depth + 1)

    def _target(self, module: _Module, func: ast.expr) -> tuple[_Module, ast.FunctionDef] | None:
        """The function that is called, if it is one of the checkout's."""
        path, name = None, ""
        if isinstance(func, ast.Name):
            if func.id in module.functions:
                return module, module.functions[func.id]
            path, name = module.members.get(func.id, (None, ""))
        elif isinstance(func, ast.Attribute):
            path, name = module.modules.get(_name(func.value)), func.attr
        there = None if path is None else self.module(path)
        return None if there is None or name not in there.functions else (there, there.functions[name])


def _file(module: str) -> Path:
    return Path(*module.split(".")).with_suffix(".py")


def _name(node: ast.expr) -> str:
    """`a.b.c` as it is written, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    inner = _name(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if isinstance(node, ast.Attribute) and inner else ""


def _calls(body: list[ast.stmt], given: Mapping[str, Any]) -> Iterator[ast.Call]:
    """Every call that a function makes itself, in order; of an `if` on a parameter that is known, only what holds."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(statement, ast.If):
            holds = given.get(statement.test.id) if isinstance(statement.test, ast.Name) else None
            yield from _calls(statement.body if holds is not False else [], given)
            yield from _calls(statement.orelse if holds is not True else [], given)
            continue
        inner = [s for name in ("body", "orelse", "finalbody") for s in getattr(statement, name, [])]
        if inner:
            yield from _calls(inner, given)
            continue
        yield from (node for node in ast.walk(statement) if isinstance(node, ast.Call))


def _takes_parser(call: ast.Call) -> bool:
    return bool(call.args) and isinstance(call.args[0], ast.Name) and "parser" in call.args[0].id


def _given(function: ast.FunctionDef, call: ast.Call, outer: Mapping[str, Any]) -> dict[str, Any]:
    """The true and false that the parameters of a called function get."""
    names = [a.arg for a in function.args.args]
    defaults = function.args.defaults
    values: dict[str, ast.expr] = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    values |= dict(zip(names, call.args, strict=False))
    values |= {k.arg: k.value for k in call.keywords if k.arg is not None}
    out = {}
    for name, node in values.items():
        value = outer.get(node.id) if isinstance(node, ast.Name) else _constant(node)
        if isinstance(value, bool):
            out[name] = value
    return out


def _constant(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _argument(call: ast.Call) -> Argument | None:
    names = [n for a in call.args if isinstance(n := _constant(a), str)]
    options = {k.arg: k.value for k in call.keywords if k.arg is not None}
    said = _constant(options.get("dest"))
    long = next((n for n in names if n.startswith("--")), names[0] if names else "")
    if not long:
        return None
    name = said if isinstance(said, str) else long.lstrip("-").replace("-", "_")
    action, default = _constant(options.get("action")), _constant(options.get("default"))
    if isinstance(action, str) and action.startswith("store_"):
        return Argument(name, "flag", default=action == "store_false" if default is None else default)
    choices = _constant(options.get("choices"))
    kind = _name(options["type"]).rpartition(".")[2] if "type" in options else "str"
    is_list = "nargs" in options and _constant(options["nargs"]) != "?"
    return Argument(name, kind, is_list, tuple(choices) if isinstance(choices, list | tuple) else (), default)


def known_faults(arguments: Mapping[str, Any], known: Mapping[str, Argument]) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) of each argument that a script does not have, or not with this value."""
    for name, value in arguments.items():
        if name not in known:
            yield name, "is no argument of it"
        elif fault := known[name].fault(value):
            yield name, fault
