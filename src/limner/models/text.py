"""CLIP's tokenizer, from the vocabulary that ships with the package or from a model's own folder."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

from transformers import CLIPTokenizer, T5Tokenizer

from limner.errors import wrong
from limner.formats.base import T5_TOKENIZER

END = 49407
"""The token that ends a text. CLIP-L fills up with it, too."""
EXCLAMATION = 0
"""The token "!" without a following space: what OpenCLIP's encoders were trained to see after the end."""

_BPE = Path(__file__).parent / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"


@cache
def clip_tokenizer(pad: int = END) -> CLIPTokenizer:
    """OpenAI's CLIP tokenizer of 49408 tokens, made from the published merges (MIT licence, see clip_bpe/)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    # CLIP's vocabulary stands bytes in for printable characters, the unprintable ones from U+0100 on (as GPT-2 does)
    bytes_ = [chr(b) for b in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    lines = gzip.decompress(_BPE.read_bytes()).decode("utf-8").split("\n")
    merges = [(a, b) for a, b in (line.split() for line in lines[1 : 49152 - 256 - 2 + 1])]
    tokens = [*bytes_, *(b + "</w>" for b in bytes_), *(a + b for a, b in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {t: i for i, t in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)  # pyright: ignore[reportArgumentType]
    tokenizer.pad_token_id = pad
    return tokenizer


def load_tokenizer(folder: Path, pad: int) -> CLIPTokenizer:
    """The tokenizer of a diffusers folder; where the folder brings none, CLIP's own, which fills up with the token `pad`."""
    if (folder / "tokenizer.json").exists() or (folder / "vocab.json").exists():
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return clip_tokenizer(pad)


def load_t5_tokenizer(folder: Path) -> T5Tokenizer:
    """T5's tokenizer from a model's folder. Raises UserError if it is not there: it does not come with Limner."""
    remedy = f"Put {T5_TOKENIZER}, there."
    if not (folder / "tokenizer.json").is_file():
        raise wrong("model.base", f"T5's tokenizer is missing: {folder / 'tokenizer.json'}.", remedy)
    try:
        return T5Tokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise wrong("model.base", f"T5's tokenizer in {folder} cannot be read: {reason}.", remedy) from error
