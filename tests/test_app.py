"""The demo as a running server, asked by Gradio's own client."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import httpx
import nbformat
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from nbclient import NotebookClient
from PIL import Image

from skinlesion import app
from skinlesion.errors import InputError
from skinlesion.isic_files import read_predictions
from skinlesion.labels import CLASS_CODES, CLASS_NAMES, DISCLAIMER, SYNTHETIC_NOTE
from skinlesion.predictor import Predictor
from skinlesion.workflow import predict

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.fixture(scope="module")
def predictor(trained_run):
    return Predictor.load(trained_run)


@pytest.fixture(scope="module")
def run(trained_run, sample, tmp_path_factory):
    """A run that was evaluated, of its own: the trained one is shared with other tests."""
    copy = tmp_path_factory.mktemp("demo") / "run"
    shutil.copytree(trained_run, copy)
    evaluate(copy, sample)
    return copy


@pytest.fixture(scope="module")
def demo(run, predictor, sample):
    running = app.launch(run, predictor, data=sample)
    yield running
    running.close()


@pytest.fixture(scope="module")
def client(demo):
    return Client(demo.local_url, verbose=False)


@pytest.fixture
def picture(sample):
    return sorted(sample.glob("HAM10000_images_part_1/*.jpg"))[5]


def ask(client, path):
    """Full name to confidence, as the endpoint gives it."""
    answer = client.predict(handle_file(path), api_name="/predict")
    return {row["label"]: row["confidence"] for row in answer["confidences"]}


def test_all_seven_full_names_and_confidences_that_add_up(client, picture):
    confidences = ask(client, picture)
    assert set(confidences) == set(CLASS_NAMES)
    assert sum(confidences.values()) == pytest.approx(1, abs=1e-5)


def in_a_notebook(run, path):
    """`dx` code to probability, from notebook 5's own prediction cell, run in a kernel."""
    cells = nbformat.read(NOTEBOOKS / "05_gradio_demo.ipynb", as_version=4).cells
    (cell,) = [cell for cell in cells if "prediction = predictor.predict(" in cell.source]
    before = (
        "from pathlib import Path\nfrom skinlesion.dataset import is_sample\n"
        f"run, images, image = Path({str(run)!r}), Path({str(path.parent)!r}), {str(path)!r}"
    )
    sources = (before, cell.source, "prediction.probabilities")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    answer = NotebookClient(notebook, kernel_name="python3").execute().cells[-1].outputs[0]
    return ast.literal_eval(answer.data["text/plain"])


def test_page_command_line_bundle_and_predictor_agree(client, trained_run, picture, tmp_path):
    """One image, one answer: through the page, the file, the bundle and a fresh process."""
    page = ask(client, picture)
    page = [page[name] for name in CLASS_NAMES]
    in_notebook = in_a_notebook(trained_run, picture)
    from_bundle = Predictor.load(trained_run / "model").predict(picture).probabilities
    predict(trained_run, [picture], tmp_path / "called.csv")
    command = [sys.executable, "-m", "skinlesion", "predict", "--run", trained_run, picture]
    subprocess.run([*command, "--out", tmp_path / "typed.csv"], check=True, capture_output=True)
    for other in (
        [in_notebook[code] for code in CLASS_CODES],
        [from_bundle[code] for code in CLASS_CODES],
        read_predictions(tmp_path / "called.csv")[1][0],
        read_predictions(tmp_path / "typed.csv")[1][0],
    ):
        assert np.allclose(page, other, atol=1e-6)


def test_a_turned_upload_is_turned_upright(client, picture, tmp_path):
    upright = Image.open(picture)
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise when shown
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    assert ask(client, tmp_path / "turned.png") == pytest.approx(
        ask(client, tmp_path / "upright.png"), abs=1e-6
    )


def test_an_upload_that_is_no_image_gets_a_clear_message_without_paths(client, tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(AppError, match=r"text\.jpg: cannot be read as an image") as caught:
        ask(client, tmp_path / "text.jpg")
    assert "/" not in str(caught.value).replace("https://", "")


def test_a_file_of_the_server_is_not_an_upload(demo, picture):
    """Only what was uploaded can be asked for, not any path on the server."""
    asked = {"data": [{"path": str(picture), "meta": {"_type": "gradio.FileData"}}]}
    call = f"{demo.local_url}gradio_api/call/predict"
    event = httpx.post(call, json=asked).json()["event_id"]
    answer = httpx.get(f"{call}/{event}").text
    assert "event: error" in answer
    assert "confidence" not in answer


def test_a_truncated_image_gets_a_clear_message(client, picture, tmp_path):
    content = picture.read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(AppError, match="cannot be read as an image"):
        ask(client, tmp_path / "half.jpg")


def test_the_page_says_that_it_is_no_medical_device(demo):
    page = httpx.get(demo.local_url).text
    assert DISCLAIMER in page
    assert SYNTHETIC_NOTE in page


def test_a_taken_port_is_one_clear_line(demo, predictor):
    port = int(re.search(r":(\d+)", demo.local_url).group(1))
    with pytest.raises(InputError, match=f"port {port}"):
        app.launch(predictor, port=port)


def test_the_command_serves_until_it_is_stopped(trained_run):
    command = [sys.executable, "-u", "-m", "skinlesion", "demo", "--run", trained_run]
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
    code = "import skinlesion.app, threading; print(threading.active_count())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(shown.stdout) <= 2
    assert Path(app.__file__).name == "app.py"
