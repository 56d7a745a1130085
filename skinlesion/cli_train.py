"""The commands that train: `train` and `cross-validate`, with the options that they share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from skinlesion.cli_options import (
    AllowIncomplete,
    Data,
    Recipe,
    Scheduler,
    Seed,
    Weights,
    flag,
    option,
    parse_setting,
)

ImageSize = Annotated[tuple[int, int] | None, option("H W", "In pixels.")]
Epochs = Annotated[int | None, option("N", "Train at most N epochs.")]
BatchSize = Annotated[int | None, option("N", "Images in a training step.")]
Limit = Annotated[int | None, option("N", "Use at most N of the training images.")]
Deterministic = Annotated[bool, flag("--deterministic", "Repeatable, but slower.")]
TimeLimit = Annotated[float | None, option("HOURS", "Time to stay within.", min=0.01)]
Settings = Annotated[
    list[str] | None, option("NAME=VALUE", "Any setting of the recipe; repeatable.", "--set")
]


def train(
    run: Annotated[Path, option("RUN", "Run folder to create or continue.")],
    data: Data = None,
    recipe: Recipe = None,
    splits: Annotated[Path | None, option("CSV", "Split file (default: a new split).")] = None,
    weights: Weights = None,
    image_size: ImageSize = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    limit: Limit = None,
    seed: Seed = None,
    deterministic: Deterministic = False,
    time_limit: TimeLimit = None,
    settings: Settings = None,
    allow_incomplete: AllowIncomplete = False,
    quarantine: Annotated[bool, flag("--quarantine", "Also leave out unreadable images.")] = False,
    also: Annotated[
        list[Path] | None, option("DIR", "A dataset to train on only; repeatable.")
    ] = None,
) -> None:
    """Train and calibrate a model. For an interrupted run, --run alone continues it."""
    given = _gather(settings, image_size, epochs, batch_size, limit, deterministic)
    from skinlesion.evaluation.calibration import calibrate
    from skinlesion.model.run import Run
    from skinlesion.model.run_settings import choose_config

    begun = Run(run, allow_incomplete=allow_incomplete)
    # Mistakes are refused here, before TensorFlow is loaded.
    config = choose_config(begun, recipe, given, weights=weights, seed=seed)
    from skinlesion.model.train import train

    options: dict[str, Any] = {"time_limit": time_limit, "quarantine": quarantine}
    trained = train(data, begun, config, splits=splits, also=also or (), **options)
    if trained.is_finished:
        calibrate(trained, data)


def cross_validate(
    run: Annotated[Path, option("DIR", "Folder to create or continue.")],
    data: Data = None,
    folds: Annotated[int, option("N", "Number of folds.", min=2)] = 5,
    seeds: Annotated[list[int] | None, option("S", "Such as 1 2 (default: 42).")] = None,
    more: Annotated[list[int] | None, typer.Argument(metavar="S", help="More seeds.")] = None,
    splits: Annotated[Path | None, option("CSV", "Keep its test; train an ensemble.")] = None,
    recipe: Recipe = None,
    weights: Weights = None,
    image_size: ImageSize = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    limit: Limit = None,
    deterministic: Deterministic = False,
    time_limit: TimeLimit = None,
    settings: Settings = None,
    allow_incomplete: AllowIncomplete = False,
    scheduler: Scheduler = None,
) -> None:
    """Train and evaluate folds; the same command continues."""
    given = _gather(settings, image_size, epochs, batch_size, limit, deterministic)
    from skinlesion.data.dataset import find_dataset
    from skinlesion.evaluation.cross_validate import cross_validate as train_folds
    from skinlesion.model.run import Run
    from skinlesion.model.run_settings import choose_config

    source = find_dataset(data)
    train_folds(
        source,
        run,
        choose_config(Run(run), recipe, given, data=source, weights=weights),
        folds=folds,
        seeds=[*(seeds or ()), *(more or ())],
        splits=splits,
        time_limit=time_limit,
        allow_incomplete=allow_incomplete,
        scheduler=scheduler,
    )


def _gather(
    settings: list[str] | None,
    image_size: tuple[int, int] | None,
    epochs: int | None,
    batch_size: int | None,
    limit: int | None,
    deterministic: bool,
) -> dict[str, Any]:
    """The settings that were named, as options or by --set."""
    given: dict[str, Any] = {
        "image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "limit": limit,
        "deterministic": deterministic or None,
    }
    return given | dict(parse_setting(setting) for setting in settings or ())
