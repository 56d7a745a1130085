"""HAM10000 from the internet: resumed where it broke off, checked before it counts as there.

Kaggle's own client serves the first source. For the second, pooch comes closest (it knows Dataverse
and checksums), but begins a file of 1.4 GB anew whenever the connection breaks.
"""

import hashlib
import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from textwrap import shorten
from typing import Any, NamedTuple

import pandas as pd
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from skinlesion import __version__
from skinlesion.files import InputError, write_folder_atomically
from skinlesion.machine import byte_bar, progress_bar, say

KAGGLE_HANDLE = "kmader/skin-cancer-mnist-ham10000"
KAGGLE_VERSION = f"{KAGGLE_HANDLE}/versions/2"
"""With its version named, kagglehub finds an earlier download without asking the network."""

DATAVERSE = "https://dataverse.harvard.edu"
DOI = "doi:10.7910/DVN/DBW86T"
METADATA_NAME = "HAM10000_metadata.csv"
PARTS = ("HAM10000_images_part_1", "HAM10000_images_part_2")
NUM_IMAGES = 10_015
"""Images of HAM10000, each with a row of metadata (Tschandl et al., Scientific Data 5:180161)."""

RETRIES = 5
"""How often a request is repeated that the server is too busy to answer (429, 500, 502 to 504)."""

BACKOFF = 1.0
"""The waits before are 0, 2, 4, 8 and 16 times this, in seconds, or what `Retry-After` says."""

MAX_WAIT = 60
"""The longest wait, in seconds, that a server's `Retry-After` may ask for."""

CONNECTIONS = 20
"""How often the connection may break off within a file."""

TIMEOUT = 30
"""Seconds without a sign of the server after which a connection counts as broken."""

CHUNK = 2**20
"""Bytes that are read at a time."""


class RemoteFile(NamedTuple):
    """A file as the server lists it."""

    name: str
    url: str
    size: int
    md5: str


def download_dataset(folder: Path, *, server: str = DATAVERSE) -> Path:
    """Download HAM10000 from Kaggle or, where that fails, from Harvard Dataverse.

    Args:
        folder: what comes from Dataverse is put there, whole or not at all; downloads not yet
            finished lie beside it. Kaggle's client has a cache of its own.
        server: address of Dataverse.

    Returns:
        The folder with the metadata and, somewhere below it, the images; checked.

    Raises:
        InputError: neither source gave the whole dataset.
    """
    say(f"HAM10000 is not on this machine: downloading it from Kaggle ({KAGGLE_HANDLE}, 5.2 GB)")
    try:
        return _download_from_kaggle()
    except Exception as error:  # kagglehub passes on whatever its HTTP client raises
        kaggle = shorten(str(error), 300)
    say(f"Kaggle: {kaggle}; downloading from Harvard Dataverse instead ({DOI}, 2.8 GB)")
    try:
        return _download_from_dataverse(folder, server)
    except InputError as error:
        raise InputError(
            f"HAM10000 could not be downloaded, from Kaggle ({kaggle}) or from Harvard Dataverse "
            f"({error}): name its folder with --data DIR (or the variable HAM10000_DIR), attach "
            f"the dataset {KAGGLE_HANDLE} on Kaggle, or connect to the internet (on Kaggle: "
            "Settings > Internet on)"
        ) from error


def _download_from_kaggle() -> Path:
    import kagglehub

    folder = Path(kagglehub.dataset_download(KAGGLE_VERSION))
    _require_whole(folder, f"{folder} (delete it to have it downloaded again)")
    return folder


def _download_from_dataverse(folder: Path, server: str) -> Path:
    archives = folder.with_name(folder.name + ".download")
    with _open_session() as session:
        files = _list_files(session, server)
        try:
            archives.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{archives}: cannot be made ({error.strerror}); name another folder with the "
                "variable SKINLESION_CACHE"
            ) from error
        _require_room(archives, files)
        for file in files:
            say(f"downloading {file.name} ({file.size / 1e6:,.1f} MB)")
            _fetch(session, file, archives / file.name)
    write_folder_atomically(folder, lambda part: _unpack(archives, part))
    shutil.rmtree(archives, ignore_errors=True)
    say(f"HAM10000 is whole and in {folder}")
    return folder


class _BoundedRetry(Retry):
    """Waits as `Retry-After` says, but not for hours."""

    def get_retry_after(self, response: Any) -> float | None:
        seconds = super().get_retry_after(response)
        return seconds and min(seconds, MAX_WAIT)


def _open_session() -> requests.Session:
    session = requests.Session()
    # Harvard turns away the name that requests goes by (IQSS/dataverse.harvard.edu, issue 479).
    session.headers["User-Agent"] = f"skinlesion/{__version__}"
    session.headers["Accept-Encoding"] = "identity"  # sizes and ranges are those of the file
    retry = _BoundedRetry(
        RETRIES,
        connect=3,  # without a network, say so soon
        status_forcelist=(429, 500, 502, 503, 504),
        backoff_factor=BACKOFF,
        raise_on_status=False,
    )
    session.mount("https://", HTTPAdapter(max_retries=retry))
    session.mount("http://", HTTPAdapter(max_retries=retry))
    return session


def _get(
    session: requests.Session, url: str, headers: dict[str, str] | None = None
) -> requests.Response:
    try:
        response = session.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    except requests.RequestException as error:
        raise InputError(
            f"{url}: no answer ({shorten(str(error), 200)}); what arrived before is kept"
        ) from error
    # Nothing else brings a file: 202, for one, asks for a browser.
    if response.status_code not in (200, 206, 416):
        raise InputError(f"{url}: the server answered {response.status_code} {response.reason}")
    return response


def _list_files(session: requests.Session, server: str) -> list[RemoteFile]:
    """The metadata and the archives of images, of all that the dataset has."""
    url = f"{server}/api/datasets/:persistentId/?persistentId={DOI}"
    response = _get(session, url)
    try:
        entries = [entry["dataFile"] for entry in response.json()["data"]["latestVersion"]["files"]]
        # Dataverse renames tables that it has read in (.csv to .tab).
        by_stem = {PurePosixPath(entry["filename"]).stem: entry for entry in entries}
        names = [METADATA_NAME, *(f"{part}.zip" for part in PARTS)]
        return [_describe(server, name, by_stem[PurePosixPath(name).stem]) for name in names]
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{url}: not the list of files that was expected ({error!r})") from error


def _describe(server: str, name: str, entry: dict[str, Any]) -> RemoteFile:
    url = f"{server}/api/access/datafile/{entry['id']}"
    if "originalFileFormat" in entry:  # a table: the MD5 is of the file as it was uploaded
        return RemoteFile(name, f"{url}?format=original", entry["originalFileSize"], entry["md5"])
    return RemoteFile(name, url, entry["filesize"], entry["md5"])


def _require_room(folder: Path, files: list[RemoteFile]) -> None:
    """Raise unless the archives fit on the disk and, before they go, what is in them."""
    there = sum(path.stat().st_size for path in folder.iterdir())
    needed = 2 * sum(file.size for file in files) - there
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder}: {needed / 1e9:.1f} GB are needed there and {free / 1e9:.1f} GB are free; "
            "make room or name another folder with the variable SKINLESION_CACHE"
        )


def _fetch(session: requests.Session, file: RemoteFile, path: Path) -> None:
    """Download a file to `path`; what an interrupted call left beside it is not fetched again.

    Raises:
        InputError: no file to be had, or not the one that is listed, which is deleted then; the
            connection broke off too often or the disk is full, where what arrived is kept.
    """
    if path.is_file():  # named so only after its check
        return
    part, tag = (path.with_name(path.name + ending) for ending in (".part", ".etag"))
    try:
        part.touch()
        tag.touch()
        with byte_bar(file.name, file.size) as bar:
            for _ in range(CONNECTIONS):
                if part.stat().st_size < file.size:
                    _receive(session, file, part, tag, bar)
    except OSError as error:
        raise InputError(
            f"{part}: cannot be written ({error.strerror or error}); make room or name another "
            "folder with the variable SKINLESION_CACHE; what is there is kept"
        ) from error
    have = part.stat().st_size
    if have < file.size:
        raise InputError(
            f"{file.url}: the connection broke off {CONNECTIONS} times; repeat the command: the "
            f"first {have:,} of {file.size:,} bytes of {file.name} are kept"
        )
    with part.open("rb") as content:
        # Against damage on the way, not against malice.
        md5 = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != file.md5:
        raise _wrong_file(file, part, tag, f"MD5 {md5} instead of {file.md5}")
    part.replace(path)
    tag.unlink()


def _receive(session: requests.Session, file: RemoteFile, part: Path, tag: Path, bar: Any) -> None:
    """Add to `part` what one connection brings; `tag` holds the ETag of what is there."""
    have, etag = part.stat().st_size, tag.read_text()
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and etag:
        headers["If-Range"] = etag
    with _get(session, file.url, headers) as answer:
        found = answer.headers.get("ETag", "")
        place = answer.headers.get("Content-Range")
        the_rest = place == f"bytes {have}-{file.size - 1}/{file.size}" and found == etag
        if answer.status_code == 416 or (answer.status_code == 206 and not the_rest):
            part.write_bytes(b"")  # the rest of another file: begin anew
            return
        if answer.status_code == 200:  # from the start, whatever was asked for
            length = int(answer.headers.get("Content-Length", file.size))
            if length != file.size:
                raise _wrong_file(file, part, tag, f"{length:,} bytes instead of {file.size:,}")
        with part.open("ab" if answer.status_code == 206 else "wb") as target:
            tag.write_text(found)
            bar.update(target.tell() - bar.n)
            try:
                for chunk in answer.iter_content(CHUNK):
                    bar.update(target.write(chunk))
            except requests.RequestException:
                return  # broken off: the next connection goes on from here


def _wrong_file(file: RemoteFile, part: Path, tag: Path, difference: str) -> InputError:
    part.unlink()
    tag.unlink()
    return InputError(
        f"{file.url}: sent something else than {file.name} ({difference}); it is deleted: repeat "
        "the command, and if that does not help, the server is at fault"
    )


def _unpack(archives: Path, folder: Path) -> None:
    """Bring what was downloaded into the layout that the dataset has on Kaggle."""
    source = "Harvard Dataverse"
    try:
        shutil.copyfile(archives / METADATA_NAME, folder / METADATA_NAME)
        for name in PARTS:
            source = f"{name}.zip from Harvard Dataverse"
            with zipfile.ZipFile(archives / f"{name}.zip") as archive:
                images = [info for info in archive.infolist() if info.filename.endswith(".jpg")]
                for info in progress_bar(images, f"unpacking {name}", len(images)):
                    # Nothing that an archive says about folders counts, `..` least of all.
                    info.filename = PurePosixPath(info.filename).name
                    archive.extract(info, folder / name)
        _require_whole(folder, "Harvard Dataverse")
    except (zipfile.BadZipFile, zlib.error) as error:
        shutil.rmtree(archives)
        raise InputError(f"{source}: damaged ({error}); it is deleted") from error
    except InputError:
        shutil.rmtree(archives)
        raise


def _require_whole(folder: Path, source: str) -> None:
    try:
        rows = set(pd.read_csv(folder / METADATA_NAME)["image_id"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{source}: without a usable {METADATA_NAME} ({shorten(str(error), 200)})"
        ) from error
    images = {path.stem for path in folder.rglob("*.jpg")}
    if rows != images or len(images) != NUM_IMAGES:
        raise InputError(
            f"{source}: {len(rows):,} rows and {len(images):,} images, of which "
            f"{len(rows & images):,} belong together; HAM10000 has {NUM_IMAGES:,}"
        )
