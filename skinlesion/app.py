"""The Gradio demo: an image in, the confidence of all seven diagnoses out. Nothing on import."""

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from skinlesion.errors import InputError
from skinlesion.labels import CLASS_NAMES, DISCLAIMER, SYNTHETIC_NOTE
from skinlesion.predictor import Predictor
from skinlesion.workspace import is_watched

MAX_UPLOAD = "20mb"
KEEP_UPLOADS_SECONDS = 3600

TITLE = "Skin lesion classifier"
NOTICE = f"""\
**{DISCLAIMER}** A confident answer can be wrong; whoever worries about a spot on their skin should
see a doctor."""
FOREIGN = """\
This does not look like a dermatoscopic image of a lesion: the confidences mean nothing."""
ABOUT = """\
Upload a dermatoscopic image: a close-up taken through a dermatoscope, one lesion in the middle. The
network knows seven diagnoses and always answers with these, whatever the image shows: a photograph
of anything else gets an answer that means nothing, and in most cases a warning. The confidences add
up to 100 %."""


def build_app(predictor: Predictor) -> gr.Blocks:
    """The page, not yet launched; its endpoint `predict` takes an image file.

    Args:
        predictor: the model to show.
    """

    def classify(image: str | None) -> dict[str, float] | None:
        """Confidence of each of the seven diagnoses, by full name; they add up to 1."""
        if image is None:
            return None
        try:
            prediction = predictor.predict(image)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error
        if prediction.is_foreign:
            gr.Warning(FOREIGN)
        return dict(zip(CLASS_NAMES, prediction.probabilities.values(), strict=True))

    info = predictor.bundle.info
    height, width = info.image_size
    synthetic = f"\n\n**{SYNTHETIC_NOTE}**" if info.synthetic else ""
    # Uploads are kept as long as a page may show them, then deleted.
    cache = (KEEP_UPLOADS_SECONDS, KEEP_UPLOADS_SECONDS)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=cache) as app:
        gr.Markdown(f"# {TITLE}\n{NOTICE}{synthetic}")
        with gr.Row():
            with gr.Column():
                # The file itself, not pixels: the predictor decodes it as training did.
                image = gr.Image(
                    label="Dermatoscopic image",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard", "webcam"],
                    height=360,
                )
            with gr.Column():
                label = gr.Label(label="Confidence", num_top_classes=len(CLASS_NAMES))
        gr.Markdown(f"{ABOUT}\n\nRecipe `{info.recipe}`, {width} x {height} pixels.")
        _hand_over_files_unopened(image)
        image.change(classify, image, label, api_name="predict")
    return app


def _hand_over_files_unopened(image: gr.Image) -> None:
    """Give the uploaded file to `decode_image` as it is, without Gradio opening it first.

    Gradio answers a file that is no image with its own long text, server paths included. It has
    checked before this step that the path is that of an upload.
    """
    open_first = image.preprocess

    def preprocess(payload: Any) -> Any:
        return payload.path if payload is not None and payload.path else open_first(payload)

    image.preprocess = preprocess


def launch(
    predictor: Predictor,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    auth: tuple[str, str] | None = None,
) -> gr.Blocks:
    """Start the page and return at once; `close()` of what is returned stops it.

    Args:
        predictor: the model to show.
        host: address to listen on; 0.0.0.0 shows the page to the whole network.
        port: None takes the first free one from 7860 on.
        share: also ask Gradio for a public link.
        auth: (user, password) to ask for.

    Raises:
        InputError: the port is taken.
    """
    app = build_app(predictor)
    try:
        app.launch(
            server_name=host,
            server_port=port,
            share=share,
            auth=auth,
            inline=is_watched(),
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            max_file_size=MAX_UPLOAD,
        )
    except OSError as error:
        raise InputError(
            f"port {port} on {host} cannot be used ({error}); choose --port"
        ) from error
    print(f"demo: {app.share_url or app.local_url}", flush=True)
    return app


def serve(
    run: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    auth: tuple[str, str] | None = None,
) -> None:
    """Show a run's model until interrupted. Arguments and errors: `launch`."""
    print(f"demo: loading {run}", flush=True)
    predictor = Predictor.load(run)
    # The first prediction compiles the network: better now than while somebody waits for it.
    predictor.predict_images(np.zeros((1, *predictor.bundle.info.image_size, 3), np.uint8))
    app = launch(predictor, host=host, port=port, share=share, auth=auth)
    print("demo: stop it with Ctrl-C", flush=True)
    app.block_thread()
