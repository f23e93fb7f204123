"""Run a tool of mmdet, mmseg or mmpretrain from its installation folder.

``python tools/stock.py mmdet`` lists the tools. Configs can use bases such as
``mmseg::...``, which some installations cannot resolve otherwise.

Example:
    python tools/stock.py mmdet analysis_tools/browse_dataset.py CONFIG --output-dir DIR --not-show
"""

import argparse
import importlib.util
from pathlib import Path

from mmvmamba.engine import errors
from mmvmamba.engine.errors import UserError
from mmvmamba.nn.settings import did_you_mean
from mmvmamba.registry import register_config_packages
from mmvmamba.script import run_script


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('package', choices=('mmdet', 'mmseg', 'mmpretrain'))
    parser.add_argument('tool', nargs='?', help="path below the package's folder of tools")
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='arguments of the tool')
    return parser.parse_args()


def find_tools(package: str) -> dict[str, Path]:
    """Return the Python files of a package's tools by their path below its folder of tools."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise UserError(f'{package} is not installed')
    folder = Path(spec.origin).parent / '.mim' / 'tools'
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob('*.py'))}


def main() -> None:
    args = parse_args()
    tools = find_tools(args.package)
    if args.tool is None:
        print('\n'.join(tools))
        return
    if args.tool not in tools:
        raise UserError(f'{args.package} has no tool {args.tool!r}{did_you_mean(args.tool, tools)}')
    register_config_packages()
    run_script(str(tools[args.tool]), args.arguments, 'mmvmamba.registry')


if __name__ == '__main__':
    errors.run(main)
