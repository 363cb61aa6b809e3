"""What a trainer begins before torch is there: it is used where it is what the run needs, and harms nothing where it is not."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from limner import runs
from limner.config import Config, files
from limner.data.cache import Cache
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


def test_others_wait_for_torch_and_are_kept_as_they_will_be(tiny_model: Path, folder: Path) -> None:
    begun = beginning.begin(runs.create(config(tiny_model, folder, train={"precision": "bf16"})))
    assert begun is not None and begun.ahead is not None
    assert not begun.ahead._waiting
    with begun.beside(kept_in(BF16)):
        wait_for(lambda: is_read(begun))
        assert {f.result().dtype for f in begun.ahead._waiting.values()} == {BF16}


def test_a_run_goes_on_with_what_was_begun_for_it_alone(tiny_model: Path, folder: Path) -> None:
    asked = config(tiny_model, folder)
    begun, base = beginning.begin(runs.create(asked)), find_base(asked)
    assert begun is not None and begun.ahead is not None
    wait_for(lambda: is_read(begun))
    assert beginning.gone_on_with(begun, base, asked, "fp32") is begun
    family = families.make(base, ahead=begun.ahead)
    assert is_read(begun)
    family.load("denoiser", torch.float32, torch.device("cpu"))
    assert not begun.ahead._waiting

    for other, precision in (
        (asked, "bf16"),
        (config(tiny_model, folder, memory={"quantize": "int8"}), "fp32"),
        (config(tiny_model, folder, memory={"verify": True}), "fp32"),
    ):
        begun = beginning.begin(runs.create(asked))
        assert begun is not None and begun.ahead is not None
        wait_for(lambda begun=begun: is_read(begun))
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
    if begun is not None:
        with begun.beside(kept_in(torch.float32)):
            pass
        assert begun.ahead is not None and not begun.ahead._waiting
    assert (begun is None) == (fault != "no folder for it")
