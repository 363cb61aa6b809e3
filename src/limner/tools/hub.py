"""One commit to a model repository of the Hugging Face Hub, by the Hub's own client, with its refusals in words.

The token is the client's affair (HF_TOKEN, or a login). It is asked for once, and taken out of every text that comes from the
server, which may repeat what it was sent.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from limner.errors import UserError, printable, wrong
from limner.tools.tool import Progress

_TRIES = 4
_FIRST_WAIT_SECONDS = 1.0
_TICK_SECONDS = 0.25
_LOGIN = "Set the environment variable HF_TOKEN to a token that may write, or run `hf auth login`."

T = TypeVar("T")


def require_name(repo: str) -> None:
    """Raises UserError if the Hub has no such names."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") != 1 or not repo.isascii():
            raise HFValidationError
    except HFValidationError:
        said = f"{printable(repo, 80)!r} cannot be the name of a repository."
        raise wrong("publish.repo", said, "Write owner/name, of letters, digits, -, _ and dots.") from None


def token() -> str | None:
    """What the client has for a token."""
    from huggingface_hub import get_token

    return get_token()


def endpoint() -> str:
    """The Hub's address."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


class Hub:
    """A repository, and how it is reached."""

    def __init__(self, repo: str, progress: Progress) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars

        require_name(repo)
        found = token()
        if not found:
            raise wrong("publish", "no token of the Hugging Face Hub is known.", _LOGIN)
        disable_progress_bars()
        self.repo, self._token, self._progress = repo, found, progress
        self._api = HfApi(endpoint=endpoint(), token=found)

    def is_private(self) -> bool | None:
        """Whether the repository is; None if there is none. Raises UserError."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            return bool(self._do("Looking for the repository", lambda: self._api.repo_info(self.repo)).private)
        except RepositoryNotFoundError:
            return None

    def create(self, private: bool) -> None:
        """Make it if it is not there."""
        self._do("Making the repository", lambda: self._api.create_repo(self.repo, private=private, exist_ok=True))

    def commit(self, files: Mapping[str, Path | bytes], message: str) -> str:
        """Send files (name in the repository -> file, or its content), and make them one commit; returns its address. Until
        the end nothing is to be seen of it.
        """
        from huggingface_hub import CommitOperationAdd

        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=file if isinstance(file, bytes) else str(file))
            for name, file in files.items()
        ]
        total, done = sum(op.upload_info.size for op in operations), 0
        for operation in operations:
            one = [operation]
            words = f"Sending {operation.path_in_repo}"
            self._do(words, lambda one=one: self._api.preupload_lfs_files(self.repo, one, free_memory=False), done, total)
            done += operation.upload_info.size
        info = self._do(
            "Committing", lambda: self._api.create_commit(self.repo, operations, commit_message=message), done, total
        )
        return str(info.commit_url)

    def _do(self, words: str, work: Callable[[], T], done: int = 0, total: int = 1) -> T:
        """Do it beside this thread, which goes on telling how far it is; again where the server stumbled."""
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

        wait = _FIRST_WAIT_SECONDS
        for attempt in range(1, _TRIES + 1):
            try:
                return self._beside(words, work, done, max(total, 1))
            except RepositoryNotFoundError as error:
                if _status(error) == 404:
                    raise
                raise self._refused(error) from None
            except HfHubHTTPError as error:
                if (_status(error) < 500 and _status(error) != 429) or attempt == _TRIES:
                    raise self._refused(error) from None
            end = time.monotonic() + wait
            while time.monotonic() < end:
                self._progress(done, max(total, 1), f"{words}: the server stumbled, once more in a moment")
                time.sleep(min(_TICK_SECONDS, wait))
            wait *= 2
        raise AssertionError("the last try returns or raises")

    def _beside(self, words: str, work: Callable[[], T], done: int, total: int) -> T:
        box: dict[str, Any] = {}

        def target() -> None:
            try:
                box["result"] = work()
            except BaseException as error:  # raised again where it was asked for
                box["error"] = error

        # a daemon: should somebody want it to end, an upload of hours does not keep the process
        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        while thread.is_alive():
            self._progress(done, total, words)
            thread.join(_TICK_SECONDS)
        if (error := box.get("error")) is not None:
            raise self._unreachable(error) or error
        return box["result"]

    def _unreachable(self, error: BaseException) -> UserError | None:
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        if isinstance(error, OfflineModeIsEnabled):
            return wrong("publish", "the Hub is not to be reached: HF_HUB_OFFLINE is set.", "Unset it.")
        is_network = any(kind.__name__ in ("TransportError", "ConnectionError") for kind in type(error).__mro__)
        if is_network and not isinstance(error, HfHubHTTPError):
            said = f"{endpoint()} does not answer ({self._clean(error)})."
            return wrong("publish", said, "Check the connection, and HF_ENDPOINT if it is set; start it again.")
        if isinstance(error, ValueError | KeyError) and not isinstance(error, UserError | HfHubHTTPError):
            said = f"the Hub's answer is not understood ({self._clean(error)})."
            return wrong("publish", said, "Start it again; if it stays, update huggingface_hub.")
        return None

    def _refused(self, error: Any) -> UserError:
        """What the Hub said no to."""
        status, said = _status(error), self._clean(getattr(error, "server_message", None) or "")
        said = f" ({said})" if said else ""
        if status == 401:
            return wrong("publish", f"the Hub does not take the token{said}.", _LOGIN)
        if status == 403:
            remedy = "Use a token that may write there, or a repository of your own."
            return wrong("publish.repo", f"the token may not write to {self.repo}{said}.", remedy)
        if status == 404:
            return wrong("publish.repo", f"there is no {self.repo} that the token may see{said}.", "Check owner and name.")
        if status == 429:
            return wrong("publish", f"the Hub wants fewer requests{said}.", "Wait a while, and start it again.")
        if status >= 500:
            return wrong("publish", f"the Hub has trouble: {status}{said}.", "Start it again later; nothing was committed.")
        return wrong("publish", f"the Hub says no: {status}{said}.", "Mend that, and start it again.")

    def _clean(self, text: object) -> str:
        return printable(str(text).replace(self._token, "(the token)"), 160).rstrip(".")


def _status(error: Any) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)
