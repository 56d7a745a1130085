"""Several runs as one ensemble, which every step takes as it takes a run."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from skinlesion.data.dataset import GAPS_NAME
from skinlesion.evaluation.calibration import (
    Calibration,
    fit_calibration,
    load_calibration,
    save_calibration,
)
from skinlesion.files import InputError, name_some, write_csv, write_json
from skinlesion.machine import say
from skinlesion.model.bundle import MOST_MEMBERS
from skinlesion.model.run import Run
from skinlesion.model.run_settings import find_other_settings

IMAGE = ["image_id", "label"]


def make_ensemble(out: Path, runs: Sequence[str | Path | Run]) -> Run:
    """Average the probabilities of several runs in one saved model, and calibrate it.

    The settings of the runs differ in the seed at most, and their test images are the same; the
    other images may be shared out as folds. Calibration comes after averaging (Rahaman and Thiery,
    arXiv:2007.08792), on all validation images, each predicted by the members that were not trained
    on it. Class shares, detection of unlike images and limits of quality are those of the first
    member.

    Args:
        out: folder of the ensemble: `config.json` with the members, `splits.csv` of the first one,
            and `model/`. An ensemble of the same models there is kept, another one is replaced.
        runs: trained and calibrated runs.

    Raises:
        InputError: the runs do not fit each other, or `out` holds a trained run.
    """
    members = [Run.find(run) for run in runs]
    _require_alike(members)
    first, ensemble = members[0], Run(out)
    described = _describe(members, out)
    require_no_training(ensemble)
    if ensemble.is_finished and ensemble.is_begun and ensemble.members == described:
        say(f"ensemble: {out} is finished already")
        return ensemble
    calibration = _calibrate(members)
    from skinlesion.model.ensemble import build_ensemble

    model = build_ensemble([run.load_model() for run in members])
    # Results of an earlier ensemble in this folder are not those of this one.
    for path in [ensemble.folder / "config.json", *ensemble.folder.glob("predictions_*.csv")]:
        path.unlink(missing_ok=True)
    shutil.rmtree(ensemble.evaluation_dir, ignore_errors=True)
    ensemble.save_model(model, first.info.model_copy(update={"calibration": None}))
    save_calibration(ensemble, calibration)
    write_csv(ensemble.splits_path, first.split)
    if first.allow_incomplete:
        shutil.copy2(first.folder / GAPS_NAME, ensemble.folder)
    # Deleted first and written last: where it names the members, the model is theirs.
    write_json(ensemble.folder / "config.json", first.description | {"members": described})
    say(f"ensemble: {len(members)} models in {ensemble.model_dir}")
    return ensemble


def _describe(members: Sequence[Run], out: Path) -> list[dict[str, Any]]:
    """What `config.json` says of each member; refuse a model that is given twice."""
    digests = [run.digest for run in members]
    pairs = list(zip(members, digests, strict=True))
    doubled = [str(run) for run, digest in pairs if digests.count(digest) > 1]
    if doubled:
        raise InputError(
            f"{name_some(doubled)}: one model is given more than once; name each run once"
        )
    return [
        {
            "run": os.path.relpath(run.folder, out),
            "seed": run.config.seed,
            "model_sha256": digest,
        }
        for run, digest in pairs
    ]


def require_no_training(run: Run) -> None:
    """Check that a folder is new or holds an ensemble, which can be made again.

    Raises:
        InputError: it holds a trained run, or the beginning of one.
    """
    if run.is_begun and not run.members:
        raise InputError(f"{run}: holds a run that was trained; name another folder")


def _require_alike(members: Sequence[Run]) -> None:
    """Check that runs can be averaged, and that one test is new to all of them."""
    if not 2 <= len(members) <= MOST_MEMBERS:
        raise InputError(
            f"an ensemble has 2 to {MOST_MEMBERS} different runs. Received: {len(members)}"
        )
    nested = [str(run) for run in members if run.members]
    if nested:
        raise InputError(f"{name_some(nested)}: an ensemble itself; name its members instead")
    first, *others = members
    tested = set(first.rows("test")["image_id"])
    for run in others:
        if run.description["dataset"]["fingerprint"] != first.description["dataset"]["fingerprint"]:
            raise InputError(f"{first} and {run} were trained on different datasets")
        if _list_added(run) != _list_added(first):
            raise InputError(f"{first} and {run} were trained with other added images (--also)")
        settings = run.config.model_copy(update={"seed": first.config.seed})
        differing = find_other_settings(first, settings)
        if differing:
            raise InputError(
                f"{first} and {run} were trained with other settings ({differing}); the members of "
                "an ensemble differ in seed and fold only"
            )
        if set(run.rows("test")["image_id"]) != tested:
            raise InputError(
                f"{first} and {run} have different test images: no test would be new to all "
                "members of the ensemble"
            )


def _list_added(run: Run) -> list[str]:
    """The fingerprints of the datasets that were added to training."""
    return [added["fingerprint"] for added in run.description.get("also", [])]


def _calibrate(members: Sequence[Run]) -> Calibration:
    """Fit on all validation images, each predicted by the members not trained on it."""
    parts = []
    for run in members:
        rows = run.rows("validation")
        y_prob = run.read_predictions("validation", list(rows["image_id"]))
        parts.append(pd.DataFrame(y_prob, index=pd.MultiIndex.from_frame(rows[IMAGE])))
    mean = pd.concat(parts).groupby(level=IMAGE).mean()
    fitted = load_calibration(members[0])
    y_true = mean.index.get_level_values("label").to_numpy()
    return fit_calibration(
        y_true,
        mean.to_numpy(),
        members[0].info,
        prior=np.array(fitted.prior),
        ood=fitted.ood,
        quality=fitted.quality,
    )
