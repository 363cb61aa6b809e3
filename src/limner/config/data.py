"""[data]: which pictures, what they are called, and how they are cut."""

from __future__ import annotations

from limner.config.base import FilePath, Section, Text, Texts, option


class Data(Section):
    """The pictures, their captions and their sizes."""

    path: FilePath | None = option(None, kohya="train_data_dir")
    """The folder of pictures. Folders inside it are read too; kohya's "10_name class" folders set repeats and caption."""

    trigger: Text | None = option(None, kohya="class_tokens")
    """The word that shall call up what is taught. It is the caption of every picture that has none."""

    class_words: Texts = option((), advanced=True, when="objective.preserve")
    """Ordinary words for the kind of thing that is taught (for your dog: "dog", "puppy"). With objective.preserve they take
    the trigger's place, a drawn one for each picture at each step."""

    caption_extensions: Texts = option((".txt", ".caption"), kohya="caption_extension", advanced=True)
    """Where a picture's caption lies: the picture's name with the first of these endings that exists."""

    repeats: int = option(1, ge=1, le=10_000, kohya="dataset_repeats")
    """How often each picture is shown in one epoch. The number before a kohya folder's name takes precedence."""

    resolution: int | None = option(None, ge=32, le=4096, unit="px", kohya="resolution")
    """The side of the square whose area every picture is brought to. The model's own size when not given."""

    buckets: bool = option(True, kohya="enable_bucket")
    """Keep each picture's shape by sorting them into buckets of similar aspect. Without, all are cut square."""

    bucket_step_px: int | None = option(
        None, ge=8, le=512, unit="px", kohya="bucket_reso_steps", advanced=True, when="data.buckets"
    )
    """Bucket sides are multiples of this. What the family needs when not given."""

    bucket_min_px: int | None = option(
        None, ge=16, le=4096, unit="px", kohya="min_bucket_reso", advanced=True, when="data.buckets and data.upscale"
    )
    """Shortest side of a bucket. Half the resolution when not given."""

    bucket_max_px: int | None = option(
        None, ge=32, le=8192, unit="px", kohya="max_bucket_reso", advanced=True, when="data.buckets and data.upscale"
    )
    """Longest side of a bucket. Twice the resolution when not given."""

    upscale: bool = option(True, kohya="bucket_no_upscale", inverted=True, advanced=True, when="data.buckets")
    """Enlarge pictures that are smaller than their bucket. Without, they are put into a smaller bucket."""

    flip: bool = option(False, kohya="flip_aug", advanced=True)
    """Show each picture mirrored left to right half of the time. Not for what has a left and a right, such as writing, or
    a face that shall stay recognisable."""

    skip_broken: bool = option(False)
    """Train without the pictures that do not open, instead of refusing to start. They are named and counted."""
