"""What is fuzzed, by hypothesis and atheris: each target takes bytes, and nothing but the error for users may come of them.

What is taken is held against something else: the safetensors library, the options' limits, the file that is written of it.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

from limner import importing
from limner.config import Config, Data, files, prompts
from limner.data import captions, scan, tags, tars
from limner.data.metadata import read as read_metadata
from limner.data.subsets import read as read_subsets
from limner.data.unpacking import Unpacking
from limner.errors import UserError
from limner.formats.header import read_header
from limner.formats.pickle_program import Forbidden, Program, Unusable
from limner.web import intake

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
DEFAULT = prompts.Prompt("", "", 512, 512, 20, None, 0, None, where="p.txt, prompt 1")


def _told(error: UserError) -> None:
    """A finding names something and says what to do."""
    assert error.findings
    for finding in error.findings:
        assert finding.field and finding.message and str(finding).isprintable(), finding
        assert finding.remedy or finding.severity != "error", finding


def _file(name: str, content: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(content)
    return path


def header(content: bytes) -> None:
    """The first two bytes say how many bytes of tensors follow the header."""
    body, text = struct.unpack("<H", content[:2].ljust(2, b"\0"))[0], content[2:]
    path = _file("x.safetensors", struct.pack("<Q", len(text)) + text + bytes(body))
    try:
        found = read_header(path)
    except UserError as error:
        _told(error)
        return
    from safetensors import safe_open

    with safe_open(path, "np") as opened:
        assert set(opened.keys()) == set(found.tensors)
        assert (opened.metadata() or {}) == found.metadata
    for name, (start, stop) in found.places.items():
        assert 10 <= 8 + len(text) <= start <= stop <= path.stat().st_size, name


def prompt(content: bytes) -> None:
    line = content.decode("utf-8", "replace")
    try:
        found = prompts.parse(line, DEFAULT)
    except UserError as error:
        _told(error)
        return
    assert 16 <= found.width <= 8192 and 16 <= found.height <= 8192 and 1 <= found.steps <= 1000 and 0 <= found.seed < 2**63
    assert all(n is None or 0 <= n <= 100 for n in (found.guidance, found.told_guidance, found.shift))
    assert found.solver is None or found.solver in prompts.SOLVERS
    assert "--w" not in found.text.split()


def prompt_file(content: bytes) -> None:
    kind = (".txt", ".toml", ".json")[len(content) % 3]
    config = files.build({"sample": {"prompt_file": str(_file(f"p{kind}", content))}}, {})
    try:
        found = prompts.all_prompts(config, 512, 64)
    except UserError as error:
        _told(error)
        return
    assert all(p.width % 64 == p.height % 64 == 0 for p in found)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for p in found for c in p.text + p.negative)


_DRAWN = Data(
    wildcards=True, shuffle_tags=True, tag_dropout=0.3, keep_separator="|||", secondary_separator=";;;", tag_warmup_steps=3,
    caption_prefix="p", caption_dropout=0.1,
)  # fmt: skip


def caption(content: bytes) -> None:
    path = _file("a.txt", content)
    fault, text = scan._text(str(path), True)
    if text is None:
        assert fault
        return
    for line in text.split("\n"):
        assert not any(c < " " or c == "\x7f" for c in line), repr(line)
    for step in range(4):
        tags.shown(text, _DRAWN, random.Random(step), epoch=0, step=step)
    tags.plain(text, _DRAWN)
    before, first = captions.read(path), scan.clean_caption(content.decode("utf-8-sig"))
    for operation in (captions.SetCaption(kind="set", text="b"), captions.TidyTags(kind="tidy", sort=True)):
        new = operation.of(first).strip()
        made = captions.edit_of("a.png", path, first, new, before)
        if not made.fault:
            assert scan.clean_caption(made.after.removeprefix("\ufeff")) == new


def weights(content: bytes) -> None:
    from limner.models import emphasis

    text = content.decode("utf-8", "replace")
    pieces = emphasis.parse(text)
    assert all(words for words, _ in pieces)
    if not set(text) & set("()[]\\:"):
        assert "".join(words for words, _ in pieces) == text


def kohya(content: bytes) -> None:
    text = content.decode("utf-8", "surrogateescape") if len(content) % 2 else content.decode("utf-8", "replace")
    try:
        found = importing.of_text(text, ("a.json", "a.toml", "a.txt", "a.safetensors")[len(content) % 4])
        config = importing.build(found, FOLDER / "subsets.json")
    except UserError as error:
        _told(error)
        return
    assert files.build(files.parse(files.render(config), ""), {}) == config
    assert not found.subsets or _is_read(FOLDER / "subsets.json")


def _is_read(path: Path) -> bool:
    with contextlib.suppress(UserError):
        read_subsets(path, Data())
    return True


def configuration(content: bytes) -> None:
    text = content.decode("utf-8", "replace")
    try:
        config: Config = files.build(files.parse(text, "x"), {}, text, "x")
    except UserError as error:
        _told(error)
        return
    assert files.build(files.parse(files.render(config), ""), {}) == config
    assert files.build({}, files.overrides_of(config)) == config


def subsets(content: bytes) -> None:
    try:
        read_subsets(_file("d.json" if content[:1] == b"{" else "d.toml", content), Data())
    except UserError as error:
        _told(error)


def metadata(content: bytes) -> None:
    try:
        found = read_metadata(_file("m.jsonl" if len(content) % 2 else "m.json", content))
    except UserError as error:
        _told(error)
        return
    assert all(isinstance(text, str) for text in found.captions.values())


def program(content: bytes) -> None:
    try:
        Program(content, {"0": 8, "1": 4})
    except Unusable as error:
        assert str(error).isprintable()
    except Forbidden:
        pass


def archive(content: bytes) -> None:
    """A zip if it begins like one, else a tar; nothing is written beside the folder."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        root = Path(folder) / "in"
        root.mkdir()
        path = Path(folder) / "x"
        path.write_bytes(content)
        try:
            if content[:2] == b"PK":
                intake.put(path, "x.zip", root)
            else:
                into = Unpacking(root, (".txt",), None, 1 << 20)
                try:
                    tars.unpack(path, into, "", lambda _: None)
                    into.finish()
                finally:
                    into.close()
        except UserError as error:
            _told(error)
        assert {p.name for p in Path(folder).iterdir()} <= {"in", "x"}
        assert not any(p.is_symlink() for p in root.rglob("*"))


TARGETS: dict[str, Callable[[bytes], None]] = {
    t.__name__: t for t in (
        header, prompt, prompt_file, caption, weights, kohya, configuration, subsets, metadata, program, archive,
    )
}  # fmt: skip

SEEDS: dict[str, list[bytes]] = {
    "header": [
        struct.pack("<H", 8) + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"__metadata__":{"k":"v"}}',
        struct.pack("<H", 16) + b'{"a":{"dtype":"BF16","shape":[2,2],"data_offsets":[8,16]},"b":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}',
    ],
    "prompt": [b"a cat --w 512 --h 768 --d 1 --s 28 --l 7.5 --n blurry --ss euler --g 3.5 --fs 3"],
    "prompt_file": [
        b"a cat --w 512\n# no\nb --d 3\n", b'{"a": 1}', b'[{"prompt": "a", "width": 64, "scale": 3.0}, "b --n c"]',
        b'[prompt]\nwidth = 64\n[[prompt.subset]]\nprompt = "a"\nseed = 1\n',
    ],
    "caption": [b"a cat, {b|c}, ((d)) ||| e;;;f\r\nsecond {{line}}\n", "\ufeffcaf\u00e9, \u2028x\ty".encode()],
    "weights": [b"a (b:1.3) [c] ((d)) \\( :0.5) (e:.5 )", b"([a)]b"],
    "kohya": [
        b'{"LoRA_type": "Standard", "network_dim": 20, "learning_rate": 3e-4, "optimizer": "AdamW", "max_train_epochs": "7"}',
        b'network_module = "networks.lora"\nnetwork_args = ["algo=loha", "conv_dim=4"]\nlr_scheduler = "cosine"\n[x]\nresolution = "512,768"\n',
        b"accelerate launch --num_processes 2 train_network.py --network_dim=4 --optimizer_args \"betas=(0.9, 0.99)\" a=1 \\\n --flip_aug",
        b'[general]\nbatch_size = 2\n[[datasets]]\nresolution = [512, 768]\n[[datasets.subsets]]\nimage_dir = "x"\nis_reg = true\n',
        b'{"ss_network_dim": "8", "ss_optimizer": "torch.optim.AdamW(betas=(0.9,0.99))", "ss_network_args": "{\\"a\\": 1}", "ss_resolution": "(512, 512)"}',
    ],
    "configuration": [b'[train]\nsteps = 3\nclip_norm = "off"\n[adapter]\nkind = "lokr"\nfactor = 4\n[optimizer]\narguments = ["a=(1, 2)"]\n'],
    "subsets": [b'[general]\nshuffle_caption = true\n[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "x"\nnum_repeats = 3\n'],
    "metadata": [b'{"a": {"caption": "x", "tags": ["y"]}, "b": {"tags": "z"}}', b'{"file_name": "a", "text": "b"}\n\n{"image": "c"}\n'],
    "program": [
        b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\x00\x00\x00storageq\x03ctorch\nFloatStorage\nq\x04"
        b"X\x01\x00\x00\x000q\x05X\x03\x00\x00\x00cpuq\x06K\x02tq\x07QK\x00K\x02\x85q\x08K\x01\x85q\t\x89ccollections\nOrderedDict\nq\n)Rq\x0btq\x0cRq\rs.",
    ],
    "archive": [],
}  # fmt: skip
