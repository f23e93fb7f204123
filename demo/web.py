"""Page to try a model in the browser: drop an image, see the predictions and the scans inside.

The page needs no network. It deletes uploaded files after reading them, and does not write results
to the disk. It offers the models in work_dirs, such as those that `make demo` trains, those
in the given folders, and the published ones, whose weights are read from a path or a URL.

Example:
    python demo/web.py
    python demo/web.py work_dirs/my_detector --port 8000
"""

import argparse
import gc
import ipaddress
import logging
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'  # read when gradio is imported

try:
    import gradio as gr
except ModuleNotFoundError as error:
    raise SystemExit(f'error: {error}; install it with pip install "mmvmamba[web]"') from None
import PIL.Image
import web_drawing as drawing
from web_models import (
    MIN_SCORE,
    TASKS,
    Model,
    Picture,
    Prediction,
    Source,
    VisitorError,
    find_published,
    find_trained,
    read_image,
)

from mmvmamba.checkpoint.redaction import redact_record, redacted
from mmvmamba.engine import errors
from mmvmamba.engine.errors import UserError, explain

MAX_MEGABYTES = 20
#: Visitors whose results are in memory, and events that wait.
MAX_SESSIONS, MAX_WAITING = 16, 16
#: Seconds until the image and the prediction of a visitor from elsewhere are forgotten.
MAX_SECONDS = 600
#: Folders of the demo data whose images are examples.
EXAMPLES = {
    'Detection': 'data/demo/images/val',
    'Segmentation': 'data/demo/images/val',
    'Classification': 'data/demo/crops/val/motorcycle',
}
INTRODUCTION = """# Try VMamba
Drop an image to see what a model finds in it. Then click a point in the image to see which
positions the network's scans relate to it."""
LOCAL = """Everything runs on this computer. Uploaded files are deleted after they are read, and the
rest is forgotten when you close the page."""
REMOTE = """Images are sent to the computer that runs this page. It deletes the files after it reads
them, and forgets the rest when you close the page."""
REMOTE_ERROR = (
    'This did not work. The person who runs this page can find the reason in the terminal.'
)
NO_MODELS = """**No trained models were found.** Run `make demo` to train two small ones, in about
14 minutes on two CPU cores, or restart the page with the folder of your own model: `python
demo/web.py FOLDER`. You can also select a published model and enter the path of its weights."""
HINT = 'Drop an image to begin.'
HINT_INSIDE = 'Click a point in the image.'
HINT_RUN = 'Press Run to download the weights and predict.'
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
        is_local (bool): True if only this computer can open the page. Otherwise errors do not show
            paths. Defaults to True.
    """

    def __init__(
        self, sources: Sequence[Source], device: str | None, is_local: bool = True
    ) -> None:
        self.sources = {source.name: source for source in sources}
        self.device = device
        self.is_local = is_local
        self.model: Model | None = None
        self.key: tuple[Any, ...] = ()
        self.downloaded: set[str] = set()

    def names(self, task: str) -> list[str]:
        """Return the names of the models of a task."""
        return [s.name for s in self.sources.values() if s.package == TASKS[task]]

    def load(self, name: str | None, weights: str) -> Model:
        """Load a model, unless it is the one that was used last."""
        if name is None:
            raise VisitorError('Select a model first.')
        source = self.sources[name]
        checkpoint = weights.strip() if source.is_published else source.checkpoint
        if not checkpoint:
            raise VisitorError('Enter the path or the URL of the weights.')
        key = (source.config, checkpoint, modified(source.config), modified(checkpoint))
        if self.model is None or self.key != key:
            self.model = None  # no two models are in memory
            gc.collect()
            self.model = Model(source.config, checkpoint, self.device)
            self.key = key
            self.downloaded.add(checkpoint)
        return self.model

    def needs_download(self, weights: str) -> bool:
        """Return True for a URL that was not loaded before."""
        return '://' in weights and weights.strip() not in self.downloaded

    def describe(self, error: Exception) -> str:
        """Return the message of an error to show. The terminal gets what is not shown."""
        message = explain(error)
        if message is None:
            logger.error('unexpected error', exc_info=error)
            message = f'{type(error).__name__}: {error} (the terminal has the traceback)'
        elif not self.is_local and not isinstance(error, VisitorError):
            logger.error(message)
        if not self.is_local and not isinstance(error, VisitorError):
            message = REMOTE_ERROR
        return drawing.error(redacted(message))

    # Events. Each returns the new values of its outputs; an error is shown as one of them.

    def choose_task(self, task: str) -> tuple[Any, Any]:
        """Offer the models of a task."""
        names = self.names(task)
        choices = gr.Dropdown(choices=names, value=names[0] if names else None)
        return choices, gr.Slider(visible=task == 'Detection')

    def choose_model(self, name: str | None) -> Any:
        """Show where the weights of a published model are."""
        source = self.sources.get(name) if name else None
        is_published = source is not None and source.is_published
        return gr.Textbox(source.checkpoint if is_published else '', visible=is_published)

    def receive(
        self,
        payload: dict[str, Any] | None,
        name: str | None,
        weights: str,
        threshold: float,
        read: Sequence[Path],
    ) -> tuple[Any, ...]:
        """Read an uploaded file and predict; add its path to those that were read."""
        path, picture = None, None
        try:
            path = path_of(payload)
            picture = read_image(path) if path else None
            shown = self.predict_unless_remote(picture, name, weights, threshold)
        except Exception as error:
            shown = None, self.describe(error), *empty_inside()
        return picture, *shown, [*read, *([path] if path else [])]

    def finish(
        self, payload: dict[str, Any] | None, picture: Picture | None, read: Sequence[Path]
    ) -> tuple[Any, list[Path]]:
        """Delete the files that were read, and take a refused one off the page.

        Meanwhile, the visitor may have uploaded another file, which is still to be read.
        """
        for path in read:
            delete(path)
        is_refused = picture is None and payload is not None
        return None if is_refused and Path(payload['path']).resolve() in read else gr.skip(), []

    def clear(self) -> tuple[Any, ...]:
        """Forget the image."""
        return None, None, drawing.empty(HINT), *empty_inside()

    def predict_unless_remote(
        self, picture: Picture | None, name: str | None, weights: str, threshold: float
    ) -> tuple[Any, ...]:
        """Predict, but leave it to the user to start a download."""
        if picture is not None and self.needs_download(weights):
            return None, drawing.empty(HINT_RUN), *empty_inside()
        return self.predict(picture, name, weights, threshold)

    def predict(
        self, picture: Picture | None, name: str | None, weights: str, threshold: float
    ) -> tuple[Any, ...]:
        """Return a prediction and its drawing."""
        if picture is None:
            return self.clear()[1:]
        try:
            prediction = self.load(name, weights).predict(picture.image)
            prediction = prediction._replace(facts=(*prediction.facts, picture.notice))
            drawn = drawing.draw_prediction(*prediction, threshold)
            return prediction, drawn, *empty_inside()
        except Exception as error:
            return None, self.describe(error), *empty_inside()

    def redraw(self, prediction: Prediction | None, threshold: float) -> Any:
        """Draw a prediction again, with another lowest score."""
        if prediction is None:
            return gr.skip()
        return drawing.draw_prediction(*prediction, threshold)

    def look_inside(
        self,
        picture: Picture | None,
        name: str | None,
        weights: str,
        stage: int,
        point: tuple[float, float] | None,
    ) -> str:
        """Return the drawing of the maps of a point, whose x and y are shares of the image."""
        if picture is None or point is None:
            return drawing.empty(HINT_INSIDE)
        if self.needs_download(weights):
            return drawing.empty(HINT_RUN)
        try:
            return self.load(name, weights).look_inside(picture.image, point, stage - 1)
        except Exception as error:
            return self.describe(error)

    def example(self, task: str) -> PIL.Image.Image | None:
        """Return a random image of the demo data."""
        images = sorted(Path(EXAMPLES[task]).glob('*.jpg'))
        return PIL.Image.open(random.choice(images)) if images else None

    def build(self) -> gr.Blocks:
        """Build the page."""
        is_trained = any(not source.is_published for source in self.sources.values())
        with gr.Blocks(title='VMamba', analytics_enabled=False, delete_cache=(60, 600)) as page:
            introduction = f'{INTRODUCTION} {LOCAL if self.is_local else REMOTE}'
            gr.Markdown(introduction if is_trained else f'{introduction}\n\n{NO_MODELS}')
            with gr.Row():
                with gr.Column(scale=4, min_width=320):
                    inputs = self.add_inputs()
                with gr.Column(scale=5, min_width=320):
                    outputs = self.add_outputs()
            self.connect(inputs, outputs)

            async def forget(visit: gr.Request) -> None:
                # In the event loop, where gradio reads the sessions. It would keep one for an hour.
                page.state_holder.session_data.pop(visit.session_hash, None)

            page.unload(forget)
        return page.queue(max_size=MAX_WAITING)

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
                MIN_SCORE, 1, 0.3, step=0.05, label='Lowest score', visible=task == 'Detection'
            ),
        )

    def add_buttons(self) -> dict[str, Any]:
        """Add the buttons below the image."""
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
        seconds = None if self.is_local else MAX_SECONDS
        states = {
            name: gr.State(value, time_to_live=seconds)
            for name, value in dict(picture=None, prediction=None, point=None, read=[]).items()
        }
        return SimpleNamespace(tabs=tabs, result=result, stage=stage, inside=inside, **states)

    def connect(self, put: SimpleNamespace, out: SimpleNamespace) -> None:
        """Connect the events with the components."""
        # One event at a time: they share the model and the visualizer.
        one = dict(concurrency_id='model', concurrency_limit=1, api_visibility='private')
        # Gradio would decode an uploaded image before any check.
        raw = dict(one, preprocess=False)
        # An image that is uploaded during a prediction is read after it.
        last = dict(raw, trigger_mode='always_last')
        choice = [put.model, put.weights, put.threshold]
        shown = [out.prediction, out.result, out.point, out.inside]
        put.task.change(self.choose_task, put.task, [put.model, put.threshold], **one)
        put.model.change(self.choose_model, put.model, put.weights, **one).then(
            self.predict_unless_remote, [out.picture, *choice], shown, **one
        )
        example = put.example.click(self.example, put.task, put.upload, **one)
        for event in (put.upload.upload, example.then):
            received = event(
                self.receive,
                [put.upload, *choice, out.read],
                [out.picture, *shown, out.read],
                **last,
            )
            received.then(
                self.finish,
                [put.upload, out.picture, out.read],
                [put.upload, out.read],
                **last,
            ).then(None, js=SCROLL)
        put.upload.clear(self.clear, None, [out.picture, *shown], **one)
        for event in (put.run.click, put.weights.submit):
            event(self.predict, [out.picture, *choice], shown, **one)
        put.threshold.release(self.redraw, [out.prediction, put.threshold], out.result, **one)
        clicked = [out.picture, put.model, put.weights, out.stage, out.point]
        put.upload.select(point_of, out.picture, [out.point, out.tabs], **one).then(
            self.look_inside, clicked, out.inside, **one
        ).then(None, js=SCROLL)
        out.stage.change(self.look_inside, clicked, out.inside, **one)


def empty_inside() -> tuple[None, str]:
    """Return no point, and the hint that is in place of its maps."""
    return None, drawing.empty(HINT_INSIDE)


def modified(path: str) -> int | None:
    """Return the time of a file's last change in nanoseconds, or None if it is not a file."""
    return os.stat(path).st_mtime_ns if os.path.isfile(path) else None


def path_of(payload: dict[str, Any] | None) -> Path | None:
    """Return the path of an uploaded file, which has its own folder in the temporary folder."""
    if payload is None:
        return None
    path = Path(payload['path']).resolve()
    if path.parent.parent != Path(os.environ['GRADIO_TEMP_DIR']).resolve():
        raise VisitorError('The file is not an upload.')
    return path


def delete(path: Path | None) -> None:
    if path is not None:
        shutil.rmtree(path.parent, ignore_errors=True)


def point_of(picture: Picture | None, event: gr.SelectData) -> tuple[Any, Any]:
    """Return x and y of a click as shares of the image, and switch to the tab of its maps."""
    if picture is None:
        return None, gr.Tabs(selected='inside')
    x, y = event.index
    width, height = picture.size
    return (x / width, y / height), gr.Tabs(selected='inside')


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
        state_session_capacity=MAX_SESSIONS,
        theme=gr.themes.Default(primary_hue='indigo', font=fonts, font_mono=mono),
        css=drawing.CSS,
    )


def find_address(host: str, port: int) -> tuple[str, bool]:
    """Return the host as URLs have it, and True if only this computer can reach it.

    Raises:
        UserError: If the host is unknown, or the port cannot be used.
    """
    try:
        found = socket.getaddrinfo(host.strip('[]'), port, type=socket.SOCK_STREAM)
        family, *_, address = found[0]
        with socket.socket(family) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address[0], port, *address[2:]))
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'the page cannot use port {port} of {host}: {reason}') from error
    is_local = all(ipaddress.ip_address(info[4][0]).is_loopback for info in found)
    host = host.strip('[]')
    return f'[{host}]' if ':' in host else host, is_local


def main() -> None:
    args = parse_args()
    logger.addFilter(redact_record)
    trained = find_trained(args.folders or ['work_dirs'])
    if args.folders and not trained:
        raise UserError(
            'folders must contain work directories with a config and a checkpoint, but got '
            f'{args.folders}'
        )
    host, is_local = find_address(args.host, args.port)
    warnings.filterwarnings('ignore', module='gradio')
    # The paths of weights are for the user of this computer only.
    sources = trained + (find_published() if is_local else [])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix='mmvmamba-web-') as folder:
        os.environ['GRADIO_TEMP_DIR'] = folder
        page = Page(sources, args.device, is_local).build()
        try:
            launch(page, host, args.port)
        except OSError as error:  # gradio also asks for the port of 127.0.0.1
            raise UserError(f'the page cannot use port {args.port}: {error}') from error
        print(f'The page is at http://{host}:{args.port} (Ctrl-C to stop)', flush=True)
        page.block_thread()


if __name__ == '__main__':
    errors.run(main)
