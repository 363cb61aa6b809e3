"""[tag], [caption], [caption_by_server]: the tools that write captions for pictures."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from limner.config.base import FilePath, Line, Text, Texts, option
from limner.config.tools.base import ToolSection

Separator = Annotated[Line, Field(min_length=1, max_length=8)]
VariableName = Annotated[Line, Field(pattern=r"^([A-Z0-9_]{0,64}API_KEY)?$")]


class Captioning(ToolSection):
    """What all of them share. A caption file lies beside its picture and has its name. No caption that is there is
    overwritten unless `existing` says so; the Dataset tab's Undo takes everything back."""

    group: ClassVar[str] = "Captions"

    path: FilePath = option(kohya="train_data_dir")
    """The folder of pictures."""

    subfolders: bool = option(True, kohya="recursive")
    """Also those in folders inside it."""

    existing: Literal["keep", "append", "prepend", "replace"] = option("keep", kohya="append_tags")
    """What becomes of a caption that is there: it is kept as it is, the new words are put behind or before it, or take its
    place. An empty caption file counts as none."""

    caption_extension: Literal[".txt", ".caption", ".cap"] = option(".txt", kohya="caption_extension")
    """The ending of new caption files. A caption under one of the other endings is found and stays in its file."""

    prefix: Line = option("", kohya="prefix")
    """Put before what is written, just as it is typed: "zwx, "."""

    suffix: Line = option("", kohya="postfix")
    """Put behind what is written, just as it is typed."""

    separator: Separator = option(", ", kohya="caption_separator", advanced=True)
    """What parts tags, and an existing caption from what is added."""


class Tag(Captioning):
    """Write tags, as anime models know them, with a WD14 tagger. Needs onnxruntime: pip install "limner[tag]"."""

    title: ClassVar[str] = "Tag pictures (WD14)"
    done_by: ClassVar[str] = "tagging"

    model: Line = option("SmilingWolf/wd-swinv2-tagger-v3", kohya="repo_id", files=True)
    """A folder that holds model.onnx and selected_tags.csv, an .onnx file, or a name on the Hugging Face Hub."""

    tags_file: FilePath | None = option(None, advanced=True)
    """The tagger's list of tags. selected_tags.csv beside the model when not given."""

    general_threshold: float = option(0.35, ge=0, le=1, kohya="general_threshold")
    """Tags of which the tagger is at least so sure are taken."""

    character_threshold: float = option(0.85, ge=0, le=1, kohya="character_threshold")
    """The same for names of characters."""

    characters: Literal["first", "last", "off"] = option("last", kohya="character_tags_first")
    """Where the names of characters go, before or behind the other tags; off leaves them out."""

    character_series: Literal["keep", "split", "remove"] = option("keep", kohya="character_tag_expand")
    """Of "name (series)": keep it, split it into two tags, or remove the series."""

    rating: Literal["off", "first", "last"] = option("off", kohya="use_rating_tags")
    """Whether the likeliest rating (general, sensitive, questionable, explicit) is a tag too, and where."""

    leave_out: Line = option("", kohya="undesired_tags")
    """Tags that are never taken, parted by commas. An underscore is as good as a space, a capital as a small letter."""

    first: Line = option("", kohya="always_first_tags")
    """Tags that go to the front, in this order, where they are found; parted by commas."""

    rename: Texts = option((), kohya="tag_replacement", advanced=True)
    """Put other words in a tag's place, such as "1girl -> woman". Nothing behind the arrow leaves the tag out."""

    underscores: bool = option(False, kohya="remove_underscore", inverted=True, advanced=True)
    """Keep the underscores between a tag's words. Without they become spaces; faces such as ^_^ stay."""

    order: Literal["confidence", "model"] = option("confidence", advanced=True)
    """The surest tags first, or in the order of the tagger's list, as kohya has it."""

    batch_size: int = option(4, ge=1, le=256, kohya="batch_size", advanced=True)
    """So many pictures at once."""

    device: Literal["auto", "cpu", "cuda", "rocm", "directml", "coreml"] = option("auto", advanced=True)
    """What the tagger runs on. cuda needs onnxruntime-gpu, directml onnxruntime-directml."""


class Caption(Captioning):
    """Write captions in sentences with a model on this machine: BLIP, BLIP-2, GIT, Florence-2, LLaVA (JoyCaption)."""

    title: ClassVar[str] = "Caption pictures"
    done_by: ClassVar[str] = "captioning"

    model: Line = option("Salesforce/blip-image-captioning-large", kohya="model_id", files=True)
    """The folder of a model as transformers writes it, or a name on the Hugging Face Hub."""

    prompt: Text = option("")
    """What the caption begins with (BLIP, GIT), or what the model is told (BLIP-2: "Question: ... Answer:", LLaVA: an
    instruction, Florence-2: a task such as <DETAILED_CAPTION>)."""

    beams: int = option(1, ge=1, le=32, kohya="num_beams")
    """So many wordings are followed, and the likeliest is taken; 1 takes the likeliest word each time."""

    sample: bool = option(False, kohya="do_sample", advanced=True)
    """Draw the words instead, so that captions differ more from one another."""

    temperature: float = option(1.0, ge=0.05, le=5, kohya="temperature", advanced=True, when="caption.sample")
    """Below 1 likely words are drawn more often."""

    top_p: float = option(0.9, gt=0, le=1, kohya="top_p", advanced=True, when="caption.sample")
    """Only the likeliest words, which make up this share, are drawn from."""

    seed: int = option(0, ge=0, le=2**32 - 1, advanced=True, when="caption.sample")
    """The same seed draws the same words."""

    max_tokens: int = option(75, ge=1, le=2000, kohya="max_length")
    """Captions are cut at so many tokens; a word is one or two."""

    min_tokens: int = option(5, ge=0, le=1000, kohya="min_length", advanced=True)
    """Captions are no shorter than this."""

    repetition_penalty: float = option(1.0, ge=0.5, le=5, kohya="repetition_penalty", advanced=True)
    """Above 1, words that were said are said again less readily; 1.5 is usual with BLIP-2."""

    length_penalty: float = option(1.0, ge=-5, le=5, kohya="length_penalty", advanced=True)
    """Above 0 longer captions win among beams, below 0 shorter ones."""

    batch_size: int = option(1, ge=1, le=256, kohya="batch_size", advanced=True)
    """So many pictures at once."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = option("auto", advanced=True)
    """How exactly the model computes. auto: bfloat16 on a GPU that has it, float32 on the CPU."""

    device: Annotated[Line, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,2})?)$")] = option("auto", advanced=True)
    """auto, cpu, cuda, cuda:1 or mps."""

    processes: int = option(1, ge=1, le=64, advanced=True)
    """So many share the pictures. Each opens the model, on a GPU of its own; on a CPU they share its cores."""


class CaptionByServer(Captioning):
    """Have captions written by a server that speaks OpenAI's language: vLLM, llama.cpp, LM Studio, Ollama, or a paid service.
    The pictures are sent to it."""

    title: ClassVar[str] = "Caption pictures by a server"
    done_by: ClassVar[str] = "caption_server"

    url: Line = option()
    """Its base URL, such as http://localhost:1234/v1 ; /chat/completions is put behind it."""

    model: Line = option()
    """The model's name, as the server knows it."""

    prompt: Text = option("Describe this picture in one or two plain sentences, for training an image model.")
    """What the model is told."""

    key_variable: VariableName = option("")
    """The name of the environment variable that holds the API key, such as OPENAI_API_KEY; it must end in API_KEY. The key
    itself is never written anywhere."""

    max_tokens: int = option(300, ge=1, le=16_000)
    """The longest answer, in tokens."""

    temperature: float = option(0.2, ge=0, le=2, advanced=True)
    """Below 1 likely words are drawn more often; 0 always takes the likeliest."""

    max_characters: int = option(2000, ge=20, le=20_000, advanced=True)
    """A longer answer is cut at a word."""

    max_side_px: int = option(1024, ge=64, le=8192, unit="px", advanced=True)
    """Larger pictures are made smaller before they are sent, to this longest side."""

    image_format: Literal["jpeg", "png"] = option("jpeg", advanced=True)
    """How they are sent."""

    parallel: int = option(2, ge=1, le=64)
    """So many requests at once."""

    retries: int = option(4, ge=0, le=20, advanced=True)
    """How often one picture is tried again if the server is busy, fails or does not answer; the waits double from 1 s on."""

    timeout_seconds: float = option(120.0, ge=0.1, le=3600, unit="s", advanced=True)
    """An answer that takes longer is given up."""
