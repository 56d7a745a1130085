"""The lock of a run: one training at a time, and none that waits for a process that is gone."""

import json
import os
import platform
import subprocess
import sys

import pytest

from skinlesion.files import InputError
from skinlesion.machine import LOCK_NAME
from skinlesion.model import run_lock
from skinlesion.model.run_lock import SILENCE, RunLock

HOLD = """
import sys
from pathlib import Path
from skinlesion.files import InputError
from skinlesion.model.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
try:
    lock.acquire()
except InputError as error:
    print(error, flush=True)
else:
    print("held", flush=True)
sys.stdin.read()
"""


class Other:
    """Another process that takes the lock of a folder when it is told to, and keeps it."""

    def __init__(self, folder):
        command = [sys.executable, "-c", HOLD, str(folder)]
        self.process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
        self.answer()

    def tell(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def answer(self):
        lines = iter(self.process.stdout.readline, "")
        return next(line for line in lines if not line.startswith("train: ")).strip()

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start():
    """Start other processes; they end with the test."""
    started = []

    def begin(folder):
        started.append(Other(folder))
        return started[-1]

    yield begin
    for one in started:
        one.kill()


@pytest.fixture
def other(start, tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    one = start(tmp_path)
    one.tell()
    assert one.answer() == "held"
    return one


def write_note(folder, text, *, age):
    path = folder / LOCK_NAME
    path.write_text(text)
    moment = path.stat().st_mtime - age
    os.utime(path, (moment, moment))


def test_the_note_names_host_and_process_and_is_removed(tmp_path):
    with RunLock(tmp_path / "run"):
        held = json.loads((tmp_path / "run" / LOCK_NAME).read_text())
        assert held == {"host": platform.node(), "process": os.getpid()}
    assert not list((tmp_path / "run").iterdir())


def test_an_error_releases_it(tmp_path, start):
    with pytest.raises(KeyboardInterrupt), RunLock(tmp_path):
        raise KeyboardInterrupt
    one = start(tmp_path)
    one.tell()
    assert one.answer() == "held"


def test_one_process_can_take_it_again_and_gives_it_back_once(tmp_path, start):
    """As the cells of a notebook that are run twice, with a new `Run` each time."""
    first, second = RunLock(tmp_path), RunLock(tmp_path / "." / "")
    first.acquire()
    second.acquire()
    second.release()
    first.release()
    one = start(tmp_path)
    one.tell()
    assert one.answer() == "held"


def test_a_second_process_is_told_who_trains(other, tmp_path):
    line = rf"is being trained by process {other.process.pid} on {platform.node()}; wait for it"
    with pytest.raises(InputError, match=line), RunLock(tmp_path):
        pass
    assert (tmp_path / LOCK_NAME).exists()


def test_the_lock_of_a_killed_process_is_taken_over(other, tmp_path, capsys):
    other.kill()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["process"] == os.getpid()
    holder = f"process {other.process.pid} on {platform.node()}"
    assert f"taking over {tmp_path} from {holder}, which is gone" in capsys.readouterr().out


def test_of_two_that_take_over_at_once_one_gets_it(start, tmp_path):
    """Both find the note of a process that is gone."""
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_note(folder, json.dumps({"host": platform.node(), "process": 1}), age=0)
        both = [start(folder), start(folder)]
        for one in both:
            one.tell()
        answers = sorted((one.answer() for one in both), key=len)
        assert answers[0] == "held"
        assert "is being trained by process" in answers[1]


def test_the_lock_of_another_host_is_taken_over_when_it_gives_no_sign_of_life(tmp_path, capsys):
    text = json.dumps({"host": "elsewhere", "process": os.getpid()})
    write_note(tmp_path, text, age=SILENCE - 60)
    with pytest.raises(InputError, match="on elsewhere; wait for it"), RunLock(tmp_path):
        pass
    write_note(tmp_path, text, age=SILENCE + 60)
    with RunLock(tmp_path):
        pass
    assert "on elsewhere, which gave no sign of life for 6 minutes" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{}", "[1]"])
def test_a_note_that_cannot_be_read_is_respected_while_it_is_new(tmp_path, text):
    write_note(tmp_path, text, age=0)
    with pytest.raises(InputError, match=f"if it is gone, delete {tmp_path}"), RunLock(tmp_path):
        pass
    write_note(tmp_path, text, age=SILENCE + 60)
    with RunLock(tmp_path):
        pass


def test_signs_of_life_are_given_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT", 0.01)
    note = tmp_path / LOCK_NAME
    with RunLock(tmp_path):
        os.utime(note, (0, 0))
        while note.stat().st_mtime == 0:
            pass


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match="file/run: cannot be written"),
        RunLock(tmp_path / "file" / "run"),
    ):
        pass


def test_a_full_disk_leaves_no_note(tmp_path):
    """The limit of the size of files stands for the end of the disk."""
    pytest.importorskip("resource")
    code = """
import resource, sys
from pathlib import Path
from skinlesion.model.run_lock import RunLock
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
RunLock(Path(sys.argv[1])).acquire()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "cannot be written (File too large); make room" in done.stderr
    assert not (tmp_path / LOCK_NAME).exists()
