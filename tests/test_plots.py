import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from skinlesion.data.ham10000 import HAM10000
from skinlesion.diagnoses import SYNTHETIC_NOTE
from skinlesion.evaluation import examples, plots
from skinlesion.evaluation.metrics import compute_metrics


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def matrix():
    matrix = np.diag([8, 5, 3, 2, 6, 40, 1])
    matrix[4, 5] = 4
    matrix[3] = 0
    return matrix


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_confusion_matrix_shows_counts(matrix):
    ax = plots.plot_confusion_matrix(matrix, HAM10000.labels)
    assert texts(ax) == [str(count) for count in matrix.ravel()]
    assert [label.get_text() for label in ax.get_xticklabels()] == list(HAM10000.labels)
    assert ax.get_yticklabels()[4].get_text() == "mel (10)"


def test_normalised_rows_add_up_to_one_and_an_empty_row_is_zero(matrix):
    shares = np.array(
        texts(plots.plot_confusion_matrix(matrix, HAM10000.labels, normalize=True)), float
    )
    sums = shares.reshape(7, 7).sum(axis=1)
    assert np.allclose(sums, [1, 1, 1, 0, 1, 1, 1])


def test_draws_on_the_axes_it_is_given(matrix):
    _, ax = plt.subplots()
    assert plots.plot_confusion_matrix(matrix, HAM10000.labels, ax=ax) is ax


def test_learning_curves_show_both_sets():
    history = pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "loss": [3.0, 2.0, 1.0],
            "val_loss": [3.0, 2.5, 2.0],
            "accuracy": [0.1, 0.2, 0.3],
            "val_accuracy": [0.2, 0.3, 0.4],
        }
    )
    loss, accuracy = plots.plot_learning_curves(history)
    assert [line.get_label() for line in loss.lines] == ["training", "validation"]
    assert accuracy.lines[1].get_ydata().tolist() == [0.2, 0.3, 0.4]


def test_learning_curves_without_an_epoch_say_why():
    loss, accuracy = plots.plot_learning_curves(pd.DataFrame())
    assert not loss.axison
    assert not accuracy.axison
    assert "Recipe probe has no epochs" in texts(loss)[0]


def test_sample_predictions_are_green_when_right_and_red_when_wrong(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "black.png")
    rows = {"path": tmp_path / "black.png", "label": 4, "predicted": [4, 5], "confidence": 0.9}
    figure = examples.draw_samples(pd.DataFrame(rows), HAM10000.labels, seed=0)
    right, wrong = sorted(figure.axes[:2], key=lambda ax: ax.get_title())
    assert right.get_title() == "true mel\npredicted mel 90%"
    assert wrong.get_title() == "true mel\npredicted nv 90%"
    assert to_rgb(right.title.get_color()) == to_rgb("green")
    assert to_rgb(wrong.title.get_color()) == to_rgb("red")


@pytest.fixture(scope="module")
def judged():
    rng = np.random.default_rng(0)
    y_true = rng.integers(0, 6, 200)  # no vasc
    y_prob = rng.dirichlet(np.ones(7), 200) + np.eye(7)[y_true]
    return y_true, y_prob / 2


@pytest.mark.parametrize(
    ("plot", "figure"),
    [
        (plots.plot_roc_curves, "auc"),
        (plots.plot_precision_recall_curves, "average_precision"),
    ],
)
def test_curves_of_classes_with_cases_and_of_malignancy(judged, plot, figure):
    metrics = compute_metrics(*judged, HAM10000, n_bootstrap=20)
    ax = plot(*judged, metrics, HAM10000)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [name.split()[0] for name in names] == [*HAM10000.labels[:6], "malignant"]
    row = metrics["per_class"]["mel"][figure]
    assert names[4] == f"mel {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def test_the_area_under_the_drawn_curve_is_the_one_in_the_legend(judged):
    metrics = compute_metrics(*judged, HAM10000, n_bootstrap=5)
    line = plots.plot_roc_curves(*judged, metrics, HAM10000).lines[1 + 4]
    area = np.trapezoid(line.get_ydata(), line.get_xdata())
    assert area == pytest.approx(metrics["per_class"]["mel"]["auc"]["value"])


def test_reliability_shows_the_share_right_in_each_bin():
    y_prob = np.zeros((4, 7))
    y_prob[:, 5] = 0.7
    y_prob[:, 4] = 0.3
    ax = plots.plot_reliability(np.array([5, 5, 5, 4]), {"before": y_prob})
    (line,) = [line for line in ax.lines if line.get_label() == "before"]
    assert line.get_xdata() == pytest.approx([0.7])
    assert line.get_ydata() == pytest.approx([0.75])


def test_risk_coverage_and_forest_show_values_and_intervals():
    rows = [{"coverage": c, "error": {"value": c / 4, "low": 0, "high": c}} for c in (1.0, 0.5)]
    ax = plots.plot_risk_coverage([row | {"missed": row["error"]} for row in rows])
    assert ax.lines[0].get_ydata() == pytest.approx([0.25, 0.125])
    table = pd.DataFrame({"label": ["a", "b"], "value": [0.5, 0.7], "low": 0.4, "high": 0.8})
    ax = plots.plot_forest(table, title="t", reference=0.6)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.lines[1].get_xdata().tolist() == [0.5, 0.7]
    assert ax.yaxis_inverted()


def test_no_images_is_a_figure_that_says_so():
    figure = plots.plot_images([], [])
    (ax,) = figure.axes
    assert texts(ax) == ["no images"]
    assert not ax.axison


def test_probabilities_are_sorted_and_named():
    probabilities = dict(zip(HAM10000.names, [0.1, 0.05, 0.05, 0.1, 0.5, 0.15, 0.05], strict=True))
    ax = plots.plot_probabilities(probabilities)
    assert [bar.get_width() for bar in ax.patches] == sorted(probabilities.values(), reverse=True)
    assert ax.get_yticklabels()[0].get_text() == "Melanoma"
    assert ax.get_xlim() == (0, 1)


def test_class_counts(tmp_path):
    split = pd.DataFrame({"dx": ["nv", "nv", "mel"], "split": ["train", "test", "train"]})
    ax = plots.plot_class_counts(split, HAM10000)
    assert sum(bar.get_width() for bar in ax.patches if bar.get_width() > 0) == 3


def test_only_synthetic_figures_say_so(tmp_path, matrix):
    for synthetic in (True, False):
        figure = plots.plot_confusion_matrix(matrix, HAM10000.labels).figure
        plots.caption(figure, synthetic=synthetic)
        assert (SYNTHETIC_NOTE in [text.get_text() for text in figure.texts]) == synthetic
        path = plots.save_figure(figure, tmp_path / "a.png")
        with Image.open(path) as image:
            assert image.width > 400
        assert not plt.fignum_exists(figure.number)
