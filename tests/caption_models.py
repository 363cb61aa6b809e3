"""Tiny random caption models of each kind, with processors, as transformers writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "<s>", "<pad>", "</s>", "<unk>", "<image>")
_BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "cat", "dog", "red", "blue", "photo", "of", *"abcdefghijklmnop"]
_WORDS = ["cat", "dog", "USER:", "ASSISTANT:", "Question:", "Answer:", "What", "does", "the", "image", "describe?", *"abcdefgh"]
_LANGUAGE = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *_WORDS]
_BART = ["<s>", "<pad>", "</s>", "<unk>", "<image>", *_WORDS]
_SMALL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_VISION = {**_SMALL, "image_size": 32, "patch_size": 16, "initializer_range": 0.02}
_SIZE = {"height": 32, "width": 32}
_CLASSES = {
    "blip": hf.BlipForConditionalGeneration, "git": hf.GitForCausalLM, "blip-2": hf.Blip2ForConditionalGeneration,
    "llava": hf.LlavaForConditionalGeneration, "florence2": hf.Florence2ForConditionalGeneration,
}  # fmt: skip


def vocabulary(kind: str) -> list[str]:
    """The words of a model of this kind, by token id."""
    return {"blip": _BERT, "git": _BERT, "florence2": _BART}.get(kind, _LANGUAGE)


def opened(kind: str, folder: Path) -> Any:
    return _CLASSES[kind].from_pretrained(folder)


def build(kind: str, folder: Path) -> Path:
    """Write one."""
    torch.manual_seed(11 if kind == "florence2" else 1)  # with these they do not end at once
    config, processor = {"blip": _blip, "git": _git, "blip-2": _blip2, "llava": _llava, "florence2": _florence2}[kind]()
    model: Any = _CLASSES[kind](config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "norm" not in name:
            parameter.data.mul_(8)  # so that what it says depends on what it sees
    model.generation_config.eos_token_id = vocabulary(kind).index("[SEP]" if "[SEP]" in vocabulary(kind) else "</s>")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _blip() -> tuple[Any, Any]:
    text = {**_SMALL, "vocab_size": len(_BERT), "encoder_hidden_size": 16, "max_position_embeddings": 64, "projection_dim": 16}
    text |= {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = hf.BlipConfig(text_config=text, vision_config=_VISION, projection_dim=16)
    return config, hf.BlipProcessor(hf.BlipImageProcessor(size=_SIZE), _bert_tokenizer())


def _git() -> tuple[Any, Any]:
    config = hf.GitConfig(
        **_SMALL, vision_config=_VISION, vocab_size=len(_BERT), max_position_embeddings=64,
        bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return config, hf.GitProcessor(_clip_pictures(), _bert_tokenizer())


def _blip2() -> tuple[Any, Any]:
    text = hf.OPTConfig(
        vocab_size=len(_LANGUAGE), hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    looking = {**_SMALL, "vocab_size": len(_LANGUAGE), "encoder_hidden_size": 16}
    config = hf.Blip2Config(
        vision_config=_VISION, qformer_config=looking, text_config=text.to_dict(), num_query_tokens=4, image_token_index=4
    )
    return config, hf.Blip2Processor(hf.BlipImageProcessor(size=_SIZE), _tokenizer(_LANGUAGE, named=False), num_query_tokens=4)


def _llava() -> tuple[Any, Any]:
    seeing = hf.CLIPVisionConfig(**{**_VISION, "num_hidden_layers": 2}, projection_dim=16)
    text = hf.LlamaConfig(
        **_SMALL, vocab_size=len(_LANGUAGE), num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    config = hf.LlavaConfig(
        vision_config=seeing.to_dict(), text_config=text.to_dict(), image_token_index=4, vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    processor = hf.LlavaProcessor(
        _clip_pictures(), _tokenizer(_LANGUAGE), patch_size=16, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, image_token="<image>",
    )  # fmt: skip
    return config, processor


def _florence2() -> tuple[Any, Any]:
    seeing = {
        "in_channels": 3, "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1],
        "patch_prenorm": [False, True], "embed_dim": [8, 16], "num_heads": [2, 2], "num_groups": [2, 2], "window_size": 4,
        "drop_path_rate": 0.0, "projection_dim": 16, "max_temporal_embeddings": 4, "max_position_embeddings": 10,
    }  # fmt: skip
    text = hf.BartConfig(
        vocab_size=len(_BART), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=128, pad_token_id=1,
        bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    config = hf.Florence2Config(vision_config=seeing, text_config=text.to_dict(), image_token_id=4)
    pictures = _clip_pictures(image_seq_length=17)  # 4 x 4, and their mean
    return config, hf.Florence2Processor(pictures, _tokenizer(_BART), num_additional_image_tokens=0)


def _clip_pictures(**more: Any) -> Any:
    return hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=_SIZE, **more)


def _bert_tokenizer() -> Any:
    words = {word: i for i, word in enumerate(_BERT)}
    return hf.BertTokenizer(vocab=words, model_max_length=64, additional_special_tokens=["[DEC]"])


def _tokenizer(words: list[str], named: bool = True) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    given: dict[str, Any] = {"extra_special_tokens": {"image_token": "<image>"} if named else ["<image>"]}
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", **given
    )
