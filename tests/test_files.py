import json
import os
import subprocess
import sys

import pytest

from skinlesion.files import (
    InputError,
    name_some,
    read_json,
    restore_folder,
    write_atomically,
    write_folder_atomically,
    write_json,
)


def test_nan_is_written_as_null(tmp_path):
    write_json(tmp_path / "a.json", {"x": [float("nan"), 0.5, (1, None)], "y": "nan"})
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail) == {
        "x": [None, 0.5, [1, None]],
        "y": "nan",
    }


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half(part):
        part.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"a\.txt: cannot be written \(No space left on device\)"):
        write_atomically(path, write_half)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_where_a_folder_should_be_is_an_input_error(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_json(tmp_path / "a" / "b.json", {})


def test_a_folder_is_no_file_to_write(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        write_json(tmp_path, {})


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupted(part):
        part.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.txt", interrupted)
    assert not list(tmp_path.iterdir())


def test_what_is_no_json_is_refused_by_name(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match=r"a\.json: cannot be read as JSON"):
        read_json(tmp_path / "a.json")


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    folder = write_folder_atomically(
        tmp_path / "a", lambda part: (part / "old.txt").write_text("old")
    )

    def write_half(part):
        (part / "new.txt").write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"a: cannot be written \(No space left on device\)"):
        write_folder_atomically(folder, write_half)
    assert [path.name for path in tmp_path.rglob("*.txt")] == ["old.txt"]
    write_folder_atomically(folder, lambda part: (part / "new.txt").write_text("new"))
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "new.txt"]


def test_the_first_names_are_shown_and_the_rest_is_counted():
    assert name_some(["a", "b"]) == "a, b"
    assert name_some(list("abcd"), shown=2) == "a, b and 2 more"


def test_a_notebook_shows_one_line_for_bad_input():
    code = "import skinlesion as sl; sl.Run.find('nowhere')"
    command = [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    shown = (answer.stdout + answer.stderr).strip()
    assert shown == "InputError: nowhere: no such folder; name a trained run"


def test_a_folder_whose_replacement_was_killed_comes_back(tmp_path):
    folder = write_folder_atomically(tmp_path / "a", lambda part: (part / "old").write_text(""))
    folder.rename(tmp_path / ".a.old")  # killed before the new one was there
    restore_folder(folder)
    assert [path.name for path in folder.iterdir()] == ["old"]
    write_folder_atomically(folder, lambda part: (part / "new").write_text(""))
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "new"]


def test_what_other_processes_write_is_left_and_what_dead_ones_left_is_deleted(tmp_path):
    living, dead = (tmp_path / f".a.txt.{number}.part.txt" for number in (os.getppid(), 2**30))
    living.touch()
    dead.touch()
    write_atomically(tmp_path / "a.txt", lambda part: part.write_text("a"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [living.name, "a.txt"]
