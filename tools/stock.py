"""Runs a tool of mmdet, mmseg or mmpretrain, from the folder that it was installed into.

``python tools/stock.py mmdet`` lists its tools. Bases such as ``mmseg::...`` resolve in configs,
which they do not everywhere without this package.

Example:
    python tools/stock.py mmdet analysis_tools/browse_dataset.py CONFIG --output-dir DIR --not-show
"""

import argparse
import contextlib
import difflib
import importlib.util
import logging
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from mmvmamba.engine import errors
from mmvmamba.engine.errors import UserError
from mmvmamba.registry import register_config_packages

PACKAGES = ('mmdet', 'mmseg', 'mmpretrain')
logger = logging.getLogger('stock')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('package', choices=PACKAGES)
    parser.add_argument('tool', nargs='?', help="path below the package's tools")
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='what the tool is given')
    return parser.parse_args()


def find_tools(package: str) -> dict[str, Path]:
    """The Python files of a package's tools, by their path below its folder of tools."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise UserError(f'{package} is not installed')
    folder = Path(spec.origin).parent / '.mim' / 'tools'
    if not folder.is_dir():
        raise UserError(f'{package} was installed without its tools: there is no {str(folder)!r}')
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob('*.py'))}


def run_tool(path: Path, arguments: list[str]) -> None:
    """Runs a script as Python would: with its folder on the path."""
    sys.argv = [str(path), *arguments]
    sys.path[0] = str(path.parent)
    runpy.run_path(str(path), run_name='__main__')


@contextlib.contextmanager
def images_that_cv2_draws_on() -> Iterator[None]:
    """mmseg 1.2 draws with cv2 on what its browse_dataset.py permuted, which cv2 refuses."""
    from mmseg.visualization import SegLocalVisualizer

    draw = SegLocalVisualizer.add_datasample

    def add_datasample(self, name, image, *args, **kwargs):
        draw(self, name, np.ascontiguousarray(image), *args, **kwargs)

    with mock.patch.object(SegLocalVisualizer, 'add_datasample', add_datasample):
        yield


def main() -> None:
    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stdout)
    args = parse_args()
    tools = find_tools(args.package)
    if args.tool is None:
        logger.info('\n'.join(tools))
        return
    if args.tool not in tools:
        near = difflib.get_close_matches(args.tool, tools, n=3, cutoff=0.4)
        hint = f'; did you mean {" or ".join(near)}?' if near else ''
        raise UserError(f'{args.package} has no tool {args.tool!r}{hint}')
    logging.getLogger().handlers.clear()  # what the tool logs is its own affair
    register_config_packages()
    browses = (args.package, args.tool) == ('mmseg', 'analysis_tools/browse_dataset.py')
    with images_that_cv2_draws_on() if browses else contextlib.nullcontext():
        run_tool(tools[args.tool], args.arguments)


if __name__ == '__main__':
    errors.run(main)
