"""The schema of the tools: one section a tool, one file a kind of work. What holds for `config` holds here."""

from __future__ import annotations

from limner.config.base import Section
from limner.config.tools.base import ToolSection
from limner.config.tools.captioning import Caption, CaptionByServer, Tag
from limner.config.tools.files import Convert, Inspect, Metadata
from limner.config.tools.folders import Balance, FromKohyaFolders, GroupPictures, ToKohyaFolders, UndoFolders, Unpack
from limner.config.tools.merge import MergeLoras, MergeModel
from limner.config.tools.publish import Publish
from limner.config.tools.ranks import Extract, Resize


class Tools(Section):
    """What one use of a tool is asked to do: just one section is given. Its options are named `merge.base`, and so on."""

    inspect: Inspect | None = None
    convert: Convert | None = None
    metadata: Metadata | None = None
    merge_loras: MergeLoras | None = None
    merge_model: MergeModel | None = None
    extract: Extract | None = None
    resize: Resize | None = None
    tag: Tag | None = None
    caption: Caption | None = None
    caption_by_server: CaptionByServer | None = None
    group_pictures: GroupPictures | None = None
    balance: Balance | None = None
    to_kohya_folders: ToKohyaFolders | None = None
    from_kohya_folders: FromKohyaFolders | None = None
    unpack: Unpack | None = None
    undo_folders: UndoFolders | None = None
    publish: Publish | None = None


def the_section(tools: Tools) -> tuple[str, ToolSection]:
    """The name and the options of the tool that is asked for."""
    ((name, section),) = [(n, s) for n in type(tools).model_fields if (s := getattr(tools, n)) is not None]
    return name, section
