"""[tools]: LoRAs merged with each other, and into a model."""

from __future__ import annotations

from typing import ClassVar, Literal

from limner.config.base import FilePath, Text, Texts, option
from limner.config.tools.base import Writing


class MergeLoras(Writing):
    """Make one LoRA of several. The result changes the model by the sum of what they change, each times its strength."""

    title: ClassVar[str] = "Merge LoRAs with each other"
    done_by: ClassVar[str] = "merge_loras"

    loras: Texts = option(files=True)
    """The LoRA files, each alone or with its strength: "style.safetensors @ 0.8". All for one family of models; in the names of
    kohya or of diffusers."""

    output: FilePath = option()
    """The .safetensors file to be written."""

    method: Literal["concat", "svd"] = option("concat")
    """concat: exact; the ranks add up. svd: cut to `rank`, as near to the sum as a LoRA of that rank can be; takes LoHa, LoKr
    and whole weights (LyCORIS "full") too. kohya's merge_lora without concat adds up the matrices of files of one rank, which
    is not the sum of what they do: that is not offered."""

    rank: int = option(64, ge=1, le=4096, kohya="new_rank", when="merge_loras.method = svd")
    """Rank of the result."""

    conv_rank: int | None = option(None, ge=1, le=4096, kohya="new_conv_rank", when="merge_loras.method = svd")
    """Rank of the 3x3 convolutions. `rank` when not given."""

    dtype: Literal["fp32", "fp16", "bf16"] = option("fp16", kohya="save_precision")
    """Precision of the numbers in the file. What is computed before is in fp32."""

    lora_names: Literal["kohya", "diffusers"] = option("kohya")
    """What the layers are called in the file: as kohya's trainer has it, which ComfyUI, A1111 and diffusers read, or as
    diffusers and PEFT do themselves."""

    base: Text = option("", files=True)
    """The base model: a diffusers folder, a .safetensors or .ckpt file, a Hugging Face id that is on this machine, or "pocket".
    Needed for a preview, and for LoRAs of models that differ from the usual ones of their family in their layers, as Stable
    Diffusion 3.5 large does."""

    config: FilePath | None = option(None, advanced=True)
    """A diffusers folder whose configuration files describe a single-file base model of unusual shape."""

    preview_prompt: Text = option("")
    """Paint this with the base model, without and with the result, into a picture beside the file. kohya's flags work at its
    end. Empty: nothing is painted."""


class MergeModel(Writing):
    """Merge LoRAs into a model: a file or folder of the same layout that needs them no more. Tensor by tensor, so that memory
    for the largest layer is enough."""

    title: ClassVar[str] = "Merge LoRAs into a model"
    done_by: ClassVar[str] = "merge_model"

    base: Text = option(files=True)
    """The model: a diffusers folder, a .safetensors or .ckpt file, a Hugging Face id that is on this machine, or "pocket"."""

    loras: Texts = option(files=True)
    """The LoRA files, each alone or with its strength: "style.safetensors @ 0.8". Of every kind that Limner trains; in the
    names of kohya or of diffusers. One after the other, which makes a difference for DoRA, OFT, (IA)^3 and GLoRA alone."""

    output: FilePath = option()
    """What is written: a .safetensors file where the model is a file, a folder where it is a folder."""

    dtype: Literal["stored", "fp32", "fp16", "bf16"] = option("stored", kohya="save_precision")
    """Precision of the numbers in the file. stored: each tensor in the one that it has in the model, 8 bits with ComfyUI's
    scales too. Each number is computed in fp32 and rounded once."""

    config: FilePath | None = option(None, advanced=True)
    """A diffusers folder whose configuration files describe a single-file model of unusual shape."""

    preview_prompt: Text = option("")
    """Paint this without and with the LoRAs into a picture beside the result. kohya's flags work at its end. Empty: nothing is
    painted."""
