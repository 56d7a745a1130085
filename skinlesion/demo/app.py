"""The Gradio demo: an image in, a verdict out. Nothing on import."""

import inspect
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd
from gradio.processing_utils import save_bytes_to_cache
from packaging.version import Version
from PIL import Image

from skinlesion.demo import page
from skinlesion.demo.exhibit import (
    MAX_FILES,
    THUMBNAIL_SIZE,
    Exhibit,
    draw_heat,
    draw_image,
    gather_exhibit,
    judge_files,
    require_few,
    shorten,
    tabulate,
)
from skinlesion.demo.result import Verdict, judge_image
from skinlesion.diagnoses import CLASS_CODES, CLASS_NAMES, DISCLAIMER, SYNTHETIC_NOTE
from skinlesion.files import InputError
from skinlesion.machine import find_platform, is_watched, say
from skinlesion.model.predictor import Predictor

MAX_UPLOAD = "20mb"
MAX_WAITING = 100
"""Requests of each kind that wait while one is answered; more are told that the queue is full."""
KEPT = (60, 600)
"""Seconds: how often uploads are looked through, and how old they get before they are deleted."""
SAFE_TO_SHARE = Version("6.20")
"""Oldest Gradio whose known holes are closed: what may be reached through a public link."""
NAME_PICTURES = """\
() => {
  const name = (button, text) => { if (text) button.setAttribute("aria-label", text) }
  document.querySelectorAll(".pictures button[aria-label]").forEach((b) => name(b, b.innerText))
  document.querySelectorAll(".upload .image-container button:not([aria-label])").forEach(
    (b) => name(b, b.innerText.trim() ? "" : "Uploaded image")
  )
}"""
"""Names pictures to screen readers: Gradio calls them `Thumbnail 1 of 7`, or nothing at all."""

TITLE = "Skin lesion classifier"
NOTICE = f"""\
**{DISCLAIMER}** A confident answer can be wrong; whoever worries about a spot on their skin should
see a doctor."""
ABOUT = f"""\
Take a close-up through a dermatoscope, one lesion in the middle. The model knows seven diagnoses,
no others. Uploads are deleted after {KEPT[1] // 60} minutes and used for nothing else."""


def build_app(exhibit: Exhibit) -> gr.Blocks:
    """The page, not yet launched; docs/demo.md describes its endpoints."""
    info = exhibit.predictor.bundle.info
    synthetic = f"\n\n**{SYNTHETIC_NOTE}**" if info.synthetic else ""
    looks = {"analytics_enabled": False, "delete_cache": KEPT, **_looks(gr.Blocks)}
    # Gradio 5.50 warns of options that 6 has moved: it is given those that it has.
    with (
        warnings.catch_warnings(action="ignore", category=DeprecationWarning),
        gr.Blocks(title=TITLE, **looks) as app,
    ):
        gr.Markdown(f"# {TITLE}\n{NOTICE}{synthetic}")
        with gr.Tab("One image"):
            _add_single(exhibit)
        with gr.Tab("Several"):
            _add_several(exhibit)
        with gr.Tab("Model"):
            _add_model(exhibit)
        _add_endpoints(exhibit)
        app.load(None, js=NAME_PICTURES, **_private())
    return app.queue(max_size=MAX_WAITING)


def _add_single(exhibit: Exhibit) -> None:
    def show(image: str | None) -> tuple[str, dict[str, Any]]:
        """The result; and the heat map of the image before disappears."""
        return judge(image), gr.update(visible=False)

    def judge(image: str | None) -> str:
        if image is None:
            return page.render_nothing()
        try:
            return page.render_verdict(judge_image(exhibit.predictor, image, exhibit.point))
        except InputError as error:
            return page.render_failure(str(error))

    def look(image: str | None) -> dict[str, Any]:
        try:
            drawn = draw_heat(exhibit.predictor, image, even_if_foreign=False) if image else None
        except InputError:
            drawn = None  # `show` has said why
        return gr.update(value=drawn, visible=drawn is not None)

    def pick(chosen: gr.SelectData) -> str:
        return _or_error(lambda: _require_uploaded(chosen.value["image"]["path"], image))

    with gr.Row(elem_classes="desk"):
        with gr.Column():
            image = _make_upload("Dermatoscopic image")
            gr.Markdown(ABOUT)
        with gr.Column():
            verdict = gr.HTML(page.render_nothing())
        with gr.Column():
            heat = gr.Image(
                label="What speaks for the most probable diagnosis (Grad-CAM)",
                interactive=False,
                visible=False,
                height=320,
                **_plain(gr.Image, "download", "fullscreen"),
            )
            if exhibit.examples:
                synthetic = exhibit.predictor.bundle.info.synthetic
                kind = "synthetic drawings" if synthetic else "images of the test part"
                gr.Markdown(f"**Examples**: {kind}, with their true diagnosis. Choose one.")
                gallery = _make_gallery("Examples", list(exhibit.examples), allow_preview=False)
                gallery.select(pick, None, image, **_private())
    # Classes first: the heat map takes longer.
    shown = image.change(show, image, [verdict, heat], show_progress="minimal", **_private())
    shown.then(None, js=NAME_PICTURES, **_private())
    shown.then(look, image, heat, show_progress="minimal", **_private())


def _add_several(exhibit: Exhibit) -> None:
    def show(
        paths: list[str] | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio looks here
    ) -> tuple[pd.DataFrame | None, list[tuple[np.ndarray, str]], dict[str, Any]]:
        if not paths:
            return None, [], gr.update(value=None, visible=False)
        few = _or_error(lambda: require_few(paths))
        judged = judge_files(exhibit, progress.tqdm(few, desc="judging"))
        table = tabulate(judged)
        thumbnails = [
            (draw_image(path, THUMBNAIL_SIZE), f"{one.image}: {one.call}")
            for path, one in zip(paths, judged, strict=True)
            if isinstance(one, Verdict)
        ]
        content = table.to_csv(index=False, float_format="%.6f").encode()
        csv = save_bytes_to_cache(content, "predictions.csv", download.GRADIO_CACHE)
        return shorten(table), thumbnails, gr.update(value=csv, visible=True)

    files = _make_files(f"Dermatoscopic images (up to {MAX_FILES})", height=180)
    download = gr.DownloadButton("Download the table (CSV)", visible=False)
    table = gr.Dataframe(
        label="Results",
        interactive=False,
        wrap=True,
        column_widths=["18%", "24%", "20%", "11%", "9%", "10%", "8%"],
    )
    thumbnails = _make_gallery("Images")
    shown = files.change(show, files, [table, thumbnails, download], **_private())
    shown.then(None, js=NAME_PICTURES, **_private())


def _add_model(exhibit: Exhibit) -> None:
    info = exhibit.predictor.bundle.info
    height, width = info.image_size
    gr.Markdown(f"Recipe `{info.recipe}`, {width} x {height} pixels.")
    with gr.Row():
        for path, title in exhibit.figures:
            with Image.open(path, formats=["PNG"]) as picture:
                # Pixels, not the file: Gradio hands out no file from outside its own folders.
                gr.Image(
                    np.asarray(picture.convert("RGB")),
                    label=title,
                    show_label=False,  # it would cover the figure's own title
                    interactive=False,
                    height=380,
                    min_width=340,
                    **_taken_by(gr.Image, {"alt_text": title}),
                    **_plain(gr.Image, "download", "fullscreen"),
                )
    gr.Markdown(exhibit.card)


def _add_endpoints(exhibit: Exhibit) -> None:
    """What other programs call; `docs/demo.md` gives the schema of the answers."""

    def predict(image: str | None) -> dict[str, Any]:
        """All that is said about one image: classes, prediction set, call, quality."""
        return _or_error(
            lambda: judge_image(exhibit.predictor, _given(image), exhibit.point)
        ).to_dict()

    def explain(image: str | None) -> np.ndarray | None:
        """The image with the Grad-CAM heat of its most probable diagnosis."""
        return _or_error(lambda: draw_heat(exhibit.predictor, _given(image)))

    def predict_many(files: list[str] | None) -> list[dict[str, Any]]:
        """The same as `predict` of each file; of one that is no image, `image` and `error`."""
        judged = judge_files(exhibit, _or_error(lambda: require_few(_given(files))))
        return [one.to_dict() if isinstance(one, Verdict) else one for one in judged]

    def describe() -> dict[str, Any]:
        """The model: recipe, input size, classes, and the figures of its evaluation."""
        info = exhibit.predictor.bundle.info
        return {
            "recipe": info.recipe,
            "image_size": list(info.image_size),
            "synthetic": info.synthetic,
            "classes": dict(zip(CLASS_CODES, CLASS_NAMES, strict=True)),
            "metrics": exhibit.metrics,
            "notice": DISCLAIMER,
        }

    with gr.Row(visible=False):
        image, answer, picture = _make_upload("image"), gr.JSON(), gr.Image(format="png")
        files, button = _make_files("files"), gr.Button()
    button.click(predict, image, answer, api_name="predict")
    button.click(explain, image, picture, api_name="explain")
    button.click(predict_many, files, answer, api_name="predict_many")
    button.click(describe, None, answer, api_name="describe")


def launch(
    run: Path,
    predictor: Predictor | None = None,
    *,
    data: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    auth: tuple[str, str] | None = None,
) -> gr.Blocks:
    """Start the page and return at once; `close()` of what is returned stops it.

    Args:
        run: run directory or bundle.
        predictor: its model, if it is loaded already.
        data: dataset to take examples from; None takes what is at hand.
        host: address to listen on; 0.0.0.0 shows the page to the whole network.
        port: None takes the first free one from 7860 on.
        share: also ask Gradio for a public link.
        auth: (user, password) to ask for.

    Raises:
        InputError: the port is taken, the Gradio here is too old for a public link, or as
            `Predictor.load` and `gather_exhibit`.
    """
    if share and Version(gr.__version__) < SAFE_TO_SHARE:
        raise InputError(
            f"a public link needs Gradio {SAFE_TO_SHARE} or newer, and this is {gr.__version__}, "
            f'which has known holes: pip install "gradio>={SAFE_TO_SHARE}", then restart'
        )
    predictor = predictor or Predictor.load(run)
    with TemporaryDirectory() as drawn:
        app = build_app(gather_exhibit(run, predictor, data=data, drawn=Path(drawn)))
    _warm_up(predictor)
    shown_here = find_platform() != "kaggle" or share
    try:
        app.launch(
            server_name=host,
            server_port=port,
            share=share,
            auth=auth,
            inline=is_watched() and shown_here,
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            max_file_size=MAX_UPLOAD,
            ssr_mode=False,  # or Spaces would serve another page than the one that was tested
            **_looks(gr.Blocks.launch),
        )
    except (OSError, OverflowError) as error:  # in use, or no port at all
        raise InputError(
            f"port {port} on {host} is in use or not allowed: choose another with --port"
        ) from error
    say(f"demo: {app.share_url or app.local_url}")
    if not shown_here:
        say(
            "demo: Kaggle does not show this page. Predict in the cell above, or set share = True "
            f"for a public link (needs Gradio {SAFE_TO_SHARE} or newer, and internet)."
        )
    return app


def serve(run: Path, **options: Any) -> None:
    """Show a run's model until interrupted. Arguments and errors: `launch`."""
    say(f"demo: loading {run}")
    app = launch(run, **options)
    say("demo: stop it with Ctrl-C")
    app.block_thread()


def _warm_up(predictor: Predictor) -> None:
    """The first prediction compiles the network: better now than while somebody waits for it."""
    blank = np.zeros((1, *predictor.bundle.info.image_size, 3), np.uint8)
    predictor.judge_images(blank)


def _looks(function: Any) -> dict[str, Any]:
    """Theme and style sheet, where Gradio takes them: `Blocks` until 5, `launch` from 6 on."""
    system = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    looks = {
        # System fonts: nothing is fetched from elsewhere.
        "theme": gr.themes.Default(primary_hue="teal", font=system, font_mono=["monospace"]),
        "css": page.CSS,
    }
    return _taken_by(function, looks)


def _taken_by(function: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options that this version of Gradio has."""
    taken = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in taken}


def _plain(component: Any, *wanted: str) -> dict[str, Any]:
    """Options for no more than the wanted buttons; none ever sends a picture elsewhere."""
    names = ("download", "fullscreen", "share")
    until_5 = {f"show_{name}_button": name in wanted for name in names}
    return _taken_by(component, until_5 | {"buttons": list(wanted)})


def _private() -> dict[str, Any]:
    """Options of an event that only the page itself may cause; Gradio 6 renamed them."""
    new = "api_visibility" in inspect.signature(gr.on).parameters
    return {"api_visibility": "private"} if new else {"api_name": False}


def _make_upload(label: str) -> gr.Image:
    """An upload that hands over the file itself, so that it is decoded as training did.

    Without Gradio opening it first: of a file that is no image it would tell in a long text of its
    own, server paths included.
    """
    image = gr.Image(
        label=label,
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard", "webcam"],
        height=320,
        elem_classes="upload",
    )
    open_first = image.preprocess

    def preprocess(payload: Any) -> Any:
        if payload is None or not payload.path:
            return open_first(payload)
        return _or_error(lambda: _require_uploaded(payload.path, image))

    image.preprocess = preprocess
    return image


def _make_files(label: str, **options: Any) -> gr.File:
    """An upload of several files, which hands over their paths."""
    files = gr.File(label=label, file_count="multiple", elem_classes="files", **options)
    usual = files.preprocess

    def preprocess(payload: Any) -> Any:
        if payload is None:
            return None
        for given in getattr(payload, "root", [payload]):
            _or_error(partial(_require_uploaded, given.path, files))
        return usual(payload)

    files.preprocess = preprocess
    return files


def _require_uploaded(path: str, component: gr.components.Component) -> str:
    """The same path, if the file lies in Gradio's folder of uploads.

    Gradio checks this only where a request marks its files as files: a request can leave that out
    and name any file of this machine.

    Raises:
        InputError: it lies elsewhere; whether there is such a file is not told.
    """
    if not Path(path).resolve().is_relative_to(Path(component.GRADIO_CACHE).resolve()):
        raise InputError("not an uploaded file: upload the image first")
    return path


def _make_gallery(label: str, value: Any = None, **options: Any) -> gr.Gallery:
    return gr.Gallery(
        value,
        label=label,
        show_label=False,
        height="auto",
        object_fit="cover",
        interactive=False,
        elem_classes="pictures",
        **_plain(gr.Gallery, "fullscreen"),
        **options,
    )


def _or_error(compute: Any) -> Any:
    """What is computed, or its `InputError` as the page and clients show it."""
    try:
        return compute()
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _given(value: Any) -> Any:
    if not value:
        raise InputError("no image: send one as `image`, or several as `files`")
    return value
