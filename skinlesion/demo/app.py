"""The Gradio page."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd
from gradio.processing_utils import save_bytes_to_cache
from packaging.version import Version
from PIL import Image

from skinlesion.demo import html
from skinlesion.demo.content import Content, load_content
from skinlesion.demo.gate import LOOPBACK, guard
from skinlesion.demo.predict import CalibratedPredictor, Prediction
from skinlesion.demo.result import make_table
from skinlesion.demo.uploads import (
    MAX_FILES,
    MAX_UPLOAD,
    buttons,
    make_files,
    make_gallery,
    make_upload,
    or_error,
    private,
    require_few,
    require_uploaded,
    supported,
)
from skinlesion.diagnoses import DISCLAIMER, SYNTHETIC_NOTE
from skinlesion.files import InputError
from skinlesion.machine import find_platform, is_watched, say
from skinlesion.model.run import Run

THUMBNAIL_SIZE = 200
"""Longest side, in pixels, of the pictures beside the table."""
MAX_WAITING = 100
"""Requests of each kind that may wait. Further ones get the message that the queue is full."""
KEPT = (60, 600)
"""Seconds between two clean-ups of uploads, and age at which uploads are deleted."""
SAFE_TO_SHARE = Version("6.20")
"""Oldest Gradio version without known vulnerabilities: required for a public link."""
NAME_PICTURES = """\
() => {
  const name = (button, text) => { if (text) button.setAttribute("aria-label", text) }
  document.querySelectorAll(".pictures button[aria-label]").forEach((b) => name(b, b.innerText))
  document.querySelectorAll(".upload .image-container button:not([aria-label])").forEach(
    (b) => name(b, b.innerText.trim() ? "" : "Uploaded image")
  )
}"""
"""Names pictures for screen readers. Gradio names them `Thumbnail 1 of 7` or not at all."""

TITLE = "Skin lesion classifier"
NOTICE = f"""\
**{DISCLAIMER}** A confident prediction can be wrong. If you are worried about a spot on your skin,
see a doctor."""
ABOUT = f"""\
Use a close-up taken through a dermatoscope, with one lesion in the middle. The model knows {{}}
diagnoses and no others. Uploads are deleted after {KEPT[1] // 60} minutes and used for nothing
else."""


def build_app(content: Content) -> gr.Blocks:
    """Build the page without launching it. docs/demo.md describes its endpoints."""
    synthetic = f"\n\n**{SYNTHETIC_NOTE}**" if content.model.info.synthetic else ""
    options = {"analytics_enabled": False, "delete_cache": KEPT, **_style(gr.Blocks)}
    # Gradio 5.50 warns of options that 6 has moved.
    with (
        warnings.catch_warnings(action="ignore", category=DeprecationWarning),
        gr.Blocks(title=TITLE, **options) as app,
    ):
        gr.Markdown(f"# {TITLE}\n{NOTICE}{synthetic}")
        with gr.Tab("One image"):
            _add_single(content)
        with gr.Tab("Several"):
            _add_several(content.model)
        with gr.Tab("Model"):
            _add_model(content)
        _add_endpoints(content)
        app.load(None, js=NAME_PICTURES, **private())
    return app.queue(max_size=MAX_WAITING)


def _add_single(content: Content) -> None:
    model = content.model

    def show(image: str | None, last: str | None) -> Iterator[tuple[Any, Any, Any]]:
        """Yield the result first, then the heat map, which takes longer."""
        hidden = gr.update(value=None, visible=False)
        if image is None:
            yield html.render_nothing(), hidden, None
        elif image == last:  # Gradio 5.50 reports each upload twice
            yield gr.skip(), gr.skip(), gr.skip()
        else:
            try:
                prediction = model.predict_file(image, maps=True)
            except InputError as error:
                yield html.render_failure(str(error)), hidden, image
                return
            yield html.render_result(prediction.result), hidden, image
            if prediction.result.is_in_distribution:
                heat = gr.update(value=model.explain(prediction), visible=True)
                yield gr.skip(), heat, gr.skip()

    def pick(chosen: gr.SelectData) -> str:
        return or_error(lambda: require_uploaded(chosen.value["image"]["path"], image))

    with gr.Row(elem_classes="desk"):
        with gr.Column():
            image = make_upload("Dermatoscopic image")
            gr.Markdown(ABOUT.format(len(model.info.labels)))
        with gr.Column():
            result = gr.HTML(html.render_nothing())
        with gr.Column():
            heat = gr.Image(
                label="Regions that support the predicted diagnosis (Grad-CAM)",
                interactive=False,
                visible=False,
                height=320,
                **buttons(gr.Image, "download", "fullscreen"),
            )
            if content.examples:
                kind = "synthetic drawings" if model.info.synthetic else "test images"
                gr.Markdown(f"**Examples**: {kind} with their true diagnosis. Choose one.")
                gallery = make_gallery("Examples", list(content.examples), allow_preview=False)
                gallery.select(pick, None, image, **private())
    last = gr.State()
    outputs = [result, heat, last]
    shown = image.change(show, [image, last], outputs, show_progress="minimal", **private())
    shown.then(None, js=NAME_PICTURES, **private())


def _add_several(model: CalibratedPredictor) -> None:
    def show(
        paths: list[str] | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio looks here
    ) -> tuple[pd.DataFrame | None, list[tuple[Image.Image, str]], dict[str, Any]]:
        if not paths:
            return None, [], gr.update(value=None, visible=False)
        or_error(lambda: require_few(paths))
        results, thumbnails = [], []
        predictions = model.predict_files(paths)
        for one in progress.tqdm(predictions, total=len(paths), desc="predicting"):
            if isinstance(one, Prediction):
                one.picture.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
                thumbnails.append((one.picture, f"{one.result.file}: {one.result.headline}"))
                results.append(one.result)
            else:
                results.append(one)
        content = make_table(results, model.info).to_csv(index=False).encode()
        csv = save_bytes_to_cache(content, "predictions.csv", download.GRADIO_CACHE)
        return html.make_short_table(results), thumbnails, gr.update(value=csv, visible=True)

    files = make_files(f"Dermatoscopic images (up to {MAX_FILES})", height=180)
    download = gr.DownloadButton("Download the table (CSV)", visible=False)
    table = gr.Dataframe(
        label="Results",
        interactive=False,
        wrap=True,
        column_widths=["18%", "22%", "18%", "11%", "11%", "10%", "10%"],
    )
    thumbnails = make_gallery("Images")
    shown = files.change(show, files, [table, thumbnails, download], **private())
    shown.then(None, js=NAME_PICTURES, **private())


def _add_model(content: Content) -> None:
    info = content.model.info
    height, width = info.image_size
    rule = content.model.calibration.rule
    gr.Markdown(f"Recipe `{info.recipe}`, {width} x {height} pixels. The model {rule}.")
    with gr.Row():
        for path, title in content.figures:
            with Image.open(path, formats=["PNG"]) as picture:
                # Pixels, not the file: Gradio serves no file from outside its own folders.
                gr.Image(
                    np.asarray(picture.convert("RGB")),
                    label=title,
                    show_label=False,  # it would cover the figure's own title
                    interactive=False,
                    height=380,
                    min_width=340,
                    **supported(gr.Image, {"alt_text": title}),
                    **buttons(gr.Image, "download", "fullscreen"),
                )
    gr.Markdown(content.card)


def _add_endpoints(content: Content) -> None:
    """Add what other programs call. docs/demo.md gives the schema of the answers."""
    model = content.model

    def predict(image: str | None) -> dict[str, Any]:
        """Return everything that is said about one image."""
        return or_error(lambda: model.predict_file(_given(image))).result.to_dict()

    def explain(image: str | None) -> np.ndarray:
        """Return the image with the Grad-CAM heat of the predicted diagnosis."""
        return or_error(lambda: model.explain(model.predict_file(_given(image), maps=True)))

    def predict_many(files: list[str] | None) -> list[dict[str, Any]]:
        """Return the same as `predict` for each file, or `file` and `error` if it is unreadable."""
        paths = or_error(lambda: require_few(_given(files)))
        predictions = model.predict_files(paths)
        return [
            (one.result if isinstance(one, Prediction) else one).to_dict() for one in predictions
        ]

    def describe() -> dict[str, Any]:
        """Return the model's recipe, input size, classes, and metrics."""
        return {
            "recipe": model.info.recipe,
            "image_size": list(model.info.image_size),
            "synthetic": model.info.synthetic,
            "rule": model.calibration.rule,
            "classes": dict(zip(model.info.labels, model.info.names, strict=True)),
            "metrics": content.metrics,
            "notice": DISCLAIMER,
        }

    with gr.Row(visible=False):
        image, answer, picture = make_upload("image"), gr.JSON(), gr.Image(format="png")
        files, button = make_files("files"), gr.Button()
    button.click(predict, image, answer, api_name="predict")
    button.click(explain, image, picture, api_name="explain")
    button.click(predict_many, files, answer, api_name="predict_many")
    button.click(describe, None, answer, api_name="describe")


def launch(
    run: str | Path | Run,
    *,
    data: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    auth: tuple[str, str] | None = None,
) -> gr.Blocks:
    """Start the page and return at once. `close()` of the returned object stops it.

    Args:
        run: folder of a run, or of a saved model by itself.
        data: dataset to take examples from. None: the one at hand.
        host: address to listen on. 0.0.0.0 opens the page to the whole network.
        port: None takes the first free port from 7860 on.
        share: also ask Gradio for a public link.
        auth: (user, password) to ask for.

    Raises:
        InputError: the port is taken, Gradio is too old for a public link, or as `load_content`.
    """
    if share:
        require_safe_gradio("a public link")
    with TemporaryDirectory() as drawn:
        content = load_content(Run.find(run), data=data, drawn=Path(drawn))
        app = build_app(content)
    _warm_up(content.model)
    is_visible = find_platform() != "kaggle" or share
    try:
        app.launch(
            server_name=host,
            server_port=port,
            share=share,
            auth=auth,
            inline=is_watched() and is_visible,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,  # hides Gradio's own messages, with their paths, but not ours
            app_kwargs=guard(is_private=host in LOOPBACK and not share),
            max_file_size=MAX_UPLOAD,
            ssr_mode=False,  # Spaces would serve another page than the tested one
            **_style(gr.Blocks.launch),
        )
    except (OSError, OverflowError) as error:  # taken, or not a port
        raise InputError(
            f"port {port} on {host} is in use or not allowed: choose another with --port"
        ) from error
    _say_address(app, is_visible=is_visible)
    return app


def serve(run: str | Path | Run, **options: Any) -> None:
    """Show a run's model until interrupted. Arguments and errors: `launch`."""
    say(f"demo: loading {run}")
    app = launch(run, **options)
    say("demo: stop it with Ctrl-C")
    app.block_thread()


def require_safe_gradio(purpose: str) -> None:
    """Check that this Gradio has no known vulnerabilities.

    Args:
        purpose: what needs it, such as `a public link`.

    Raises:
        InputError: it is older than `SAFE_TO_SHARE`.
    """
    if Version(gr.__version__) < SAFE_TO_SHARE:
        raise InputError(
            f"{purpose} needs Gradio {SAFE_TO_SHARE} or newer, and this is {gr.__version__}, which "
            f'has known vulnerabilities: pip install "gradio>={SAFE_TO_SHARE}", then restart'
        )


def _warm_up(model: CalibratedPredictor) -> None:
    """Compile the network now, so that the first visitor does not wait for it."""
    model.predictor.predict_images(np.zeros((1, *model.info.image_size, 3), np.uint8))


def _say_address(app: gr.Blocks, *, is_visible: bool) -> None:
    say(f"demo: {app.share_url or app.local_url}")
    if not is_visible:
        say(
            "demo: Kaggle does not show this page. Predict in the cell above, or set share = True "
            f"for a public link (needs Gradio {SAFE_TO_SHARE} or newer, and internet)."
        )


def _style(function: Any) -> dict[str, Any]:
    """Return theme and style sheet for the function that takes them: `launch` from Gradio 6 on."""
    system = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    options = {
        # System fonts, so that nothing is fetched from elsewhere.
        "theme": gr.themes.Default(primary_hue="teal", font=system, font_mono=["monospace"]),
        "css": html.CSS,
    }
    return supported(function, options)


def _given(value: Any) -> Any:
    if not value:
        raise InputError("no image: send one as `image`, or several as `files`")
    return value
