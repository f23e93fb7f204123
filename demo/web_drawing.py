"""HTML and images of demo/web.py: predictions, scan paths and activation maps."""

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib import colormaps
from mmengine.visualization import Visualizer

from mmvmamba.analysis.activation_map import ScanMaps
from mmvmamba.engine.drawing import enlargement
from mmvmamba.ops.scan_orders import COLUMN, COLUMN_REVERSED, ROW, ROW_REVERSED, Order

#: Longer side of a figure in pixels.
FIGURE_SIDE = 480
#: Ratio of the longer side of an image to the font size of its labels.
SIDE_PER_FONT = 28
#: Rows of the longest table.
MAX_ROWS = 20
ORDER_NAMES = {
    ROW: 'rows, left to right',
    COLUMN: 'columns, top to bottom',
    ROW_REVERSED: 'rows, right to left',
    COLUMN_REVERSED: 'columns, bottom to top',
}
BLUE, RED, MARK = (33, 102, 172), (178, 24, 43), (60, 220, 60)

CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto; }
footer { display: none !important; }
#upload .upload-container, #upload .image-frame { width: 100% !important; }
#upload img { width: 100%; height: auto; max-height: 50vh; object-fit: contain; }
.vm img { display: block; width: 100%; border-radius: 8px; }
.vm .picture { max-height: 70vh; width: auto; max-width: 100%; margin: 0 auto; }
.vm p { margin: 0.5em 0; color: var(--body-text-color); }
.vm .facts { opacity: 0.75; font-size: 0.9em; overflow-wrap: anywhere; }
.vm .error { border-left: 4px solid #d33; padding: 0.6em 0.9em; overflow-wrap: anywhere;
    background: var(--background-fill-secondary); border-radius: 4px; }
.vm .empty { opacity: 0.75; text-align: center; padding: 3em 1em; }
.vm table { width: 100%; border-collapse: collapse; margin: 0.5em 0; }
.vm table, .vm tr, .vm td, .vm th { border: 0 !important; color: var(--body-text-color); }
.vm tr + tr { border-top: 1px solid var(--border-color-primary) !important; }
.vm td, .vm th { padding: 0.3em 0; text-align: left; }
.vm td:last-child { width: 45%; white-space: nowrap; font-variant-numeric: tabular-nums; }
.vm .bar { display: inline-block; height: 0.6em; margin-right: 0.5em; border-radius: 3px;
    background: var(--color-accent); }
.vm .grid { display: grid; gap: 0.8em; grid-template-columns: repeat(2, 1fr); margin: 0.5em 0; }
.vm figure { margin: 0; }
.vm figcaption { font-size: 0.85em; padding-top: 0.25em; color: var(--body-text-color); }
.vm .scale { height: 0.8em; border-radius: 4px; margin-top: 0.8em; }
.vm .path { background: linear-gradient(to right, #440154, #3b528b, #21918c, #5ec962, #fde725); }
.vm .ends { display: flex; justify-content: space-between; font-size: 0.85em; }
@media (min-width: 1000px) {
    .vm .grid { grid-template-columns: repeat(3, 1fr); }
    .vm .four { grid-template-columns: repeat(4, 1fr); }
}
"""


def block(*parts: str) -> str:
    return f'<div class="vm">{"".join(parts)}</div>'


def empty(text: str) -> str:
    return block(f'<p class="empty">{html.escape(text)}</p>')


def error(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return block(f'<p class="error" role="alert">{html.escape(text)}</p>')


def facts(*sentences: str) -> str:
    return f'<p class="facts">{html.escape(" ".join(filter(None, sentences)))}</p>'


def image_tag(image: np.ndarray, alt: str, name: str = '') -> str:
    """Return an RGB image (H, W, 3) as a tag that contains it, so that no file is needed."""
    bgr = np.ascontiguousarray(image[..., ::-1])
    _, data = cv2.imencode('.webp', bgr, [cv2.IMWRITE_WEBP_QUALITY, 90])
    text = base64.b64encode(data).decode()
    return f'<img class="{name}" alt="{html.escape(alt)}" src="data:image/webp;base64,{text}">'


# ---- predictions ---------------------------------------------------------------------------------


def draw_prediction(
    visualizer: Visualizer,
    classes: Sequence[str],
    sample: Any,
    image: np.ndarray,
    sentences: Sequence[str],
    threshold: float,
) -> str:
    """Draw a prediction on an RGB image with the visualizer of its package, and list it."""
    # Larger than by default, for the width of a phone.
    visualizer.font_size = round(max(image.shape[:2]) * enlargement(image.shape) / SIDE_PER_FONT)
    if 'pred_label' in sample:
        visualizer.visualize_cls(image, sample, classes=classes, draw_gt=False)
    else:
        options = {'pred_score_thr': threshold} if 'pred_instances' in sample else {}
        visualizer.add_datasample('', image, sample, draw_gt=False, **options)
    picture = image_tag(visualizer.get_image(), 'the predictions', 'picture')
    return block(picture, facts(*sentences), list_classes(sample, classes, threshold))


def list_classes(sample: Any, classes: Sequence[str], threshold: float) -> str:
    """Return a table of the classes and their scores, or their shares of the image."""
    if 'pred_instances' in sample:
        found = sample.pred_instances
        pairs = zip(found.labels.tolist(), found.scores.tolist(), strict=True)
        rows = [(label, score) for label, score in pairs if score > threshold]
        title, lacking = 'score', f'Nothing has a score above {threshold:.2f}.'
    elif 'pred_sem_seg' in sample:
        counts = sample.pred_sem_seg.data.flatten().bincount().double()
        rows = [(i, share) for i, share in enumerate((counts / counts.sum()).tolist())]
        rows = [row for row in rows if row[1] >= 0.005]  # less is shown as 0.00
        title, lacking = 'share of the image', ''
    else:
        top = sample.pred_score.topk(min(5, len(sample.pred_score)))
        rows = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        title, lacking = 'score', ''
    if not rows:
        return facts(lacking)
    rows.sort(key=lambda row: -row[1])
    more = facts(f'{len(rows) - MAX_ROWS} more are not listed.') if len(rows) > MAX_ROWS else ''
    return table(((classes[i], value) for i, value in rows[:MAX_ROWS]), title) + more


def table(rows: Iterable[tuple[str, float]], title: str) -> str:
    lines = ''.join(
        f'<tr><td>{html.escape(name)}</td><td><span class="bar" style="width:{50 * value:.1f}%">'
        f'</span>{value:.2f}</td></tr>'
        for name, value in rows
    )
    return f'<table><tr><th>class</th><th>{title}</th></tr>{lines}</table>'


# ---- inside the network --------------------------------------------------------------------------


def draw_inside(
    view: np.ndarray, size: tuple[int, int], maps: ScanMaps, query: int, orders: Sequence[Order]
) -> str:
    """Draw the activation maps of a position, and the scan paths.

    Args:
        view (np.ndarray): The image (H, W, 3) that the network reads, RGB, without padding.
        size (tuple[int, int]): Its height and width with padding.
        maps (ScanMaps): The recorded scan of a block.
        query (int): The position y * W + x on the map.
        orders (Sequence[int | str]): The order of each scan path.
    """
    scale = FIGURE_SIDE / max(view.shape[:2])
    view = cv2.resize(view, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    step = np.array(size) * scale / maps.shape  # height and width of a position in pixels
    names = [ORDER_NAMES.get(order, str(order).replace('_', ' ')) for order in orders]
    found = [maps.in_image_order(path, query, 'decay').cpu().numpy() for path in maps.paths]
    total = maps.summed(query, 'decay').cpu().numpy()
    # The position's own weight, which is often far above the others, is not on the scale.
    limit = np.abs(np.delete(total, query)).max(initial=0) or 1.0
    captions = ['sum of the paths', *(f'path {k}: {name}' for k, name in enumerate(names, 1))]
    heat = figure(mark(view, step, maps.shape, query), 'the marked position') + ''.join(
        figure(mark(draw_map(view, values / limit, step), step, maps.shape, query), caption)
        for values, caption in zip([total, *found], captions, strict=True)
    )
    paths = ''.join(
        figure(draw_path(view, path.index.cpu().numpy(), maps.shape, step), caption)
        for path, caption in zip(maps.paths, captions[1:], strict=True)
    )
    rows, columns = maps.shape
    return block(
        '<p><b>Activation map.</b> The weight of each position in the output at the marked one, a '
        'mean over the channels: red is positive, blue negative. A path weighs only the positions '
        'that it has already read.</p>',
        f'<div class="grid">{heat}</div>',
        f'<div class="scale" style="background:linear-gradient(to right, {color_bar()})"></div>',
        f'<div class="ends"><span>&minus;{limit:.2g}</span><span>0</span>'
        f'<span>+{limit:.2g}</span></div>',
        '<p style="margin-top:1.5em"><b>Scan paths.</b> The order in which each path reads the '
        f'{rows} &times; {columns} positions of the feature map.</p>',
        f'<div class="grid four">{paths}</div><div class="scale path"></div>',
        '<div class="ends"><span>start</span><span>end</span></div>',
    )


def figure(image: np.ndarray, caption: str) -> str:
    caption = html.escape(caption)
    return f'<figure>{image_tag(image, caption)}<figcaption>{caption}</figcaption></figure>'


def mix(gray: np.ndarray | float, values: np.ndarray) -> np.ndarray:
    """Mix gray with red or blue for values (..., 1) between -1 and 1.

    The square root makes weak values visible.
    """
    return gray + (np.where(values > 0, RED, BLUE) - gray) * np.abs(values) ** 0.5


def color_bar() -> str:
    """Return the colors of values from -1 to 1 on light gray, in CSS."""
    colors = mix(225.0, np.linspace(-1, 1, 41)[:, None]).round().astype(int)
    return ', '.join('rgb({} {} {})'.format(*color) for color in colors.tolist())


def draw_map(view: np.ndarray, values: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Draw values (rows, columns) between -1 and 1 on a gray image."""
    height, width = np.ceil(step * values.shape).astype(int)
    values = cv2.resize(values, (width, height), interpolation=cv2.INTER_NEAREST)
    values = values[: view.shape[0], : view.shape[1], None].clip(-1, 1)
    gray = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)[..., None] * 0.6 + 90.0
    return np.ascontiguousarray(mix(gray, values).astype(np.uint8))


def mark(image: np.ndarray, step: np.ndarray, shape: tuple[int, int], query: int) -> np.ndarray:
    """Draw a frame around a position."""
    y, x = divmod(query, shape[1])
    corners = [np.rint(step[::-1] * xy).astype(int).tolist() for xy in ((x, y), (x + 1, y + 1))]
    return cv2.rectangle(image.copy(), *corners, MARK, 2)


def draw_path(
    view: np.ndarray, index: np.ndarray, shape: tuple[int, int], step: np.ndarray
) -> np.ndarray:
    """Draw the order of the positions (sequences, L) as lines from dark to bright."""
    image = np.ascontiguousarray((view * 0.4 + 140).clip(0, 255).astype(np.uint8))
    for side, pixels, axis in ((0, step[0], 0), (1, step[1], 1)):
        for k in range(1, shape[side]):
            line = min(round(k * pixels), image.shape[side] - 1)
            image[(line, slice(None)) if axis == 0 else (slice(None), line)] = 215
    colors = (colormaps['viridis'](np.linspace(0, 1, index.shape[1]))[:, :3] * 255).tolist()
    thickness = 2 if step.min() > 12 else 1
    for sequence in index:
        rows, columns = np.divmod(sequence, shape[1])
        points = np.rint(np.stack([columns + 0.5, rows + 0.5], 1) * step[::-1]).astype(int).tolist()
        for start, end, color in zip(points, points[1:], colors, strict=False):
            cv2.line(image, start, end, color, thickness, cv2.LINE_AA)
        cv2.circle(image, points[0], 3 * thickness, colors[0], -1, cv2.LINE_AA)
    return image
