"""[publish]: put a run's files, or a file, on the Hugging Face Hub, with a page about them."""

from __future__ import annotations

from limner.config.tools.publish import Publish
from limner.errors import Finding, printable, wrong
from limner.tools import hub, model_card, parcel
from limner.tools.parcel import Parcel
from limner.tools.tool import Progress, Report


def look(section: Publish) -> Report:
    """The files with their sizes, and the page. The Hub is not asked."""
    hub.require_name(section.repo)
    packed = parcel.pack(section)
    remarks = list(packed.remarks)
    if not hub.token():
        said = "no token of the Hugging Face Hub is known."
        remarks.append(Finding("publish", said, "Set HF_TOKEN, or run `hf auth login`.", "warning"))
    who = "for you alone" if section.private else "for everybody"
    where = f"{hub.endpoint()}/{section.repo}, {who}"
    page = model_card.render(packed.card)
    return Report(lines=[where, "", *_listed(packed, page), "", *page.splitlines()], remarks=remarks)


def run(section: Publish, progress: Progress) -> Report:
    """Publish."""
    packed = parcel.pack(section)
    page = model_card.render(packed.card)
    progress(0, 1, "Looking for the repository")
    there = hub.Hub(section.repo, progress)
    remarks, is_private = list(packed.remarks), there.is_private()
    if is_private is None:
        there.create(section.private)
    elif not section.overwrite:
        raise wrong("publish.repo", f"{section.repo} exists already.", "Choose another name, or set overwrite.")
    elif section.private and not is_private:
        raise wrong("publish.private", f"{section.repo} is public.", "Make it private on the Hub, or set private = false.")
    message = section.message.strip() or f"Add {', '.join(packed.card.files)}"
    content = {**packed.files, model_card.NAME: page.encode()}
    url = there.commit(content, printable(message, 200))
    progress(1, 1, "Published")
    return Report(
        lines=[f"Published: {hub.endpoint()}/{section.repo}", f"Commit: {url}", "", *_listed(packed, page)], remarks=remarks
    )


def _listed(packed: Parcel, page: str) -> list[str]:
    """The files, each with its size."""
    sizes = {name: file.stat().st_size for name, file in packed.files.items()} | {model_card.NAME: len(page.encode())}
    return [f"{_size(size):>12}  {name}" for name, size in sizes.items()]


def _size(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
