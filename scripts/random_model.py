"""Write a single file of a family's full size with random weights, for measurements of time and memory.

python scripts/random_model.py FAMILY FILE [--dtype fp32|fp16|bf16] [--device cpu|cuda]

Flux.1's VAE and text encoders, which such files leave to files of their own, are written beside it, with a tokenizer for T5
that knows letters alone. Each tensor is drawn, written and forgotten.
"""

from __future__ import annotations

import argparse
import json
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import T5Tokenizer

from limner.formats.base import recognise
from limner.formats.known import FAMILIES
from limner.formats.layout import There
from limner.models import family as families
from limner.models.parts import CONFIGS, Parts

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_IN_FILE = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def plan(family: str, path: Path) -> dict[Path, dict[str, Tensor]]:
    """File -> name -> a tensor on the meta device: all that is written for a model whose file is `path`."""
    known = FAMILIES[family]
    # where the model works without T5 it is left out
    absent = tuple(name for name, part in known.parts.items() if part.option == "t5" and part.is_optional)
    base = replace(recognise("pocket"), path=CONFIGS / family, family=family, prediction=known.prediction, absent=absent)
    files = dict[Path, dict[str, Tensor]]()
    with tempfile.TemporaryDirectory() as folder:
        made = families.make(replace(base, t5_tokenizer=write_tokenizer(Path(folder)) if base.t5 else None))
        assert isinstance(made, Parts)
        for name, model in made.empty().items():
            part = known.parts[name]
            file = path.with_name(f"{part.option}.safetensors") if part.is_apart else path
            prefix = "" if part.is_apart else part.prefixes[0]
            laid = _laid_out(model.state_dict(), made.names(name)(model.state_dict()))
            files.setdefault(file, {}).update({prefix + n: t for n, t in laid.items()})
        made.complete(files[path])
    return files


def _laid_out(state: Mapping[str, Tensor], places: Mapping[str, There]) -> dict[str, Tensor]:
    """A model's tensors in the shapes in which they stand in a file."""
    together = dict[There, list[Tensor]]()
    for name, there in places.items():
        together.setdefault(there, []).append(state[name])
    out = {}
    for there, rows in together.items():
        whole = torch.cat(rows) if len(rows) > 1 else rows[0]
        whole = whole.T if there.lies == "transposed" else whole
        out[there.name] = whole[..., None, None] if there.lies == "pointwise" and whole.ndim == 2 else whole
    return out


def write_tokenizer(folder: Path) -> Path:
    """A T5 tokenizer of one token a letter; returns the folder of its tokenizer.json."""
    letters = [("\u2581", -2.0), *((c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz0123456789,.!()")]
    tokenizer = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], extra_ids=0)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: str) -> None:
    """A safetensors file of these names and shapes."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * dtype.itemsize
        header[name] = {"dtype": _IN_FILE[dtype], "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    rng = torch.Generator(device).manual_seed(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for name, tensor in tensors.items():
            drawn = _drawn(name, tensor.shape, dtype, rng)
            file.write(drawn.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def _drawn(name: str, shape: torch.Size, dtype: torch.dtype, rng: torch.Generator) -> Tensor:
    """As large as training starts: numbers neither vanish nor explode on their way through."""
    empty = torch.empty(shape, dtype=dtype, device=rng.device)
    if len(shape) > 1:
        return empty.normal_(std=shape[1:].numel() ** -0.5, generator=rng)
    return empty.fill_(0.0 if name.endswith("bias") else 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=sorted(p.name for p in CONFIGS.iterdir()))
    parser.add_argument("file", type=Path)
    parser.add_argument("--dtype", choices=_DTYPES, default="fp32")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    files = plan(args.family, args.file)
    for path, tensors in files.items():
        write(path, tensors, _DTYPES[args.dtype], args.device)
    if len(files) > 1:
        write_tokenizer(args.file.parent)


if __name__ == "__main__":
    main()
