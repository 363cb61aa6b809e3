"""Two at once, and what a killed one leaves: on the settings, the secret, captions, a tool's output, a lock. The long form is
tests/torture/test_two_at_once.py; starts at one barrier are in tests/test_queue.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from at_once import together
from limner import runs, settings
from limner.config import Config, Output
from limner.config.tools.merge import MergeLoras
from limner.data.undo import Journal
from limner.errors import UserError
from limner.tools import using

pytestmark = pytest.mark.skipif(os.name == "nt", reason="processes are forked")


def test_settings_changed_by_four_servers_are_whole_and_none_is_lost(home: Path) -> None:
    settings.write(home, settings.Settings(theme="dark"))
    assert together("settings", 4, 20) == [0] * 4, "never half-written"
    kept, findings = settings.read(home)
    assert kept.theme == "dark" and findings == []
    assert kept.defaults == {f"output.name{number}": "19" for number in range(4)}, "the last word of each"


def test_servers_that_start_at_once_have_one_secret(home: Path) -> None:
    said = together("token", 8)
    assert len(set(said)) == 1 and len(said[0]) >= 32
    assert (home / "token").read_text() == said[0] and (home / "token").stat().st_mode & 0o777 == 0o600


def test_two_captioners_on_one_folder_write_each_file_once(tmp_path: Path, home: Path) -> None:
    folder, count = tmp_path / "pictures", 60
    folder.mkdir()
    written = together("captions", 3, folder, count)
    texts = {path.name: path.read_text() for path in folder.iterdir()}
    assert len(texts) == count and set(texts.values()) <= {f"said by {n}\n" for n in range(3)}
    assert [sum(text == f"said by {n}\n" for text in texts.values()) for n in range(3)] == written
    journal = Journal(home / "undo")
    while journal.undo(folder, lambda _: True) is not None:
        pass
    assert list(folder.iterdir()) == [], "each can take its own back"


def test_two_tools_do_not_write_one_output(tmp_path: Path) -> None:
    section = MergeLoras(loras=("a.safetensors", "b.safetensors"), output=tmp_path / "out.safetensors")
    (tmp_path / "link").symlink_to(tmp_path)
    same = section.model_copy(update={"output": tmp_path / "link" / "out.safetensors"})
    with using.lent_output(section):
        with pytest.raises(UserError, match="another tool writes"), using.lent_output(same):
            raise AssertionError
        with using.lent_output(section.model_copy(update={"output": tmp_path / "other.safetensors"})):
            pass
    with using.lent_output(same):
        pass


HOLDER = """
import sys, time
from limner import runs
run = runs.named(sys.argv[1])
with runs.lock("runner", 0), run.hold():
    (run.path / "lock").write_text(sys.argv[2])  # whose number it is means nothing
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_locks_of_a_killed_process_are_free_at_once(home: Path) -> None:
    run = runs.create(Config(output=Output(name="a")))
    bystander = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", HOLDER, run.id, str(bystander.pid)]
    holder = subprocess.Popen(words, stdout=subprocess.PIPE, env=environment)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert run.is_locked()
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        began = time.monotonic()
        with runs.lock("runner", 5), run.hold():
            assert (run.path / "lock").read_text() == str(bystander.pid)
        assert time.monotonic() - began < 5 and bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        holder.kill()
