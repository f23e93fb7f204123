"""List the stand-ins, or run a script with them."""

import argparse
import importlib
import os
import sys

from mmvmamba.script import add_arguments, run_or_report

from . import MODULES, REPLACE, install


def report() -> str:
    """Return for each module whether it is installed or a stand-in, as text."""
    return '\n'.join(f'{name:40} {_source(name)}' for name in MODULES)


def _source(name: str) -> str:
    try:
        module = importlib.import_module(name)
    # An installed extension for another torch raises OSError or RuntimeError.
    except Exception as error:
        return f'cannot be imported: {type(error).__name__}: {error}'
    path = module.__file__ or ''
    return 'mmvmamba' if path == sys.modules['mmvmamba.dropin'].__file__ else path


def main() -> None:
    """Run the script of the command line, or write the report without one."""
    parser = argparse.ArgumentParser(
        prog='python -m mmvmamba.dropin',
        description='List the modules for which mmvmamba has stand-ins, or run a script with the '
        'stand-ins.',
    )
    parser.add_argument('--replace', action='store_true', help='also replace installed modules')
    add_arguments(parser)
    args = parser.parse_args()
    if args.replace:
        os.environ[REPLACE] = '1'  # in the processes that the script spawns too
    install(args.replace)
    run_or_report(parser, args, report, 'mmvmamba.dropin')


if __name__ == '__main__':
    main()
