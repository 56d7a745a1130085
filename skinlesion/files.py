"""Files that are written completely or not at all, and the one error that means bad input."""

import contextlib
import csv
import glob
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class InputError(ValueError):
    """Bad input from the user: one line that says what is wrong, where, and what to do."""

    def __init__(self, message: str) -> None:
        # Messages of libraries, which are passed on, can have several lines.
        super().__init__(" ".join(line.strip() for line in message.splitlines()).strip())

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows, instead of a traceback through this package."""
        return [f"{type(self).__name__}: {self}"]


def name_some(names: list[str], *, shown: int = 5) -> str:
    """Join the first `shown` names for a message and count the rest: `a, b and 3 more`."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest:,} more" if rest > 0 else "")


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` create a file beside `path`, then move it to `path` in one step.

    Args:
        path: the final place; missing parent folders are created.
        write: called with the temporary path, which has the suffix of `path`.

    Returns:
        `path`.

    Raises:
        InputError: `path` is a folder, the disk is full, or permission is missing.
    """
    require_no_folder(path)
    part = name_part(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        delete_left(path.parent, f".{glob.escape(path.name)}.*.part{path.suffix}")
        write(part)
        part.replace(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another "
            "place"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # already moved, or its parent is a file
            part.unlink()
    return path


def write_folder_atomically(folder: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a folder beside `folder`, then replace `folder` with it.

    The content is flushed to disk before the folder is renamed. The folder is therefore complete
    even after a power cut. An old folder is moved aside first; if the process is killed before the
    new one is in its place, `restore_folder` brings the old one back.

    Args:
        folder: the final place; an existing folder is replaced.
        write: called with the temporary folder.

    Returns:
        `folder`.

    Raises:
        InputError: the disk is full, or permission is missing.
    """
    part, old = name_part(folder), _name_old(folder)
    try:
        restore_folder(folder)
        delete_left(folder.parent, f".{glob.escape(folder.name)}.*.part*")
        part.mkdir(parents=True)
        write(part)
        for path in filter(Path.is_file, part.rglob("*")):
            with path.open("rb+") as file:  # Windows flushes writable files only
                os.fsync(file.fileno())
        if folder.exists():
            folder.replace(old)
        part.replace(folder)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}); make room or choose another "
            "place"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        restore_folder(folder)
    return folder


def restore_folder(folder: Path) -> None:
    """Bring a folder back if its replacement was killed, or delete what it has replaced."""
    old = _name_old(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.is_dir():
        old.replace(folder)


def _name_old(folder: Path) -> Path:
    folder = folder.absolute()  # "." has no name
    return folder.with_name(f".{folder.name}.old")


def require_no_folder(path: Path) -> None:
    """Check, before what takes long, that a file to write is no folder.

    Raises:
        InputError: it is one.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file to write")


def name_part(path: Path) -> Path:
    """Name the unfinished form of a file or folder: beside it, hidden, for this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")


def delete_left(folder: Path, pattern: str) -> None:
    """Delete what processes that are gone have left unfinished: a number stands before `.part`."""
    for left in folder.glob(pattern):
        number = left.name.rpartition(".part")[0].rpartition(".")[2]
        if number.isdecimal() and is_running(int(number)):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Whether another process of this host has this number.

    Windows cannot be asked without disturbing the process: there, the answer is always yes.
    """
    if process == os.getpid():
        return False
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)  # no signal: only asks
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def write_json(path: Path, value: Any) -> Path:
    """Write values as indented JSON. NaN, which JSON does not have, becomes null."""
    return write_text(path, json.dumps(without_nan(value), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8."""
    return write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file does not exist or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error


def read_csv(path: Path, kind: str, **options: Any) -> "pd.DataFrame":
    """Read a CSV file that has a header, at least one row, and a value for each column.

    Args:
        path: the file.
        kind: what the file is, for the message: `a split file`.
        **options: of `pandas.read_csv`.

    Raises:
        InputError: the file cannot be read, is empty, or a line is cut off.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, **options)
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)  # pandas fills short lines up
            filled = (row for row in lines if [cell.strip() for cell in row] not in ([], [""]))
            numbers = [(str(lines.line_num), len(row)) for row in filled]
    except pd.errors.EmptyDataError as error:
        raise InputError(f"{path}: is empty; expected {kind}") from error
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as {kind} ({error})") from error
    for wrong, found, advice in (
        (
            "few",
            [line for line, count in numbers if count < table.shape[1]],
            "it may be cut off; copy it again",
        ),
        # Where each line has one more than the header, pandas made the first column the index.
        ("many", [line for line, count in numbers if count > table.shape[1]], "a comma too much?"),
    ):
        if found:
            raise InputError(f"{path}: too {wrong} values in line {name_some(found)}: {advice}")
    if table.empty:
        raise InputError(f"{path}: has a header but no row; expected {kind}")
    return table


def stat_file(path: str | Path) -> os.stat_result:
    """Return size and date of a file.

    Raises:
        InputError: it is not there or cannot be read.
    """
    try:
        return Path(path).stat()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); bring it back, then repeat the command"
        ) from error


def write_csv(path: Path, table: "pd.DataFrame", *, index: bool = False) -> Path:
    """Write a table as CSV."""
    return write_atomically(path, lambda part: table.to_csv(part, index=index))


def without_nan(value: Any) -> Any:
    """Replace NaN by None, as `write_json` does."""
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
