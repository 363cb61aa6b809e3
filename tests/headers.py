"""Files that consist of a header, and of a hole where the numbers would be: full-size models without their weight."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def published(family: str, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Names and shapes of a family's published file."""
    lines = (GOLDEN / f"{family}_original_keys.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" ", 1) for line in lines]
    return {prefix + name: tuple(json.loads(shape)) for name, shape in pairs}


def single_file(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A file with these tensors; their bytes are a hole in the file."""
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + 2 * prod(shape)]}
        end += 2 * prod(shape)
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    return path


def parts_beside(folder: Path, channels: int, prefix: str = "") -> dict[str, Path]:
    """A VAE, CLIPs and a T5 as ComfyUI's users have them, told by one tensor each."""
    folder.mkdir(parents=True, exist_ok=True)
    markers = {
        "vae": {f"{prefix}decoder.conv_in.weight": (512, channels, 3, 3)},
        "clip_l": {"text_model.embeddings.token_embedding.weight": (49408, 768)},
        "clip_g": {"text_model.embeddings.token_embedding.weight": (49408, 1280)},
        "t5": {"shared.weight": (32128, 4096), "encoder.final_layer_norm.weight": (4096,)},
    }
    return {name: single_file(folder / f"my {name}.safetensors", shapes) for name, shapes in markers.items()}
