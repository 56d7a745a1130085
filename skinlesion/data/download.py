"""Download HAM10000 from Kaggle or, if that fails, from Harvard Dataverse."""

import shutil
import zipfile
from pathlib import Path, PurePosixPath
from textwrap import shorten

import pandas as pd

from skinlesion import __version__
from skinlesion.data.ham10000 import METADATA_NAME, PARTS
from skinlesion.files import InputError, write_folder_atomically
from skinlesion.machine import is_watched, progress_bar, say

KAGGLE_HANDLE = "kmader/skin-cancer-mnist-ham10000"
KAGGLE_VERSION = f"{KAGGLE_HANDLE}/versions/2"
"""With a pinned version, kagglehub finds an earlier download without a network request."""

NUM_IMAGES = 10_015
"""Images of HAM10000, each with a row of metadata (Tschandl et al., Scientific Data 5:180161)."""

DOI = "doi:10.7910/DVN/DBW86T"
DATAVERSE = "https://dataverse.harvard.edu/api/access/datafile"
DATAVERSE_FILES = {
    # By default Dataverse sends its own conversion of a table. The published MD5 is that of the
    # original file.
    METADATA_NAME: (f"{DATAVERSE}/4338392?format=original", "8f85fb1aa29d80a2797247e434deb79d"),
    f"{PARTS[0]}.zip": (f"{DATAVERSE}/3172585", "4639bfa73ab251610530a97c898e6e46"),
    f"{PARTS[1]}.zip": (f"{DATAVERSE}/3172584", "da43d6cc50f6613013be07e8986b384b"),
}
"""URL and published MD5 of each file, version 4.0 of the dataset."""
DATAVERSE_BYTES = 2_770_778_873
"""Size of these files together."""

RETRIES = 5
"""How often pooch repeats a failed download, with pauses of 1, 2, 3, ... seconds."""


def download_dataset(folder: Path) -> Path:
    """Download HAM10000 from Kaggle or, if that fails, from Harvard Dataverse.

    Args:
        folder: the place for a download from Dataverse; it is created complete or not at all.
            Kaggle's client has its own cache.

    Returns:
        The folder with the metadata and, somewhere below it, the images.

    Raises:
        InputError: neither source provided the complete dataset.
    """
    say(f"HAM10000 is not on this machine: downloading it from Kaggle ({KAGGLE_HANDLE}, 5.2 GB)")
    try:
        return _download_from_kaggle()
    except Exception as error:  # kagglehub passes on whatever its HTTP client raises
        kaggle = shorten(str(error), 300)
    say(f"Kaggle: {kaggle}; downloading from Harvard Dataverse instead ({DOI}, 2.8 GB)")
    try:
        return _download_from_dataverse(folder)
    # OSError: network or disk. ValueError: a wrong MD5, or an InputError.
    except (OSError, ValueError) as error:
        raise InputError(
            f"HAM10000 could not be downloaded, neither from Kaggle ({kaggle}) nor from Harvard "
            f"Dataverse ({shorten(str(error), 300)}): name its folder as `data` (or in the "
            f"variable HAM10000_DIR), attach the dataset {KAGGLE_HANDLE} on Kaggle, or connect to "
            "the internet (on Kaggle: Settings > Internet on)"
        ) from error


def _download_from_kaggle() -> Path:
    import kagglehub

    folder = Path(kagglehub.dataset_download(KAGGLE_VERSION))
    _require_complete(folder, f"{folder} (delete it to download it again)")
    return folder


def _download_from_dataverse(folder: Path) -> Path:
    """Download and verify the files, then unpack them. Finished files survive an interruption."""
    import pooch

    archives = folder.with_name(f"{folder.name}.download")
    archives.mkdir(parents=True, exist_ok=True)
    _require_space(archives)
    fetcher = pooch.create(
        path=archives,
        base_url="",
        registry={name: f"md5:{md5}" for name, (_, md5) in DATAVERSE_FILES.items()},
        urls={name: url for name, (url, _) in DATAVERSE_FILES.items()},
        retry_if_failed=RETRIES,
    )
    downloader = pooch.HTTPDownloader(
        progressbar=is_watched(),
        chunk_size=2**20,
        # Harvard refuses the default name of requests (IQSS/dataverse.harvard.edu, issue 479).
        headers={"User-Agent": f"skinlesion/{__version__}"},
    )
    for name in DATAVERSE_FILES:
        fetcher.fetch(name, downloader=downloader)
    write_folder_atomically(folder, lambda part: _unpack(archives, part))
    shutil.rmtree(archives)
    say(f"HAM10000 is complete in {folder}")
    return folder


def _require_space(archives: Path) -> None:
    """Raise unless there is room for the archives and, at the same time, for their content."""
    present = sum(path.stat().st_size for path in archives.iterdir())
    needed = 2 * DATAVERSE_BYTES - present
    free = shutil.disk_usage(archives).free
    if free < needed:
        raise InputError(
            f"{archives}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; make "
            "room or name another folder with the variable SKINLESION_CACHE"
        )


def _unpack(archives: Path, folder: Path) -> None:
    """Create the layout that the dataset has on Kaggle: the metadata and two folders of images."""
    shutil.copyfile(archives / METADATA_NAME, folder / METADATA_NAME)
    for name in PARTS:
        with zipfile.ZipFile(archives / f"{name}.zip") as archive:
            images = [info for info in archive.infolist() if info.filename.endswith(".jpg")]
            for info in progress_bar(images, f"unpacking {name}", len(images)):
                info.filename = PurePosixPath(info.filename).name  # without folders
                archive.extract(info, folder / name)
    _require_complete(folder, "Harvard Dataverse")


def _require_complete(folder: Path, source: str) -> None:
    """Raise unless the metadata and the images are those of all of HAM10000."""
    try:
        rows = set(pd.read_csv(folder / METADATA_NAME)["image_id"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{source}: no usable {METADATA_NAME} ({shorten(str(error), 200)})"
        ) from error
    images = {path.stem for path in folder.rglob("*.jpg")}
    if rows != images or len(images) != NUM_IMAGES:
        raise InputError(
            f"{source}: {len(rows):,} rows and {len(images):,} images, {len(rows & images):,} of "
            f"them match; HAM10000 has {NUM_IMAGES:,}"
        )
