"""The finished run of an earlier notebook."""

from pathlib import Path

from skinlesion.config import Config
from skinlesion.files import InputError
from skinlesion.machine import how_to_attach, say
from skinlesion.model.callbacks import read_state
from skinlesion.model.run import Run
from skinlesion.model.run_settings import find_other_settings
from skinlesion.model.train import train


def find_trained_run(
    run: str | Path | Run,
    data: Path,
    config: Config,
    *,
    train_if_missing: bool = False,
    splits: Path | None = None,
    time_limit: float | None = None,
) -> Run:
    """Find the finished run of an earlier notebook, or train it if that is asked for.

    Args:
        run: folder of the run.
        data: folder of the dataset.
        config: settings to train a missing run with.
        train_if_missing: whether to train if there is no run. An interrupted run is left to the
            notebook that trains, where its time limit counts.
        splits: as for `train`.
        time_limit: as for `train`.

    Raises:
        InputError: there is no finished run, and none was trained.
    """
    found = run if isinstance(run, Run) else Run(run)
    if not found.is_begun and train_if_missing:
        found = train(data, found, config, splits=splits, time_limit=time_limit)
    if found.is_begun and not found.is_finished:
        state = read_state(found.checkpoints)
        raise InputError(
            f"{found}: training stopped after epoch {len(state['rows']) if state else 0} of "
            f"{found.config.epochs}; run notebook 03_train again to continue it"
        )
    if not found.is_finished:
        raise InputError(
            f"{found}: no finished run here. Run notebook 03_train first and {how_to_attach()}, or "
            "set the parameter train_if_missing = True to train now"
        )
    say(f"using the finished run in {found}")
    other = find_other_settings(found, config)
    if other:
        say(f"note: {found} was trained with other settings than the parameters here: {other}")
    return found
