"""[publish]: what a run made, on the Hugging Face Hub."""

from __future__ import annotations

from typing import ClassVar, Literal

from limner.config.base import FilePath, Text, option
from limner.config.tools.base import ToolSection


class Publish(ToolSection):
    """Publish a finished file or a run on the Hugging Face Hub, with a page that says what it is and shows its samples. The
    token is taken from the environment variable HF_TOKEN, or from `hf auth login`; it stands in no option."""

    title: ClassVar = "Publish on Hugging Face"
    group: ClassVar[str] = "Files"
    done_by: ClassVar = "publish"

    run: Text | None = option(None)
    """The run whose files are published: its id, a part of it that no other has, or "last". Either this or a file."""

    file: FilePath | None = option(None)
    """A finished .safetensors file, the diffusers folder of a whole model, or the folder of a run."""

    repo: Text = option(kohya="huggingface_repo_id")
    """The repository on the Hub, as owner/name. It is made if there is none."""

    private: bool = option(True, kohya="huggingface_repo_visibility")
    """Make the repository so that only you, or your organisation, can see it. One that is there already stays as it is."""

    checkpoints: Literal["last", "all"] = option("last")
    """Of a run: its last files alone, or those saved on the way as well."""

    samples: bool = option(True)
    """Of a run: show the pictures that it painted last, with their prompts."""

    license: Text | None = option(None)
    """License, by the Hub's short name: openrail++, apache-2.0, cc-by-nc-4.0, other. When not given, what the file says."""

    base_model: Text | None = option(None)
    """The base model's name on the Hub, as owner/name, so that the page links to it. When not given, that of the run if it came
    from there."""

    message: Text = option("")
    """The commit's message. It names the files when not given."""

    overwrite: bool = option(False)
    """Add a commit to a repository that is there already: files of the same names, its README.md too, are replaced. The Hub
    keeps what they were."""
