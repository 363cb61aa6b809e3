"""A run rehearsed on tensors without numbers: its phases, in the order and with the code of `engine.prepare` and the loop.

Nothing is read but the headers of the model's files, and nothing is computed; what a run would hold and compute is written
into a ledger. Its headings are "PHASE/PART".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from limner.adapters import adapter as adapters
from limner.config import Config
from limner.config.prompts import Prompt
from limner.diffusion.process import Flow
from limner.engine.aside import Copies
from limner.engine.average import Average, evaluation_weights
from limner.engine.checkpoint import parts_of_state
from limner.engine.fetching import keep_of
from limner.engine.ledger import Ledger
from limner.engine.objective import prediction_loss, preservation_loss
from limner.engine.optimizers import make_optimizer
from limner.engine.prepare import denoiser_dtype, is_prepacked
from limner.engine.runtime import Runtime
from limner.formats.base import Base
from limner.formats.header import TensorInfo
from limner.formats.known import FAMILIES
from limner.formats.single import header_of
from limner.models import family as families
from limner.models import prepacked
from limner.models.family import Conditioning
from limner.models.saving import prefixes_in_file
from limner.models.weights import DTYPES, PRECISIONS

_ENCODED_TOGETHER = 16
_MOST_RESIDENT = 512 << 20


@dataclass(frozen=True)
class Scene:
    """What a run's memory and time depend on besides its configuration."""

    base: Base
    device: str
    precision: str
    bucket: tuple[int, int]
    """Width and height of the pictures, px."""
    num_pictures: int
    num_captions: int
    prompts: Sequence[Prompt]
    caches_text: bool


class _Promised(Mapping[str, Tensor]):
    """The tensors of files, without their numbers."""

    def __init__(self, infos: Mapping[str, TensorInfo]) -> None:
        self._infos = infos

    def __getitem__(self, name: str) -> Tensor:
        info = self._infos[name]
        dtype = DTYPES[info.dtype]
        return torch.empty(prod(info.shape) * dtype.itemsize, dtype=torch.uint8).view(dtype).view(info.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)


class Rehearsal:
    """One run. `ledger` tells of it when `play` is through."""

    def __init__(self, config: Config, scene: Scene) -> None:
        self.config, self.scene = config, scene
        self.runtime = Runtime(torch.device(scene.device), scene.precision)
        self.ledger = Ledger(self.runtime.device)
        self.family: Any = families.make(scene.base, keep_of(config))
        self.family.stored = self._stored
        make = self.family._make

        def made(folder: str) -> Any:
            with unset_fake_temporarily():  # on the meta device, as ever
                return make(folder)

        self.family._make = made
        self.family.tokenizers  # noqa: B018 (read before everything is without numbers)
        self.cond: Conditioning = {}

    def _stored(self, folder: str) -> Any:
        infos: dict[str, TensorInfo] = {}
        for file in self.family.weight_files(folder):
            infos |= header_of(file).tensors
        weights = _Promised(infos)
        return weights, lambda own: self.family.places(folder, own, weights)

    def play(self, *, only_a_step: bool = False) -> Ledger:
        """Everything, or nothing but what a step needs."""
        with FakeTensorMode(allow_non_fake_inputs=True), self.ledger:
            self._texts()
            if self.config.memory.cache_latents and not only_a_step:
                self._latents()
            self._train(steps=1 if only_a_step else 2)
        return self.ledger

    def _load(self, part: Any, dtype: torch.dtype) -> None:
        with self.ledger.under(f"{self._phase}/weights"):
            self.family.load(part, dtype, self.runtime.device)

    @contextmanager
    def _in(self, phase: str, part: str = "activations") -> Iterator[None]:
        self._phase = phase
        with self.ledger.under(f"{phase}/{part}"):
            yield

    @torch.no_grad()
    def _texts(self) -> None:
        with self._in("captions"):
            self._load("text", self.runtime.dtype)
            with self.runtime.autocast():
                self.cond = self.family.encode_captions(["a"])
                for prompt in self.scene.prompts:
                    self.family.encode_prompt(prompt.text, prompt.negative)
            self.family.free("text")

    @torch.no_grad()
    def _latents(self) -> None:
        width, height = self.scene.bucket
        with self._in("latents"):
            self._load("vae", self.family.keep.vae_dtype)
            self.family.encode_pixels(torch.empty(1, 3, height, width, device=self.runtime.device))
            self.family.free("vae")

    def _train(self, steps: int) -> None:
        config, family, runtime, ledger = self.config, self.family, self.runtime, self.ledger
        dtype = denoiser_dtype(config, runtime)
        with self._in("training"):
            self._load("denoiser", dtype)
            trains_text = config.trains_text
            if trains_text or not self.scene.caches_text:
                self._load("text", dtype)
            if not config.memory.cache_latents:
                self._load("vae", family.keep.vae_dtype)
            with ledger.under("training/caches"):
                cached = ledger.note(self._cached_bytes())
            adapter = adapters.make(config.adapter, config.embedding)
            with ledger.under("training/trained"):
                adapter.attach(family, config.train.seed)
            with ledger.under("training/weights"):
                is_packed = is_prepacked(config, runtime.device)
                laid_out = ledger.note(prepacked.num_bytes(family.denoiser) if is_packed else 0)
                ledger.laid_out = [layer.weight for layer in prepacked.packable(family.denoiser)] if is_packed else []
            if config.memory.checkpointing:
                family.enable_checkpointing(text=trains_text)
            groups = adapter.parameter_groups(config.optimizer, 1e-4)
            params = [p for g in groups for p in g["params"]]
            optimizer: Any = None
            with ledger.under("training/optimizer"):
                optimizer = make_optimizer(config.optimizer, groups, runtime.device, config.train.seed)
                on_cpu = torch.device("cpu") if config.train.ema_device == "cpu" else None
                average = Average(params, config.train.ema, on_cpu) if config.train.ema != "off" else None
            stage: Any = SimpleNamespace(config=config, family=family, runtime=runtime, adapter=adapter)
            for number in range(steps):
                if number == steps - 1:
                    ledger.counting = "step"
                self._step(stage, optimizer, params)
                ledger.counting = ""
            if steps > 1:
                self._save(adapter, optimizer, params, average)
                self._sample()
            ledger.forget(cached)
            ledger.forget(laid_out)

    def _step(self, stage: Any, optimizer: Any, params: list[Any]) -> None:
        config, count = self.config, self.config.train.batch_size
        pieces = [
            min(config.memory.micro_batch or count, count - at) for at in range(0, count, config.memory.micro_batch or count)
        ]
        for _ in range(config.train.accumulation):
            for size in pieces:
                loss = self._loss(stage, size)
                loss.sum().backward()
                del loss
        if config.train.clip_norm != "off":
            torch.nn.utils.clip_grad_norm_(params, config.train.clip_norm)
        with self.ledger.under("training/optimizer"):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _loss(self, stage: Any, count: int) -> Tensor:
        device, process, base = self.runtime.device, self.family.process, self.scene.base
        width, height = self.scene.bucket
        if not self.config.memory.cache_latents:
            with torch.no_grad():
                self.family.encode_pixels(torch.empty(1, 3, height, width, device=device))
        factor = base.latent_factor
        mean = torch.empty(count, base.latent_channels, height // factor, width // factor, device=device)
        noise = torch.empty_like(mean)
        t = torch.empty(count, dtype=torch.float32 if isinstance(process, Flow) else torch.int64, device=device)
        told = {"geometry": torch.empty(count, 6, device=device), "guidance": torch.empty(count, device=device)}
        texts = {k: torch.cat([v.detach()] * count).to(device) for k, v in self.cond.items()}
        trains_text = self.config.trains_text
        batch: Any = SimpleNamespace(
            cond=None if trains_text else texts | told, told=told, captions=["a"] * count, mask=None, weight=None
        )
        if not trains_text and not self.scene.caches_text:
            with torch.no_grad(), self.runtime.autocast():
                self.family.encode_captions(["a"])
        noisy = process.add_noise(mean, noise, t)
        loss = prediction_loss(stage, batch, noisy, process.target(mean, noise, t), t)
        if self.config.objective.preserve != "off":
            loss = loss + preservation_loss(stage, noisy, t, texts | told)
        return loss

    def _cached_bytes(self) -> int:
        """What `data.cache` keeps in memory."""
        width, height = self.scene.bucket
        factor = self.scene.base.latent_factor
        each = 2 * 4 * self.scene.base.latent_channels * (width // factor) * (height // factor)
        latents = self.scene.num_pictures * each if self.config.memory.cache_latents else 0
        text = sum(t.numel() * t.element_size() for t in self.cond.values())
        return min(_MOST_RESIDENT, latents + (self.scene.num_captions * text if self.scene.caches_text else 0))

    @torch.no_grad()
    def _save(self, adapter: Any, optimizer: Any, params: list[Any], average: Average | None) -> None:
        """A training state, of an adapter at once, of a model file by file; and the whole model's checkpoint, at once."""
        dtype = PRECISIONS[self.config.output.dtype]
        with self._in("saving", "copies"):
            parts = parts_of_state(adapter, optimizer, average, Copies())
            held = deque(parts, maxlen=0 if self.config.adapter.trains_base else None)
            del held
            if self.config.adapter.trains_base:
                names = self._written()  # once: it reads the file's header
                written = [part for name, part in self.family.empty().items() if name in names]
                numbers = sum(t.numel() for part in written for t in part.state_dict().values())
                with evaluation_weights(optimizer, params, average):
                    copies = self.ledger.note(numbers * dtype.itemsize if self.runtime.device.type == "cpu" else 0)
                    self.ledger.forget(copies)

    def _written(self) -> Collection[str]:
        """The parts that the checkpoint of a whole model holds."""
        base = self.scene.base
        assert base.path is not None
        if self.config.output.layout == "diffusers":
            return FAMILIES[base.family].parts
        return prefixes_in_file(base, header_of(base.path).tensors if base.layout == "file" else ())

    @torch.no_grad()
    def _sample(self) -> None:
        """As `engine.paint` does: the largest of the prompts, with guidance two at a time."""
        if not self.scene.prompts:
            return
        device, base = self.runtime.device, self.scene.base
        prompt = max(self.scene.prompts, key=lambda p: p.width * p.height)
        _, guidance = prompt.guidances(base.takes_guidance, base.guidance)
        count = 2 if guidance != 1 else 1
        shape = (1, base.latent_channels, prompt.height // base.latent_factor, prompt.width // base.latent_factor)
        with self._in("sampling"):
            self._load("vae", self.family.keep.vae_dtype)
            noisy = torch.empty(shape, device=device)
            cond = {k: torch.cat([v.float()] * count).to(device) for k, v in self.cond.items()}
            cond |= {"geometry": torch.empty(count, 6, device=device), "guidance": torch.empty(count, device=device)}
            with self.runtime.autocast():
                pred = self.family.predict(torch.cat([noisy] * count), torch.full((count,), 1.0, device=device), cond).float()
            self.family.decode_latents(noisy + pred[:1])
            if self.config.memory.cache_latents:
                self.family.free("vae")
