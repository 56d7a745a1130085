"""Uploads and other components, on Gradio 5.50 and 6; only uploaded files are opened."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from skinlesion.files import InputError

T = TypeVar("T")

MAX_FILES = 200
"""Images that the page predicts at a time. The command `predict` has no limit."""
MAX_UPLOAD = "20mb"
"""Largest file that the page accepts."""


def make_upload(label: str) -> gr.Image:
    """Make an upload of one image that passes the file's path to the handler.

    Gradio does not open the file first: its message for a file that is not an image is long and
    contains paths of the server.
    """
    image = gr.Image(
        label=label,
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard", "webcam"],
        height=320,
        elem_classes="upload",
    )
    usual = image.preprocess

    def preprocess(payload: Any) -> Any:
        if payload is None or not payload.path:
            return usual(payload)
        return or_error(lambda: require_uploaded(payload.path, image))

    image.preprocess = preprocess
    return image


def make_files(label: str, **options: Any) -> gr.File:
    """Make an upload of several files that passes their paths to the handler."""
    files = gr.File(label=label, file_count="multiple", elem_classes="files", **options)

    # Not Gradio's own, which leaves an empty temporary file for each upload.
    def preprocess(payload: Any) -> Any:
        if payload is None:
            return None
        given = getattr(payload, "root", [payload])
        return [or_error(partial(require_uploaded, one.path, files)) for one in given]

    files.preprocess = preprocess
    return files


def make_gallery(label: str, value: Any = None, **options: Any) -> gr.Gallery:
    """Make a gallery of pictures with captions."""
    return gr.Gallery(
        value,
        label=label,
        show_label=False,
        height="auto",
        object_fit="cover",
        interactive=False,
        elem_classes="pictures",
        **buttons(gr.Gallery, "fullscreen"),
        **options,
    )


def require_uploaded(path: str, component: gr.components.Component) -> str:
    """Return the path if the file is in Gradio's folder of uploads.

    Gradio checks this only if a request marks its files as files. A request can leave the mark out
    and name any file of this machine.

    Raises:
        InputError: the path is outside that folder. The message does not tell whether it exists.
    """
    if not Path(path).resolve().is_relative_to(Path(component.GRADIO_CACHE).resolve()):
        raise InputError("not an uploaded file: upload the image first")
    return path


def require_few(paths: list[str]) -> list[str]:
    """Return the same files. Raises `InputError` if they are more than `MAX_FILES`."""
    if len(paths) > MAX_FILES:
        raise InputError(
            f"{len(paths)} files are too many, {MAX_FILES} at a time; for more: "
            "python -m skinlesion predict --run RUN FOLDER --out predictions.csv"
        )
    return paths


def or_error(compute: Callable[[], T]) -> T:
    """Return what is computed, or raise its `InputError` as the error that Gradio shows."""
    try:
        return compute()
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from error


def private() -> dict[str, Any]:
    """Return the options of an event that is not an endpoint; Gradio 6 renamed them."""
    new = "api_visibility" in inspect.signature(gr.on).parameters
    return {"api_visibility": "private"} if new else {"api_name": False}


def buttons(component: Any, *wanted: str) -> dict[str, Any]:
    """Return the options that leave only the wanted buttons; none sends a picture elsewhere."""
    names = ("download", "fullscreen", "share")
    until_5 = {f"show_{name}_button": name in wanted for name in names}
    return supported(component, until_5 | {"buttons": list(wanted)})


def supported(function: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that this version of Gradio has."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in parameters}
