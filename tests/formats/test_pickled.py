"""Pickled checkpoints: what they hold is told as torch.load tells it; whatever else is in them is refused, and never runs."""

from __future__ import annotations

import os
import pickle
import random
import re
import subprocess
import sys
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from limner.errors import UserError
from limner.formats.header import TensorInfo
from limner.formats.pickle_program import MAX_OPCODES, Forbidden, Program, Unusable
from limner.formats.pickled import examine, read_pickled

FIELD = "model.base"
ORDERED = b"ccollections\nOrderedDict\n"


def refused(path: Path) -> str:
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        read_pickled(path, FIELD)
    assert time.process_time() - start < 5
    [finding] = caught.value.findings
    assert finding.field == FIELD and finding.remedy and path.name in finding.message
    assert str(finding).isprintable() and len(str(finding)) < 500
    return finding.message


def packed(path: Path, code: bytes, records: Mapping[str, bytes] = {}, folder: str = "archive", **options: Any) -> Path:
    """A zip as torch.save lays it out, with this pickle in it."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr(f"{folder}/data.pkl", code)
        archive.writestr(f"{folder}/version", "3\n")
        for key, content in records.items():
            archive.writestr(f"{folder}/data/{key}", content)
    return path


def expected(state: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    """As the safetensors library calls these dtypes."""
    out = {}
    for name, tensor in state.items():
        raw = save({"x": torch.zeros(1, dtype=tensor.dtype)})
        dtype = raw.split(b'"dtype":"')[1].split(b'"')[0].decode()
        out[name] = TensorInfo(dtype, tuple(tensor.shape))
    return out


def test_a_state_dict_as_torch_saves_it(tmp_path: Path) -> None:
    state = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).half().state_dict()
    torch.save(state, path := tmp_path / "model.v1..2.pt")
    header = read_pickled(path)
    assert header.metadata == {}
    assert header.tensors["0.weight"] == TensorInfo("F16", (4, 3))
    assert header.tensors["1.num_batches_tracked"] == TensorInfo("I64", ())
    assert header.tensors == expected(state) and list(header.tensors) == list(state)
    assert examine(path).level is None


def test_the_level_state_dict(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(2).bfloat16()}, "b": torch.zeros(3)}, path := tmp_path / "x.ckpt")
    assert read_pickled(path).tensors == {"a": TensorInfo("BF16", (2,))}
    assert examine(path).level == "state_dict"
    torch.save({"state_dict": 3, "b": torch.zeros(3)}, path)
    assert read_pickled(path).tensors == {"b": TensorInfo("F32", (3,))}


def test_what_lightning_leaves_beside_the_weights(tmp_path: Path) -> None:
    """An optimiser, numpy's numbers, and a callback's class as a key, as in Stable Diffusion 1.4's own file."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {
        "epoch": 3, "global_step": np.int64(470000), "loss": np.float32(0.5), "betas": np.linspace(0, 1, 5), "none": None,
        "pytorch-lightning_version": "1.4.2", "state_dict": OrderedDict(model.state_dict()), "done": True, "off": False,
        "optimizer_states": [optimizer.state_dict()], "lr_schedulers": [{"lr": 1e-4, "betas": (0.9, 0.999), "big": 1 << 70}],
        "dtype": torch.float16, "device": torch.device("cpu"), "size": torch.Size([1, 2]),
    }  # fmt: skip
    torch.save(state, path := tmp_path / "x.ckpt")
    assert read_pickled(path).tensors == {"weight": TensorInfo("F32", (2, 2)), "bias": TensorInfo("F32", (2,))}
    with zipfile.ZipFile(path) as archive:
        code = archive.read("x/data.pkl")
        records = {name[7:]: archive.read(name) for name in archive.namelist() if name.startswith("x/data/")}
    lightning = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n"
    packed(path, code[:-2] + lightning + b"}X\x01\0\0\0aK\x01s" + code[-2:], records)  # {..., ModelCheckpoint: {"a": 1}}
    assert examine(path).beside >= {"pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", "numpy.dtype"}
    assert read_pickled(path).tensors["bias"] == TensorInfo("F32", (2,))


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8]
DTYPES += [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2]
DTYPES += [torch.complex64]


def random_state(random: random.Random) -> dict[str, Any]:
    state = dict[str, Any]()
    for i in range(random.randint(1, 12)):
        shape = [random.randint(0, 5) for _ in range(random.randint(0, 4))]
        tensor = torch.zeros(shape, dtype=random.choice(DTYPES))
        if shape and random.random() < 0.5:
            tensor = tensor.transpose(0, random.randrange(len(shape)))[random.randint(0, 1) :]
        if tensor.is_floating_point() and random.random() < 0.3:
            tensor = nn.Parameter(tensor, requires_grad=random.random() < 0.5)
        state[f"t{i}.ü{'.x' * random.randint(0, 3)}"] = tensor
        if random.random() < 0.2:
            state[f"tied{i}"] = tensor
    return state


@pytest.mark.parametrize("seed", range(20))
def test_as_torch_loads_it(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    state = random_state(draw)
    torch.save({"state_dict": state, "step": seed} if draw.random() < 0.5 else state, path := tmp_path / "x.pth")
    loaded = torch.load(path, weights_only=True)
    assert read_pickled(path).tensors == expected(loaded.get("state_dict", loaded))


class Call:
    """An object that calls this function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def hostile(marker: Path) -> dict[str, Any]:
    write = f"open({str(marker)!r}, 'w').close()"
    return {
        f"{os.system.__module__}.system": Call(os.system, f"touch {marker}"),
        "builtins.eval": Call(eval, write),
        "builtins.exec": Call(exec, write),
        "builtins.getattr": Call(getattr, OrderedDict, "fromkeys"),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "torch.storage._load_from_bytes": Call(torch.storage._load_from_bytes, b""),  # type: ignore[attr-defined]
        "torch.serialization.load": Call(torch.load, str(marker)),
        "numpy.load": Call(np.load, str(marker)),
    }


PROTOCOL_2_NAMES = {"builtins": "__builtin__", "subprocess": "commands"}  # what protocol 2 writes for Python 2


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", hostile(Path()))
def test_code_is_refused_by_name_and_does_not_run(name: str, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    evil = hostile(marker)[name]
    state = {"state_dict": {"a": torch.zeros(2), "hidden": [{"deep": (evil,)}]}}
    torch.save(state, path := tmp_path / "x.ckpt", pickle_protocol=protocol)
    module = name.partition(".")[0]
    said = name if protocol > 2 else name.replace(module, PROTOCOL_2_NAMES.get(module, module), 1)
    assert f"names {said}, which weights have no need of: it can run code when opened" in refused(path)
    assert not marker.exists()


def test_the_hostile_files_would_have_run(tmp_path: Path) -> None:
    torch.save(hostile(marker := tmp_path / "marker")["builtins.eval"], path := tmp_path / "x.ckpt")
    torch.load(path, weights_only=False)
    assert marker.exists()


RUNS = "names .* it can run code when opened"
TRICKS: dict[str, tuple[bytes, str]] = {
    "attributes of an allowed name": (b"ccollections\nOrderedDict.__init__.__globals__\n.", RUNS),
    "the same by protocol 4": (b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.", RUNS),
    "no text for a name": (b"\x80\x04)K\x01\x93.", RUNS),
    "a space in a name": (b"cos system\nx\n.", RUNS),
    "an allowed module": (b"ctorch.hub\nload\n.", RUNS),
    "like an allowed name": (b"cpytorch_lightning.callbacksx\nModelCheckpoint\n.", RUNS),
    "numpy's files": (b"cnumpy\nfromfile\n.", RUNS),
    "a name by number": (b"\x80\x02\x82\x01.", "pickle's EXT1"),
    "an instance": (b"(ios\nsystem\n.", "pickle's INST"),
    "an object of a class": (b"(" + ORDERED + b"o.", "pickle's OBJ"),
    "a persistent id as text": (b"Pstorage\n.", "pickle's PERSID"),
    "attributes of a table": (b"\x80\x02" + ORDERED + b")R}X\x09\0\0\0__class__K\x01sb.", "gives attributes"),
    "a table with content": (b"\x80\x02" + ORDERED + b"]\x85R.", "calls collections.OrderedDict in a way"),
    "a call of a table": (b"\x80\x02})R.", "calls what is no function"),
    "a call of an opened class": (b"\x80\x02" + ORDERED + b")\x81.", "no class"),
    "a codec": (b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0utf32\x86R.", "calls _codecs.encode"),
    "a storage that is not there": (
        b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ.", "lacks numbers",
    ),
    "no storage": (b"\x80\x02NQ.", "lacks numbers"),
    "an append to a table": (b"\x80\x02}Na.", "appends to what is no list"),
    "a key of a list": (b"\x80\x02]NNs.", "fills what is no table"),
    "half a pair": (b"\x80\x02}(Nu.", "fills what is no table"),
    "no stack": (b"\x80\x02a.", "damaged"),
    "no mark": (b"\x80\x02Nt.", "damaged"),
    "a mark kept": (b"\x80\x02}(q\x00u.", "damaged"),
    "an empty memo": (b"\x80\x02h\x05.", "damaged"),
    "no end": (b"\x80\x02}", "damaged"),
    "nothing": (b"", "damaged"),
    "no opcode": (b"\x80\x02\xfe.", "damaged"),
    "a text longer than the file": (b"\x80\x02X\xff\xff\xff\xffa.", "damaged"),
    "not a table": (b"\x80\x02K\x01.", "holds no tensors"),
    "an empty table": (b"\x80\x02}.", "holds no tensors"),
    "a late protocol": (b"\x80\x04\x95\x02\0\0\0\0\0\0\0}\x94.", "protocol"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRICKS)
def test_tricks(name: str, tmp_path: Path) -> None:
    code, said = TRICKS[name]
    assert re.search(said, refused(packed(tmp_path / "x.ckpt", code)))


COLLIDING = (1 << 61) - 1  # its multiples all have the hash 0
BOMBS: dict[str, tuple[bytes, str]] = {
    "a key whose hash takes for ever": (b"\x80\x02})q\x00" + b"h\x00\x86q\x00" * 60 + b"Ns.", "neither a text nor"),
    "a key that is half a million deep": (b"\x80\x02})" + b"\x85" * (MAX_OPCODES - 9) + b"Ns.", "neither a text nor"),
    "keys that collide": (
        b"\x80\x02}(" + b"".join(b"\x8a\x0a" + (i * COLLIDING).to_bytes(10, "little") + b"N" for i in range(9, 99_999)) + b"u.",
        "neither a text nor",
    ),
    "fractions that collide": (b"\x80\x02}G" + bytes(8) + b"Ns.", "neither a text nor"),
    "a memo of four billion places": (b"\x80\x02}r\xff\xff\xff\xff.", "holds no tensors"),
    "lists in lists": (b"\x80\x02" + b"]" * 240_000 + b"a" * 239_999 + b".", "holds no tensors"),
    "lists of twice the same list": (b"\x80\x02]q\x00" + b"](h\x00h\x00eq\x00" * 60 + b".", "holds no tensors"),
    "too many steps": (b"\x80\x02" + b"N" * MAX_OPCODES + b".", "more than 500000 steps"),
    "a large list of tensors": (b"\x80\x02" + b"N" * (9 << 20) + b".", "more than 8388608 bytes"),
    "copies of a large tuple": (
        b"\x80\x02(" + b"N" * 100_000 + b"tq\x00ctorch\nSize\nq\x01" + b"h\x01h\x00\x85R" * 200_000 + b".", "calls torch.Size",
    ),
    "copies of a large text": (
        b"\x80\x02c_codecs\nencode\nX\0\0\x40\0" + b"a" * (1 << 22) + b"X\x06\0\0\0latin1\x86R.", "calls _codecs.encode",
    ),
    "a long name, again and again": (
        b"\x80\x04X\0\0\x40\0" + b"a" * (1 << 22) + b"q\x00" + b"h\x00h\x00\x93" * 300_000 + b".", "names something",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_quickly(name: str, tmp_path: Path) -> None:
    code, said = BOMBS[name]
    assert said in refused(packed(tmp_path / "x.ckpt", code))


def tensor_code(count: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], hooks: Any = None) -> bytes:
    """{"a": a tensor}, by hand."""
    plain = [pickle.dumps(x, 2)[2:-1] for x in (("cpu", count), offset, shape, strides)]
    place = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + pickle.dumps(count, 2)[2:-1] + b"tQ"
    end = b"\x89" + (ORDERED + b")R" if hooks is None else pickle.dumps(hooks, 2)[2:-1])
    return b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n(" + place + b"".join(plain[1:]) + end + b"tRs."


def test_tensors_that_their_numbers_do_not_make(tmp_path: Path) -> None:
    path, numbers = tmp_path / "x.pt", {"0": bytes(24)}
    assert read_pickled(packed(path, tensor_code(6, 1, (2, 2), (1, 3)), numbers)).tensors == {"a": TensorInfo("F32", (2, 2))}
    beyond = [(1, (2, 3), (3, 1)), (6, (), ()), (0, (7,), (0,)), (0, (1 << 40,), (0,)), (0, (2,), (6,)), (0, (2, 3), (3,))]
    beyond += [
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (0, (2.0,), (1,)),
        (0, (True,), (1,)),
        (0, (1,) * 65, (1,) * 65),
        (0, [2], (1,)),
    ]
    for offset, shape, strides in beyond:
        assert "reaches beyond its numbers" in refused(packed(path, tensor_code(6, offset, shape, strides), numbers)), shape
    assert "tells of 7 F32" in refused(packed(path, tensor_code(7, 0, (2,), (1,)), numbers))
    assert "tells of -6 F32" in refused(packed(path, tensor_code(-6, 0, (2,), (1,)), numbers))
    assert "in a way that PyTorch does not" in refused(packed(path, tensor_code(6, 0, (2,), (1,), {"x": 1}), numbers))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    torch.save({"state_dict": {"a": torch.zeros(64), "b": torch.ones(2, 2)}}, path := tmp_path / "x.ckpt")
    return path


def test_files_that_are_no_such_checkpoint(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "y.ckpt"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    assert "before 1.6" in refused(path)
    path.write_bytes(pickle.dumps(hostile(tmp_path / "marker")["builtins.eval"]))
    assert "bare pickle, which can run code" in refused(path)
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    assert "TorchScript program" in refused(path)
    for content in (b"", b"PK", b"hello", save({"a": torch.zeros(2)}), bytes(1000)):
        path.write_bytes(content)
        assert "is no zip" in refused(path)
    with zipfile.ZipFile(packed(path, b"\x80\x02}."), "a") as archive:
        archive.writestr("archive/byteorder", "big")
    assert "little-endian" in refused(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_pickled(tmp_path / "missing.ckpt")
    with pytest.raises(UserError, match="cannot be read"):
        read_pickled(tmp_path)


def test_zips_that_torch_does_not_write(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "y.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/readme", "hello")
    assert "without data.pkl" in refused(path)
    for name in ("../evil", "x/../../evil", "/etc/passwd", "other/data/0", "x/data.pkl", "x/a\\b"):
        with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one name twice
            archive.writestr("x/data.pkl", b"\x80\x02}.")
            archive.writestr(name, b"1")
        assert "where PyTorch never puts anything" in refused(path), name
    bomb = {"0": bytes(100 << 20)}
    packed(path, tensor_code(25 << 20, 0, (25 << 20,), (1,)), bomb, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20 and "compressed" in refused(path)
    content = bytearray(whole.read_bytes())
    content[content.index(b"\x80\x02}") + 4] ^= 1
    path.write_bytes(content)
    assert "damaged or cut off" in refused(path)


def test_a_directory_of_many_names_is_not_read(tmp_path: Path) -> None:
    """zipfile would take it into memory whole."""
    path = packed(tmp_path / "x.ckpt", b"\x80\x02}.")
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    entries = content[start:end] * 100_000
    tail = content[end : end + 12] + len(entries).to_bytes(4, "little") + content[end + 16 :]
    path.write_bytes(content[:start] + entries + tail)
    assert len(entries) > 1 << 23 and "damaged or cut off" in refused(path)


def test_a_file_cut_off_anywhere(whole: Path, tmp_path: Path) -> None:
    content, path = whole.read_bytes(), tmp_path / "y.ckpt"
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        refused(path)


def test_a_file_damaged_anywhere(whole: Path, tmp_path: Path) -> None:
    """It is refused in words, or what it holds is told; nothing else."""
    content, path, draw = whole.read_bytes(), tmp_path / "y.ckpt", random.Random(0)
    num_refused = 0
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read_pickled(path, FIELD)
        except UserError:
            num_refused += 1
    assert num_refused > 100


def test_a_program_damaged_anywhere(whole: Path) -> None:
    with zipfile.ZipFile(whole) as archive:
        code, sizes = archive.read("x/data.pkl"), {"0": 256, "1": 16}
    assert Program(code, sizes).result["state_dict"]["b"] == TensorInfo("F32", (2, 2))
    draw, num_refused = random.Random(0), 0
    for _ in range(3000):
        damaged = bytearray(code)
        for _ in range(draw.randint(1, 6)):
            damaged[draw.randrange(len(damaged))] = draw.choice(code) if draw.random() < 0.5 else draw.randrange(256)
        try:
            Program(bytes(damaged), sizes)
        except (Forbidden, Unusable):
            num_refused += 1
    assert num_refused > 1000


def test_a_long_list_of_tensors(tmp_path: Path) -> None:
    """As many tensors as SDXL has with its averaged weights and an optimiser."""
    zero = torch.zeros(1)
    torch.save({f"model.diffusion_model.input_blocks.{i}.weight": zero[:] for i in range(10_000)}, path := tmp_path / "x.ckpt")
    start = time.process_time()
    assert len(read_pickled(path).tensors) == 10_000
    assert time.process_time() - start < 5


def test_no_torch_is_imported() -> None:
    code = "import sys, limner.formats.pickled; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
