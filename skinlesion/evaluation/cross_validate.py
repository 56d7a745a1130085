"""The step `cross-validate`: train a model for each fold, and evaluate all of them together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from skinlesion.config import Config, make_config, read_config
from skinlesion.data.dataset import find_dataset, load_metadata
from skinlesion.data.near_duplicates import read_near_duplicates
from skinlesion.data.split import is_same_split, join_split, make_split, read_split, split_rest
from skinlesion.evaluation.ensemble_run import make_ensemble, require_no_training
from skinlesion.evaluation.tables import OVERALL, describe_metrics
from skinlesion.files import InputError, write_csv
from skinlesion.machine import say
from skinlesion.model.bundle import MOST_MEMBERS
from skinlesion.model.cluster import run_on_cluster
from skinlesion.model.jobs import Job, make_job, run_jobs
from skinlesion.model.run import Run
from skinlesion.model.run_settings import require_same_run


def cross_validate(
    data: str | Path | None,
    out: Path,
    config: Config,
    *,
    folds: int = 5,
    seeds: Sequence[int] = (),
    splits: Path | None = None,
    time_limit: float | None = None,
    allow_incomplete: bool = False,
    scheduler: str | None = None,
) -> dict[str, Any] | None:
    """Train a model for each fold and seed, and evaluate them; what is finished is kept.

    Without `splits`, each fold is the test of one model, and `evaluation/` has the figures over all
    images, each predicted by the model that has not seen it. Several seeds of a fold are averaged.

    With `splits`, its test images stay the test of all models, each fold of the others is the
    validation of one model, and `out` becomes the ensemble of them, evaluated on the test.

    Args:
        data: the dataset; None looks as `find_dataset` does.
        out: folder to fill: `fold_K/seed_S/` are the runs, `folds.csv` has their figures.
        config: the settings of all trainings.
        folds: number of folds, 2 or more, made with the seed of the recipe whatever `seeds` are.
        seeds: of the trainings; none: the one of `config`.
        splits: a split file.
        time_limit: hours from now after which training stops; the same call continues it.
        allow_incomplete: as for `Run`.
        scheduler: address of a Dask scheduler whose workers train; None: this machine trains.

    Returns:
        What `evaluation/metrics.json` holds; None if the time limit stopped the training.

    Raises:
        InputError: a seed is given twice, an ensemble would be too large, the split has no folds,
            or `out` holds a trained run, or runs of other settings, another dataset or split.
    """
    require_no_training(Run(out))
    seeds = list(seeds) or [config.seed]
    source = find_dataset(data)
    table = load_metadata(source, allow_incomplete=allow_incomplete)
    made = _make_splits(table, config, folds, splits)
    _require_few_members(len(seeds) * (len(made) if splits else 1))
    jobs = _plan(made, out, source, config, seeds, allow_incomplete=allow_incomplete)
    if not _train(jobs, out, source, config, scheduler=scheduler, time_limit=time_limit):
        return None
    if splits:
        return _evaluate_ensemble([job.place for job in jobs], out, source)
    return _evaluate_folds(jobs, out, source, seeds=len(seeds))


def _require_few_members(count: int) -> None:
    """Refuse an ensemble that would be too large, before it is trained."""
    if count > MOST_MEMBERS:
        raise InputError(
            f"{count} models would be averaged, and an ensemble has {MOST_MEMBERS} at most; give "
            "fewer folds or seeds"
        )


def _train(
    jobs: Sequence[Job],
    out: Path,
    source: Path,
    config: Config,
    *,
    scheduler: str | None,
    time_limit: float | None,
) -> bool:
    """Train on the cluster of a scheduler, or one after the other here; False at the time limit."""
    if scheduler is not None:
        needed = [source, *filter(Path.is_file, [Path(config.weights)])]
        done = run_on_cluster(jobs, scheduler, out, needed=needed, time_limit=time_limit)
    else:
        done = run_jobs(jobs, time_limit=time_limit)
    if not done:
        say("cross-validate: stopped at the time limit; the same command continues from here")
    return done


def _make_splits(
    table: pd.DataFrame, config: Config, folds: int, splits: Path | None
) -> list[pd.DataFrame]:
    """The split of each fold."""
    options: dict[str, Any] = {
        "seed": make_config(config.recipe).seed,
        "pairs": read_near_duplicates(),
    }
    numbers = [(number, folds) for number in range(1, folds + 1)]
    if splits is None:
        return [make_split(table, config.split, fold=fold, **options) for fold in numbers]
    split = read_split(splits)
    join_split(table, split)  # refuses images that the dataset lacks
    return [split_rest(split, fold, **options) for fold in numbers]


def _plan(
    splits: Sequence[pd.DataFrame],
    out: Path,
    source: Path,
    config: Config,
    seeds: Sequence[int],
    *,
    allow_incomplete: bool,
) -> list[Job]:
    """The trainings, by fold and then by seed; refused before the first if one cannot be used."""
    if len(set(seeds)) < len(seeds):
        raise InputError(f"each seed can be given once. Received: {', '.join(map(str, seeds))}")
    jobs = []
    for number, split in enumerate(splits, start=1):
        csv = _keep_split(out / "splits" / f"fold_{number}.csv", split)
        for seed in seeds:
            run = Run(out / csv.stem / f"seed_{seed}", allow_incomplete=allow_incomplete)
            settings = read_config(config.model_dump() | {"seed": seed})
            require_same_run(run, source, split, settings)
            options = {"allow_incomplete": allow_incomplete}
            jobs.append(make_job(run.folder, source, csv, settings, **options))
    return jobs


def _keep_split(csv: Path, split: pd.DataFrame) -> Path:
    """Write the split of a fold, or check that it is the one that is there."""
    if not csv.is_file():
        return write_csv(csv, split)
    if not is_same_split(read_split(csv), split):
        raise InputError(
            f"{csv}: holds another split, such as that of another number of folds; give this "
            "cross-validation another folder"
        )
    return csv


def _evaluate_folds(jobs: Sequence[Job], out: Path, source: Path, *, seeds: int) -> dict[str, Any]:
    """Evaluate each fold on its own test, then all test images together."""
    from skinlesion.evaluation.evaluate import evaluate_folds

    runs = [job.place for job in jobs]
    if seeds > 1:
        groups = [runs[start : start + seeds] for start in range(0, len(runs), seeds)]
        runs = [make_ensemble(group[0].parent, group).folder for group in groups]
    _write_table(runs, out, source)
    return evaluate_folds(runs, out / "evaluation", data=source)


def _evaluate_ensemble(runs: Sequence[Path], out: Path, source: Path) -> dict[str, Any]:
    """Evaluate each run and the ensemble of all on the common test."""
    _write_table(runs, out, source)
    ensemble = make_ensemble(out, runs)
    metrics = _evaluate_once(ensemble.folder, source)
    say(f"cross-validate: the ensemble in {out}\n{describe_metrics(metrics, ensemble.info)}")
    return metrics


def _write_table(runs: Sequence[Path], out: Path, source: Path) -> None:
    """The figures of each run on its test images, their mean and range, as `folds.csv`."""
    measured = {str(run.relative_to(out)): _evaluate_once(run, source) for run in runs}
    table = pd.DataFrame(
        {
            name: {
                figure: metrics["overall"][figure]["value"]
                for figure in OVERALL
                if figure in metrics["overall"]  # without malignant classes, one is not
            }
            for name, metrics in measured.items()
        }
    ).T
    table = pd.concat([table, table.agg(["mean", "min", "max"])]).rename_axis("run")
    write_csv(out / "folds.csv", table, index=True)
    say(f"each run on its own test images\n{table.rename(columns=OVERALL).round(3).to_string()}")


def _evaluate_once(run: Path, source: Path) -> dict[str, Any]:
    """The figures of a run, measured unless they exist."""
    from skinlesion.evaluation.evaluate import evaluate

    return Run.find(run).metrics or evaluate(run, data=source)
