"""Where a run answers the items of two reporting guidelines, from the table `checklist.csv`.

TRIPOD+AI is for prediction models (Collins et al., BMJ 2024;385:e078378,
doi:10.1136/bmj-2023-078378), CLEAR Derm for image-based models in dermatology (Daneshjou et al.,
JAMA Dermatology 2022;158:90, doi:10.1001/jamadermatol.2021.4915).
"""

from importlib.resources import files
from typing import Any

import pandas as pd

from skinlesion.data.dataset import GAPS_NAME
from skinlesion.data.ham10000 import HAM10000
from skinlesion.diagnoses import DISCLAIMER, SYNTHETIC_NOTE
from skinlesion.evaluation.markdown import make_markdown_table
from skinlesion.files import read_json
from skinlesion.model.run import Run
from skinlesion.model.train import QUARANTINE_NAME

NOT_REPORTED = "not reported"
TITLES = {
    "TRIPOD+AI": "[TRIPOD+AI](https://doi.org/10.1136/bmj-2023-078378)",
    "CLEAR Derm": "[CLEAR Derm](https://doi.org/10.1001/jamadermatol.2021.4915)",
}
HEAD = f"""\
# Checklists

**{DISCLAIMER}**

Where this run answers the items of two reporting guidelines. Files are in the folder of the run.
The titles of the items are shortened."""
PAPER = (
    "The paper of HAM10000: [doi:10.1038/sdata.2018.161](https://doi.org/10.1038/sdata.2018.161)"
)


def make_checklist(run: Run, metrics: dict[str, Any]) -> str:
    """Say for each item in which file of an evaluated run it is answered, or that it is not.

    A row of `checklist.csv` counts if the run has all that the row `needs`.

    Args:
        run: the run.
        metrics: what its `metrics.json` will hold.

    Returns:
        Markdown.

    Raises:
        InputError: a file of the run is damaged.
    """
    external = find_external(run)
    facts = _find_facts(run, metrics) | ({"external"} if external else set())
    with (files("skinlesion.evaluation") / "checklist.csv").open(encoding="utf-8") as file:
        rows = pd.read_csv(file, dtype=str, keep_default_na=False)
    holds = [set(needs.split()) <= facts for needs in rows["needs"]]
    answers = rows["answer"].where(holds, "").str.replace("{external}", external)
    rows = rows.assign(answer=answers)
    parts = [HEAD, *([SYNTHETIC_NOTE] if run.synthetic else [PAPER] if "real" in facts else [])]
    for guideline, items in rows.groupby("guideline", sort=False):
        found = items.groupby(["item", "title"], sort=False)["answer"]
        answered = found.agg(lambda given: "; ".join(filter(None, given)) or NOT_REPORTED)
        table = answered.reset_index().itertuples(index=False)
        parts += [f"## {TITLES[guideline]}", make_markdown_table(("item", "about", "where"), table)]
    return "\n\n".join(parts) + "\n"


def find_external(run: Run) -> str:
    """Name the evaluations on external images in a run's own folder; empty without any."""
    found = [path for path in run.folder.glob("*/metrics.json") if "external" in read_json(path)]
    return ", ".join(f"`{path.parent.name}/metrics.json`" for path in sorted(found))


def _find_facts(run: Run, metrics: dict[str, Any]) -> set[str]:
    config = run.config
    facts = {
        "real": run.info.source == HAM10000.source and not run.synthetic,
        "malignancy": run.info.malignant is not None,
        "synthetic": run.synthetic,
        "weighted": config.class_weights != "none",
        "unweighted": config.class_weights == "none",
        "epochs": not run.history.empty,
        "commit": bool(run.description["commit"]),
        "incomplete": (run.folder / GAPS_NAME).is_file(),
        "quarantine": (run.folder / QUARANTINE_NAME).is_file(),
        "subgroups": (run.evaluation_dir / "subgroups.csv").is_file(),
        "costs": "cost_decision" in metrics,
    }
    return {name for name, holds in facts.items() if holds}
