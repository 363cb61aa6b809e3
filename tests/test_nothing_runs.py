"""The source itself: nowhere can a file, a value or a name become code, but where it is guarded and said so here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import limner

SOURCE = Path(limner.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
NEVER = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execvp", "os.execve", "os.spawnv",
    "subprocess.getoutput", "subprocess.getstatusoutput", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load",
    "marshal.loads", "shelve.open", "joblib.load", "dill.load", "dill.loads", "yaml.load", "yaml.unsafe_load", "torch.hub.load",
    "tarfile.extractall", "shutil.unpack_archive", "gradio.load", "gr.load", "tempfile.mktemp", "numpy.lib.format.read_array",
}  # fmt: skip
NEEDED = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}
"""A call that is harmless with this argument alone, written out."""
NEVER_GIVEN = {"shell": True, "trust_remote_code": True, "allow_pickle": True, "weights_only": False, "use_safetensors": False}
NAMED = {
    "adapters/adapter.py": "ADAPTERS", "engine/optimizers.py": "package_of", "models/family.py": "FAMILIES",
    "tools/using.py": "done_by",
}  # fmt: skip
"""Where a module is imported by a name that is computed -> the table of ours, or the check, that it comes from."""


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name as it is written, the call)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def faults(text: str, name: str) -> list[str]:
    """What is wrong with a file's source."""
    out, tree = [], ast.parse(text)
    for called, node in calls(tree):
        given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        where = f"{name}:{node.lineno} {called}"
        if called in NEVER or called.endswith((".extractall", ".unpack_archive")):
            out.append(where)
        if called in NEEDED and given.get(NEEDED[called][0]) is not NEEDED[called][1]:
            out.append(f"{where} without {NEEDED[called]}")
        out += [f"{where} with {key}" for key, value in NEVER_GIVEN.items() if key in given and given[key] is value]
        is_import = called in ("importlib.import_module", "import_module")
        if is_import and not isinstance(node.args[0], ast.Constant) and (name not in NAMED or NAMED[name] not in text):
            out.append(f"{where} of a computed name")
    for node in ast.walk(tree):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names = {a.name for a in node.names} if isinstance(node, ast.ImportFrom) else set()
        if any(m.partition(".")[0] in ("marshal", "dill", "joblib", "cloudpickle", "shelve", "yaml") for m in modules):
            out.append(f"{name}:{node.lineno} imports {modules}")
        if "pickle" in modules and names != {"UnpicklingError"}:
            out.append(f"{name}:{node.lineno} imports pickle")
        if {"system", "popen"} & names or (modules == ["torch"] and "load" in names):
            out.append(f"{name}:{node.lineno} takes a name apart from its module")
    return out


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_no_file_can_become_code(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8"), path.relative_to(SOURCE).as_posix()) == []


@pytest.mark.parametrize("text", [
    "eval('1')", "import os\nos.system('x')", "torch.load(path)", "torch.load(path, weights_only=False)",
    "torch.load(p, weights_only=x)", "subprocess.run('x', shell=True)", "np.load(path)", "import pickle",
    "from pickle import loads", "archive.extractall('x')", "AutoModel.from_pretrained(x, trust_remote_code=True)",
    "importlib.import_module(name)", "from os import system", "import yaml",
])  # fmt: skip
def test_the_test_sees(text: str) -> None:
    assert faults(text, "x.py")


def test_what_is_computed_is_still_there() -> None:
    """An exception that is no longer needed is taken back."""
    for name in NAMED:
        text = (SOURCE / name).read_text(encoding="utf-8")
        assert any(
            c.endswith("import_module") and not isinstance(n.args[0], ast.Constant) for c, n in calls(ast.parse(text))
        ), name
