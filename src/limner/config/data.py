"""[data]: which pictures, what they are called, and how they are cut."""

from __future__ import annotations

from typing import Literal

from limner.config.base import FilePath, Section, Text, Texts, option

_TAGS = "data.shuffle_tags or data.tag_dropout or data.tag_warmup_steps"


class Data(Section):
    """The pictures, their captions and their sizes."""

    path: FilePath | None = option(None, kohya="train_data_dir")
    """The folder of pictures. Folders inside it are read too; kohya's "10_name class" folders set repeats and caption. Or
    a .tar or .parquet file, or a folder of these: it is unpacked once, at the start."""

    trigger: Text | None = option(None, kohya="class_tokens")
    """The word that shall call up what is taught. It is the caption of every picture that has none."""

    class_words: Texts = option((), advanced=True, when="objective.preserve")
    """Ordinary words for the kind of thing that is taught (for your dog: "dog", "puppy"). With objective.preserve they take
    the trigger's place, a drawn one for each picture at each step."""

    metadata: FilePath | None = option(None, kohya="in_json", advanced=True)
    """A .json or .jsonl file of captions and tags, as kohya's finetuning tab and Hugging Face's folders have them. A picture
    that it does not name takes its caption as otherwise."""

    subsets: FilePath | None = option(None, kohya="dataset_config", advanced=True)
    """A dataset file of sd-scripts (.toml or .json): several folders, each with settings of its own. They take precedence over
    those here."""

    class_path: FilePath | None = option(None, kohya="reg_data_dir", advanced=True)
    """A folder of class pictures (regularisation): ordinary ones of the kind that is taught, so that it is not forgotten. As
    many are shown as of the others."""

    class_prompt: Text | None = option(None, advanced=True, when="data.class_path")
    """What the class pictures show ("a photo of a dog"). It is the caption of those that have none, and what missing ones are
    painted from."""

    class_count: int = option(0, ge=0, le=100_000, advanced=True, when="data.class_path")
    """If there are fewer class pictures, the base model paints the missing ones before the start; 0 paints none. 100 to 200
    are usual."""

    caption_extensions: Texts = option((".txt", ".caption"), kohya="caption_extension", advanced=True)
    """Where a picture's caption lies: the picture's name with the first of these endings that exists."""

    caption_column: Text | None = option(None, advanced=True, when="data.path or data.subsets")
    """What the caption is called in a parquet file, or in the .json files of a tar. The first of caption, text and prompt that
    is there when not given."""

    caption_prefix: Text = option("", kohya="caption_prefix", advanced=True)
    """Put before every caption, with a space behind it."""

    caption_suffix: Text = option("", kohya="caption_suffix", advanced=True)
    """Put behind every caption, with a space before it."""

    caption_separator: Text = option(
        ",", kohya="caption_separator", advanced=True,
        when=f"{_TAGS} or data.keep_separator or data.secondary_separator",
    )  # fmt: skip
    """What parts a caption's tags."""

    shuffle_tags: bool = option(False, kohya="shuffle_caption", advanced=True)
    """Put the tags of a caption in another order each time."""

    keep_tags: int = option(0, ge=0, le=1000, kohya="keep_tokens", advanced=True, when=_TAGS)
    """So many tags stay first, and are never left out."""

    keep_separator: Text = option("", kohya="keep_tokens_separator", advanced=True)
    """A sign in captions, such as |||: the tags before it stay first, those behind its second occurrence last. Takes precedence
    over keep_tags."""

    secondary_separator: Text = option("", kohya="secondary_separator", advanced=True)
    """A sign that parts tags which stay together, such as ;;; It becomes caption_separator in the end."""

    tag_dropout: float = option(0.0, ge=0, le=1, kohya="caption_tag_dropout_rate", advanced=True)
    """Share of the tags that are left out, drawn anew each time."""

    caption_dropout: float = option(0.0, ge=0, le=1, kohya="caption_dropout_rate", advanced=True)
    """Share of the pictures that are shown without a caption, drawn anew each time; 0.1 keeps a whole model able to follow
    guidance."""

    caption_dropout_epochs: int = option(0, ge=0, le=1000, kohya="caption_dropout_every_n_epochs", advanced=True)
    """Show all pictures without captions in every so-many-th epoch; 0 in none."""

    tag_warmup_least: int = option(1, ge=1, le=1000, kohya="token_warmup_min", advanced=True, when="data.tag_warmup_steps")
    """So many tags of each caption are used at first."""

    tag_warmup_steps: int = option(0, ge=0, le=10_000_000, kohya="token_warmup_step", advanced=True)
    """Steps after which all tags are used."""

    wildcards: bool = option(False, kohya="enable_wildcard", advanced=True)
    """Draw one of the words in {red|green|blue}, and one of a caption file's lines, anew each time."""

    weighted_captions: bool = option(False, kohya="weighted_captions", advanced=True)
    """Read (word:1.2) in captions as weights, as prompts have them. Stable Diffusion 1, 2 and XL."""

    repeats: int = option(1, ge=1, le=10_000, kohya="dataset_repeats")
    """How often each picture is shown in one epoch. The number before a kohya folder's name takes precedence."""

    resolution: int | None = option(None, ge=32, le=4096, unit="px", kohya="resolution")
    """The side of the square whose area every picture is brought to. The model's own size when not given."""

    more_resolutions: Texts = option((), advanced=True)
    """Show each picture at these resolutions as well, such as "768"."""

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

    random_crop: bool = option(False, kohya="random_crop", advanced=True)
    """Cut pictures that do not fit their bucket at a drawn place instead of the centre."""

    colour: bool = option(False, kohya="color_aug", advanced=True)
    """Change hue, saturation and brightness a little, drawn anew."""

    variants: int = option(
        4, ge=1, le=1000, advanced=True,
        when="memory.cache_latents and data.random_crop or memory.cache_latents and data.colour",
    )  # fmt: skip
    """How many differently cut or coloured versions of each picture are encoded and kept, of which one is drawn each time.
    Without memory.cache_latents each is new."""

    masks: Literal["off", "alpha", "folder"] = option("off", kohya="masked_loss", advanced=True)
    """Learn only from some places of the pictures: where they are opaque (alpha), or where the picture of the same name in
    data.mask_path is white."""

    mask_path: FilePath | None = option(None, kohya="conditioning_data_dir", advanced=True, when="data.masks = folder")
    """Folder of the masks. A picture without one is learnt from everywhere."""

    mask_floor: float = option(0.0, ge=0, le=1, advanced=True, when="data.masks")
    """How much the rest counts."""

    skip_broken: bool = option(False)
    """Train without the pictures that do not open, instead of refusing to start. They are named and counted."""
