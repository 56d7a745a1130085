"""The numbered notebooks: what they promise in their text, and a run from top to bottom."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

import skinlesion as sl
from skinlesion.data.synthetic import make_sample

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ["01_copy_images", "02_split_metadata", "03_train", "04_evaluate", "05_gradio_demo"]
QUICK = [
    '--set=settings={"image_size": [32, 48], "epochs": 1, "top_stage": "conv2"}',
    '--set=weights="none"',
]


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--only=04_evalaute", "no notebook 04_evalaute; there are 01_copy_images"),
        ("--set=recipe=probe", "--set recipe=probe: no JSON"),
    ],
)
def test_a_mistake_in_an_option_is_one_line(tmp_path, option, message):
    finished = run_notebooks("--data", tmp_path, "--work", tmp_path / "work", option)
    assert finished.returncode == 2
    assert message in finished.stderr.splitlines()[-1]


def run_notebooks(*arguments):
    script = ROOT / "scripts" / "run_notebooks.py"
    # The tests' own backend shows nothing; notebooks use their own.
    ours = ("SKINLESION_WEIGHTS", "MPLBACKEND")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_five_numbered_notebooks():
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestEachNotebook:
    def test_says_what_it_reads_writes_and_takes(self, path):
        first = read(path).cells[0].source
        for word in ("**reads**", "**writes**", "**takes**", "not for clinical use"):
            assert word in first

    def test_has_one_cell_of_parameters(self, path):
        tagged = [c for c in read(path).cells if "parameters" in c.metadata.get("tags", ())]
        assert len(tagged) == 1

    def test_begins_with_the_cell_that_finds_the_package(self, path):
        first, *others = code_cells(path)
        assert first.metadata["tags"] == ["bootstrap"]
        assert first.source == code_cells(NOTEBOOKS[0])[0].source
        assert len(first.source.splitlines()) <= 15
        assert not any("bootstrap" in cell.metadata.get("tags", ()) for cell in others)

    def test_holds_no_logic_and_no_long_cell(self, path):
        for cell in code_cells(path)[1:]:
            assert not re.search(r"^\s*(def|class|for|while|try|if) ", cell.source, re.M)
            assert "sys.path" not in cell.source
            is_parameters = "parameters" in cell.metadata.get("tags", ())
            assert is_parameters or len(cell.source.splitlines()) <= 10

    def test_code_comes_after_a_reason(self, path):
        cells = read(path).cells
        assert sum(cell.source.startswith("## ") for cell in cells) >= 3
        # Set-up follows the parameters; two cells of code may follow one reason.
        kinds = "".join("m" if cell.cell_type == "markdown" else "c" for cell in cells)
        assert kinds.startswith("mcmccm")
        assert "ccc" not in kinds

    def test_is_committed_with_outputs_of_the_sample_under_1_mb(self, path):
        assert path.stat().st_size < 1_000_000
        cells = code_cells(path)
        assert any(cell.outputs for cell in cells)
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        text = path.read_text()
        assert "ynthetic sample" in text
        assert not any(output.get("output_type") == "error" for c in cells for output in c.outputs)
        # No path of the machine that made the outputs.
        assert not re.search(r"/(home|root|tmp|work|Users)/", text)


@pytest.fixture(scope="module")
def executed(sample, tmp_path_factory):
    """All five, in order, on the sample."""
    work = tmp_path_factory.mktemp("notebooks")
    finished = run_notebooks("--data", sample, "--work", work, "--html", *QUICK)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return work


def test_top_to_bottom_each_finds_what_the_one_before_left(executed):
    assert sorted(path.stem for path in (executed / "notebooks").glob("*.ipynb")) == NAMES
    text = (executed / "notebooks" / "04_evaluate.ipynb").read_text()
    assert "using the finished run" in text
    assert (executed / "runs" / "default" / "evaluation" / "metrics.json").is_file()


def test_three_classes_of_ones_own_go_through_all_of_them(tmp_path):
    """Without lesion ids, without malignancy, and without columns for subgroups."""
    data = make_sample(tmp_path / "own", images_per_class=12, classes=3)
    table = pd.read_csv(data / "metadata.csv")
    table[["image", "diagnosis"]].to_csv(data / "metadata.csv", index=False)
    finished = run_notebooks("--data", data, "--work", tmp_path / "work", *QUICK)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    text = (tmp_path / "work" / "notebooks" / "05_gradio_demo.ipynb").read_text()
    assert "Predicted: " in text


def test_a_report_in_html_holds_figures_and_images(executed):
    page = (executed / "notebooks" / "04_evaluate.html").read_text()
    assert "balanced accuracy" in page
    assert page.count("data:image/png;base64") >= 9
    assert "not for clinical use" in page


def test_every_figure_made_from_the_sample_is_captioned(executed):
    for path in (executed / "notebooks").glob("*.ipynb"):
        figures = [
            output
            for cell in code_cells(path)
            for output in cell.outputs
            if "image/png" in output.get("data", {})
        ]
        # Captioned here, or saved by `evaluate`, or drawn by a function that captions.
        said = ("plots.caption(", "Image(", "sl.plot_")
        captions = sum(any(word in cell.source for word in said) for cell in code_cells(path))
        assert len(figures) == captions


def test_a_recipe_without_epochs_and_without_augmentation(sample, tmp_path):
    settings = '--set=settings={"image_size": [32, 48], "top_stage": "conv2"}'
    command = ("--data", sample, "--work", tmp_path, "--only", "03_train", settings, QUICK[1])
    for _ in range(2):  # the second time, the run is finished
        finished = run_notebooks(*command, '--set=recipe="probe"')
        assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
        notebook = tmp_path / "notebooks" / "03_train.ipynb"
        shown = [
            output.data.get("text/html", "")
            for cell in code_cells(notebook)
            for output in cell.outputs
            if "data" in output
        ]
        (probe,) = (table for table in shown if "val_accuracy" in table)
        assert probe.count("<tr>") == 1 + 5
        assert "seagreen" in probe
        assert not any("Empty DataFrame" in table for table in shown)
    assert "this run is finished, so nothing was trained" in finished.stdout
    text = notebook.read_text()
    assert "This recipe does not augment" in text
    assert "Recipe `probe` has no epochs: see the table of the logistic regression above" in text


class TestChangeIt:
    """The examples at the end of notebook 3."""

    @pytest.fixture
    def examples(self):
        (text,) = (c.source for c in read(NOTEBOOKS[2]).cells if c.source.startswith("## Change"))
        return re.findall(r"```python\n(.*?)```", text, re.S)

    def test_a_setting(self, examples):
        names = {}
        exec(examples[0], names)
        assert sl.make_config(**names["settings"]).learning_rate == 3e-5
        assert names["name"]

    def test_a_callback_and_an_augmentation(self, examples, sample, tiny_config, tmp_path):
        names = {
            "sl": sl,
            "run": sl.Run(tmp_path / "run"),
            "config": tiny_config,
            "time_limit": None,
            "model": sl.build_model(tiny_config, 7),
        }
        exec(examples[2], names)
        exec(examples[1], names)
        model, run = names["model"], names["run"]
        split = sl.make_split(sl.load_metadata(sample), "grouped")
        train, validation = sl.make_datasets(sample, split, tiny_config)
        sl.begin_run(run, model, sample, split, tiny_config)
        sl.compile_model(model, tiny_config, steps=len(train))
        model.fit(train, validation_data=validation, callbacks=names["callbacks"], verbose=0)
        sl.finish_run(run, model, tiny_config)
        assert "random_translation" in model.get_layer("augmentation").layers[-1].name
        assert len((run.folder / "log.csv").read_text().splitlines()) == 2
        assert sl.Run(run.folder).load_model().name == "classifier"


def test_a_late_notebook_trains_when_it_is_asked_to(sample, tmp_path):
    """Otherwise it refuses: see `test_platforms.py`."""
    command = ("--data", sample, "--work", tmp_path, "--only", "05_gradio_demo", *QUICK)
    finished = run_notebooks(*command, "--set=train_if_missing=true")
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert "train: epoch 1 of 1" in finished.stdout
    assert "demo: http://127.0.0.1" in finished.stdout
    assert (tmp_path / "runs" / "default" / "model" / "model.keras").is_file()


def test_notebook_3_shows_keras(executed):
    source = "".join(cell.source for cell in code_cells(executed / "notebooks" / "03_train.ipynb"))
    for call in (
        "sl.build_model(",
        "model.summary()",
        "model.fit(",
        "callbacks=sl.make_callbacks(",
    ):
        assert call in source


def test_the_parameters_have_the_same_names_in_all():
    """What two notebooks share is called, ordered and set alike."""
    cells = [
        c
        for path in NOTEBOOKS
        for c in code_cells(path)
        if "parameters" in c.metadata.get("tags", ())
    ]
    lines = [cell.source.splitlines() for cell in cells]
    for one in lines:
        for other in lines:
            assert [x for x in one if x in other] == [x for x in other if x in one]
            names = [{line.split(" = ")[0] for line in x} for x in (one, other)]
            assert len(set(one) & set(other)) == len(names[0] & names[1])


def test_a_failing_cell_fails_the_run(tmp_path):
    finished = run_notebooks("--data", tmp_path, "--work", tmp_path / "work")
    assert finished.returncode != 0
    assert "no HAM10000_metadata.csv" in finished.stderr
