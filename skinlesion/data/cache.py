"""Large arrays: kept in memory if they fit, otherwise in a file that later runs use again."""

import hashlib
import io
import os
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from skinlesion.files import write_atomically
from skinlesion.machine import say

MEMORY_BUDGET = 4 * 2**30
"""Arrays of at most this many bytes are kept in memory, larger ones go to a file. HAM10000's
training and validation images take 1.3 GB at 224x224."""
BLOCK = 16 * 2**20
"""Bytes that are read at a time to check a file."""
KEPT_DAYS = 30
"""Files unused for this many days are deleted when a new file is written."""
KEPT_DAYS_UNFINISHED = 1
"""The same for unfinished files, which a killed process leaves behind."""


def make_key(*parts: bytes | str | np.ndarray) -> str:
    """Return the SHA-256, as 64 hexadecimal digits, of everything that an array is made from."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        size = content.nbytes if isinstance(content, np.ndarray) else len(content)
        digest.update(size.to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(content) if size else b"")
    return digest.hexdigest()


def make_array(
    shape: tuple[int, ...],
    dtype: type,
    chunks: Iterable[np.ndarray],
    *,
    key: str,
    folder: Path | None,
    budget: int = MEMORY_BUDGET,
) -> np.ndarray:
    """Concatenate consecutive parts, or open the file that an earlier call wrote.

    The file ends with a checksum and its key. Both are checked when it is opened, and a damaged
    file is written again. This takes 0.3 s per GB, once in a run. The file is memory-mapped, so
    memory use does not grow with it.

    Args:
        shape: shape of the whole array.
        dtype: type of the whole array.
        chunks: its parts along the first axis; not consumed if the file exists.
        key: from `make_key`, of everything that the array depends on.
        folder: folder of the file; None keeps everything in memory.
        budget: largest size in bytes that is kept in memory.

    Returns:
        The array; read-only if it is a file.

    Raises:
        InputError: the disk is full, or permission is missing.
    """
    needed = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if folder is None or needed <= budget:
        array: np.ndarray = np.empty(shape, dtype)
        filled = 0
        for chunk in chunks:
            array[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        return array
    path = folder / f"{key}.npy"
    if not _is_whole(path, key):
        if path.exists():
            say(f"cache: {path} is damaged and is made again")
        _delete_old(folder)
        say(f"cache: writing {needed / 1e9:.1f} GB to {path}, for this run and later ones")
        write_atomically(path, lambda part: _write(part, shape, dtype, chunks, key))
    with suppress(OSError):  # a file of another user
        os.utime(path)
    return np.load(path, mmap_mode="r")


def _write(
    path: Path, shape: tuple[int, ...], dtype: type, chunks: Iterable[np.ndarray], key: str
) -> None:
    """Write a `.npy` file and its end. On a full disk, a writable mapping would crash here."""
    header = io.BytesIO()
    described = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(header, described)
    checksum = zlib.crc32(header.getvalue())
    with path.open("wb") as file:
        file.write(header.getvalue())
        for chunk in chunks:
            content = np.ascontiguousarray(chunk, dtype).data
            checksum = zlib.crc32(content, checksum)
            file.write(content)
        file.write(_make_end(checksum, key))


def _is_whole(path: Path, key: str) -> bool:
    checksum = 0
    try:
        with path.open("rb") as file:
            left = path.stat().st_size - len(_make_end(0, key))
            while left > 0:
                block = file.read(min(BLOCK, left))
                if not block:  # somebody shortens the file meanwhile
                    return False
                checksum = zlib.crc32(block, checksum)
                left -= len(block)
            return file.read() == _make_end(checksum, key)
    except OSError:
        return False


def _make_end(checksum: int, key: str) -> bytes:
    return f"{checksum:08x}{key}".encode()


def _delete_old(folder: Path) -> None:
    for path in folder.glob("*.npy"):
        days = KEPT_DAYS_UNFINISHED if "." in path.stem else KEPT_DAYS
        with suppress(OSError):  # of another user, or deleted meanwhile
            if time.time() - path.stat().st_mtime > days * 24 * 3600:
                path.unlink()
