"""[tools]: folders of pictures grouped, balanced, brought into kohya's form and out of it, unpacked; and that taken back."""

from __future__ import annotations

from typing import ClassVar, Literal

from limner.config.base import FilePath, Text, option
from limner.config.tools.base import ToolSection, Writing

How = Literal["copy", "move", "link"]


class GroupPictures(ToolSection):
    """Sort pictures into folders by their shape, with their captions and caches. Training does not need it: data.buckets does
    the same without moving a file."""

    title: ClassVar[str] = "Group pictures by shape"
    group: ClassVar[str] = "Folders of pictures"
    done_by: ClassVar[str] = "group_pictures"

    folder: FilePath = option(kohya="input_folder")
    """The folder of pictures."""

    output: FilePath | None = option(None, kohya="output_folder")
    """Where the folders of the groups are made. In `folder` itself when not given."""

    by: Literal["bucket", "aspect"] = option("bucket")
    """bucket: one folder for each size that training would bring pictures to. aspect: pictures in the order of width to height,
    cut into groups."""

    least: int = option(4, ge=1, le=100_000, kohya="group_size")
    """A group of fewer pictures is joined with the one of the nearest shape; 1 keeps every group. Your batch size is a good
    number."""

    resolution: int = option(1024, ge=64, le=4096, unit="px", when="group_pictures.by = bucket")
    """The training resolution that the buckets are for."""

    bucket_step_px: int = option(64, ge=8, le=512, unit="px", when="group_pictures.by = bucket")
    """Their sides are multiples of this."""

    subfolders: bool = option(False, kohya="include_subfolders")
    """Take the pictures of the folders inside it too."""

    how: How = option("move")
    """move, copy, or link: a second name for the same file (a hard link), which takes no room."""


class Balance(Writing):
    """Make every concept be shown about equally often: give kohya's "10_name" folders other numbers, or write a dataset file.
    Folders "0_name" and those without pictures are left alone."""

    title: ClassVar[str] = "Balance repeats"
    group: ClassVar[str] = "Folders of pictures"
    done_by: ClassVar[str] = "balance"

    folder: FilePath = option(kohya="select_dataset_folder_input")
    """The folder that holds one folder for each concept (kohya's `img`)."""

    showings: int | None = option(None, ge=1, le=10_000_000, kohya="total_repeats_number")
    """How many pictures of each concept an epoch shows. As many as the concept that is shown most now when not given."""

    dataset_file: FilePath | None = option(None)
    """Rename nothing, and write this .toml file for data.subsets instead. It takes folders without a number too. With
    overwrite it replaces one that is there."""


class ToKohyaFolders(ToolSection):
    """Make the folders that kohya_ss trains from of a plain folder: img/10_trigger class, reg/1_class, log and model. What is
    there already stays."""

    title: ClassVar[str] = "Make kohya's folders"
    group: ClassVar[str] = "Folders of pictures"
    done_by: ClassVar[str] = "to_kohya_folders"

    pictures: FilePath = option(kohya="util_training_images_dir_input")
    """The folder of pictures; those of the folders inside it come along."""

    output: FilePath = option(kohya="util_training_dir_output")
    """The folder in which img, reg, log and model are made."""

    trigger: Text = option(kohya="util_instance_prompt_input")
    """The word that shall call up what is taught."""

    class_words: Text = option("", kohya="util_class_prompt_input")
    """What kind of thing it is, such as "dog"."""

    repeats: int = option(40, ge=1, le=10_000, kohya="util_training_images_repeat_input")
    """How often each picture is shown in an epoch."""

    class_pictures: FilePath | None = option(None, kohya="util_regularization_images_dir_input")
    """The folder of class pictures (regularisation), if there are some."""

    class_repeats: int = option(
        1, ge=1, le=10_000, kohya="util_regularization_images_repeat_input", when="to_kohya_folders.class_pictures"
    )
    """How often each of these is shown."""

    how: How = option("copy")
    """copy, move, or link: a second name for the same file (a hard link), which takes no room."""


class FromKohyaFolders(ToolSection):
    """Make a plain folder of kohya's folders, and say what the options are that their names stood for."""

    title: ClassVar[str] = "Make a plain folder of kohya's"
    group: ClassVar[str] = "Folders of pictures"
    done_by: ClassVar[str] = "from_kohya_folders"

    folder: FilePath = option()
    """The folder with img (and reg) in it, img itself, or one "10_name" folder."""

    output: FilePath = option()
    """The folder in which the folder `pictures` is made, and `class` if there are class pictures; and, where one set of options
    is not enough for several concepts, a dataset file."""

    how: How = option("copy")
    """copy, move, or link: a second name for the same file (a hard link), which takes no room."""


class Unpack(ToolSection):
    """Make a folder of pictures and caption files of a .tar or .parquet file, or of a folder of these."""

    title: ClassVar[str] = "Unpack an archive"
    group: ClassVar[str] = "Folders of pictures"
    done_by: ClassVar[str] = "unpack"

    source: FilePath = option()
    """The .tar or .parquet file, or the folder of these."""

    output: FilePath = option()
    """The folder to be made. There must be none of that name."""

    caption_column: Text | None = option(None)
    """What the caption is called in a parquet file, or in the .json files of a tar. The first of caption, text and prompt that
    is there when not given."""


class UndoFolders(ToolSection):
    """Take back what a tool, or the Dataset page, did last to a folder. A file that was changed since is left as it is, and
    named."""

    title: ClassVar[str] = "Undo a change of folders"
    group: ClassVar[str] = "Folders of pictures"
    done_by: ClassVar[str] = "undo_folders"

    folder: FilePath = option()
    """The folder that it was about: the tool's report names it."""

    again: bool = option(False)
    """Do again what was taken back last."""
