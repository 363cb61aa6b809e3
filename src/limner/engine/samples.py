"""Sample sources of the loop: encoded pictures and captions, from the caches or computed on the spot."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.config import Config, defaults
from limner.config.model import merges
from limner.data import images, looks, masks, tags
from limner.data.buckets import Fit
from limner.data.cache import Cache, Entry, as_text, key_of, key_of_texts
from limner.data.dataset import Dataset
from limner.data.keys import Keys
from limner.data.scan import settings_of
from limner.diffusion.draws import posterior_sample, sent
from limner.engine import loading
from limner.engine.finite import all_finite
from limner.engine.runtime import Runtime
from limner.errors import printable, wrong
from limner.models.family import Conditioning, Family
from limner.randomness import mix

Progress = Callable[[int, int], None]


class NotStored(Exception):
    """An entry is not in the cache any more, and whoever asks may not use the model to make it again."""


@dataclass
class Batch:
    """A micro-batch on the device. `positions` are the samples' places in the step's global batch."""

    mean: Tensor
    deviation: Tensor
    told: Conditioning
    """Geometry and guidance: what the engine adds to the conditioning."""
    cond: Conditioning | None
    class_cond: Conditioning | None
    """The same pictures under class words, for output preservation."""
    captions: list[str]
    """As they are shown this time."""
    positions: list[int]
    mask: Tensor | None = None
    """(B, 1, h, w), the latents' size: how much each place counts, from 0 to 1; None: all alike."""
    weight: Tensor | None = None
    """(B,): how much each picture counts; None: all alike."""


@dataclass
class Samples:
    """Makes micro-batches of a data set.

    What is encoded is a variant of a picture: variant `i` is picture `i` as it is, variant `i + len(pictures)` is the same cut
    mirrored left to right. Its latents are not the mirrored latents, so it is encoded, and cached, for itself. Where
    pictures are cut or coloured otherwise each time, `i + 2 * k * len(pictures)` is version k of picture `i` (see
    `data.looks`), and so on: a few are cached; where nothing is cached, k is any number.
    """

    config: Config
    dataset: Dataset
    family: Family
    runtime: Runtime
    cache: Cache

    def __post_init__(self) -> None:
        memory = self.config.memory
        self.trains_text = self.config.trains_text
        self.lends_model = True
        """Whether what is not stored is made with the model."""
        self._settings = [p.settings(self.config.data) for p in self.dataset.pictures]
        settings = settings_of(self.config.data, self.dataset.pictures)
        self._drops_captions = any(map(tags.drops, settings))
        self.caches_text = defaults.caches_text(self.config, settings)
        self._masks = masks.find(self.config.data, self.dataset.pictures)
        self._vae = [self.cache.content_hash(f) for f in self.family.part_files("vae")] if memory.cache_latents else []
        self._vae += [memory.vae_dtype] if memory.vae_dtype != "fp32" else []
        self._vae += ["tiles"] if memory.vae_tiling else []
        self._text = [self.cache.content_hash(f) for f in self.family.part_files("text")] if self.caches_text else []
        base = self.family.base
        self._text += [f"{self.cache.content_hash(p)} {s}" for p, s in merges(self.config.model)] if self.caches_text else []
        self._text += [f"layer {base.clip_skip}"] if base.clip_skip > 1 else []
        self._text += [f"chunks {base.text_chunks}"] if base.text_chunks > 1 else []
        self._text += ["weights"] if base.weighted_captions else []
        self._has_masks = any(self._masks)
        self._latent_keys = Keys(variants := self._all_variants(), self._keys_of(variants)) if memory.cache_latents else Keys()
        self._captions = self._all_captions() if self.caches_text else []
        self._text_keys = Keys(range(len(self._captions)), map(self._text_key, self._captions))

    @property
    def needs_model(self) -> bool:
        """Whether a micro-batch cannot be made from the caches alone."""
        is_text_stored = self.caches_text or (self.trains_text and self.config.objective.preserve == "off")
        return not (self.config.memory.cache_latents and is_text_stored)

    def fingerprint(self) -> str:
        """Changes with whatever encodes: the files of VAE and text encoders, and how they are used."""
        return key_of(self._vae, self._text, self.family.base.absent)[:16]

    def _text_key(self, caption: str) -> str:
        return key_of("text", caption, self._text, self.runtime.precision)

    def _all_variants(self) -> array[int]:
        """Every variant that may be shown from the cache, ascending: all pictures as they are first."""
        count = len(self._settings)
        most = max(map(looks.num_versions, self._settings), default=1)
        variants = (
            i + (2 * version + mirrored) * count
            for version in range(most)
            for mirrored in (0, 1)
            for i, data in enumerate(self._settings)
            if mirrored <= data.flip and version < looks.num_versions(data)
        )
        return array("Q", variants)

    def _keys_of(self, variants: Sequence[int]) -> Iterator[str]:
        count = len(self._settings)
        used = range(count) if len(variants) >= count else sorted({variant % count for variant in variants})
        contents = Keys(used, self.cache.content_hashes(self.dataset.pictures[i].path for i in used))
        plain: dict[tuple[Fit, bool], tuple[str, ...]] = {}  # very many share it
        for variant in variants:
            which, index = divmod(variant, len(self._settings))
            fit = self.dataset.fits[index]
            if self._masks[index] or looks.has_versions(self._settings[index]):
                texts = self._texts_of(variant)
            elif (texts := plain.get((fit, bool(which)))) is None:
                texts = plain[fit, bool(which)] = self._texts_of(variant)
            yield key_of_texts('"latents"', f'"{contents[index]}"', *texts)

    def _texts_of(self, variant: int) -> tuple[str, ...]:
        """What else than its content shapes a variant, as keys have it."""
        index, look = self._look(variant)
        fit, mask = self.dataset.fits[index], self._masks[index]
        facts: list[Any] = ["mirrored"] if look.mirrored else []
        facts += [["cut", *cut]] if (cut := look.cut(fit.bucket, fit.resized)) != fit.crop else []
        facts += [["colour", *look.colour]] if look.colour else []
        facts += [["mask", self.cache.content_hash(mask)]] if mask else []
        return tuple(map(as_text, (fit.bucket, fit.resized, self._vae, *facts)))

    def _look(self, variant: int) -> tuple[int, looks.Look]:
        """(which picture, how it looks)."""
        which, index = divmod(variant, len(self.dataset.pictures))
        version, mirrored = divmod(which, 2)
        return index, looks.look(self._settings[index], self.dataset.pictures[index].path, version, bool(mirrored))

    def _all_captions(self) -> list[str]:
        words = self.config.data.class_words if self.config.objective.preserve != "off" else ()
        own = [tags.plain(p.caption, d) for p, d in zip(self.dataset.pictures, self._settings, strict=True)]
        own += [""] if self._drops_captions else []
        return list(dict.fromkeys([*own, *(self._class_caption(c, w) for c in own for w in words)]))

    def _class_caption(self, caption: str, word: str) -> str:
        trigger = self.config.data.trigger
        assert trigger is not None, "preflight refuses preservation without a trigger"
        return re.sub(re.escape(trigger), lambda _: word, caption, flags=re.IGNORECASE)

    # --- filling the caches ---

    def fill_latents(self, progress: Progress) -> int:
        """Encode what has no entry yet, each process its share; returns how many there were. The VAE must be loaded."""
        return self._fill(self._latent_keys, self._encode_pictures, progress)

    def fill_texts(self, progress: Progress) -> int:
        """As `fill_latents`, for captions. The text encoder must be loaded."""
        return self._fill(self._text_keys, self._encode_texts, progress)

    def missing(self) -> tuple[int, int]:
        """How many latents and captions have no entry yet."""
        return len(self.cache.missing(self._latent_keys.in_order())), len(self.cache.missing(self._text_keys.in_order()))

    def _fill(self, keys: Keys, encode: Callable[[Sequence[int]], dict[str, Entry]], progress: Progress) -> int:
        wanted = self._wanted(keys)
        share, shares = self.runtime.sharers(self.cache.folder)
        self.runtime.barrier()  # nobody writes before everybody has looked: the shares must add up
        mine = wanted[share::shares]
        size = 16
        # turn by turn together, so that a stop is agreed on and no process waits long for another
        for start in range(0, self.runtime.most(len(mine)), size):
            if start < len(mine):
                self.cache.put(encode(mine[start : start + size]))
            progress(min(start + size, len(mine)), len(mine))
        self.runtime.barrier()
        return len(wanted)

    def _wanted(self, keys: Keys) -> array[int]:
        """The numbers whose keys have no entry yet, the first of each key."""
        absent, out = set(self.cache.missing(keys.in_order())), array("Q")
        for number, key in zip(keys, keys.in_order(), strict=True) if absent else ():
            if key in absent:
                absent.remove(key)
                out.append(number)
        return out

    def _encode_pictures(self, variants: Sequence[int]) -> dict[str, Entry]:
        entries = {self._latent_keys[v]: self._encode_picture(v) for v in variants}
        # an edit meanwhile must not be kept under the name of what was there before
        for variant, key in zip(variants, self._keys_of(variants), strict=True):
            if key != self._latent_keys[variant]:
                path = self.dataset.pictures[self._look(variant)[0]].path
                raise wrong(path, "was changed while the run read it.", "Resume the run to take it as it is now.")
        return entries

    def _encode_texts(self, numbers: Sequence[int]) -> dict[str, Entry]:
        return {self._text_keys[i]: self._encode_caption(self._captions[i]) for i in numbers}

    @torch.no_grad()
    def _encode_picture(self, variant: int) -> Entry:
        # one at a time: the result does not depend on which pictures happen to share a batch
        index, look = self._look(variant)
        path, fit, mask = self.dataset.pictures[index].path, self.dataset.fits[index], self._masks[index]
        pixels = images.load(path, fit, look)
        mean, deviation = self.family.encode_pixels(pixels[None].to(self.runtime.device))
        if not (mean.isfinite().all() and deviation.isfinite().all()):
            said = f"the VAE makes no numbers of {path} in this precision."
            raise wrong("memory.vae_dtype", said, 'Use "bf16" or "fp32".')
        entry = {"mean": mean[0].cpu(), "deviation": deviation[0].cpu()}
        counted = images.load_mask(mask, path, fit, look) if mask else None
        if counted is not None:
            entry["mask"] = F.adaptive_avg_pool2d(counted, (mean.shape[-2], mean.shape[-1]))
        return entry

    @torch.no_grad()
    def _encode_caption(self, caption: str) -> Entry:
        with self.runtime.autocast():
            entry = {k: v[0].cpu() for k, v in self.family.encode_captions([caption]).items()}
        if not all_finite(entry.values()):
            said = f"the text encoders make no numbers of {printable(caption, 80)!r} in {self.runtime.precision}."
            raise wrong("train.precision", said, 'Set "bf16" or "fp32"; if it is that already, the model is damaged.')
        return entry

    # --- the loop's side ---

    def batch(self, indices: Sequence[int], step: int, first_position: int) -> Batch:
        """The micro-batch of these pictures in a step."""
        device, seed, words = self.runtime.device, self.config.train.seed, self.config.data.class_words
        positions = list(range(first_position, first_position + len(indices)))
        captions = [self._caption(i, step, p) for i, p in zip(indices, positions, strict=True)]
        variants = [self._variant(i, step, p) for i, p in zip(indices, positions, strict=True)]
        latents = [self._latents(v) for v in variants]
        told = self._told(variants)
        class_cond = None
        if self.config.objective.preserve != "off":
            drawn = [words[mix(seed, "class word", step, p) % len(words)] for p in positions]
            class_cond = self._conditioning([self._class_caption(c, w) for c, w in zip(captions, drawn, strict=True)])
            class_cond |= told
        return Batch(
            sent(torch.stack([e["mean"] for e in latents]), device),
            sent(torch.stack([e["deviation"] for e in latents]), device),
            told,
            None if self.trains_text else self._conditioning(captions) | told,
            class_cond,
            captions,
            positions,
            self._mask(indices, latents),
            self._weight(indices),
        )

    def _caption(self, index: int, step: int, position: int) -> str:
        """The caption of picture `index` as it is shown at a place of a step's global batch."""
        data, caption = self._settings[index], self.dataset.pictures[index].caption
        if not tags.varies(data) and not tags.drops(data):
            return tags.plain(caption, data)
        epoch = self.dataset.order.epoch_at(step, position) if data.caption_dropout_epochs else 0
        draw = tags.draw_for(self.config.train.seed, step, position)
        return tags.shown(caption, data, draw, epoch=epoch, step=step)

    def _weight(self, indices: Sequence[int]) -> Tensor | None:
        prior = self.config.objective.prior_weight
        if prior == 1 or not self.dataset.order.class_items:
            return None
        weights = [prior if self.dataset.pictures[i].is_class else 1.0 for i in indices]
        return sent(torch.tensor(weights), self.runtime.device)

    def _variant(self, index: int, step: int, position: int) -> int:
        seed, data = self.config.train.seed, self._settings[index]
        which = mix(seed, "flip", step, position) % 2 if data.flip else 0
        if looks.has_versions(data):
            drawn = mix(seed, "look", step, position)
            which += 2 * (drawn % data.variants if self._latent_keys else drawn)
        return index + which * len(self.dataset.pictures)

    def _mask(self, indices: Sequence[int], latents: Sequence[Entry]) -> Tensor | None:
        """How much each place counts, (B, 1, h, w); None where nothing is masked in the whole data set."""
        if not self._has_masks:
            return None
        rows = []
        for index, entry in zip(indices, latents, strict=True):
            floor, mask = self._settings[index].mask_floor, entry.get("mask")
            rows.append(torch.ones(1, *entry["mean"].shape[-2:]) if mask is None else floor + (1 - floor) * mask.float())
        return sent(torch.stack(rows), self.runtime.device)

    def _told(self, variants: Sequence[int]) -> Conditioning:
        given, device = self.config.objective.guidance, self.runtime.device
        return {
            "geometry": sent(torch.tensor([self._geometry(v) for v in variants], dtype=torch.float32), device),
            "guidance": torch.full((len(variants),), 1.0 if given is None else given, device=device),
        }

    def _geometry(self, variant: int) -> tuple[int, ...]:
        index, look = self._look(variant)
        picture, fit = self.dataset.pictures[index], self.dataset.fits[index]
        (left, top), (width, height) = look.cut(fit.bucket, fit.resized), fit.bucket
        if look.mirrored:
            left = fit.resized[0] - width - left
        return picture.height, picture.width, top, left, height, width

    def _conditioning(self, captions: list[str]) -> Conditioning:
        texts = [self._text_of(c) for c in captions]
        return {k: sent(torch.stack([t[k] for t in texts]), self.runtime.device) for k in texts[0]}

    def _latents(self, variant: int) -> Entry:
        if not self._latent_keys:
            return self._encode_picture(variant)
        entry = self.cache.get(self._latent_keys[variant])
        if entry is None:
            # damaged since the start: make it again, whatever that needs
            self._require_model()
            with loading.lent(self.family, "vae", self.family.keep.vae_dtype, self.runtime.device, self.config.model):
                entries = self._encode_pictures([variant])
            self.cache.put(entries)
            entry = entries[self._latent_keys[variant]]
        return entry

    def _require_model(self) -> None:
        if not self.lends_model:
            raise NotStored

    def _text_of(self, caption: str) -> Entry:
        if not self.caches_text:
            return self._encode_caption(caption)
        key = self._text_key(caption)
        entry = self.cache.get(key)
        if entry is None:
            self._require_model()
            with loading.lent(self.family, "text", self.runtime.dtype, self.runtime.device, self.config.model):
                entry = self._encode_caption(caption)
            self.cache.put({key: entry})
        return entry


def draw_latents(batch: Batch, seed: int, step: int) -> Tensor:
    """x0: one draw from each picture's posterior, anew at every use."""
    return posterior_sample(batch.mean, batch.deviation, seed, step, batch.positions)
