"""Run a third-party script after importing a module, in the processes that it spawns too."""

import argparse
import importlib
import importlib.util
import io
import os
import runpy
import sys
import types
from collections.abc import Callable

#: Environment variables for the processes that the script spawns: its path, and what to import.
_SCRIPT, _SETUP = 'MMVMAMBA_SCRIPT', 'MMVMAMBA_SCRIPT_SETUP'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add an optional script and its arguments."""
    parser.add_argument('script', nargs='?', help='path of the script')
    parser.add_argument('args', nargs=argparse.REMAINDER, help='its arguments')


def run_or_report(
    parser: argparse.ArgumentParser, args: argparse.Namespace, report: Callable[[], str], setup: str
) -> None:
    """Run the script of the arguments of :func:`add_arguments`, or write a report without one."""
    if args.script is None:
        sys.stdout.write(report() + '\n')
    elif os.path.isfile(args.script):
        run_script(args.script, args.args, setup)
    else:
        parser.error(f'script {args.script!r} does not exist')


def run_script(path: str, args: list[str], setup: str) -> None:
    """Run a script as ``python path args`` would, after the import of a module.

    :func:`runpy.run_path` is not enough. Processes that the script spawns, such as data loaders',
    import the main module of their parent. By its name they import this module, which then runs
    the script there.

    Args:
        path (str): The script.
        args (list[str]): Its arguments.
        setup (str): Name of the module.
    """
    importlib.import_module(setup)
    main, previous = types.ModuleType('__main__'), sys.modules['__main__']
    main.__file__, main.__spec__ = path, importlib.util.find_spec('mmvmamba.script')
    sys.argv[:] = [path, *args]
    os.environ[_SCRIPT] = path = os.path.abspath(path)
    os.environ[_SETUP] = setup
    if not getattr(sys.flags, 'safe_path', False):  # from Python 3.11 on
        sys.path[0] = os.path.dirname(path)
    sys.modules['__main__'] = main
    try:
        with io.open_code(path) as file:
            exec(compile(file.read(), path, 'exec'), vars(main))
    finally:
        sys.modules['__main__'] = previous


if __name__ == '__mp_main__':
    importlib.import_module(os.environ[_SETUP])
    globals().update(runpy.run_path(os.environ[_SCRIPT], run_name=__name__))
