"""Page to try a model in the browser: drop an image, see the predictions and the scans inside.

The page needs no network. Uploaded images are deleted after they are read, and results are not
written to the disk. It offers the models in work_dirs, such as those that `make demo` trains, those
in the given folders, and the published ones, whose weights are read from a path or a URL.

Example:
    python demo/web.py
    python demo/web.py work_dirs/my_detector --port 8000
"""

import argparse
import ipaddress
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'  # read when gradio is imported

import gradio as gr
import PIL.Image
import web_drawing as drawing
from web_models import (
    TASKS,
    Model,
    Prediction,
    Source,
    find_published,
    find_trained,
    load_model,
    read_image,
)

from mmvmamba.checkpoint.redaction import redacted
from mmvmamba.engine import errors
from mmvmamba.engine.errors import UserError, explain

MAX_MEGABYTES = 20
#: Folders of the demo data whose images are examples.
EXAMPLES = {
    'Detection': 'data/demo/images/val',
    'Segmentation': 'data/demo/images/val',
    'Classification': 'data/demo/crops/val/motorcycle',
}
INTRODUCTION = """# Try VMamba
Drop an image to see what a model finds in it. Then click a point of the image to see which
positions the network's scans relate to it. Everything runs on this computer. No image is kept."""
NO_MODELS = """**No trained models were found.** Run `make demo` to train two small ones, in about
ten minutes on two CPU cores, or restart the page with the folder of your own model: `python
demo/web.py FOLDER`. You can also select a published model and enter the path of its weights."""
HINT = 'Drop an image to begin.'
HINT_INSIDE = 'Click a point in the image.'
#: On a phone, the results are below the screen.
SCROLL = "() => innerWidth < 700 && document.querySelector('#results').scrollIntoView()"
logger = logging.getLogger('mmvmamba.web')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Open a page to try models in the browser.')
    parser.add_argument(
        'folders',
        nargs='*',
        help='folders that contain work directories of trained models (default: work_dirs)',
    )
    parser.add_argument('--host', default='127.0.0.1', help='address (default: 127.0.0.1)')
    parser.add_argument('--port', type=int, default=7860, help='port (default: 7860)')
    parser.add_argument('--device', help='cpu, cuda:0, ... (default: a GPU if available)')
    return parser.parse_args()


class Page:
    """The page and its events.

    Args:
        sources (Sequence[Source]): The models to offer.
        device (str | None): Their device; None stands for a GPU if there is one.
    """

    def __init__(self, sources: Sequence[Source], device: str | None) -> None:
        self.sources = {source.name: source for source in sources}
        self.device = device

    def names(self, task: str) -> list[str]:
        return [s.name for s in self.sources.values() if s.package == TASKS[task]]

    def load(self, name: str | None, weights: str) -> Model:
        if name is None:
            raise UserError('Select a model first.')
        source = self.sources[name]
        checkpoint = weights.strip() if source.is_published else source.checkpoint
        if not checkpoint:
            raise UserError('Enter the path or the URL of the weights.')
        return load_model(source.config, checkpoint, self.device)

    # Events. Each returns the new values of its outputs; an error is shown as one of them.

    def choose_task(self, task: str) -> tuple[Any, Any]:
        names = self.names(task)
        choices = gr.Dropdown(choices=names, value=names[0] if names else None)
        return choices, gr.Slider(visible=task == 'Detection')

    def choose_model(self, name: str | None) -> Any:
        source = self.sources.get(name)
        is_published = source is not None and source.is_published
        return gr.Textbox(source.checkpoint if is_published else '', visible=is_published)

    def receive(self, payload: dict[str, Any] | None, *inputs: Any) -> tuple[Any, ...]:
        """Read an uploaded file and predict."""
        path = None
        try:
            path = path_of(payload)
            picture = read_image(path) if path else None
        except Exception as error:
            delete(path)
            return None, None, None, describe(error), drawing.empty(HINT_INSIDE)
        shown = self.predict_unless_remote(picture, *inputs)
        return gr.skip(), picture, *shown, drawing.empty(HINT_INSIDE)

    def clear(self) -> tuple[Any, ...]:
        return None, None, drawing.empty(HINT), drawing.empty(HINT_INSIDE)

    def predict_unless_remote(self, picture: Any, *inputs: Any) -> tuple[Any, Any]:
        """Predict, but leave it to the user to start a download."""
        if picture is not None and '://' in inputs[1]:
            return None, drawing.empty('Press Run to download the weights and predict.')
        return self.predict(picture, *inputs)

    def predict(
        self, picture: Any, name: str | None, weights: str, threshold: float
    ) -> tuple[Any, Any]:
        if picture is None:
            return None, gr.skip()
        try:
            prediction = self.load(name, weights).predict(picture.image)
            prediction = prediction._replace(facts=(*prediction.facts, picture.notice))
            return prediction, drawing.draw_prediction(*prediction, threshold)
        except Exception as error:
            return None, describe(error)

    def redraw(self, prediction: Prediction | None, threshold: float) -> Any:
        if prediction is None:
            return gr.skip()
        return drawing.draw_prediction(*prediction, threshold)

    def look_inside(
        self, picture: Any, name: str | None, weights: str, stage: int, point: Any
    ) -> str:
        if picture is None or point is None:
            return drawing.empty(HINT_INSIDE)
        try:
            return self.load(name, weights).look_inside(picture.image, point, stage - 1)
        except Exception as error:
            return describe(error)

    def example(self, task: str) -> PIL.Image.Image | None:
        images = sorted(Path(EXAMPLES[task]).glob('*.jpg'))
        return PIL.Image.open(random.choice(images)) if images else None

    def build(self) -> gr.Blocks:
        """Build the page."""
        is_trained = any(not source.is_published for source in self.sources.values())
        with gr.Blocks(title='VMamba', analytics_enabled=False, delete_cache=(60, 600)) as page:
            gr.Markdown(INTRODUCTION if is_trained else f'{INTRODUCTION}\n\n{NO_MODELS}')
            with gr.Row():
                with gr.Column(scale=4, min_width=320):
                    inputs = self.add_inputs()
                with gr.Column(scale=5, min_width=320):
                    outputs = self.add_outputs()
            self.connect(inputs, outputs)
        return page

    def add_inputs(self) -> SimpleNamespace:
        """Add what the user sets."""
        first = next(iter(self.sources.values()), None)  # a trained one, if there is one
        package = first.package if first else 'mmdet'
        task = next(name for name in TASKS if TASKS[name] == package)
        return SimpleNamespace(
            task=gr.Radio(list(TASKS), value=task, label='Task'),
            model=gr.Dropdown(self.names(task), value=first and first.name, label='Model'),
            weights=gr.Textbox(
                first.checkpoint if first and first.is_published else '',
                visible=bool(first and first.is_published),
                label='Weights',
                info='A path, or a URL to download when you press Run.',
            ),
            upload=gr.Image(
                label='Image',
                sources=['upload', 'clipboard'],
                buttons=[],
                format='png',
                elem_id='upload',
            ),
            **self.add_buttons(),
            threshold=gr.Slider(
                0, 1, 0.3, step=0.05, label='Lowest score', visible=task == 'Detection'
            ),
        )

    def add_buttons(self) -> dict[str, Any]:
        with gr.Row():
            has_examples = Path(EXAMPLES['Detection']).is_dir()
            example = gr.Button('Example', min_width=80, visible=has_examples)
            return dict(example=example, run=gr.Button('Run', variant='primary', min_width=80))

    def add_outputs(self) -> SimpleNamespace:
        """Add the results, and the states of a visit."""
        with gr.Tabs(selected='predictions', elem_id='results') as tabs:
            with gr.Tab('Predictions', id='predictions'):
                result = gr.HTML(drawing.empty(HINT), elem_id='result')
            with gr.Tab('Inside the network', id='inside'):
                stage = gr.Radio([1, 2, 3, 4], value=3, label='Stage of the backbone')
                inside = gr.HTML(drawing.empty(HINT_INSIDE), elem_id='inside')
        states = dict(picture=gr.State(), prediction=gr.State(), point=gr.State())
        return SimpleNamespace(tabs=tabs, result=result, stage=stage, inside=inside, **states)

    def connect(self, put: SimpleNamespace, out: SimpleNamespace) -> None:
        """Connect the events with the components."""
        # One event at a time: they share the model and the visualizer.
        one = dict(concurrency_id='model', concurrency_limit=1, api_visibility='private')
        # Gradio would decode an uploaded image before any check.
        raw = dict(one, preprocess=False)
        choice, shown = [put.model, put.weights, put.threshold], [out.prediction, out.result]
        put.task.change(self.choose_task, put.task, [put.model, put.threshold], **one)
        put.model.change(self.choose_model, put.model, put.weights, **one).then(
            self.predict_unless_remote, [out.picture, *choice], shown, **one
        )
        example = put.example.click(self.example, put.task, put.upload, **one)
        for event in (put.upload.upload, example.then):
            received = [put.upload, out.picture, *shown, out.inside]
            event(self.receive, [put.upload, *choice], received, **raw).then(
                lambda payload: delete(path_of(payload)), put.upload, **raw
            ).then(None, js=SCROLL)
        put.upload.clear(self.clear, None, [out.picture, *shown, out.inside], **one)
        for event in (put.run.click, put.weights.submit):
            event(self.predict, [out.picture, *choice], shown, **one)
        put.threshold.release(self.redraw, [out.prediction, put.threshold], out.result, **one)
        clicked = [out.picture, put.model, put.weights, out.stage, out.point]
        put.upload.select(point_of, out.picture, [out.point, out.tabs], **one).then(
            self.look_inside, clicked, out.inside, **one
        ).then(None, js=SCROLL)
        out.stage.change(self.look_inside, clicked, out.inside, **one)


def path_of(payload: dict[str, Any] | None) -> Path | None:
    """Return the path of an uploaded file, which has its own folder in the temporary folder."""
    if payload is None:
        return None
    path = Path(payload['path']).resolve()
    if path.parent.parent != Path(os.environ['GRADIO_TEMP_DIR']).resolve():
        raise UserError('The file is not an upload.')
    return path


def delete(path: Path | None) -> None:
    if path is not None:
        shutil.rmtree(path.parent, ignore_errors=True)


def point_of(picture: Any, event: gr.SelectData) -> tuple[Any, Any]:
    """Return x and y of a click as shares of the image, and switch to the tab of its maps."""
    x, y = event.index
    width, height = picture.size
    return (x / width, y / height), gr.Tabs(selected='inside')


def describe(error: Exception) -> str:
    """Return the message of an error; that of an unexpected one is logged with its traceback."""
    message = explain(error)
    if message is None:
        logger.error('unexpected error', exc_info=error)
        message = f'{type(error).__name__}: {error} (the terminal has the traceback)'
    return drawing.error(redacted(message))


def launch(page: gr.Blocks, host: str, port: int) -> None:
    """Start to serve the page."""
    fonts = [gr.themes.Font(name) for name in ('system-ui', 'sans-serif')]
    mono = [gr.themes.Font(name) for name in ('ui-monospace', 'monospace')]
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        share=False,
        ssr_mode=False,
        pwa=False,
        quiet=True,
        footer_links=[],
        max_file_size=f'{MAX_MEGABYTES}mb',
        theme=gr.themes.Default(primary_hue='indigo', font=fonts, font_mono=mono),
        css=drawing.CSS,
    )


def main() -> None:
    args = parse_args()
    trained = find_trained(args.folders or ['work_dirs'])
    if args.folders and not trained:
        raise UserError(
            'folders must contain work directories with a config and a checkpoint, but got '
            f'{args.folders}'
        )
    # The paths of weights are for the user of this computer only.
    is_local = args.host == 'localhost' or ipaddress.ip_address(args.host).is_loopback
    warnings.filterwarnings('ignore', module='gradio')
    sources = trained + (find_published() if is_local else [])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix='mmvmamba-web-') as folder:
        os.environ['GRADIO_TEMP_DIR'] = folder
        page = Page(sources, args.device).build()
        try:
            launch(page, args.host, args.port)
        except OSError as error:
            raise UserError(f'the page cannot use port {args.port} of {args.host}') from error
        print(f'The page is at http://{args.host}:{args.port} (Ctrl-C to stop)', flush=True)
        page.block_thread()


if __name__ == '__main__':
    errors.run(main)
