"""What files of strangers are made of, and the doors they come in by: the parts of tests/corpus.py."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import shutil
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headers import file_of, tensor
from limner.pocket import MODEL

SECRET = "the-words-of-another-folder"


@dataclass(frozen=True)
class Place:
    """Where a case is tried. Only `folder` and the home may be written."""

    folder: Path
    pictures: Path
    outside: Path
    """A folder with a secret, which nobody may touch. What a file would do if it were run is to make `outside / "PWNED"`."""

    @property
    def canary(self) -> Path:
        return self.outside / "PWNED"

    @property
    def good(self) -> list[str]:
        """Options that are a good run."""
        return ["--data.path", str(self.pictures), "--data.trigger", "sks", "--output.path", str(self.folder / "out")]


@dataclass(frozen=True)
class Case:
    """`make` writes the file (or folder) and returns it."""

    make: Callable[[Place], Path]
    doors: tuple[str, ...]
    answer: Literal["refused", "accepted", "either"] = "refused"
    says: str = ""
    """What a refusal says somewhere, at every door."""


# --- the doors --------------------------------------------------------------------------------------------------------


def _words(*words: str | Path) -> Callable[[Path, Place], list[str]]:
    """A command in which FILE, GOOD and OUT stand for what they say."""

    def command(file: Path, place: Place) -> list[str]:
        known = {"FILE": [str(file)], "GOOD": place.good, "OUT": [str(place.folder / "out" / "new.safetensors")]}
        known |= {"TOML": [str(place.folder / "out.toml")], "NEW": [str(place.folder / "new")]}
        return [word for given in words for word in known.get(str(given), [str(given)])]

    return command


def _preset(file: Path, place: Place) -> list[str]:
    folder = Path(os.environ["LIMNER_HOME"]) / "presets"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, folder / "strange.toml")
    return ["check", "--quick", "--preset", "strange", *place.good]


DOORS: dict[str, Callable[[Path, Place], list[str]]] = {
    "check": _words("check", "FILE", "--quick"),
    "train": _words("train", "FILE"),
    "preset": _preset,
    "presets": lambda file, place: [_preset(file, place) and "config", "presets"],
    "import": _words("import", "FILE", "-o", "TOML"),
    "model": _words("check", "--quick", "--model.base", "FILE", "GOOD"),
    "train model": _words("train", "--model.base", "FILE", "GOOD"),
    "vae": _words("check", "--quick", "--model.vae", "FILE", "GOOD"),
    "start": _words("check", "--quick", "--adapter.start", "FILE", "GOOD"),
    "merge": _words("check", "--quick", "--model.merge", "FILE", "GOOD"),
    "inspect": _words("tools", "inspect", "--file", "FILE"),
    "inspect, looking": _words("tools", "inspect", "--look", "--file", "FILE"),
    "metadata": _words("tools", "metadata", "--file", "FILE"),
    "convert": _words("tools", "convert", "--file", "FILE", "--output", "OUT"),
    "merge_loras": _words("tools", "merge_loras", "--loras", "FILE", "--loras", "FILE", "--output", "OUT"),
    "resize": _words("tools", "resize", "--lora", "FILE", "--output", "OUT", "--rank", "2"),
    "merge_model": _words("tools", "merge_model", "--base", MODEL, "--loras", "FILE", "--output", "OUT"),
    "paint": _words("sample", "a cat", "--steps", "1", "--model", "FILE", "--out", "new.png"),
    "sample": _words("sample", "a cat", "--steps", "1", "--lora", "FILE", "--out", "new.png"),
    "embedding": _words("sample", "a cat", "--steps", "1", "--embedding", "FILE", "--out", "new.png"),
    "prompts": _words("check", "--quick", "GOOD", "--sample.prompt_file", "FILE"),
    "subsets": _words("check", "--quick", "--data.subsets", "FILE"),
    "metadata file": _words("check", "--quick", "GOOD", "--data.metadata", "FILE"),
    "pictures": _words("check", "--quick", "--data.trigger", "sks", "--data.path", "FILE"),
    "wildcards": _words("check", "--quick", "--data.wildcards=true", "--data.path", "FILE"),
    "pictures, skipping": _words("check", "--quick", "--data.skip_broken=true", "--data.trigger", "sks", "--data.path", "FILE"),
    "train pictures": _words("train", "--data.trigger", "sks", "--data.path", "FILE"),
    "unpack": _words("tools", "unpack", "--source", "FILE", "--output", "NEW"),
    "output": _words(
        "check",
        "--quick",
        "--data.trigger",
        "sks",
        "--data.path",
        "FILE",
        "--output.path",
        "FILE",
        "--memory.cache_path",
        "FILE",
    ),
}
"""What is typed. Beside these there are the page's doors, "page" (the import of a file's text) and "upload"."""


# --- what files are made of -------------------------------------------------------------------------------------------


def content(name: str, said: str | bytes) -> Callable[[Place], Path]:
    def make(place: Place) -> Path:
        path = place.folder / name
        path.write_bytes(said.encode("utf-8", "surrogatepass") if isinstance(said, str) else said)
        return path

    return make


def toml(said: str) -> Callable[[Place], Path]:
    return content("run.toml", said)


def options(**sections: dict[str, Any]) -> Callable[[Place], Path]:
    """A configuration; texts as JSON writes them, which TOML reads as well."""

    def make(place: Place) -> Path:
        told = {"data": {"path": str(place.pictures)}} | sections
        lines = [f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items()) for name, table in told.items()]
        return content("run.toml", "\n".join(lines))(place)

    return make


def tensors(header: Any, data: bytes = b"", name: str = "x.safetensors") -> Callable[[Place], Path]:
    return content(name, file_of(header, data))


def zipped(
    name: str, *entries: tuple[str | zipfile.ZipInfo, bytes], packing: int = zipfile.ZIP_STORED
) -> Callable[[Place], Path]:
    def make(place: Place) -> Path:
        import warnings

        with warnings.catch_warnings(), zipfile.ZipFile(place.folder / name, "w", packing) as archive:
            warnings.simplefilter("ignore")  # of names that come twice
            for entry, said in entries:
                archive.writestr(entry, said)
        return place.folder / name

    return make


def folder(**files: str | bytes) -> Callable[[Place], Path]:
    """Pictures with captions: the file names end in .txt, their dots are underscores."""

    def make(place: Place) -> Path:
        root = place.folder / "pics"
        root.mkdir()
        for picture in sorted(place.pictures.glob("*.png")):
            shutil.copy(picture, root)
        for name, said in files.items():
            (root / f"{name}.txt").write_bytes(said.encode("utf-8", "surrogatepass") if isinstance(said, str) else said)
        return root

    return make


def named(name: str | bytes, *, inside: str = "a.png") -> Callable[[Place], Path]:
    """A folder of pictures of this name."""

    def make(place: Place) -> Path:
        root = Path(os.fsdecode(os.path.join(os.fsencode(place.folder), os.fsencode(name))))
        root.mkdir(parents=True)
        shutil.copy(next(place.pictures.glob("*.png")), root / inside)
        return root

    return make


def path_of(text: str) -> Callable[[Place], Path]:
    return lambda place: Path(text)


def pipe(name: str) -> Callable[[Place], Path]:
    def make(place: Place) -> Path:
        os.mkfifo(place.folder / name)
        return place.folder / name

    return make


def socket_file(name: str) -> Callable[[Place], Path]:
    def make(place: Place) -> Path:
        before = os.getcwd()
        os.chdir(place.folder)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(name)
        os.chdir(before)
        return place.folder / name

    return make


def folder_named(name: str) -> Callable[[Place], Path]:
    def make(place: Place) -> Path:
        (place.folder / name).mkdir()
        return place.folder / name

    return make


def link(name: str, to: str) -> Callable[[Place], Path]:
    def make(place: Place) -> Path:
        (place.folder / name).symlink_to(to.replace("OUTSIDE", str(place.outside)))
        return place.folder / name

    return make


def model(changes: dict[str, Any], *, text: bytes | None = None) -> Callable[[Place], Path]:
    """The pocket model with other configuration files: {"unet/config.json": {key: value}}, or a file's whole text."""

    def make(place: Place) -> Path:
        root = shutil.copytree(MODEL, place.folder / "model", copy_function=_copied)
        for name, change in changes.items():
            path = root / name
            if text is not None:
                path.write_bytes(text)
            elif isinstance(change, dict):
                path.write_text(json.dumps(json.loads(path.read_text()) | change))
            else:
                path.write_text(json.dumps(change))
        return root

    return make


def _copied(source: str, target: str) -> None:
    (os.symlink if source.endswith(".safetensors") else shutil.copy)(source, target)


class Run:
    """Makes the canary if it is ever unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.canary}'",)


def pickled(name: str, *, layout: str) -> Callable[[Place], Path]:
    def make(place: Place) -> Path:
        code, path = pickle.dumps({"state_dict": Run(place.canary)}, protocol=2), place.folder / name
        if layout == "bare":
            path.write_bytes(code)
        elif layout == "legacy":  # what torch.save wrote before 1.6: several pickles one behind the other
            magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
            path.write_bytes(magic + pickle.dumps(1001, protocol=2) + pickle.dumps({}, protocol=2) + code)
        elif layout == "second":  # scanners look at the first
            path.write_bytes(pickle.dumps({}, protocol=2) + code)
        else:
            with zipfile.ZipFile(path, "w") as archive:
                inner = io.BytesIO()
                if layout == "nested":
                    with zipfile.ZipFile(inner, "w") as deep:
                        deep.writestr("archive/data.pkl", code)
                    code = inner.getvalue()
                archive.writestr("archive/data.pkl", code)
                archive.writestr("archive/version", "3\n")
            if layout == "flags":  # PyTorch passes over flag bits that make other readers give up
                raw = bytearray(path.read_bytes())
                for sign, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
                    raw[raw.index(sign) + at] |= 1
                path.write_bytes(raw)
        return path

    return make


def npz(place: Place) -> Path:
    code = pickle.dumps([Run(place.canary)], protocol=2)
    head = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    with zipfile.ZipFile(place.folder / "a.npz", "w") as archive:
        archive.writestr("latents.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + code)
    return place.folder / "a.npz"


def lora(
    change: Callable[[dict[str, Any], bytes], tuple[Any, bytes]] = lambda h, d: (h, d), rank: int = 2
) -> Callable[[Place], Path]:
    """A LoRA for the pocket model's first attention, changed."""

    def make(place: Place) -> Path:
        name, width = _layer()
        down, up = rank * width * 4, width * rank * 4
        header = {
            f"{name}.lora_down.weight": tensor(0, down, [rank, width]),
            f"{name}.lora_up.weight": tensor(down, down + up, [width, rank]),
            f"{name}.alpha": tensor(down + up, down + up + 4, []),
        }
        header, data = change(header, struct.pack("<f", 0.01) * ((down + up) // 4) + struct.pack("<f", float(rank)))
        return tensors(header, data)(place)

    return make


@functools.cache
def _layer() -> tuple[str, int]:
    """A square layer of the pocket model as kohya calls it, and its width."""
    from limner.formats.header import read_header

    [file] = (MODEL / "unet").glob("*.safetensors")
    name, info = next((n, i) for n, i in read_header(file).tensors.items() if n.endswith("attn1.to_q.weight"))
    return "lora_unet_" + name.removesuffix(".weight").replace(".", "_"), info.shape[1]


def filled(value: float) -> Callable[[dict[str, Any], bytes], tuple[Any, bytes]]:
    return lambda header, data: (header, struct.pack("<f", value) * (len(data) // 4))


def renamed(old: str, new: str) -> Callable[[dict[str, Any], bytes], tuple[Any, bytes]]:
    return lambda header, data: ({key.replace(old, new): entry for key, entry in header.items()}, data)


def saying(**metadata: str) -> Callable[[dict[str, Any], bytes], tuple[Any, bytes]]:
    return lambda header, data: ({"__metadata__": metadata} | header, data)


def transposed(header: dict[str, Any], data: bytes) -> tuple[Any, bytes]:
    return {key: entry | {"shape": entry["shape"][::-1]} for key, entry in header.items()}, data


def without(part: str) -> Callable[[dict[str, Any], bytes], tuple[Any, bytes]]:
    """Without the tensors whose names end so; those left are moved together."""

    def change(header: dict[str, Any], data: bytes) -> tuple[Any, bytes]:
        out, kept = {}, b""
        for key, entry in header.items():
            if not key.endswith(part):
                piece = data[slice(*entry["data_offsets"])]
                out[key] = entry | {"data_offsets": [len(kept), len(kept) + len(piece)]}
                kept += piece
        return out, kept

    return change


def tarred(*entries: tuple[str, bytes | str], **kinds: bytes) -> Callable[[Place], Path]:
    """A tar of a picture and these entries; `kinds` gives an entry's type and where it leads by its place in the list."""

    def make(place: Place) -> Path:
        path = place.folder / "x.tar"
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
            archive.add(next(place.pictures.glob("*.png")), "good.png")
            for number, (name, said) in enumerate(entries):
                info = tarfile.TarInfo(name)
                if f"n{number}" in kinds:
                    info.type, info.linkname = kinds[f"n{number}"], str(said).replace("OUTSIDE", str(place.outside))
                    info.mode = 0o6777
                    archive.addfile(info)
                else:
                    body = said if isinstance(said, bytes) else said.encode()
                    info.size, info.mode = len(body), 0o6777
                    archive.addfile(info, io.BytesIO(body))
        return path

    return make
