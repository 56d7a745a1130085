"""What the demo writes into its page: HTML of a verdict. Looks stand in `page.css`."""

from html import escape
from importlib.resources import files

from skinlesion.demo.result import PROBLEMS, Candidate, Verdict, format_share
from skinlesion.diagnoses import DISCLAIMER

CSS = (files("skinlesion.demo") / "page.css").read_text(encoding="utf-8")
WAITING = "The result appears here."
HOW_TO_READ = """\
Confidences are calibrated: of images with 70 %, about 7 in 10 should have that diagnosis. Ticked
diagnoses are the prediction set, which held the true one for 9 of 10 validation images."""


def render_nothing(text: str = WAITING) -> str:
    """The place of the result while there is none."""
    return _section(f"<p class='quiet'>{escape(text)}</p>")


def render_failure(message: str) -> str:
    """Why an upload cannot be judged."""
    return _section(f"<p class='call warning'><strong>{escape(message)}</strong></p>")


def render_verdict(verdict: Verdict) -> str:
    """A verdict: what was looked at first, the call, the seven confidences."""
    parts = [_quality(verdict.problems), _call(verdict), f"<p>{escape(verdict.sentence)}</p>"]
    if verdict.is_dermatoscopic is False:
        parts += [
            "<details><summary>What the network answers all the same</summary>",
            _table(verdict.candidates),
            "</details>",
        ]
    else:
        parts += [
            _record(verdict),
            _table(verdict.candidates),
            f"<p class='quiet'>{HOW_TO_READ}</p>",
        ]
    return _section("".join(parts) + f"<p class='quiet'><strong>{DISCLAIMER}</strong></p>")


def _section(inner: str) -> str:
    return f"<section class='verdict' role='status' aria-live='polite'>{inner}</section>"


def _call(verdict: Verdict) -> str:
    kind, detail = "warning", ""
    if verdict.is_dermatoscopic is not False:
        kind = "malignant" if verdict.is_malignant else "benign"
        detail = f"<span>{format_share(verdict.malignancy)} malignant</span>"
    return f"<p class='call {kind}'><strong>{escape(verdict.call)}</strong>{detail}</p>"


def _quality(problems: tuple[str, ...]) -> str:
    if not problems:
        return ""
    lines = "".join(f"<li>{PROBLEMS[problem]}</li>" for problem in problems)
    return f"<div class='quality'><strong>Mind the image's quality</strong><ul>{lines}</ul></div>"


def _record(verdict: Verdict) -> str:
    point = verdict.operating_point
    if point.sensitivity is None or point.specificity is None:
        return ""
    shares = (
        f"{name} {share['value']:.3f} ({share['low']:.3f} to {share['high']:.3f})"
        for name, share in (("sensitivity", point.sensitivity), ("specificity", point.specificity))
    )
    measured = f"At this threshold, on {point.images:,} test images: {', '.join(shares)}."
    return f"<p class='quiet'>{measured}</p>"


def _table(candidates: tuple[Candidate, ...]) -> str:
    rows = "".join(map(_row, candidates))
    head = "".join(
        f"<th scope='col'>{title}</th>" for title in ("Diagnosis", "Confidence", "In set")
    )
    return (
        "<table><caption>All seven diagnoses</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _row(candidate: Candidate) -> str:
    kind = "malignant" if candidate.malignant else "benign"
    ticked = "<span aria-label='yes'>&#10003;</span>" if candidate.in_prediction_set else ""
    return (
        f"<tr class='{kind}'><th scope='row'>{escape(candidate.name)} <small>{kind}</small></th>"
        f"<td><div><div class='bar'><i style='width:{100 * candidate.probability:.1f}%'></i></div>"
        f"<b>{format_share(candidate.probability)}</b></div></td><td>{ticked}</td></tr>"
    )
