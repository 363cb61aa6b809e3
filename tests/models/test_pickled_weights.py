"""The tensors of pickled checkpoints: those that were saved, to the bit, from the file; hostile files run nothing."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from limner.errors import UserError
from limner.formats.pickled import read_pickled
from limner.models.pickled_weights import PickledWeights


@pytest.mark.parametrize("is_below", [True, False])
def test_the_tensors_are_those_that_were_saved(is_below: bool, tmp_path: Path) -> None:
    matrix = torch.randn(4, 3)
    state: dict[str, torch.Tensor] = {
        "half": torch.randn(5).half(), "brain": torch.randn(2, 2).bfloat16(), "eight": torch.randn(3).to(torch.float8_e4m3fn),
        "matrix": matrix, "tied": matrix, "turned": matrix.T, "row": matrix[1], "parameter": nn.Parameter(torch.randn(2)),
        "count": torch.tensor(7), "none": torch.zeros(0, 3),
    }  # fmt: skip
    beside = {"global_step": np.int64(3), "betas": np.linspace(0, 1, 4), "epoch": 2}
    torch.save({"state_dict": state, **beside} if is_below else {**state, **beside}, path := tmp_path / "x.ckpt")
    weights = PickledWeights(path)
    assert list(weights) == list(state) and len(weights) == len(state) and "epoch" not in weights
    for name, tensor in state.items():
        found = weights[name]
        assert type(found) is torch.Tensor and not found.requires_grad
        assert found.dtype == tensor.dtype and torch.equal(found.float(), tensor.detach().float()), name
        assert read_pickled(path).tensors[name].shape == tuple(found.shape)
    with pytest.raises(KeyError):
        weights["epoch"]


def test_numbers_come_from_the_file_when_they_are_used(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 14)}, path := tmp_path / "x.pt")
    weights = PickledWeights(path)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("x/data/0")
    with path.open("r+b") as file:
        file.seek(info.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)  # behind the name and the padding
        file.write(np.float32(5).tobytes())
    assert weights["a"][0] == 5 and weights["a"][1] == 0


def test_lightnings_classes_stay_away(tmp_path: Path) -> None:
    """A callback's class as a key, and an object of it, as in Stable Diffusion 1.4's own file; Lightning is not even here."""
    torch.save({"state_dict": {"a": torch.arange(3)}}, path := tmp_path / "x.ckpt")
    with zipfile.ZipFile(path) as archive:
        code, numbers = archive.read("x/data.pkl"), archive.read("x/data/0")
    lightning = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n"
    made = lightning + lightning + b")\x81}X\x01\0\0\0aK\x01sbs"  # ModelCheckpoint: an object with the attribute a
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", code[:-1] + made + b".")
        archive.writestr("x/data/0", numbers)
        archive.writestr("x/version", "3")
    assert PickledWeights(path)["a"].tolist() == [0, 1, 2]
    assert "Inert" not in str(torch.serialization.get_safe_globals())


class Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_a_hostile_file_runs_nothing(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "x.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(2)}, "x": Call(os.system, f"touch {marker}")}, path)
    with pytest.raises(UserError, match="it can run code when opened") as caught:
        PickledWeights(path, "model.base")
    assert caught.value.findings[0].field == "model.base"
    path.write_bytes(pickle.dumps(Call(os.system, f"touch {marker}")))
    with pytest.raises(UserError, match="bare pickle"):
        PickledWeights(path)
    assert not marker.exists()


def test_a_file_that_pytorch_does_not_take(tmp_path: Path) -> None:
    """Python finds the end of a zip with a long comment behind it, PyTorch does not."""
    torch.save({"a": torch.zeros(2)}, path := tmp_path / "x.ckpt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"x" * 60_000
    assert read_pickled(path).tensors
    with pytest.raises(UserError, match=r"PyTorch cannot open x\.ckpt"):
        PickledWeights(path)
