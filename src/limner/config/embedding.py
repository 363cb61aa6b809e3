"""[embedding]: a new word for the text encoder, learnt alone (textual inversion) or beside an adapter (pivotal tuning)."""

from __future__ import annotations

from limner.config.base import Section, Text, option


class Embedding(Section):
    """The word and its vectors. Stable Diffusion 1, 2 and XL."""

    token: Text | None = option(None, kohya="token_string", advanced=True)
    """The new word, as captions and prompts use it. When given, its vectors are learnt, whatever adapter.kind is."""

    vectors: int = option(1, ge=1, le=75, kohya="num_vectors_per_token", advanced=True, when="embedding.token")
    """How many tokens' places the word takes: more can be learnt, less room is left in prompts."""

    initial: Text | None = option(None, kohya="init_word", advanced=True, when="embedding.token")
    """Ordinary words whose vectors the new ones begin as. Those of a neutral sign when not given."""

    lr: float | None = option(None, gt=0, le=10, advanced=True, when="embedding.token")
    """Learning rate of the vectors. 5e-3 when not given, 1 for optimisers that find the rate themselves."""
