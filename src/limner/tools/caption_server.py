"""Captions for pictures by a server that speaks OpenAI's language."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from limner.config.tools.captioning import CaptionByServer
from limner.errors import Finding, wrong
from limner.tools.caption_loop import Opened, Said, Tick, Work, behind, caption_all, cleaned, preview, work_of
from limner.tools.tool import Progress, Report
from limner.tools.vision_endpoint import Asked, Conversation, Endpoint, NoAnswer, encoded, parse

NAME = "caption_by_server"
_POLL_SECONDS = 0.2
_MOST_IN_A_ROW = 10
"""After so many pictures without an answer, one after the other, nothing is expected of the rest."""


def look(section: CaptionByServer) -> Report:
    """How many pictures would be sent, and where."""
    endpoint = parse(section.url, f"{NAME}.url")
    _key(section)
    return preview(_warned(work_of(section, NAME), endpoint, section), NAME, section)


def run(section: CaptionByServer, progress: Progress) -> Report:
    """Send them and write the answers."""
    endpoint = parse(section.url, f"{NAME}.url")
    asked = Asked(section.model, section.prompt, section.max_tokens, section.temperature, _key(section))
    work = _warned(work_of(section, NAME), endpoint, section)

    def captioner(pictures: Iterator[Opened], tick: Tick) -> Generator[Said]:
        talk = Conversation(endpoint, asked, section.retries, section.timeout_seconds)
        pool = ThreadPoolExecutor(section.parallel)
        try:
            yield from _answers(section, talk, pool, pictures, tick)
        finally:
            talk.end()
            pool.shutdown(wait=False, cancel_futures=True)

    return caption_all(work, section, NAME, section.model, captioner, progress, behind(section.separator))


def _answers(
    section: CaptionByServer, talk: Conversation, pool: ThreadPoolExecutor, pictures: Iterator[Opened], tick: Tick
) -> Iterator[Said]:
    """As they come in; so many questions are under way at once as there may be."""
    under_way, in_a_row = dict[Future[Said], None](), 0
    while True:
        while len(under_way) < section.parallel and (picture := next(pictures, None)) is not None:
            under_way[pool.submit(_said_of, picture, talk, section)] = None
        if not under_way:
            return
        done, _ = wait(under_way, _POLL_SECONDS, FIRST_COMPLETED)
        talk.hurry()
        tick()
        for future in sorted(done, key=lambda f: f.exception() is not None):  # what was answered is not lost
            del under_way[future]
            said = future.result()
            in_a_row = in_a_row + 1 if said.fault else 0
            yield said
            if in_a_row == _MOST_IN_A_ROW:
                words = f"{in_a_row} pictures in a row got no caption; the last: {said.fault}."
                raise wrong(f"{NAME}.url", words, "Look at the server, then run this again: it goes on with the rest.")


def _said_of(picture: Opened, talk: Conversation, section: CaptionByServer) -> Said:
    try:
        text = talk.ask(encoded(picture.image, section.max_side_px, section.image_format))
    except NoAnswer as error:
        return Said(picture.path, fault=str(error))
    return Said(picture.path, cleaned(text, section.max_characters))


def _key(section: CaptionByServer) -> str:
    """The API key; "" if none is asked for. Raises UserError if it is not there, or could not be sent as a header."""
    if not section.key_variable:
        return ""
    key = os.environ.get(section.key_variable, "").strip()
    if not re.fullmatch(r"[!-~]+", key):
        said = f"the environment variable {section.key_variable} {'holds no usable key' if key else 'is not set'}."
        raise wrong(f"{NAME}.key_variable", said, "Set it where Limner is started.")
    return key


def _warned(work: Work, endpoint: Endpoint, section: CaptionByServer) -> Work:
    if not endpoint.is_near:
        said = f"the pictures leave this machine: they are sent to {endpoint.host}."
        work.remarks.append(Finding(f"{NAME}.url", said, "Use a server of your own if nobody else may see them.", "warning"))
        if not endpoint.is_secure:
            said = "http:// is not encrypted: on the way anybody can read the pictures"
            said += " and the key." if section.key_variable else "."
            work.remarks.append(Finding(f"{NAME}.url", said, "Use https:// if the server has it.", "warning"))
    return work
