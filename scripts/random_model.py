"""Write a single file of a family's full size with random weights, for measurements of time and memory.

python scripts/random_model.py FAMILY FILE [--dtype fp32|fp16|bf16]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from limner.formats.base import recognise
from limner.formats.known import FAMILIES
from limner.models import family as families
from limner.models.parts import CONFIGS, Parts

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def random_model(family: str, dtype: torch.dtype) -> Parts:
    """All parts of a family, at random."""
    torch.manual_seed(0)
    known = FAMILIES[family]
    # T5 is left out: its tokenizer is not here, and it is the same for all
    absent = tuple(name for name, part in known.parts.items() if part.option == "t5")
    base = replace(recognise("pocket"), path=CONFIGS / family, family=family, prediction=known.prediction, absent=absent)
    made = families.make(base)
    assert isinstance(made, Parts)
    parts = made.empty()
    for part in parts.values():
        part.to_empty(device="cpu")
        part.to(dtype)
        for module in part.modules():
            _draw(module)
    made.denoiser, made.vae = parts.pop(made.denoiser_folder), parts.pop("vae")
    made.text_encoders |= parts
    return made


@torch.no_grad()
def _draw(module: nn.Module) -> None:
    """As large as training starts: numbers neither vanish nor explode on their way through."""
    for name, tensor in module.named_parameters(recurse=False):
        if tensor.ndim > 1:
            tensor.normal_(std=(tensor[0].numel()) ** -0.5)
        else:
            tensor.fill_(1.0 if name == "weight" else 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=sorted(p.name for p in CONFIGS.iterdir()))
    parser.add_argument("file", type=Path)
    parser.add_argument("--dtype", choices=_DTYPES, default="fp32")
    args = parser.parse_args()
    dtype = _DTYPES[args.dtype]
    random_model(args.family, dtype).save_file(args.file, dtype, {})


if __name__ == "__main__":
    main()
