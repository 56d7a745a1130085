"""Train, evaluate and demonstrate a skin lesion classifier on HAM10000.

For research and education only: not a medical device, not for clinical use.

    import skinlesion as sl

gives the public functions. Each is imported when it is first used, so that importing
the package imports none of its heavy dependencies.
"""

from importlib import import_module
from typing import Any

from skinlesion.machine import prepare_tensorflow

__version__ = "0.3.0"

_HOMES = {
    "config": ("make_config",),
    "files": ("InputError",),
    "machine": (
        "bring_earlier",
        "default_images_dir",
        "default_weights",
        "default_work_dir",
        "is_watched",
        "start",
    ),
    "data.copies": ("copy_images",),
    "data.forms": ("count_classes", "describe_dataset", "is_sample"),
    "data.dataset": (
        "find_dataset",
        "find_images",
        "list_images",
        "load_metadata",
    ),
    "data.synthetic": ("make_sample",),
    "data.images": ("load_images",),
    "data.near_duplicates": ("merge_lesions", "read_near_duplicates"),
    "data.split": ("make_split", "write_split"),
    "data.leakage": ("audit_file", "audit_split"),
    "data.check": ("check_dataset",),
    "model.resnet50": ("build_model",),
    "model.run": ("Run",),
    "model.predictor": ("Predictor",),
    "model.datasets": ("make_datasets",),
    "model.linear_probe": ("fit_linear_probe",),
    "model.callbacks": ("make_callbacks",),
    "model.run_settings": ("choose_config", "require_same_run"),
    "model.train": (
        "begin_run",
        "compile_model",
        "finish_run",
        "train",
    ),
    "model.trained": ("find_trained_run",),
    "evaluation.examples": ("plot_mistakes", "plot_samples"),
    "evaluation.gradcam": ("plot_explanations",),
    "evaluation.tables": (
        "metrics_table",
        "operating_points_table",
        "per_class_table",
        "prediction_sets_table",
    ),
    "evaluation.calibration": ("calibrate", "load_calibration"),
    "evaluation.shifts": ("evaluate_shifts",),
    "evaluation.evaluate": (
        "evaluate",
        "evaluate_external",
        "evaluate_folds",
    ),
    "evaluation.ensemble_run": ("make_ensemble",),
    "evaluation.cross_validate": ("cross_validate",),
    "evaluation.score": ("score",),
    "evaluation.compare": ("compare",),
    "evaluation.export": ("export",),
    "demo.predict": ("find_example", "predict", "predict_image"),
    "demo.app": ("launch", "serve"),
}
"""Module to the public names that it defines."""
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", "plots", *sorted(_HOME_OF)]


prepare_tensorflow()


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562)."""
    if name == "plots":
        return import_module("skinlesion.evaluation.plots")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'skinlesion' has no attribute {name!r}")
    return getattr(import_module(f"skinlesion.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
