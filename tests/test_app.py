"""The demo as a running server, asked by Gradio's own client and by hostile ones."""

import ast
import asyncio
import functools
import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import httpx
import nbformat
import numpy as np
import pandas as pd
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from nbclient import NotebookClient
from PIL import Image
from starlette.applications import Starlette
from starlette.routing import Route

from skinlesion.data.ham10000 import HAM10000
from skinlesion.demo import app
from skinlesion.demo.gate import ENDPOINTS, LIMITS, Gate, guard
from skinlesion.demo.predict import SHOWN_SIZE, predict, predict_image
from skinlesion.demo.uploads import require_few
from skinlesion.diagnoses import DISCLAIMER, SYNTHETIC_NOTE
from skinlesion.files import InputError, read_json

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
CLIENTS = Path(__file__).parent.parent / "docs" / "clients.md"
DOCS = CLIENTS.with_name("demo.md")


def stop_clock(running):
    """Let no minute end while a test counts requests, however slow the machine is."""
    layer = running.app.middleware_stack
    while not isinstance(layer, Gate):
        layer = layer.app
    now = layer.clock()
    layer.clock = lambda: now


@pytest.fixture(scope="module")
def demo(evaluated_run, sample):
    running = app.launch(evaluated_run, data=sample)
    stop_clock(running)
    yield running
    running.close()


@pytest.fixture(scope="module")
def client(demo):
    return Client(demo.local_url, verbose=False)


@pytest.fixture
def picture(pictures):
    return pictures[5]


def ask(client, path):
    """The answer of the endpoint `predict`."""
    return client.predict(handle_file(path), api_name="/predict")


def probabilities(answer):
    """Probabilities (7,) of an answer, in the order of the classes."""
    by_code = {one["code"]: one["probability"] for one in answer["diagnoses"]}
    return np.array([by_code[code] for code in HAM10000.labels])


def test_an_answer_is_the_result_of_the_file(client, picture, evaluated_run):
    answer = ask(client, picture)
    expected = predict_image(evaluated_run, picture).to_dict()
    assert set(answer) == set(expected)
    assert answer["file"] == picture.name
    assert [one["code"] for one in answer["diagnoses"]] == [
        one["code"] for one in expected["diagnoses"]
    ]
    assert {one["name"] for one in answer["diagnoses"]} == set(HAM10000.names)
    assert probabilities(answer) == pytest.approx(probabilities(expected), abs=1e-6)
    point = read_json(evaluated_run / "evaluation" / "metrics.json")["calibration"]
    point = point["operating_points"][1]
    assert answer["operating_point"]["threshold"] == pytest.approx(point["threshold"])
    assert answer["operating_point"]["sensitivity"]["value"] == point["sensitivity"]["value"]
    assert answer["is_malignant"] == (answer["p_malignant"] >= point["threshold"])
    for key in ("prediction", "rule", "prediction_set", "is_in_distribution", "problems"):
        assert answer[key] == expected[key]
    for key in ("headline", "sentence"):
        assert answer[key] == expected[key]


def test_the_docs_name_every_part_of_an_answer(client, picture):
    table = DOCS.read_text().split("An answer of `/predict`:")[1].split("An error is")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(ask(client, picture))


def take_example(language):
    (example,) = re.findall(rf"```{language}\n(.*?)```", CLIENTS.read_text(), re.DOTALL)
    return example


@pytest.mark.skipif(not shutil.which("curl"), reason="install curl to run this")
def test_the_example_with_curl_works_as_it_stands_in_the_docs(demo, client, picture):
    example = take_example("bash").replace("some.jpg", str(picture))
    example = example.replace("http://127.0.0.1:7860/", demo.local_url)
    shown = subprocess.run(["bash", "-c", example], capture_output=True, text=True, check=True)
    (data,) = re.findall(r"^data: (.*)", shown.stdout, re.MULTILINE)
    assert json.loads(data) == [ask(client, picture)]


def test_the_example_with_python_works_as_it_stands_in_the_docs(demo, client, picture):
    example = take_example("python").replace("some.jpg", str(picture))
    example = example.replace("http://127.0.0.1:7860", demo.local_url)
    command = [sys.executable, "-c", example]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ask(client, picture)["sentence"] in shown.stdout


def in_a_notebook(run, path):
    """`dx` code to calibrated probability, from notebook 5's own cell, run in a kernel."""
    cells = nbformat.read(NOTEBOOKS / "05_gradio_demo.ipynb", as_version=4).cells
    (cell,) = [cell for cell in cells if "predict_image(" in cell.source]
    before = (
        f"import skinlesion as sl\nrun, image = sl.Run({str(run)!r}), {str(path)!r}\nimages = None"
    )
    sources = (before, cell.source, "result.probabilities")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    answer = NotebookClient(notebook, kernel_name="python3").execute().cells[-1].outputs[0]
    return ast.literal_eval(answer.data["text/plain"])


def test_page_command_line_saved_model_and_notebook_give_one_confidence(
    client, evaluated_run, picture, tmp_path
):
    answer = ask(client, picture)
    page = probabilities(answer)
    in_notebook = in_a_notebook(evaluated_run, picture)
    assert page == pytest.approx([in_notebook[code] for code in HAM10000.labels], abs=1e-6)
    from_bundle = predict_image(evaluated_run / "model", picture).probabilities
    assert page == pytest.approx(list(from_bundle.values()), abs=1e-6)
    predict(evaluated_run, [picture], tmp_path / "called.csv")
    command = [sys.executable, "-m", "skinlesion", "predict", "--run", evaluated_run, picture]
    subprocess.run([*command, "--out", tmp_path / "typed.csv"], check=True, capture_output=True)
    for name in ("called.csv", "typed.csv"):
        (row,) = pd.read_csv(tmp_path / name, keep_default_na=False).to_dict("records")
        assert page == pytest.approx([row[f"p_{code}"] for code in HAM10000.labels], abs=1e-6)
        assert row["p_malignant"] == pytest.approx(answer["p_malignant"], abs=1e-6)
        assert row["ood_score"] == pytest.approx(answer["ood_score"], rel=1e-5)
        assert row["malignant"] == answer["is_malignant"]
        assert row["in_distribution"] == answer["is_in_distribution"]
        assert row["prediction"] == answer["diagnoses"][0]["code"]
        assert row["prediction_set"].split() == answer["prediction_set"]
        assert row["problems"] == ", ".join(answer["problems"])


@pytest.mark.parametrize("endpoint", ["predict", "explain"])
def test_an_upload_is_decoded_and_predicted_once(client, picture, count_calls, endpoint):
    """The server runs in this process, so that its calls are counted."""
    calls = count_calls()
    client.predict(handle_file(picture), api_name=f"/{endpoint}")
    assert calls == {"decoded": 1, "predicted": 1}


def test_explain_gives_the_picture_with_heat(client, picture):
    with Image.open(client.predict(handle_file(picture), api_name="/explain")) as drawn:
        with Image.open(picture) as original:
            assert drawn.width / drawn.height == pytest.approx(
                original.width / original.height, 0.02
            )
        assert max(drawn.size) == SHOWN_SIZE


def test_several_files_give_the_answers_of_each_and_name_what_is_no_image(
    client, pictures, tmp_path
):
    (tmp_path / "notes.jpg").write_text("not an image")
    paths = [pictures[3], tmp_path / "notes.jpg", pictures[40]]
    answers = client.predict([handle_file(path) for path in paths], api_name="/predict_many")
    assert [answer["file"] for answer in answers] == [path.name for path in paths]
    assert set(answers[1]) == {"file", "error"}
    assert "cannot be read as an image" in answers[1]["error"]
    for number in (0, 2):
        alone = ask(client, paths[number])
        assert probabilities(answers[number]) == pytest.approx(probabilities(alone), abs=1e-6)
        assert answers[number]["sentence"] == alone["sentence"]


def test_too_many_files_are_refused():
    with pytest.raises(InputError, match="201 files are too many"):
        require_few(["some.jpg"] * 201)


def test_describe_gives_the_figures_of_the_run(client, evaluated_run):
    described = client.predict(api_name="/describe")
    assert described["metrics"] == read_json(evaluated_run / "evaluation" / "metrics.json")
    assert described["synthetic"] is True
    assert described["rule"] == "decides by the highest probability relative to frequency"
    assert described["notice"] == DISCLAIMER


def test_nothing_but_the_documented_endpoints_can_be_called(client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert sorted(named) == sorted(f"/{name}" for name in ENDPOINTS)


@pytest.mark.parametrize("name", ["show", "show_1", "look", "pick", "lambda", "nothing", "%2e"])
@pytest.mark.parametrize("way", ["call", "call/v2", "run", "api"])
def test_other_handlers_cannot_be_called_by_name(demo, name, way):
    """Those of the page itself, those that Gradio adds, and those that are not there."""
    answer = httpx.post(f"{demo.local_url}gradio_api/{way}/{name}", json={"data": []})
    assert answer.status_code == 404
    assert "\n" not in answer.text


@pytest.mark.parametrize("number", [*range(12), 99, -1])
@pytest.mark.parametrize("name", ["predict", "describe"])
def test_no_request_passes_the_queue_by(demo, name, number):
    asked = {"data": [], "fn_index": number}
    answer = httpx.post(f"{demo.local_url}gradio_api/run/{name}", json=asked)
    assert answer.status_code == 404


def test_a_handler_that_is_not_there_is_not_found(demo):
    asked = {"data": [], "fn_index": 99, "session_hash": "stranger"}
    answer = httpx.post(f"{demo.local_url}gradio_api/queue/join", json=asked)
    assert answer.status_code == 404


@pytest.mark.parametrize("path", ["README.md", "../x.png", "", ".", "a\0b", "~/x", "/etc/passwd"])
@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("endpoint", ["predict", "explain", "predict_many"])
def test_no_message_tells_where_the_server_lies(demo, path, marked, endpoint):
    named = {"path": path} | ({"meta": {"_type": "gradio.FileData"}} if marked else {})
    call = f"{demo.local_url}gradio_api/call/{endpoint}"
    asked = {"data": [[named] if endpoint == "predict_many" else named]}
    event = httpx.post(call, json=asked).json()["event_id"]
    answer = httpx.get(f"{call}/{event}").text
    assert "event: error" in answer
    for folder in (Path.cwd(), Path.cwd().parent, Path.home(), "/etc", "/tmp"):
        assert str(folder) not in answer


def make_variant(name, picture, folder):
    """A file, and that of the plain image that it must be taken for."""
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    grey = image.convert("L")
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise when shown
    clear = image.convert("RGBA")
    clear.paste((255, 0, 0, 0), (0, 0, 40, 40))
    on_white = image.copy()
    on_white.paste("white", (0, 0, 40, 40))
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    palette = image.quantize(64)
    variants = {
        "turned": (image.rotate(90, expand=True), {"format": "PNG", "exif": exif}, image),
        "alpha": (clear, {"format": "PNG"}, on_white),
        "grey": (grey, {"format": "PNG"}, grey.convert("RGB")),
        "16-bit": (deep, {"format": "PNG"}, grey.convert("RGB")),
        "palette": (palette, {"format": "PNG"}, palette.convert("RGB")),
        "cmyk": (image.convert("CMYK"), {"format": "TIFF"}, image),
        "webp": (image, {"format": "WEBP", "lossless": True}, image),
        "animated": (image, {"format": "PNG", "save_all": True, "append_images": [grey]}, image),
    }
    variant, options, plain = variants[name]
    # Of a wrong ending: what counts is what is in the file.
    path, same = folder / f"{name}.jpg", folder / f"{name}_plain.png"
    variant.save(path, **options)
    plain.save(same)
    return path, same


@pytest.mark.parametrize(
    "name", ["turned", "alpha", "grey", "16-bit", "palette", "cmyk", "webp", "animated"]
)
def test_every_kind_of_image_is_taken_for_what_it_shows(client, picture, tmp_path, name):
    path, plain = make_variant(name, picture, tmp_path)
    assert np.allclose(
        probabilities(ask(client, path)), probabilities(ask(client, plain)), atol=1e-6
    )


@functools.cache
def make_bomb():
    """A PNG of 250 KB that claims 30,000 x 30,000 pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(250_000_000))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def make_hostile(picture, folder):
    content = picture.read_bytes()
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "half.jpg").write_bytes(content[: len(content) // 2])
    (folder / "page.html").write_text("<script>alert(1)</script>")
    (folder / "drawing.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    )
    (folder / "bomb.png").write_bytes(make_bomb())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.jpg", "cannot be read as an image"),
        ("empty.png", "cannot be read as an image"),
        ("half.jpg", "cannot be read as an image"),
        ("page.html", "cannot be read as an image"),
        ("drawing.svg", "cannot be read as an image"),
        ("bomb.png", "pixels are too many"),
    ],
)
@pytest.mark.parametrize("endpoint", ["predict", "explain"])
def test_what_is_no_image_gets_a_clear_message_without_paths(
    client, picture, tmp_path, name, message, endpoint
):
    make_hostile(picture, tmp_path)
    with pytest.raises(AppError, match=message) as caught:
        client.predict(handle_file(tmp_path / name), api_name=f"/{endpoint}")
    assert str(caught.value).startswith(name)
    assert "/" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["predict", "explain"])
def test_no_image_at_all_gets_a_clear_message(client, endpoint):
    with pytest.raises(AppError, match="no image"):
        client.predict(None, api_name=f"/{endpoint}")


@pytest.mark.parametrize("endpoint", ["predict", "explain", "predict_many"])
@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_a_file_of_the_server_is_not_an_upload(demo, picture, endpoint, marked, there):
    """Only what was uploaded can be asked for, not any path on the server."""
    named = {"path": str(picture if there else picture.with_name("none.jpg"))}
    if marked:  # without this mark, Gradio itself does not look where the file lies
        named["meta"] = {"_type": "gradio.FileData"}
    call = f"{demo.local_url}gradio_api/call/{endpoint}"
    asked = {"data": [[named] if endpoint == "predict_many" else named]}
    event = httpx.post(call, json=asked).json()["event_id"]
    answer = httpx.get(f"{call}/{event}").text
    assert "event: error" in answer
    assert "probability" not in answer
    # Gradio refuses a list without the mark itself, and 5.50 does not pass messages on here.
    if not marked and endpoint != "predict_many" and "data: null" not in answer:
        assert "not an uploaded file" in answer


def test_the_page_itself_shows_no_file_of_the_server(demo, picture):
    """Requests made as the page's own browser code makes them."""
    named = {"path": str(picture)}
    for handler in demo.config["dependencies"]:
        inputs = [demo.blocks[number] for number in handler["inputs"]]
        given = [[named] if isinstance(one, gr.File) else named for one in inputs]
        chosen = {"index": 0, "value": {"image": named, "caption": ""}, "selected": True}
        asked = {
            "data": given,
            "fn_index": handler["id"],
            "session_hash": "stranger",
            "event_data": chosen,
        }
        if not handler["backend_fn"]:
            continue
        answer = httpx.post(f"{demo.local_url}gradio_api/queue/join", json=asked)
        if answer.is_success and (inputs or "select" in str(handler["targets"])):
            events = httpx.get(
                f"{demo.local_url}gradio_api/queue/data?session_hash=stranger", timeout=60
            ).text
            assert "process_completed" in events
            assert '"success": true' not in events.replace('"success":true', '"success": true')


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "README.md", "../README.md", "{run}/model/model.keras", "{sample}"]
)
def test_no_file_of_the_server_can_be_fetched(demo, evaluated_run, picture, path):
    wanted = path.format(run=evaluated_run, sample=picture)
    answer = httpx.get(f"{demo.local_url}gradio_api/file={wanted}")
    assert answer.status_code in (403, 404)


def upload(demo, name, content):
    answer = httpx.post(f"{demo.local_url}gradio_api/upload", files={"files": (name, content)})
    return answer, (answer.json()[0] if answer.is_success else None)


@pytest.mark.parametrize("name", ["page.html", "drawing.svg"])
def test_an_uploaded_page_is_never_run_by_a_browser(demo, name):
    _, path = upload(demo, name, b"<script>alert(1)</script>")
    answer = httpx.get(f"{demo.local_url}gradio_api/file={path}")
    assert "attachment" in answer.headers.get("content-disposition", "")


def test_an_upload_that_is_too_large_is_refused(demo):
    answer, _ = upload(demo, "large.jpg", bytes(21_000_000))
    assert answer.status_code == 413


def test_twenty_clients_at_once_get_right_answers_in_bounded_memory(
    demo, evaluated_run, pictures, tmp_path
):
    def connect(_):
        return Client(demo.local_url, verbose=False)

    def ask_once(client, path):
        return probabilities(ask(client, path))

    def resident():
        return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))

    chosen = pictures[:20]
    with ThreadPoolExecutor(20) as pool:
        clients = list(pool.map(connect, range(20)))
        answers = list(pool.map(ask_once, clients, chosen))
        before = resident()
        again = [list(pool.map(ask_once, clients, chosen)) for _ in range(2)]
    table = predict(evaluated_run, chosen, tmp_path / "p.csv")
    expected = table[[f"p_{code}" for code in HAM10000.labels]]
    for got in (answers, *again):
        assert np.allclose(got, expected, atol=1e-5)
    assert resident() - before < 100_000  # kB


def test_each_client_elsewhere_has_so_many_requests_a_minute(demo):
    """As a proxy on this machine passes them on; the client invents an address each time."""
    elsewhere = httpx.Client(base_url=demo.local_url)
    call, asked = "gradio_api/call/describe", {"data": []}
    statuses = []
    for number in range(61):
        invented = {"x-forwarded-for": f"198.51.100.{number}, 203.0.113.5"}
        statuses.append(elsewhere.post(call, json=asked, headers=invented).status_code)
    assert statuses == [200] * LIMITS["ask"] + [429]
    answer = elsewhere.post("gradio_api/queue/join", json=asked, headers=invented)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")
    assert "more than 60 requests in a minute" in answer.json()["detail"]
    assert elsewhere.get("", headers=invented).status_code == 200
    other = {"x-forwarded-for": "203.0.113.6"}
    assert elsewhere.post(call, json=asked, headers=other).status_code == 200


def test_on_this_machine_there_is_no_limit(demo):
    call = f"{demo.local_url}gradio_api/call/describe"
    statuses = {httpx.post(call, json={"data": []}).status_code for _ in range(80)}
    assert statuses <= {200, 503}  # 503: the queue of predictions is full, on a slow machine


def test_logins_are_refused_after_some_tries(evaluated_run, sample):
    running = app.launch(evaluated_run, data=sample, auth=("me", "secret"))
    stop_clock(running)
    try:
        login = f"{running.local_url}login"
        wrong, right = ({"username": "me", "password": word} for word in ("guess", "secret"))
        call = f"{running.local_url}gradio_api/call/predict"
        assert httpx.post(call, json={"data": [None]}).status_code == 401
        assert httpx.post(login, data=right).status_code == 200
        tries = [httpx.post(login, data=wrong).status_code for _ in range(6)]
        assert tries == [400] * (LIMITS["login"] - 1) + [429] * 2
        # The right word neither: nobody learns which of many guesses was right.
        assert httpx.post(login, data=right).status_code == 429
    finally:
        running.close()


class TestGate:
    """Against a clock that only the test moves."""

    def ask(self, gate, path="/gradio_api/call/predict", *, client=("1.2.3.4", 5), method="POST"):
        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "client": client, "headers": []}
        asyncio.run(gate(scope, None, send))
        return sent[0]["status"]

    def make(self, **options):
        async def answer(scope, receive, send):
            await send({"type": "http.response.start", "status": 200})

        self.now = 0.0
        return Gate(answer, clock=lambda: self.now, **options)

    def test_a_minute_later_there_is_room_again(self):
        gate = self.make()
        statuses = []
        for self.now in (0.0, 10.0, 20.0, 30.0, 40.0, 59.0, 60.0, 61.0, 70.0):
            statuses.append(self.ask(gate, "/login"))
        assert statuses == [200] * 5 + [429, 200, 429, 200]

    def test_clients_and_kinds_are_counted_apart_and_forgotten(self):
        gate = self.make(unlimited=("127.0.0.1",))
        assert {self.ask(gate) for _ in range(60)} == {200}
        assert [self.ask(gate), self.ask(gate, client=("1.2.3.5", 5))] == [429, 200]
        assert [self.ask(gate, "/gradio_api/queue/join"), self.ask(gate, method="GET")] == [
            429,
            200,
        ]
        assert self.ask(gate, "/gradio_api/upload") == 200
        here = {"client": ("127.0.0.1", 5)}
        assert {self.ask(gate, **here) for _ in range(70)} == {200}
        assert [self.ask(gate, "/login/", **here) for _ in range(6)] == [200] * 5 + [429]
        self.now = 100.0
        assert self.ask(gate, client=None) == 200
        assert list(gate.recent) == [("ask", "")]

    @pytest.mark.parametrize(
        ("path", "key", "status"),
        [("/queue/join", 99, 404), ("/queue/join", "name", 500), ("/elsewhere", 99, 500)],
    )
    def test_only_an_unknown_handler_is_not_found(self, path, key, status):
        """Another KeyError is a fault of the server."""

        async def fail(request):
            raise KeyError(key)

        page = Starlette(routes=[Route(path, fail)], **guard(is_private=True))
        transport = httpx.ASGITransport(page, raise_app_exceptions=False)

        async def ask():
            async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
                return await client.get(path)

        assert asyncio.run(ask()).status_code == status


def test_the_page_says_that_it_is_no_medical_device(demo):
    page = httpx.get(demo.local_url).text
    assert DISCLAIMER in page
    assert SYNTHETIC_NOTE in page


def test_a_public_link_is_refused_on_a_gradio_with_known_holes(evaluated_run, monkeypatch):
    monkeypatch.setattr(gr, "__version__", "5.50.0")
    with pytest.raises(InputError, match=r"needs Gradio 6\.20 or newer, and this is 5\.50\.0"):
        app.launch(evaluated_run, share=True)


def test_on_kaggle_it_says_where_to_predict_and_no_upload_is_kept_when_the_page_is_closed(
    evaluated_run, sample, picture, monkeypatch, capsys
):
    """It does not block there. Uploads are kept nowhere."""
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    running = app.launch(evaluated_run, data=sample)
    assert "Kaggle does not show this page" in capsys.readouterr().out
    _, path = upload(running, "kept.jpg", picture.read_bytes())
    assert Path(path).is_file()
    running.close()
    assert not Path(path).exists()


def test_a_taken_port_is_one_clear_line(demo, evaluated_run, sample):
    port = int(re.search(r":(\d+)", demo.local_url).group(1))
    with pytest.raises(InputError, match=f"port {port}"):
        app.launch(evaluated_run, data=sample, port=port)


def test_the_command_serves_until_it_is_stopped(evaluated_run):
    command = [sys.executable, "-u", "-m", "skinlesion", "demo", "--run", evaluated_run]
    with subprocess.Popen(
        [*command, "--port", "7991"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            url = next(line.split()[1] for line in process.stdout if line.startswith("demo: http"))
            assert url.startswith("http://127.0.0.1:7991")
            assert httpx.get(url).status_code == 200
        finally:
            process.terminate()


def test_importing_the_module_starts_nothing():
    code = "import skinlesion.demo.app, threading; print(threading.active_count())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(shown.stdout) <= 2
    assert Path(app.__file__).name == "app.py"
