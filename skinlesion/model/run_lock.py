"""One training at a time in the folder of a run."""

import os
import platform
import threading
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from skinlesion.files import InputError, read_json, write_json
from skinlesion.machine import LOCK_NAME, say

HEARTBEAT = 30
"""Seconds between two signs of life: the modification time of the note."""
SILENCE = 300
"""After this many seconds without a sign of life, a run is taken over from another host."""


class RunLock:
    """The lock of a run. A process holds it from `acquire` to `release`, or to its own end.

    The operating system keeps the lock on an empty file. Some network drives keep locks for each
    host separately. Therefore a note beside it names the host and the process that hold the lock,
    and the date of the note is renewed.

    Args:
        folder: of the run; `acquire` creates it.
    """

    def __init__(self, folder: Path) -> None:
        self.note = folder.absolute() / LOCK_NAME
        # One lock for a folder in this process, because a cell of a notebook can be run again.
        self._lock = FileLock(
            self.note.with_name(f".{LOCK_NAME}"), timeout=0, thread_local=False, is_singleton=True
        )

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, unless this process has it already.

        Raises:
            InputError: another process has it, or the folder cannot be written.
        """
        if self._lock.is_locked:
            return
        try:
            self.note.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise self._name_holder() from error
        except OSError as error:
            raise InputError(
                f"{self.note.parent}: cannot be written ({error.strerror}); make room or choose "
                "another place"
            ) from error
        try:
            self._require_stale_note()
            write_json(self.note, {"host": platform.node(), "process": os.getpid()})
        except InputError:
            self._lock.release()
            raise
        threading.Thread(target=self._give_signs, daemon=True).start()

    def release(self) -> None:
        """Give the lock back, if this process has it."""
        if self._lock.is_locked:
            self.note.unlink(missing_ok=True)
            with suppress(OSError):  # Windows keeps a file that is open
                Path(self._lock.lock_file).unlink()  # who has just opened it does not get the lock
            self._lock.release()

    def _give_signs(self) -> None:
        while self._lock.is_locked:
            time.sleep(HEARTBEAT)
            with suppress(OSError):  # released, or a network drive is away for a moment
                os.utime(self.note)

    def _require_stale_note(self) -> None:
        """Check that an earlier holder is gone.

        On this host it is: the operating system has given its lock away.
        """
        if not self.note.exists():
            return
        silence = time.time() - self.note.stat().st_mtime
        host, holder = self._read_note()
        if host == platform.node():
            reason = "is gone"
        elif silence > SILENCE:
            reason = f"gave no sign of life for {silence / 60:.0f} minutes"
        else:
            raise self._name_holder(f" (if it is gone, delete {self.note})")
        say(f"train: taking over {self.note.parent} from {holder}, which {reason}")

    def _name_holder(self, advice: str = "") -> InputError:
        return InputError(
            f"{self.note.parent}: is being trained by {self._read_note()[1]}; wait for it or end "
            f"it, or give this training another name{advice}"
        )

    def _read_note(self) -> tuple[str, str]:
        """The host of the holder, and host and process in words."""
        try:
            note = read_json(self.note)
            host, process = str(note["host"]), str(note["process"])
        except (InputError, KeyError, TypeError):  # not written yet, or damaged
            host, process = "an unknown host", "unknown"
        return host, f"process {process} on {host}"
