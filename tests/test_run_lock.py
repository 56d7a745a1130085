"""The lock of a run: one training at a time, and none that waits for a process that is gone."""

import json
import os
import platform
import subprocess
import sys
import threading

import pytest

from skinlesion.files import InputError
from skinlesion.machine import LOCK_NAME
from skinlesion.model import run_lock
from skinlesion.model.run_lock import SILENCE, lock_run

HOLD = """
import sys
from pathlib import Path
from skinlesion.model.run_lock import lock_run
with lock_run(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of `tmp_path`, until its input ends."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def write_lock(folder, text, *, age):
    path = folder / LOCK_NAME
    path.write_text(text)
    moment = path.stat().st_mtime - age
    os.utime(path, (moment, moment))


def test_the_lock_names_host_and_process_and_is_released(tmp_path):
    with lock_run(tmp_path / "run"):
        held = json.loads((tmp_path / "run" / LOCK_NAME).read_text())
        assert held == {"host": platform.node(), "process": os.getpid()}
    assert not list((tmp_path / "run").iterdir())


def test_an_error_releases_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), lock_run(tmp_path):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_second_process_is_told_who_trains(other, tmp_path):
    line = rf"is being trained by process {other.pid} on {platform.node()}; wait for it"
    with pytest.raises(InputError, match=line), lock_run(tmp_path):
        pass
    assert (tmp_path / LOCK_NAME).exists()


def test_the_lock_of_a_killed_process_is_taken_over(other, tmp_path, capsys):
    other.kill()
    other.wait()
    with lock_run(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["process"] == os.getpid()
    line = f"taking over {tmp_path} from process {other.pid} on {platform.node()}, which is gone"
    assert line in capsys.readouterr().out


def test_the_lock_of_another_host_is_taken_over_when_it_gives_no_sign_of_life(tmp_path, capsys):
    text = json.dumps({"host": "elsewhere", "process": os.getpid()})
    write_lock(tmp_path, text, age=SILENCE - 60)
    with pytest.raises(InputError, match="on elsewhere; wait for it"), lock_run(tmp_path):
        pass
    write_lock(tmp_path, text, age=SILENCE + 60)
    with lock_run(tmp_path):
        pass
    assert "on elsewhere, which gave no sign of life for 6 minutes" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{}", "[1]"])
def test_a_lock_that_cannot_be_read_is_respected_while_it_is_new(tmp_path, text):
    write_lock(tmp_path, text, age=0)
    with pytest.raises(InputError, match=f"if it is gone, delete {tmp_path}"), lock_run(tmp_path):
        pass
    write_lock(tmp_path, text, age=SILENCE + 60)
    with lock_run(tmp_path):
        pass


def test_signs_of_life_are_given_while_it_is_held(tmp_path, monkeypatch):
    given = threading.Event()
    monkeypatch.setattr(run_lock, "HEARTBEAT", 0)
    monkeypatch.setattr(run_lock.os, "utime", lambda path: given.set())
    with lock_run(tmp_path):
        assert given.wait(60)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match="file/run: cannot be written"),
        lock_run(tmp_path / "file" / "run"),
    ):
        pass


def test_a_full_disk_leaves_no_lock(tmp_path):
    """The limit of the size of files stands for the end of the disk, where there are no links."""
    pytest.importorskip("resource")
    code = """
import os, resource, sys
from pathlib import Path
from skinlesion.model.run_lock import lock_run
def refuse(*arguments):
    raise OSError(1, "no links")
if sys.argv[2] == "no links":
    os.link = refuse
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
with lock_run(Path(sys.argv[1])):
    pass
"""
    for links in ("links", "no links"):
        command = [sys.executable, "-c", code, str(tmp_path), links]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "cannot be written (File too large); make room" in done.stderr
        assert not list(tmp_path.iterdir())
