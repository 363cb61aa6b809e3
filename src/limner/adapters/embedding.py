"""An embedding: one new word for the CLIP text encoders, a few vectors in each (textual inversion, arXiv:2208.01618).

Its token ids are below zero (see `models.words`); the encoders' tables of embeddings are asked for ours in front of their own
rows, which stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limner.config import Embedding, Optimizer
from limner.config.defaults import embedding_rate
from limner.errors import Finding, UserError, wrong
from limner.formats.embedding_file import named
from limner.randomness import mix

if TYPE_CHECKING:
    from limner.adapters.adapter import FileNames
    from limner.models.family import Family

PREFIX = "embedding."
"""How its tensors' names begin in a training state."""
_NEUTRAL = "*"  # A1111's choice, and kohya's
_SPREAD = 0.1  # of vectors that would begin as equals, as a share of the vocabulary's own deviation


class EmbeddingAdapter:
    """The word of a section; see `adapters.adapter.Adapter`. Texts without the word are encoded as before, to the bit."""

    def __init__(self, section: Embedding) -> None:
        assert section.token is not None, "preflight refuses an embedding without a word"
        self.section, self.word = section, section.token
        self.vectors: dict[str, nn.Parameter] = {}
        """Of each text encoder, (vectors, width), in float32."""
        self._tables: dict[str, nn.Embedding] = {}

    def attach(self, family: Family, seed: int) -> None:
        self._family = family
        for name in family.trainable_text:
            encoder: Any = family.text_encoders[name]
            table = self._tables[name] = encoder.get_input_embeddings()
            ids = initial_ids(family.tokenizers[name], self.section)
            start = _start(table.weight.detach().float().cpu(), ids, self.section.vectors, mix(seed, f"embedding {name}"))
            self.vectors[name] = nn.Parameter(start.to(family.device))
        self._install()

    def _install(self) -> None:
        for name, table in self._tables.items():
            table.forward = partial(_look_up, table, self.vectors[name])  # type: ignore[method-assign]
        ids = [-1 - i for i in range(self.section.vectors)]
        self._family.words = {**self._family.words, self.word: ids}

    def _remove(self) -> None:
        for table in self._tables.values():
            table.__dict__.pop("forward", None)
        self._family.words = {word: ids for word, ids in self._family.words.items() if word != self.word}

    def detach(self) -> None:
        self._remove()
        self._tables.clear()
        self.vectors.clear()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        self._remove()
        try:
            yield
        finally:
            self._install()

    def begin(self, step: int, micro_batch: int) -> None:
        pass

    def after_step(self) -> None:
        pass

    def parameter_groups(self, optimizer: Optimizer, lr: float) -> list[dict[str, Any]]:
        del lr  # that of the layers
        rate = embedding_rate(self.section, optimizer)
        return [{"name": "embedding", "params": list(self.vectors.values()), "lr": rate}]

    def state_dict(self) -> dict[str, Tensor]:
        return {PREFIX + name: vectors.detach() for name, vectors in self.vectors.items()}

    def exported(self, names: FileNames = "kohya") -> dict[str, Tensor]:  # noqa: ARG002 (all programs read the same names)
        return named({name: vectors.detach() for name, vectors in self.vectors.items()})

    def require(self, state: dict[str, Tensor]) -> None:
        """Raise UserError if `load_state_dict` would."""
        own = self.state_dict()
        faults = [Finding(k, "is missing from the embedding.") for k in sorted(own.keys() - state.keys())]
        faults += [Finding(k, "has no place in this model.") for k in sorted(state.keys() - own.keys())]
        faults += [
            Finding(k, f"has shape {tuple(state[k].shape)} in the embedding, {tuple(own[k].shape)} is needed.")
            for k in sorted(own.keys() & state.keys())
            if state[k].shape != own[k].shape
        ]
        if faults:
            raise UserError(faults)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.require(state)
        for name, vectors in self.vectors.items():
            vectors.copy_(state[PREFIX + name])

    def merge(self) -> None:
        raise AssertionError("a new word has no place among the base weights")


def _look_up(table: nn.Embedding, vectors: Tensor, ids: Tensor) -> Tensor:
    """Token ids (B, T) -> embeddings (B, T, W): of an id -1 - i our vector i, else the table's row."""
    rows = nn.Embedding.forward(table, ids.clamp(min=0))
    ours = vectors[(-1 - ids).clamp(min=0)]
    # also where no text holds the word: its gradient is zero then, and not missing
    return torch.where((ids < 0)[..., None], ours.to(rows.dtype), rows)


def _start(rows: Tensor, ids: list[int], count: int, seed: int) -> Tensor:
    """The initial vectors (count, W): those of the words given, from the first again where they are too few."""
    noise = torch.randn(count, rows.shape[1], generator=torch.Generator().manual_seed(seed))
    repeated = [i >= len(ids) for i in range(count)]
    start = rows[[ids[i % len(ids)] for i in range(count)]]
    return start + noise * rows.std(0) * (_SPREAD * torch.tensor(repeated).float()[:, None])


def initial_ids(tokenizer: Any, section: Embedding) -> list[int]:
    """The tokens whose vectors the new ones begin as. Raises UserError if the given words have none."""
    ids = tokenizer(section.initial or _NEUTRAL, add_special_tokens=False).input_ids
    if not ids:
        raise wrong("embedding.initial", f"{section.initial!r} holds no word.", "Give an ordinary word, or remove it.")
    return ids


def remarks(family: Family, section: Embedding) -> list[str]:
    """What only the model's own tokenizer can tell about a section, in words."""
    tokenizer, out = family.tokenizers[family.trainable_text[0]], list[str]()
    if section.initial is not None and (count := len(initial_ids(tokenizer, section))) != section.vectors:
        how = "only the first are used" if count > section.vectors else "they are repeated"
        out.append(f"embedding.initial is {count} tokens for {section.vectors} vectors: {how}")
    own = tokenizer(section.token, add_special_tokens=False).input_ids
    if len(own) == 1 and own[0] not in tokenizer.all_special_ids:
        out.append(f"{section.token!r} is a word that the model knows already; while it is learnt it means what is learnt")
    return out
