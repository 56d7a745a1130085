"""Downloads against a server on this machine that answers as Harvard Dataverse does, or worse."""

import functools
import hashlib
import io
import json
import shutil
import sys
import threading
import types
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from skinlesion import machine as workspace
from skinlesion.data import download as downloads
from skinlesion.data import ham10000 as dataset
from skinlesion.data.download import download_dataset
from skinlesion.data.ham10000 import find_dataset, list_images
from skinlesion.files import InputError

LIST = "/api/datasets/:persistentId/?persistentId=doi:10.7910/DVN/DBW86T"
PART_1, PART_2, METADATA = "/storage/1", "/storage/2", "/storage/3"


class Answer(NamedTuple):
    """What the server does with one request instead of serving the file whole."""

    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    cut_after: int | None = None


BUSY_429 = Answer(429, (("Retry-After", "0"),))
BUSY_503 = Answer(503, (("Retry-After", "0"),))


class Dataverse:
    """Lists three files, sends each on to a storage, and notes what it is asked for."""

    def __init__(self, data: Path):
        parts = [zip_folder(data / f"HAM10000_images_part_{number}") for number in (1, 2)]
        csv = (data / "HAM10000_metadata.csv").read_bytes()
        self.files = dict(zip((PART_1, PART_2, METADATA), (*parts, csv), strict=True))
        self.etags = {
            path: f'"{hashlib.md5(body).hexdigest()}"' for path, body in self.files.items()
        }
        self.listing: Any = {
            "data": {"latestVersion": {"files": [{"dataFile": x} for x in self._entries()]}}
        }
        self.ranges = True
        self.lengths = True
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.address = ""

    def _entries(self) -> Iterator[dict[str, Any]]:
        yield {"id": 9, "filename": "ISIC2018_Task3_Test_Images.zip", "filesize": 1, "md5": ""}
        for number, path in ((1, PART_1), (2, PART_2)):
            name = f"HAM10000_images_part_{number}.zip"
            yield {"id": number, "filename": name, **size_and_md5(self.files[path], "filesize")}
        # The size is that of Dataverse's own table, the checksum that of the file handed in.
        yield {
            "id": 3,
            "filename": "HAM10000_metadata.tab",
            "filesize": 7,
            "originalFileFormat": "text/csv",
            **size_and_md5(self.files[METADATA], "originalFileSize"),
        }

    def asked_for(self, path: str) -> list[str | None]:
        """The `Range` of each request for a file."""
        return [span for asked, span, _ in self.asked if asked == path]


def size_and_md5(body: bytes, size: str) -> dict[str, Any]:
    return {size: len(body), "md5": hashlib.md5(body).hexdigest()}


def zip_folder(
    folder: Path, extra: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED
) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for path in sorted(folder.glob("*.jpg")):
            archive.write(path, path.name)
        for name, body in (extra or {}).items():
            archive.writestr(name, body)
    return content.getvalue()


def make_handler(dataverse: Dataverse) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            span = self.headers["Range"]
            dataverse.asked.append((self.path, span, self.headers["If-Range"]))
            script = dataverse.answers.get(self.path, [])
            answer = script.pop(0) if script else Answer()
            if self.headers["User-Agent"].startswith("python-requests"):
                answer = Answer(403)
            if answer.status:
                self.reply(answer.status, b"no", dict(answer.headers))
            elif self.path == LIST:
                self.reply(200, json.dumps(dataverse.listing).encode(), {})
            elif self.path.startswith("/api/access/datafile/"):
                original = self.path.endswith("?format=original")
                number = self.path.removesuffix("?format=original").rsplit("/", 1)[1]
                assert original == (f"/storage/{number}" == METADATA)
                self.reply(303, b"", {"Location": f"{dataverse.address}/storage/{number}"})
            else:
                self.send_file(span, answer.cut_after)

        def send_file(self, span: str | None, cut_after: int | None) -> None:
            body, etag = dataverse.files[self.path], dataverse.etags[self.path]
            headers, status = {"ETag": etag}, 200
            fresh = self.headers["If-Range"] in (None, etag)
            if span and dataverse.ranges and fresh:
                start = int(span.removeprefix("bytes=").removesuffix("-"))
                if start >= len(body):
                    self.reply(416, b"", {"Content-Range": f"bytes */{len(body)}"})
                    return
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                body, status = body[start:], 206
            self.reply(status, body, headers, cut_after)

        def reply(
            self, status: int, body: bytes, headers: dict[str, str], cut_after: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if dataverse.lengths:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:cut_after])

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def dataverse(flat_data: Path) -> Iterator[Dataverse]:
    dataverse = Dataverse(flat_data)
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(dataverse))
    dataverse.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield dataverse
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "ham10000"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Kaggle, a cache of its own, the size of the drawn dataset, and no waiting."""
    set_kaggle(monkeypatch, OSError("Kaggle\nis down"))
    monkeypatch.setenv("SKINLESION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(downloads, "NUM_IMAGES", 98)
    monkeypatch.setattr(downloads, "BACKOFF", 0)
    monkeypatch.setattr(downloads, "CHUNK", 1000)


def set_kaggle(monkeypatch: pytest.MonkeyPatch, answer: Path | Exception) -> None:
    # Stands in for the network only: the package's own side of the call is real.
    def dataset_download(handle: str) -> str:
        assert handle == "kmader/skin-cancer-mnist-ham10000/versions/2"
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    kagglehub = types.SimpleNamespace(dataset_download=dataset_download)
    monkeypatch.setitem(sys.modules, "kagglehub", kagglehub)


def download(dataverse: Dataverse, folder: Path) -> Path:
    return download_dataset(folder, server=dataverse.address)


def refuse(dataverse: Dataverse, folder: Path, match: str) -> str:
    """The download fails with one line, and nothing that could be taken for a dataset is there."""
    with pytest.raises(InputError, match=match) as caught:
        download(dataverse, folder)
    assert not folder.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.rglob("*") if path.is_file())


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
    assert download(dataverse, folder) == folder
    assert_whole(folder, flat_data)
    # Each file once, and none that is not needed.
    assert [path for path, *_ in dataverse.asked if path.startswith("/storage")] == [
        METADATA,
        PART_1,
        PART_2,
    ]


def test_kaggle_comes_first(dataverse, folder, flat_data, monkeypatch):
    set_kaggle(monkeypatch, flat_data)
    assert download(dataverse, folder) == flat_data
    assert dataverse.asked == []


def test_the_second_call_asks_nobody(dataverse, folder, flat_data, monkeypatch):
    server = functools.partial(download_dataset, server=dataverse.address)
    monkeypatch.setattr(dataset, "download_dataset", server)
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
    assert download(dataverse, folder) == folder
    dataverse.listing = {}
    shutil.rmtree(folder)
    refuse(dataverse, folder, r"from Kaggle \(.*half \(delete it to have it downloaded again\): ")


def test_a_broken_connection_goes_on_where_it_was(dataverse, folder, flat_data):
    dataverse.answers[PART_1] = [Answer(cut_after=10_000), Answer(cut_after=5_000)]
    download(dataverse, folder)
    assert_whole(folder, flat_data)
    assert dataverse.asked_for(PART_1) == [None, "bytes=10000-", "bytes=15000-"]
    assert {tag for path, span, tag in dataverse.asked if path == PART_1 and span} == {
        dataverse.etags[PART_1]
    }


def test_the_next_call_goes_on_too(dataverse, folder, flat_data, monkeypatch):
    monkeypatch.setattr(downloads, "CONNECTIONS", 2)
    dataverse.answers[PART_2] = [Answer(cut_after=10_000), Answer(cut_after=2_000)]
    said = refuse(dataverse, folder, "broke off 2 times; repeat the command")
    assert f"the first 12,000 of {len(dataverse.files[PART_2]):,} bytes" in said
    dataverse.asked.clear()
    download(dataverse, folder)
    assert_whole(folder, flat_data)
    assert dataverse.asked_for(PART_1) == []
    assert dataverse.asked_for(PART_2) == ["bytes=12000-"]


def test_a_server_that_knows_no_ranges_begins_anew(dataverse, folder, flat_data):
    dataverse.ranges = False
    dataverse.answers[PART_1] = [Answer(cut_after=10_000)]
    download(dataverse, folder)
    assert_whole(folder, flat_data)
    assert dataverse.asked_for(PART_1) == [None, "bytes=10000-"]


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_the_rest_of_another_file_is_not_glued_on(heeds_if_range, dataverse, folder, monkeypatch):
    monkeypatch.setattr(downloads, "CONNECTIONS", 1)
    dataverse.answers[PART_1] = [Answer(cut_after=10_000)]
    refuse(dataverse, folder, "broke off 1 times")
    dataverse.etags[PART_1] = '"another"'
    if not heeds_if_range:
        span = f"bytes 10000-{len(dataverse.files[PART_1]) - 1}/{len(dataverse.files[PART_1])}"
        headers = (("ETag", '"another"'), ("Content-Range", span))
        dataverse.answers[PART_1] = [Answer(206, headers)]
    monkeypatch.setattr(downloads, "CONNECTIONS", 2)
    dataverse.asked.clear()
    download(dataverse, folder)
    wanted = ["bytes=10000-"] if heeds_if_range else ["bytes=10000-", None]
    assert dataverse.asked_for(PART_1) == wanted


def test_a_range_that_is_refused_begins_anew(dataverse, folder, flat_data):
    dataverse.answers[PART_1] = [Answer(cut_after=10_000), Answer(416)]
    download(dataverse, folder)
    assert_whole(folder, flat_data)
    assert dataverse.asked_for(PART_1) == [None, "bytes=10000-", None]


def test_a_wrong_file_is_deleted_and_named(dataverse, folder, flat_data):
    right = dataverse.files[PART_1]
    dataverse.files[PART_1] = right[:500] + b"?" + right[501:]
    said = refuse(
        dataverse, folder, r"HAM10000_images_part_1\.zip \(MD5 \w{32} instead of \w{32}\)"
    )
    assert dataverse.address in said
    assert "repeat the command" in said
    assert leftovers(folder) == ["HAM10000_metadata.csv"]
    dataverse.files[PART_1] = right
    download(dataverse, folder)
    assert_whole(folder, flat_data)


def test_a_file_of_another_length_is_not_even_read(dataverse, folder):
    dataverse.files[PART_1] = dataverse.files[PART_1][:-7]
    refuse(dataverse, folder, r"\([\d,]+ bytes instead of [\d,]+\)")
    assert leftovers(folder) == ["HAM10000_metadata.csv"]
    assert dataverse.asked_for(PART_1) == [None]


def test_a_truncated_file_of_unknown_length_is_not_taken(dataverse, folder):
    dataverse.lengths = False
    dataverse.files[PART_1] = dataverse.files[PART_1][:-7]
    refuse(dataverse, folder, "broke off 20 times")


def serve_listed(dataverse: Dataverse, path: str, body: bytes) -> None:
    """A file that is exactly the one that the server lists."""
    dataverse.files[path] = body
    for entry in dataverse.listing["data"]["latestVersion"]["files"]:
        if f"/storage/{entry['dataFile']['id']}" == path:
            size = "originalFileSize" if path == METADATA else "filesize"
            entry["dataFile"].update(size_and_md5(body, size))


def test_a_truncated_archive_is_refused(dataverse, folder):
    serve_listed(dataverse, PART_2, dataverse.files[PART_2][:-100])
    refuse(dataverse, folder, "part_2.zip from Harvard Dataverse: damaged")
    assert leftovers(folder) == []


@pytest.mark.parametrize(
    ("method", "cause"), [(zipfile.ZIP_STORED, "CRC"), (zipfile.ZIP_DEFLATED, "invalid block type")]
)
def test_a_damaged_image_is_refused(method, cause, dataverse, folder, flat_data):
    body = bytearray(zip_folder(flat_data / "HAM10000_images_part_2", method=method))
    body[30 + len("ISIC_0000001.jpg")] = 0xFE  # the first byte of the first image
    serve_listed(dataverse, PART_2, bytes(body))
    refuse(dataverse, folder, f"part_2.zip from Harvard Dataverse: damaged.*{cause}")
    assert leftovers(folder) == []


def test_an_archive_cannot_write_outside_its_folder(dataverse, folder, flat_data):
    extra = {"../evil.txt": b"evil", "__MACOSX/note": b""}
    part_1 = flat_data / "HAM10000_images_part_1"
    serve_listed(dataverse, PART_1, zip_folder(part_1, extra))
    download(dataverse, folder)
    assert_whole(folder, flat_data)
    shutil.rmtree(folder)
    serve_listed(dataverse, PART_1, zip_folder(part_1, {"../../../evil.jpg": b"evil"}))
    refuse(dataverse, folder, "98 rows and 99 images, of which 98 belong together")
    assert not list(folder.parent.parent.rglob("evil*"))


def test_images_in_a_folder_of_the_archive_are_found(dataverse, folder, flat_data):
    images = sorted((flat_data / "HAM10000_images_part_1").glob("*.jpg"))
    extra = {f"folder/{path.name}": path.read_bytes() for path in images}
    serve_listed(dataverse, PART_1, zip_folder(flat_data / "nothing", extra))
    download(dataverse, folder)
    assert_whole(folder, flat_data)


def test_rows_and_images_must_belong_together(dataverse, folder):
    lines = dataverse.files[METADATA].splitlines(keepends=True)
    serve_listed(dataverse, METADATA, b"".join(lines[:-1]))
    refuse(dataverse, folder, "97 rows and 98 images, of which 97 belong together")
    assert leftovers(folder) == []


def test_the_number_of_images_is_checked(dataverse, folder, monkeypatch):
    monkeypatch.setattr(downloads, "NUM_IMAGES", 10_015)
    refuse(dataverse, folder, "98 rows and 98 images.*HAM10000 has 10,015")


def test_a_table_without_ids_is_refused(dataverse, folder):
    serve_listed(dataverse, METADATA, dataverse.files[METADATA].replace(b",", b"\t"))
    refuse(dataverse, folder, r"without a usable HAM10000_metadata\.csv")


@pytest.mark.parametrize("path", [LIST, "/api/access/datafile/1", PART_1])
def test_a_busy_server_is_asked_again(path, dataverse, folder, flat_data):
    dataverse.answers[path] = [BUSY_429, BUSY_503, Answer(502)]
    download(dataverse, folder)
    assert_whole(folder, flat_data)
    assert len([asked for asked, *_ in dataverse.asked if asked == path]) == 4


def test_a_busy_server_is_not_asked_forever(dataverse, folder):
    dataverse.answers[PART_1] = [BUSY_503] * 1000
    refuse(dataverse, folder, "/datafile/1: the server answered 503 Service Unavailable")
    assert len(dataverse.asked_for(PART_1)) == 1 + downloads.RETRIES


def test_the_server_says_how_long_to_wait_but_not_hours(dataverse, folder, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time", types.SimpleNamespace(sleep=waits.append))
    dataverse.answers[PART_1] = [
        Answer(429, (("Retry-After", "7"),)),
        Answer(503, (("Retry-After", "86400"),)),
    ]
    download(dataverse, folder)
    assert waits == [7, downloads.MAX_WAIT]


@pytest.mark.parametrize("status", [202, 403, 404])
def test_a_refusal_is_told_at_once(status, dataverse, folder):
    dataverse.answers[PART_1] = [Answer(status)]
    refuse(dataverse, folder, f"datafile/1: the server answered {status} ")
    assert len(dataverse.asked_for(PART_1)) == 1


@pytest.mark.parametrize("listing", [{}, [], {"data": {"latestVersion": {"files": []}}}])
def test_a_list_without_the_files_is_told(listing, dataverse, folder):
    dataverse.listing = listing
    refuse(dataverse, folder, "not the list of files that was expected")


def test_both_sources_failing_names_the_three_ways(folder, monkeypatch):
    with pytest.raises(InputError) as caught:
        download_dataset(folder, server="http://127.0.0.1:9")
    said = str(caught.value)
    causes = ["from Kaggle (Kaggle is down)", "http://127.0.0.1:9/api/", "no answer"]
    ways = ["--data DIR", "HAM10000_DIR", "attach the dataset kmader/skin-cancer", "Internet on"]
    assert all(part in said for part in [*causes, *ways])
    assert "\n" not in said


def test_a_disk_too_small_is_told_before(dataverse, folder, monkeypatch):
    usage = types.SimpleNamespace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refuse(dataverse, folder, "0.0 GB are needed there and 0.0 GB are free; make room")
    assert dataverse.asked_for(METADATA) == []


def test_a_full_disk_keeps_what_arrived(dataverse, folder, flat_data):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        refuse(dataverse, folder, r"part_1\.zip\.part: cannot be written \(.*; make room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    dataverse.asked.clear()
    download(dataverse, folder)
    assert_whole(folder, flat_data)
    assert dataverse.asked_for(PART_1) == ["bytes=20000-"]


@pytest.mark.parametrize("watched", [True, False])
def test_progress_is_shown_to_those_who_watch(watched, dataverse, folder, monkeypatch, capsys):
    bars = []

    class Bar(workspace.tqdm):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **{**options, "delay": 0, "mininterval": 0})
            bars.append(self)

    monkeypatch.setattr(workspace, "tqdm", Bar)
    monkeypatch.setattr(workspace, "is_watched", lambda: watched)
    dataverse.answers[PART_1] = [Answer(cut_after=10_000), Answer(416), Answer(cut_after=3_000)]
    download(dataverse, folder)
    shown = capsys.readouterr()
    assert "downloading HAM10000_images_part_1.zip (0.0 MB)" in shown.out
    assert bool(shown.err) == watched
    if watched:
        assert "HAM10000_images_part_1.zip: 100%" in shown.err
        assert [bar.n for bar in bars] == [bar.total for bar in bars]


def test_list_images_reads_what_arrived(dataverse, folder):
    assert len(list_images(download(dataverse, folder))) == 98
