"""Tags for pictures by a WD14 tagger, which onnxruntime runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from limner.config.tools.captioning import Tag
from limner.data.captions import MAX_CAPTION, AddTags
from limner.errors import Finding, printable, wrong
from limner.tools import caption_models
from limner.tools.caption_loop import Opened, Said, Tick, batches, caption_all, preview, work_of
from limner.tools.tool import Progress, Report
from limner.tools.wd14 import Choice, prepared, read_tags

NAME = "tag"
_MODEL, _TAGS = "model.onnx", "selected_tags.csv"
_USUAL_SIDE = 448
_PROVIDERS = {
    "cuda": "CUDAExecutionProvider", "rocm": "ROCMExecutionProvider", "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider", "cpu": "CPUExecutionProvider",
}  # fmt: skip
_POLL_SECONDS = 0.3
_Result = TypeVar("_Result")


def look(section: Tag) -> Report:
    """How many pictures would be tagged."""
    work, files = work_of(section, NAME), _files(section)
    if files is None:
        said = f"{section.model} is not on this machine; some hundred MB would be fetched from the Hugging Face Hub."
        work.remarks.append(Finding("tag.model", said, severity="note"))
    else:
        Choice(read_tags(files[1], _tags_field(section)), section)
    return preview(work, NAME, section)


def run(section: Tag, progress: Progress) -> Report:
    """Tag them."""
    work = work_of(section, NAME)
    ort = _onnxruntime()
    model, tags = _files(section) or _fetched(section)
    known = read_tags(tags, _tags_field(section))
    choice = Choice(known, section)
    if not work.wanted:
        return preview(work, NAME, section)
    progress(0, len(work.wanted), "opening the tagger")
    tagger = _Tagger(ort, model, section, len(known))

    def captioner(pictures: Iterator[Opened], tick: Tick) -> Generator[Said]:
        for batch in batches(pictures, tagger.batch_size):
            answers = tagger.of([prepared(p.image, tagger.side) for p in batch], tick)
            for picture, answer in zip(batch, answers, strict=True):
                yield Said(picture.path, section.separator.join(choice.of(answer)))

    def joined(text: str, more: str) -> str:
        separator = section.separator.strip() or section.separator
        return AddTags(kind="add", tags=more[:MAX_CAPTION], separator=separator).of(text)

    return caption_all(work, section, NAME, section.model, captioner, progress, joined)


# --- where it lies ----------------------------------------------------------------------------------------------------


def _onnxruntime() -> Any:
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise wrong(NAME, "onnxruntime is not installed.", 'Install it: pip install "limner[tag]".') from None
    return onnxruntime


def _files(section: Tag) -> tuple[Path, Path] | None:
    """The model's file and that of its tags; None if they have to be fetched. Raises UserError for what is no model."""
    place = caption_models.local(section.model, "tag.model")
    if place is None:
        folder = caption_models.cached(section.model, [_MODEL, _TAGS])
        return None if folder is None else (folder / _MODEL, section.tags_file or folder / _TAGS)
    model = place / _MODEL if place.is_dir() else place
    tags = section.tags_file or model.with_name(_TAGS)
    remedy = f"A WD14 tagger is a folder with {_MODEL} and {_TAGS}."
    if model.suffix.lower() != ".onnx" or not model.is_file():
        raise wrong("tag.model", f"{model} is no ONNX model.", remedy)
    if not tags.is_file():
        raise wrong(_tags_field(section), f"{tags} does not exist.", remedy)
    return model, tags


def _fetched(section: Tag) -> tuple[Path, Path]:
    folder = caption_models.fetch(section.model, [_MODEL, _TAGS], [_MODEL, _TAGS], "tag.model")
    return folder / _MODEL, section.tags_file or folder / _TAGS


def _tags_field(section: Tag) -> str:
    return "tag.tags_file" if section.tags_file else "tag.model"


# --- running it -------------------------------------------------------------------------------------------------------


class _Tagger:
    """An opened model. Raises UserError if it is no WD14 tagger for `num_tags` tags."""

    def __init__(self, ort: Any, model: Path, section: Tag, num_tags: int) -> None:
        from onnxruntime.capi import onnxruntime_pybind11_state as states  # pyright: ignore

        # they have no class in common
        self._faults = tuple(v for v in vars(states).values() if isinstance(v, type) and issubclass(v, Exception))
        self._ort, self._num_tags = ort, num_tags
        options = ort.SessionOptions()
        options.log_severity_level = 4  # its warnings are not for people
        providers = _providers(ort, section.device)
        try:
            self._session = ort.InferenceSession(str(model), options, providers=providers)
        except (*self._faults, RuntimeError, ValueError) as error:
            said = f"onnxruntime cannot open {model.name}: {printable(error, 150)}."
            raise wrong("tag.model", said, "Fetch it again, and whole.") from None
        if section.device != "auto" and providers[0] not in self._session.get_providers():
            said = f"onnxruntime cannot use {section.device} here, though it was built for it."
            raise wrong("tag.device", said, "Look at its drivers and libraries, or choose auto.")
        self._input, self.side = self._shape()
        self._fixed = self._input.shape[0] if isinstance(self._input.shape[0], int) else None
        self.batch_size = self._fixed or section.batch_size

    def _shape(self) -> tuple[Any, int]:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        if len(shape) != 4 or shape[3] != 3 or inputs[0].type != "tensor(float)" or not outputs:
            shown = ", ".join(f"{i.name} {i.shape}" for i in inputs)
            said = f"is no WD14 tagger: it takes {printable(shown, 100)}, not pictures (N, H, W, 3)."
            raise wrong("tag.model", said, "Use one of SmilingWolf's taggers.")
        count = outputs[0].shape[-1] if outputs[0].shape else None
        if isinstance(count, int) and count != self._num_tags:
            said = f"the model knows {count} tags, but {self._num_tags} are listed."
            raise wrong("tag.tags_file", said, "Give the selected_tags.csv that was published with the model.")
        side = shape[1] if isinstance(shape[1], int) else _USUAL_SIDE
        if not 1 <= side <= 4096:
            raise wrong("tag.model", f"takes pictures of {side} px.", "Use one of SmilingWolf's taggers.")
        return inputs[0], side

    def of(self, pictures: list[np.ndarray], tick: Tick) -> list[list[float]]:
        """The probabilities of all tags for each prepared picture."""
        blank = np.zeros_like(pictures[0])
        whole = np.stack([*pictures, *[blank] * ((self._fixed or 0) - len(pictures))])
        options = self._ort.RunOptions()

        def work() -> np.ndarray:
            return self._session.run([self._session.get_outputs()[0].name], {self._input.name: whole}, options)[0]

        def cancel() -> None:
            options.terminate = True

        try:
            answer = np.asarray(_while_ticking(work, tick, cancel))[: len(pictures)]
        except (*self._faults, RuntimeError, ValueError) as error:
            remedy = "Lower tag.batch_size, or choose another device."
            raise wrong("tag.model", f"the tagger failed: {printable(error, 150)}.", remedy) from None
        if answer.shape != (len(pictures), self._num_tags):
            said = f"the model answers with {answer.shape} numbers, but {self._num_tags} tags are listed."
            raise wrong("tag.tags_file", said, "Give the selected_tags.csv that was published with the model.")
        if not (np.isfinite(answer).all() and answer.min() >= -1e-3 and answer.max() <= 1 + 1e-3):
            raise wrong("tag.model", "its answers are no probabilities from 0 to 1.", "Use one of SmilingWolf's taggers.")
        return answer.tolist()


def _while_ticking(work: Callable[[], _Result], tick: Tick, cancel: Callable[[], None]) -> _Result:
    """What `work` returns; it is done in another thread, so that somebody can stop it meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            while not wait([future], _POLL_SECONDS).done:
                tick()
        except BaseException:
            cancel()  # leaving the pool waits for it
            raise
        return future.result()


def _providers(ort: Any, device: str) -> list[str]:
    """onnxruntime's names of what to run on, the best first. Raises UserError if the chosen one is not there."""
    there = ort.get_available_providers()
    if device == "auto":
        return [p for p in _PROVIDERS.values() if p in there]
    if _PROVIDERS[device] not in there:
        usable = ", ".join(name for name, p in _PROVIDERS.items() if p in there)
        more = {"cuda": "onnxruntime-gpu", "directml": "onnxruntime-directml"}.get(device, "an onnxruntime built for it")
        said = f"this onnxruntime has no {device} (it has {usable})."
        raise wrong("tag.device", said, f"Install {more} in its place, or choose auto.")
    return list(dict.fromkeys([_PROVIDERS[device], "CPUExecutionProvider"]))
