"""What a trainer begins before torch is there: it is used where it is what the run needs, and harms nothing where it is not."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from limner import runs
from limner.config import Config, files
from limner.data.cache import Cache
from limner.data.contents import Contents
from limner.engine import beginning
from limner.engine.fetching import find_base
from limner.models import family as families
from limner.models.weights import kept_in

pytestmark = pytest.mark.usefixtures("known_machine")
BF16 = torch.bfloat16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import tiny

    return tiny.pictures(tmp_path / "pictures", ((40, 40),))


def config(model: Path, folder: Path, **sections: dict[str, Any]) -> Config:
    raw = {"model": {"base": str(model)}, "data": {"path": str(folder)}, "launch": {"device": "cpu"}}
    return files.build(raw | sections, {})


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def is_read(begun: beginning.Beginning) -> bool:
    assert begun.ahead is not None
    waiting = begun.ahead._waiting
    return bool(waiting) and all(future.done() for future in waiting.values())


def test_numbers_that_stay_as_they_are_are_read_without_torch(tiny_model: Path, folder: Path) -> None:
    run = runs.create(config(tiny_model, folder))
    code = f"""
import sys, time
from pathlib import Path
from limner.engine import beginning
from limner.runs import Run
begun = beginning.begin(Run(Path({str(run.path)!r})))
until = time.monotonic() + 30
while not begun.ahead._waiting or not all(f.done() for f in begun.ahead._waiting.values()):
    assert time.monotonic() < until
    time.sleep(0.01)
print(len(begun.ahead._waiting), begun.ahead._held_bytes > 1000, "torch" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(said[0]) > 100 and said[1:] == ["True", "False"]


def test_others_wait_for_torch_and_are_kept_as_they_will_be(
    tiny_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed, plain = threading.Event(), Contents.content_hashes

    def told(contents: Contents, paths: Iterable[str | Path]) -> Iterator[str]:
        yield from plain(contents, paths)
        hashed.set()

    monkeypatch.setattr(Contents, "content_hashes", told)
    begun = beginning.begin(runs.create(config(tiny_model, folder, train={"precision": "bf16"})))
    assert begun is not None and begun.ahead is not None and hashed.wait(30)
    time.sleep(0.2)
    assert not begun.ahead._waiting
    with begun.beside(kept_in(BF16)):
        wait_for(lambda: is_read(begun))
        assert {f.result().dtype for f in begun.ahead._waiting.values()} == {BF16}


def test_the_way_that_a_run_took_last_counts(tiny_model: Path, folder: Path) -> None:
    run = runs.create(config(tiny_model, folder))
    run.event("fit", options={"memory.quantize": "int8"})
    begun = beginning.begin(run)
    assert begun is not None and begun.ahead is None


@pytest.mark.slow
def test_a_trainer_goes_on_with_it(tiny_model: Path, folder: Path) -> None:
    """All of it, in a process of its own: torch is there only after the beginning."""
    raw: dict[str, Any] = {"train": {"steps": 1}, "launch": {"device": "cpu", "num_threads": 1}}
    raw |= {"data": {"path": str(folder), "resolution": 32, "bucket_min_px": 16, "bucket_step_px": 8}}
    run = runs.create(config(tiny_model, folder, **raw))
    code = f"""
import sys
from limner.engine import beginning
from limner.engine.__main__ import main
begin, go_on, begun = beginning.begin, beginning.gone_on_with, []
def began(run):
    begun.append((begin(run), "torch" in sys.modules))
    return begun[0][0]
def went_on(earlier, *others):
    found = go_on(earlier, *others)
    if begun:
        print("went on", found is earlier is begun[0][0] is not None, begun[0][1])
    return found
beginning.begin, beginning.gone_on_with = began, went_on
sys.exit(main({str(run.path)!r}))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (said.returncode, run.state().status) == (0, "done"), said.stderr
    assert "went on True False" in said.stdout


def test_a_run_goes_on_with_what_was_begun_for_it_alone(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    asked = config(model, folder)
    begun, base = beginning.begin(runs.create(asked)), find_base(asked)
    assert begun is not None and begun.ahead is not None
    wait_for(lambda: is_read(begun))
    assert beginning.gone_on_with(begun, base, asked, "fp32") is begun
    family = families.make(base, ahead=begun.ahead)
    assert is_read(begun)
    family.load("denoiser", torch.float32, torch.device("cpu"))
    assert not begun.ahead._waiting

    for other, precision, is_touched in (
        (asked, "bf16", False),
        (config(model, folder, memory={"quantize": "int8"}), "fp32", False),
        (config(model, folder, memory={"verify": True}), "fp32", False),
        (asked, "fp32", True),
    ):
        begun = beginning.begin(runs.create(asked))
        assert begun is not None and begun.ahead is not None
        wait_for(lambda begun=begun: is_read(begun))
        if is_touched:
            [file] = (model / "unet").glob("*.safetensors")
            file.touch()
        found = beginning.gone_on_with(begun, base, other, precision)
        assert found is not begun and not begun.ahead._waiting
        assert (found is None) == other.memory.verify
        if found is not None:
            assert (found.ahead is None) == (other.memory.quantize != "off")


def test_the_files_are_hashed_and_that_is_remembered(
    tiny_model: Path, folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(tiny_model, folder)
    begun = beginning.begin(runs.create(asked))
    assert begun is not None
    with begun.beside(kept_in(torch.float32)):
        pass
    monkeypatch.setattr("limner.disk.sha256", lambda _: pytest.fail("read again"))
    weights = sorted(tiny_model.glob("*/*.safetensors"))
    assert len(weights) == 3 and all(map(Cache(home / "cache").content_hash, weights))


@pytest.mark.parametrize("fault", ["no model", "no config", "a cut file", "no folder for it"])
def test_what_is_wrong_is_left_for_others_to_say(
    tiny_model: Path, folder: Path, tmp_path: Path, home: Path, fault: str
) -> None:
    shutil.copytree(tiny_model, tmp_path / "copy")
    run = runs.create(config(tmp_path / "copy", folder))
    if fault == "no model":
        shutil.rmtree(tmp_path / "copy")
    elif fault == "no config":
        (run.path / "config.toml").write_text("[train\n")
    elif fault == "a cut file":
        [file] = (tmp_path / "copy" / "unet").glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-100])
    else:
        (home / "cache").write_text("a file")
    begun = beginning.begin(run)
    assert (begun is None) == (fault != "no folder for it")
    if begun is not None:  # to read nothing of it is needed
        wait_for(lambda: is_read(begun))
        with begun.beside(kept_in(torch.float32)):
            pass
