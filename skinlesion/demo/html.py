"""HTML and tables that show results. The styles are in `page.css`."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files

import pandas as pd

from skinlesion.demo.result import Failure, RankedDiagnosis, Result, format_percent
from skinlesion.diagnoses import DISCLAIMER

CSS = (files("skinlesion.demo") / "page.css").read_text(encoding="utf-8")
WAITING = "The result appears here."
HOW_TO_READ = f"""\
Probabilities are calibrated: of all images with {format_percent(0.7)}, about 7 in 10 should have
that diagnosis, if diagnoses are as frequent as among the training images. The ticked diagnoses are
the prediction set. It contained the true diagnosis of 9 in 10 validation images."""
PROBLEMS = {
    "small": "It has few pixels and was enlarged. Important details may be missing.",
    "blurred": "It is less sharp than 99 % of the validation images.",
    "low contrast": "It has less contrast than 99 % of the validation images.",
    "dark": "It is darker than 99 % of the validation images.",
    "bright": "It is brighter than 99 % of the validation images.",
}
"""What each problem of `evaluation.quality.find_problems` means."""


def render_nothing() -> str:
    """Render the place of the result before there is an image."""
    return _section(f"<p class='quiet'>{WAITING}</p>")


def render_failure(message: str) -> str:
    """Render the reason why an upload cannot be predicted."""
    return _section(f"<p class='headline warning'><strong>{escape(message)}</strong></p>")


def render_result(result: Result) -> str:
    """Render a result: headline, quality problems, meaning, all diagnoses, notes."""
    parts = [
        _headline(result),
        _problems(result.problems),
        f"<p>{escape(result.sentence)}</p>",
    ]
    if result.is_in_distribution:
        parts += [
            _error_rates(result),
            _table(result.diagnoses),
            f"<p class='quiet'>{HOW_TO_READ} The model {escape(result.rule)}.</p>",
        ]
    else:
        parts += [
            "<details><summary>Show the predictions anyway</summary>",
            _table(result.diagnoses),
            "</details>",
        ]
    return _section("".join(parts) + f"<p class='quiet'><strong>{DISCLAIMER}</strong></p>")


def make_short_table(results: Sequence[Result | Failure]) -> pd.DataFrame:
    """Make the table of several images that the page shows; an error replaces the result."""
    rows = [
        {
            "Image": one.file,
            "Result": one.headline,
            "Prediction": one.predicted.name,
            "Probability": format_percent(one.predicted.probability),
            "Prediction set": " ".join(one.prediction_set),
            "Malignant": _format_malignancy(one),
            "Quality": ", ".join(one.problems) or "ok",
        }
        if isinstance(one, Result)
        else {"Image": one.file, "Result": one.error}
        for one in results
    ]
    columns = ["Image", "Result", "Prediction", "Probability"]
    columns += ["Prediction set", "Malignant", "Quality"]
    if any(isinstance(one, Result) and one.p_malignant is None for one in results):
        columns.remove("Malignant")
    return pd.DataFrame(rows, columns=columns).fillna("")


def _section(inner: str) -> str:
    return f"<section class='result' role='status' aria-live='polite'>{inner}</section>"


def _headline(result: Result) -> str:
    kind, detail = "warning", ""
    if result.is_in_distribution:
        kind = {True: "malignant", False: "benign", None: "warning"}[result.is_malignant]
        if share := _format_malignancy(result):
            detail = f"<span>Probability of malignancy: {share}</span>"
        else:
            kind = "plain"
    return f"<p class='headline {kind}'><strong>{escape(result.headline)}</strong>{detail}</p>"


def _format_malignancy(result: Result) -> str:
    return "" if result.p_malignant is None else format_percent(result.p_malignant)


def _problems(problems: tuple[str, ...]) -> str:
    if not problems:
        return ""
    lines = "".join(f"<li>{PROBLEMS[problem]}</li>" for problem in problems)
    return f"<div class='quality'><strong>Check the image quality</strong><ul>{lines}</ul></div>"


def _error_rates(result: Result) -> str:
    point = result.operating_point
    if point.sensitivity is None or point.specificity is None:
        return ""
    shares = (
        f"{name} {share['value']:.3f} ({share['low']:.3f} to {share['high']:.3f})"
        for name, share in (("sensitivity", point.sensitivity), ("specificity", point.specificity))
    )
    text = f"Measured on {point.n_test:,} test images, with 95 % intervals: {', '.join(shares)}."
    return f"<p class='quiet'>{text}</p>"


def _table(diagnoses: tuple[RankedDiagnosis, ...]) -> str:
    titles = ("Diagnosis", "Probability", "In set")
    head = "".join(f"<th scope='col'>{title}</th>" for title in titles)
    rows = "".join(map(_row, diagnoses))
    return (
        "<table><caption>All diagnoses</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _row(diagnosis: RankedDiagnosis) -> str:
    kind = {True: "malignant", False: "benign", None: ""}[diagnosis.malignant]
    ticked = "<span aria-label='yes'>&#10003;</span>" if diagnosis.in_prediction_set else ""
    return (
        f"<tr class='{kind}'><th scope='row'>{escape(diagnosis.name)} <small>{kind}</small></th>"
        f"<td><div><div class='bar'><i style='width:{100 * diagnosis.probability:.1f}%'></i></div>"
        f"<b>{format_percent(diagnosis.probability)}</b></div></td><td>{ticked}</td></tr>"
    )
