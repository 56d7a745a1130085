"""`predict` for many images on a Dask cluster: parts of the table, each a job, then joined."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from skinlesion.demo.predict import list_files, say_problems
from skinlesion.demo.result import list_columns
from skinlesion.diagnoses import SYNTHETIC_NOTE
from skinlesion.evaluation.calibration import load_calibration
from skinlesion.files import (
    InputError,
    read_json,
    require_no_folder,
    stat_file,
    write_csv,
    write_json,
)
from skinlesion.machine import say
from skinlesion.model.bundle import SUMS_NAME, compute_sha256
from skinlesion.model.cluster import run_on_cluster
from skinlesion.model.jobs import Job
from skinlesion.model.predictor import BATCH_SIZE
from skinlesion.model.run import Run

SHARD = 64 * BATCH_SIZE
"""Images in a shard: whole batches, so that each pass of the network is that of one process."""
TEXTS = ("file", "prediction", "prediction_set", "problems", "error")
"""Columns whose cells are text, even if empty."""


class Shard(Job):
    """The prediction of some files; `place` is the table of them."""

    @property
    def is_done(self) -> bool:
        """Whether the table is there; it appears whole."""
        return self.place.is_file()


def predict_on_cluster(
    run: str | Path | Run,
    paths: Sequence[str | Path],
    out: str | Path,
    scheduler: str,
    *,
    shard: int = SHARD,
) -> pd.DataFrame:
    """Predict as `predict` does, on the workers of a Dask cluster; what is finished is kept.

    Args:
        run: folder of a run, or of a saved model by itself.
        paths: image files, and folders with image files directly in them.
        out: the CSV file to write. `OUT.shards/` holds the parts until all are there.
        scheduler: address of a Dask scheduler, such as `tcp://HOST:8786`.
        shard: images in a part, a multiple of `BATCH_SIZE`.

    Returns:
        The table that `predict` returns, files in the same order.

    Raises:
        InputError: as `predict` and `run_on_cluster`, or the parts are of other images or another
            model.
        ChildProcessError: as `run_on_cluster`.
    """
    files, model, out = list_files(paths), Run.find(run), Path(out)
    calibration, info = load_calibration(model), model.info
    folder = out.with_name(f"{out.name}.shards")
    require_no_folder(out)
    _keep_description(folder, model, files, shard)
    shards = []
    for start in range(0, len(files), shard):
        csv = folder / f"{start // shard + 1:06d}.csv"
        named = [str(path) for path in files[start : start + shard]]
        command = ["predict", "--run", str(run), "--out", str(csv), "--", *named]
        shards.append(Shard(csv, command))
    run_on_cluster(shards, scheduler, folder, needed=[model.model_dir, files[0]])
    # As text: each number is written again as it was.
    parts = [pd.read_csv(one.place, dtype=str, keep_default_na=False) for one in shards]
    write_csv(out, pd.concat(parts))
    shutil.rmtree(folder)
    if info.synthetic:
        say(SYNTHETIC_NOTE)
    table = _read_table(out, list_columns(info))
    count = int((table["error"] == "").sum())
    say(f"predict: wrote {count:,} predictions to {out}; the model {calibration.rule}")
    say_problems(table, name_all=False)
    return table


def _keep_description(folder: Path, model: Run, files: Sequence[Path], shard: int) -> None:
    """Write what the parts are made from, or check that it is what is there."""
    made_from = hashlib.sha256(f"{compute_sha256(model.model_dir / SUMS_NAME)} {shard}".encode())
    for path in files:
        found = stat_file(path)
        made_from.update(f"\n{path} {found.st_size} {found.st_mtime_ns}".encode("utf-8", "replace"))
    described, path = {"made_from": made_from.hexdigest()}, folder / "made_from.json"
    if not path.is_file():
        write_json(path, described)
    elif read_json(path) != described:
        raise InputError(
            f"{folder}: holds parts of another prediction, of other images or another model; "
            "delete it, or name another file to write"
        )


def _read_table(csv: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a table of `predict` with the types that it was written from."""
    empty = {name: [""] for name in columns if name not in TEXTS}
    texts = dict.fromkeys(TEXTS, str)
    return pd.read_csv(csv, keep_default_na=False, na_values=empty, dtype=texts)
