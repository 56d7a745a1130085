"""Downloads from a server on this machine that answers as Harvard Dataverse does, or worse."""

import hashlib
import io
import shutil
import sys
import threading
import types
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from skinlesion.data import download
from skinlesion.data.dataset import find_dataset
from skinlesion.data.download import download_dataset
from skinlesion.files import InputError

METADATA, PART_1, PART_2 = "/storage/3", "/storage/1", "/storage/2"
NAMES = {
    METADATA: "HAM10000_metadata.csv",
    PART_1: "HAM10000_images_part_1.zip",
    PART_2: "HAM10000_images_part_2.zip",
}


class Answer(NamedTuple):
    """What the server does with one request instead of sending the whole file."""

    status: int = 200
    cut_after: int | None = None


class Dataverse:
    """Sends each request for a file on to a storage, and records what it is asked for."""

    def __init__(self, data: Path, monkeypatch: pytest.MonkeyPatch):
        self.files = {
            METADATA: (data / "HAM10000_metadata.csv").read_bytes(),
            PART_1: zip_images(data / "HAM10000_images_part_1"),
            PART_2: zip_images(data / "HAM10000_images_part_2"),
        }
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[str] = []
        self.address = ""
        self.monkeypatch = monkeypatch

    def publish(self, path: str, body: bytes) -> None:
        """Serve `body`, and pin its MD5 in the package."""
        self.files[path] = body
        url = f"{self.address}/datafile/{path[-1]}" + "?format=original" * (path == METADATA)
        pinned = {NAMES[path]: (url, hashlib.md5(body).hexdigest())}
        files = download.DATAVERSE_FILES | pinned
        self.monkeypatch.setattr(download, "DATAVERSE_FILES", files)

    def count(self, path: str) -> int:
        return self.asked.count(path)


def zip_images(folder: Path, extra: dict[str, bytes] | None = None) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in sorted(folder.glob("*.jpg")):
            archive.write(path, path.name)
        for name, body in (extra or {}).items():
            archive.writestr(name, body)
    return content.getvalue()


def make_handler(dataverse: Dataverse) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            dataverse.asked.append(self.path)
            script = dataverse.answers.get(self.path, [])
            answer = script.pop(0) if script else Answer()
            if self.headers["User-Agent"].startswith("python-requests"):
                answer = Answer(403)  # as Harvard does
            if answer.status != 200:
                self.reply(answer.status, b"no")
            elif self.path.startswith("/datafile/"):
                # By default, Dataverse sends its own conversion of a table.
                number = self.path[len("/datafile/")]
                assert self.path.endswith("?format=original") == (f"/storage/{number}" == METADATA)
                self.reply(303, b"", Location=f"{dataverse.address}/storage/{number}")
            else:
                self.reply(200, dataverse.files[self.path], answer.cut_after)

        def reply(
            self, status: int, body: bytes, cut_after: int | None = None, **headers: str
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:cut_after])

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def dataverse(flat_data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dataverse]:
    dataverse = Dataverse(flat_data, monkeypatch)
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(dataverse))
    dataverse.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for path, body in dataverse.files.items():
        dataverse.publish(path, body)
    yield dataverse
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "ham10000"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Kaggle, a cache of its own, the size of the small dataset, and no pauses."""
    set_kaggle(monkeypatch, OSError("Kaggle\nis down"))
    monkeypatch.setenv("SKINLESION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "NUM_IMAGES", 98)
    monkeypatch.setattr(download, "RETRIES", 2)
    monkeypatch.setattr(download, "DATAVERSE_BYTES", 100_000)
    monkeypatch.setattr("pooch.core.time", types.SimpleNamespace(sleep=lambda seconds: None))


def set_kaggle(monkeypatch: pytest.MonkeyPatch, answer: Path | Exception) -> None:
    # Stands in for the network only: the package's own side of the call is real.
    def dataset_download(handle: str) -> str:
        assert handle == "kmader/skin-cancer-mnist-ham10000/versions/2"
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    kagglehub = types.SimpleNamespace(dataset_download=dataset_download)
    monkeypatch.setitem(sys.modules, "kagglehub", kagglehub)


def refuse(folder: Path, match: str) -> str:
    """The download fails with one line, and leaves nothing that looks like a dataset."""
    with pytest.raises(InputError, match=match) as caught:
        download_dataset(folder)
    assert not folder.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_whole(folder: Path, flat_data: Path) -> None:
    there = {str(x.relative_to(folder)): x.read_bytes() for x in folder.rglob("*") if x.is_file()}
    wanted = {
        str(path.relative_to(flat_data)): path.read_bytes()
        for path in flat_data.rglob("*")
        if path.is_file()
    }
    assert there == wanted
    assert [path.name for path in folder.parent.iterdir()] == ["ham10000"]


def test_the_whole_dataset_arrives_in_its_layout(dataverse, folder, flat_data):
    assert download_dataset(folder) == folder
    assert_whole(folder, flat_data)
    # Each file once, and no other.
    assert [path for path in dataverse.asked if path.startswith("/storage")] == [*NAMES]


def test_kaggle_comes_first(dataverse, folder, flat_data, monkeypatch):
    set_kaggle(monkeypatch, flat_data)
    assert download_dataset(folder) == flat_data
    assert dataverse.asked == []


def test_the_second_call_asks_nobody(dataverse, folder, monkeypatch):
    assert find_dataset() == folder
    dataverse.asked.clear()
    set_kaggle(monkeypatch, AssertionError("asked again"))
    assert find_dataset() == folder
    assert dataverse.asked == []


@pytest.mark.parametrize("missing", ["HAM10000_metadata.csv", "*/ISIC_0000000.jpg"])
def test_half_a_dataset_from_kaggle_is_not_taken(
    missing, dataverse, folder, flat_data, monkeypatch
):
    half = shutil.copytree(flat_data, folder.parent.parent / "half")
    next(half.glob(missing)).unlink()
    set_kaggle(monkeypatch, half)
    assert download_dataset(folder) == folder
    dataverse.answers["/datafile/1"] = [Answer(503)] * 3
    shutil.rmtree(folder)
    refuse(folder, r"from Kaggle \(.*half \(delete it to download it again\): ")


@pytest.mark.parametrize(
    "answers", [[Answer(cut_after=10_000)] * 2, [Answer(429), Answer(503)], [Answer(202)]]
)
def test_a_failed_request_is_repeated(answers, dataverse, folder, flat_data):
    dataverse.answers[PART_1] = answers
    asked = 1 + len(answers)
    download_dataset(folder)
    assert_whole(folder, flat_data)
    assert dataverse.count(PART_1) == asked


@pytest.mark.parametrize("answer", [Answer(cut_after=1000), Answer(202), Answer(403), Answer(503)])
def test_a_server_is_not_asked_forever_and_finished_files_are_kept(
    answer, dataverse, folder, flat_data
):
    dataverse.answers[PART_2] = [answer] * 3
    refuse(folder, "neither from Kaggle .* nor from Harvard Dataverse")
    assert dataverse.count(PART_2) == 3
    dataverse.asked.clear()
    download_dataset(folder)
    assert_whole(folder, flat_data)
    assert [path for path in dataverse.asked if path.startswith("/storage")] == [PART_2]


def test_another_file_than_the_pinned_one_is_not_kept(dataverse, folder):
    right = dataverse.files[PART_1]
    dataverse.files[PART_1] = right[:500] + b"?" + right[501:]
    refuse(folder, r"HAM10000_images_part_1\.zip\).* does not match the known hash")
    left = [path.name for path in folder.parent.rglob("*") if path.is_file()]
    assert left == ["HAM10000_metadata.csv"]


def test_an_archive_cannot_write_outside_its_folder(dataverse, folder, flat_data):
    part_1 = flat_data / "HAM10000_images_part_1"
    extra = {"../evil.txt": b"evil", "__MACOSX/note": b""}
    dataverse.publish(PART_1, zip_images(part_1, extra))
    download_dataset(folder)
    assert_whole(folder, flat_data)
    shutil.rmtree(folder)
    dataverse.publish(PART_1, zip_images(part_1, {"../../../evil.jpg": b"evil"}))
    refuse(folder, "98 rows and 99 images, 98 of them match")
    assert not list(folder.parent.parent.rglob("evil*"))


def test_images_in_a_folder_of_the_archive_are_found(dataverse, folder, flat_data):
    images = sorted((flat_data / "HAM10000_images_part_1").glob("*.jpg"))
    extra = {f"folder/{path.name}": path.read_bytes() for path in images}
    dataverse.publish(PART_1, zip_images(flat_data / "nothing", extra))
    download_dataset(folder)
    assert_whole(folder, flat_data)


def test_rows_and_images_must_match(dataverse, folder, monkeypatch):
    lines = dataverse.files[METADATA].splitlines(keepends=True)
    dataverse.publish(METADATA, b"".join(lines[:-1]))
    refuse(folder, "97 rows and 98 images, 97 of them match")
    monkeypatch.setattr(download, "NUM_IMAGES", 10_015)
    dataverse.publish(METADATA, b"".join(lines))
    refuse(folder, "98 rows and 98 images.*HAM10000 has 10,015")


def test_a_table_without_ids_is_refused(dataverse, folder):
    dataverse.publish(METADATA, dataverse.files[METADATA].replace(b",", b"\t"))
    refuse(folder, r"no usable HAM10000_metadata\.csv")


def test_both_sources_failing_names_the_three_ways(dataverse, folder):
    dataverse.answers["/datafile/3?format=original"] = [Answer(404)] * 3
    said = refuse(folder, "could not be downloaded")
    causes = ["from Kaggle (Kaggle is down)", "404", dataverse.address]
    ways = ["as `data`", "HAM10000_DIR", "attach the dataset kmader/skin-cancer", "Internet on"]
    assert all(part in said for part in [*causes, *ways])


def test_a_disk_too_small_is_reported_first(dataverse, folder, monkeypatch):
    usage = types.SimpleNamespace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refuse(folder, "0.0 GB are needed and 0.0 GB are free; make room")
    assert dataverse.asked == []


def test_a_full_disk_is_reported_and_finished_files_are_kept(dataverse, folder, flat_data):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        refuse(folder, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    download_dataset(folder)
    assert_whole(folder, flat_data)
    assert dataverse.count(METADATA) == 1


def test_a_cache_that_cannot_be_written_is_reported(dataverse, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Not a directory"):
        download_dataset(tmp_path / "file" / "ham10000")
