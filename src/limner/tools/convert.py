"""Write a model or a LoRA in another layout, under other names, in another precision; tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from limner import disk
from limner.config.tools.files import Convert
from limner.errors import wrong
from limner.tools.tool import Progress, Report, refuse_existing

if TYPE_CHECKING:
    from limner.tools.convert_model import Plan
    from limner.tools.pieces import Precision

_PICKLED = (".ckpt", ".pt", ".pth", ".bin")


def look(section: Convert) -> Report:
    _check_names(section)
    if _is_lora(section.file):
        from limner.tools import convert_lora

        return convert_lora.look(section)
    return _planned(section)[2]


def run(section: Convert, progress: Progress) -> Report:
    _check_names(section)
    if _is_lora(section.file):
        from limner.tools import convert_lora

        return convert_lora.run(section, progress)
    from limner.formats.streamed import Writer
    from limner.tools.convert_model import overflow

    planned, precision, report, total = _planned(section)
    done = 0

    def write_file(file: str, path: Path) -> None:
        pieces = planned.tensors[file]

        def told(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            progress(done, total, "Writing")

        with Writer(path, planned.infos(file, precision), planned.metadata) as writer:
            for name in writer.names:
                writer.put(name, precision.numbers(name, pieces[name]), told)

    def fill(folder: Path) -> None:
        assert planned.beside is not None
        planned.beside(folder)
        for file in planned.tensors:
            (folder / file).parent.mkdir(exist_ok=True)
            write_file(file, folder / file)
        progress(total, total, "Checking")

    try:
        if planned.beside is None:
            with disk.replacing(section.output) as temporary:
                write_file("", temporary)
        else:
            disk.write_folder(section.output, fill)
    except (ValueError, OSError) as error:
        raise wrong("convert.file", f"it cannot be converted: {error}.", "Nothing was written.") from error
    return Report(report.files, report.lines, overflow(precision.overflowed))


def _planned(section: Convert) -> tuple[Plan, Precision, Report, int]:
    """What a model becomes; its numbers; what is said of it; how many bytes it will have. Raises UserError."""
    from limner.formats.streamed import num_bytes
    from limner.models.weights import PRECISIONS
    from limner.tools.convert_model import plan
    from limner.tools.pieces import Precision

    precision = Precision(PRECISIONS.get(section.dtype))
    planned = plan(section)
    _check_target(section, planned.beside is not None)
    size = sum(num_bytes(i) for file in planned.tensors for i in planned.infos(file, precision).values())
    if disk.free_bytes(section.output) < size:
        said = f"there is no room for {size / 2**30:.1f} GiB on the disk."
        raise wrong("convert.output", said, "Make room, or choose another.")
    lines = [*planned.lines, f"{planned.stored_as()} -> {section.dtype}, {size / 2**20:,.0f} MiB."]
    return planned, precision, Report([section.output], lines), size


def _is_lora(file: Path) -> bool:
    from limner.formats.lora_names import is_adapter
    from limner.formats.single import header_of

    return not file.is_dir() and is_adapter(header_of(file, "convert.file").tensors)


def _check_names(section: Convert) -> None:
    if not section.file.exists():
        raise wrong("convert.file", f"{section.file} does not exist.", "Give the path of a model or a LoRA.")
    source, target = section.file.resolve(), section.output.resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise wrong("convert.output", "the source would be written over or into.", "Choose another name.")


def _check_target(section: Convert, is_folder: bool) -> None:
    """Raises UserError unless the target's name is one for what will be written, and free."""
    output = section.output
    if not is_folder and output.suffix.lower() != ".safetensors":
        raise wrong("convert.output", f"{output.name} does not end in .safetensors.", "Give it that ending.")
    if is_folder and output.suffix.lower() in (".safetensors", *_PICKLED):
        raise wrong("convert.output", f"{output.name} is the name of a file, a folder will be made.", "Leave out the ending.")
    if output.exists() and output.is_dir() != is_folder:
        raise wrong("convert.output", f"{output} is {'a folder' if output.is_dir() else 'a file'}.", "Choose another name.")
    refuse_existing([output], section.overwrite, "convert.output")
    if is_folder and output.exists() and not (output / disk.MANIFEST).is_file():
        said = f"{output} was not made by Limner, which replaces no such folder."
        raise wrong("convert.output", said, "Choose another name.")
