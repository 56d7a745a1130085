"""The folder for a Hugging Face Space, started as Spaces start it."""

import asyncio
import os
import re
import socket
import subprocess
import sys

import gradio
import httpx
import pytest
import yaml
from conftest import edit_bundle
from gradio_client import Client, handle_file
from make_space import PROXIES, list_requirements, make_space
from packaging.requirements import Requirement
from packaging.version import Version
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from skinlesion.demo.app import SAFE_TO_SHARE
from skinlesion.demo.predict import predict_image
from skinlesion.diagnoses import DISCLAIMER, SYNTHETIC_NOTE
from skinlesion.files import InputError
from skinlesion.model.run import Run

pytestmark = pytest.mark.skipif(
    Version(gradio.__version__) < SAFE_TO_SHARE, reason="a Space is not made with this Gradio"
)


@pytest.fixture(scope="module")
def space(evaluated_run, tmp_path_factory):
    return make_space(Run(evaluated_run), tmp_path_factory.mktemp("dist") / "space")


def test_the_header_is_what_spaces_read(space):
    header, body = (space / "README.md").read_text().split("---\n", 2)[1:]
    described = yaml.safe_load(header)
    assert described["sdk"] == "gradio"
    assert described["sdk_version"] == gradio.__version__
    assert (space / described["app_file"]).is_file()
    assert described["license"] == "mit"
    assert len(described["short_description"]) <= 60  # the Hub refuses longer ones
    assert DISCLAIMER in body
    assert SYNTHETIC_NOTE in body


def test_it_holds_no_image_of_the_dataset_no_split_and_no_path_of_this_machine(space, sample):
    images = {path.stem for path in sample.glob("*/*.jpg")}
    for path in space.rglob("*"):
        assert path.stem not in images
        assert path.name not in {"splits.csv", "config.json", "confident_mistakes.png"}
        if path.suffix in {".json", ".md", ".txt", ".py"} and "skinlesion" not in path.parts:
            assert str(sample) not in path.read_text()


def test_requirements_name_a_keras_that_reads_the_model_and_nothing_of_the_notebooks():
    names = [Requirement(line.split("#")[0]).name for line in list_requirements().splitlines()]
    assert {"tensorflow", "keras", "pillow"} <= set(names)
    assert not {"jupyter", "gradio"} & set(names)


def test_it_starts_by_itself_and_answers(space, evaluated_run, pictures):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": port}
    command = [sys.executable, "-u", "app.py"]
    with subprocess.Popen(
        command, cwd=space, env=os.environ | where, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            url = next(line.split()[1] for line in process.stdout if line.startswith("demo: http"))
            assert re.search(rf":{port}\b", url)
            assert DISCLAIMER in httpx.get(url).text
            client = Client(url, verbose=False)
            answer = client.predict(handle_file(pictures[5]), api_name="/predict")
        finally:
            process.terminate()
    expected = predict_image(evaluated_run, pictures[5]).to_dict()
    assert answer["sentence"] == expected["sentence"]
    assert answer["operating_point"] == expected["operating_point"]
    assert answer["p_malignant"] == pytest.approx(expected["p_malignant"], abs=1e-5)


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.2.3.4", "203.0.113.5", "203.0.113.5"),
        ("10.2.3.4", "198.51.100.7, 203.0.113.5, 10.9.9.9", "203.0.113.5"),
        ("203.0.113.5", "198.51.100.7", "203.0.113.5"),
    ],
)
def test_an_invented_address_is_not_that_of_the_client(space, peer, forwarded, client):
    """As the server, uvicorn, reads the variable that `app.py` sets."""
    assert f'"FORWARDED_ALLOW_IPS", "{PROXIES}"' in (space / "app.py").read_text()
    seen = []

    async def answer(scope, receive, send):
        seen.append(scope["client"][0])

    headers = [(b"x-forwarded-for", forwarded.encode())]
    scope = {"type": "http", "client": (peer, 5), "headers": headers}
    asyncio.run(ProxyHeadersMiddleware(answer, PROXIES)(scope, None, None))
    assert seen == [client]


def test_a_folder_with_something_in_it_is_left_alone(space, evaluated_run):
    with pytest.raises(InputError, match="is not empty"):
        make_space(Run(evaluated_run), space)


def test_of_other_images_no_licence_is_claimed_and_no_other_file_is_taken(run_copy, tmp_path):
    edit_bundle(run_copy / "model", synthetic=False, source="our clinic")
    (run_copy / "model" / "patient.jpg").touch()
    folder = make_space(Run.find(run_copy / "model"), tmp_path / "space")
    assert "license" not in yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert not list(folder.rglob("patient.jpg"))


def test_an_uncalibrated_model_is_refused(run_copy, tmp_path):
    run = Run(run_copy)
    edit_bundle(run.model_dir, calibration=None)
    with pytest.raises(InputError, match="calibrate"):
        make_space(run, tmp_path / "space")
