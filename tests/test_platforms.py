"""The notebooks on Kaggle, Colab and a laptop: with the folders, variables and network of each."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import sandbox
from conftest import REAL_DATA, REAL_WEIGHTS

from skinlesion.data.ham10000 import METADATA_NAME

ROOT = Path(__file__).parent.parent
NAMES = ["01_copy_images", "02_split_metadata", "03_train", "04_evaluate", "05_gradio_demo"]
QUICK = {"image_size": [32, 48], "epochs": 1, "batch_size": 16, "top_stage": "conv2"}
DATASET = "datasets/kmader/skin-cancer-mnist-ham10000"
WEIGHTS_NAME = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"

pytestmark = pytest.mark.skipif(
    not sandbox.is_possible(), reason="this machine lets nobody make a namespace (unshare)"
)


@pytest.fixture(scope="module")
def stand_alone(tmp_path_factory):
    """The notebooks that `scripts/make_kaggle.py` makes."""
    out = tmp_path_factory.mktemp("kaggle")
    script = [ROOT / "scripts/make_kaggle.py", "--user", "someone", "--out", out]
    subprocess.run([sys.executable, *script, "--python", sys.executable], check=True)
    return out


@pytest.fixture(scope="module")
def kaggle_sample(sample, tmp_path_factory):
    """The sample as Kaggle shows HAM10000: each image under two folder names, and other tables."""
    return as_kaggle_shows(sample, tmp_path_factory.mktemp("mount"))


@pytest.fixture(scope="module")
def attached_weights(conv2_weights, tmp_path_factory):
    """A folder with a file of weights, named as Keras names it."""
    folder = tmp_path_factory.mktemp("attached")
    shutil.copyfile(conv2_weights, folder / WEIGHTS_NAME)
    return folder


def as_kaggle_shows(data, folder):
    for part in ("images_part_1", "images_part_2"):
        for spelling in ("HAM10000", "ham10000"):
            (folder / f"{spelling}_{part}").mkdir()
            for path in (data / f"HAM10000_{part}").iterdir():
                (folder / f"{spelling}_{part}" / path.name).symlink_to(path)
    for path in data.iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    for name in ("hmnist_28_28_RGB.csv", "hmnist_8_8_L.csv"):
        (folder / name).write_text("pixel0000,label\n0,2\n")
    return folder


def with_settings(source, folder, **settings):
    """A copy of a notebook with parameters as papermill would set them."""
    notebook = nbformat.read(source, as_version=4)
    (index,) = (
        index
        for index, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", ())
    )
    known = [line.split(" = ")[0] for line in notebook.cells[index].source.splitlines()]
    lines = [f"{name} = {value!r}" for name, value in settings.items() if name in known]
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, folder / source.name)
    return folder / source.name


def start(notebook, tmp, **machine):
    """Run All on a notebook that lies in the folder where the machine starts."""
    tmp.mkdir()
    out = notebook.with_suffix(".executed.ipynb")
    options = ("--to", "notebook", "--execute", "--output", out.name)
    name = f"{machine['cwd']}/{notebook.name}"
    return out, sandbox.run("jupyter", "nbconvert", *options, name, tmp=tmp, **machine)


def execute(notebook, tmp, **machine):
    """The same without an error; what it printed."""
    out, finished = start(notebook, tmp, **machine)
    assert finished.returncode == 0, sandbox.describe(finished)
    cells = nbformat.read(out, as_version=4).cells
    return "".join(o.get("text", "") for cell in cells for o in cell.get("outputs", ()))


def kaggle(notebook, tmp, inputs, how=None):
    """Run All in a batch session of Kaggle with folders attached."""
    return (how or execute)(
        notebook,
        tmp,
        read_only={f"/kaggle/input/{place}": folder for place, folder in inputs.items()},
        writable={"/kaggle/working": notebook.parent},
        cwd="/kaggle/working",
        KAGGLE_KERNEL_RUN_TYPE="Batch",
    )


def test_on_kaggle_each_notebook_is_a_session_and_uses_what_the_others_left(
    stand_alone, kaggle_sample, attached_weights, tmp_path
):
    inputs = {DATASET: kaggle_sample, "datasets/keras/resnet50": attached_weights}
    printed = {}
    for name in NAMES:
        source = stand_alone / name
        needed = json.loads((source / "kernel-metadata.json").read_text())["kernel_sources"]
        earlier = {
            f"notebooks/{slug}": tmp_path / number
            for slug in needed
            for number in NAMES
            if slug == f"someone/skinlesion-{number.replace('_', '-')}"
        }
        assert len(earlier) == len(needed)
        notebook = with_settings(source / f"{name}.ipynb", tmp_path / name, settings=QUICK)
        printed[name] = kaggle(notebook, tmp_path / f"m_{name}", inputs | earlier)
        assert printed[name].startswith("skinlesion on Kaggle: Python 3.")
        assert "results: /kaggle/working" in printed[name]
    scratch = tmp_path / "m_01_copy_images/scratch/skinlesion/images"
    assert f"84 images in {scratch}" in printed["01_copy_images"]
    assert not list((tmp_path / "01_copy_images").rglob("*.jpg"))
    split = "taken from /kaggle/input/notebooks/someone/skinlesion-02-split-metadata/splits"
    assert split in printed["03_train"]
    assert (
        f"loaded from /kaggle/input/datasets/keras/resnet50/{WEIGHTS_NAME}" in (printed["03_train"])
    )
    for name, earlier in (("04_evaluate", "03-train"), ("05_gradio_demo", "04-evaluate")):
        run = f"taken from /kaggle/input/notebooks/someone/skinlesion-{earlier}/runs/default"
        assert run in printed[name]
        assert "using the finished run" in printed[name]
    assert (tmp_path / "04_evaluate/runs/default/evaluation/metrics.json").is_file()
    assert "demo: http://127.0.0.1" in printed["05_gradio_demo"]


def test_on_kaggle_all_in_one_with_the_old_mounts(stand_alone, sample, conv2_weights, tmp_path):
    """With the real images and weights where they are set, otherwise with the sample."""
    is_real = bool(REAL_DATA and REAL_WEIGHTS)
    data, weights = (REAL_DATA, REAL_WEIGHTS) if is_real else (sample, conv2_weights)
    for name in ("mount", "weights"):
        (tmp_path / name).mkdir()
    mount = as_kaggle_shows(Path(data), tmp_path / "mount")
    (tmp_path / "weights" / WEIGHTS_NAME).symlink_to(weights)
    notebook = with_settings(
        stand_alone / "all_in_one/all_in_one.ipynb",
        tmp_path / "working",
        settings=QUICK | {"limit": 300},
    )
    inputs = {"skin-cancer-mnist-ham10000": mount, "resnet50": tmp_path / "weights"}
    printed = kaggle(notebook, tmp_path / "machine", inputs)
    count = "10,015" if is_real else "84"
    assert f"{count} images in {tmp_path}/machine/scratch/skinlesion/images" in printed
    assert f"loaded from /kaggle/input/resnet50/{WEIGHTS_NAME}" in printed
    assert "demo: http://127.0.0.1" in printed
    metrics = json.loads((tmp_path / "working/runs/default/evaluation/metrics.json").read_text())
    assert metrics["synthetic"] is not is_real
    assert metrics["n"] > (1_400 if is_real else 0)


def test_on_kaggle_without_the_run_a_late_notebook_says_how_to_attach_it(
    stand_alone, kaggle_sample, tmp_path
):
    source = stand_alone / "05_gradio_demo/05_gradio_demo.ipynb"
    quick = {"settings": QUICK | {"limit": 30}, "weights": "none"}
    notebook = with_settings(source, tmp_path / "working", **quick)
    _, finished = kaggle(notebook, tmp_path / "machine", {DATASET: kaggle_sample}, start)
    assert finished.returncode != 0
    assert "no finished run here. Run notebook 03_train first" in finished.stderr
    assert "attach its output (Add Input > Notebooks)" in finished.stderr
    assert "train_if_missing = True" in finished.stderr
    assert not (tmp_path / "working/runs").exists()


def test_on_colab_from_a_clone_with_drive(sample, tmp_path):
    content, colab = tmp_path / "content", tmp_path / "colab"
    (content / "drive/MyDrive").mkdir(parents=True)
    (content / "skinlesion").mkdir()
    (colab / "google/colab").mkdir(parents=True)
    (colab / "google/colab/__init__.py").touch()
    for number, name in enumerate(NAMES):
        notebook = with_settings(
            ROOT / f"notebooks/{name}.ipynb",
            content,
            settings=QUICK,
            weights="none",
        )
        printed = execute(
            notebook,
            tmp_path / f"m_{number}",
            read_only={"/content/skinlesion": ROOT, "/opt/colab": colab},
            writable={"/content": content},
            cwd="/content",
            PYTHONPATH="/opt/colab",
            HAM10000_DIR=str(sample),
            SKINLESION_UNATTENDED="1",
        )
        assert printed.startswith("skinlesion on Google Colab")
        assert "results: /content/drive/MyDrive/skinlesion, kept in your Drive" in printed
    results = content / "drive/MyDrive/skinlesion"
    assert (results / "runs/default/evaluation/metrics.json").is_file()
    assert not list(results.rglob("*.jpg"))


def test_on_a_laptop_in_the_folder_of_the_notebooks(sample, tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "skinlesion", clone / "skinlesion")
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, clone / name)
    for number, name in enumerate(NAMES):
        notebook = with_settings(
            ROOT / f"notebooks/{name}.ipynb",
            clone / "notebooks",
            settings=QUICK,
            weights="none",
        )
        printed = execute(
            notebook,
            tmp_path / f"m_{number}",
            read_only={},
            writable={},
            cwd=str(clone / "notebooks"),
            HAM10000_DIR=str(sample),
            SKINLESION_UNATTENDED="1",
        )
        assert printed.startswith("skinlesion on this machine")
        assert "warning" not in printed
    results = clone / "notebooks/outputs"
    assert (results / "runs/default/evaluation/metrics.json").is_file()
    assert (results / "images" / METADATA_NAME).is_file()


def test_on_a_laptop_without_a_clone_the_package_comes_from_its_address(tmp_path):
    published, target = tmp_path / "published", tmp_path / "target"
    target.mkdir()
    shutil.copytree(
        ROOT, published, ignore=shutil.ignore_patterns(".*", "outputs", "build", "*.egg-info")
    )
    git = ("git", "-C", published, "-c", "user.name=a", "-c", "user.email=a@b.c")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"], ["tag", "v0.3.0"]):
        subprocess.run([*git, *command], check=True)
    notebook = nbformat.read(ROOT / "notebooks/02_split_metadata.ipynb", as_version=4)
    notebook.cells = notebook.cells[:2]
    before = notebook.cells[1].source
    notebook.cells[1].source = before.replace(
        "https://github.com/YOUR_NAME/skinlesion", f"file://{published}"
    )
    assert notebook.cells[1].source != before
    nbformat.write(notebook, tmp_path / "first.ipynb")
    printed = execute(
        tmp_path / "first.ipynb",
        tmp_path / "machine",
        read_only={},
        writable={},
        cwd=str(tmp_path),
        # Into a folder of its own, not the tests' environment; and with its setuptools.
        PIP_TARGET=str(target),
        PYTHONPATH=str(target),
        PIP_NO_BUILD_ISOLATION="0",
        PIP_DISABLE_PIP_VERSION_CHECK="1",
    )
    assert "skinlesion on this machine" in printed
    assert sorted(path.name for path in target.iterdir()) == [
        "skinlesion",
        "skinlesion-0.3.0.dist-info",
    ]


def test_the_sandbox_is_what_it_says(tmp_path):
    (tmp_path / "input").mkdir()
    check = (
        "import importlib.util as u, socket, pathlib; assert not u.find_spec('skinlesion')\n"
        "try: pathlib.Path('/kaggle/input/x/new').touch(); raise SystemExit('writable')\n"
        "except OSError: pass\n"
        "try: socket.create_connection(('10.255.255.1', 80), 1); raise SystemExit('network')\n"
        "except OSError as error: assert 'unreachable' in str(error), error\n"
    )
    finished = sandbox.run(
        sys.executable,
        "-c",
        check,
        tmp=tmp_path,
        read_only={"/kaggle/input/x": tmp_path / "input"},
        writable={},
        cwd="/kaggle",
    )
    assert finished.returncode == 0, sandbox.describe(finished)
    assert not Path("/kaggle").exists() or os.environ.get("KAGGLE_KERNEL_RUN_TYPE")
