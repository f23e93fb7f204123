"""Console output of the tools: short and relevant, while the log file gets everything.

A run writes its environment, config, hooks and a line for each parameter to its logger, and the
packages around it print and warn. :func:`concise` keeps all of that out of the console and writes
it to the log file, including what is written before the file exists. If a run fails before that,
the hidden warnings go to stderr. Tools without a log file drop the rest.
"""

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from types import FrameType
from typing import Any, TextIO

from mmengine.logging import MMLogger
from termcolor import colored

from mmvmamba.checkpoint.redaction import redact_record
from mmvmamba.environment import PACKAGES

from .work_dir import is_first_process

#: Packages whose notes, prints and Python warnings go to the log file only.
_QUIET = frozenset(PACKAGES) | {'mmrotate', 'pycocotools'}
#: Their modules with progress, checkpoints and results, and notes that explain a wait.
_SHOWN = re.compile(r'\.(hooks|evaluation)\.')
_SHOWN_NOTES = re.compile(r'has been "compiled"')
#: Messages of these packages and of torch that need no action from the user.
_NOISE = re.compile(
    r'\bdeprecated\b|: in an upcoming release, |is the alias of "'
    r'|^The prefix is not set in metric class |^Failed to search registry with scope '
    r'|Calling register_constant\(\) on Enum |^Exp name: |^Loads checkpoint by '
    r'|^Checkpoints will be saved to |^\w+_mAP_copypaste: |^Grad strides do not match '
)
_FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
#: Modules that forward what their caller prints, and what it logs or warns of. A handler's writing
#: to stdout counts as a print of logging, which passes, as its filters have already decided.
_PRINTERS = ('mmengine.logging', 'mmvmamba.models.loading', __name__)
_REPORTERS = ('logging', 'warnings', *_PRINTERS)

_active: '_Console | None' = None


@contextlib.contextmanager
def concise(launcher: str = 'none') -> Iterator[None]:
    """Keep the console short until the block ends.

    Only the first process of a run writes notes to it. The others write errors and the warnings
    that are not hidden.

    Args:
        launcher (str): The launcher of a distributed run. Defaults to 'none'.
    """
    global _active
    with contextlib.ExitStack() as stack:
        _active = active = _Console(stack, is_first_process(launcher))
        stack.callback(_deactivate)
        try:
            yield
        except Exception:
            active.report_early()
            raise
        finally:
            active.stdout.log_rest()


def _deactivate() -> None:
    global _active
    _active = None


def attach(logger: logging.Logger) -> None:
    """Route the records of a run's logger, which was just created, within :func:`concise`."""
    if _active is not None:
        _active.attach(logger)


def log_plain(logger: logging.Logger, text: str, attention: Collection[int] = ()) -> None:
    """Log a text whose lines have no prefix on the console.

    Args:
        logger (logging.Logger): The logger.
        text (str): The text.
        attention (Collection[int]): Indices of the lines that stand out on a terminal. Defaults to
            none.
    """
    logger.info(text, extra=dict(plain=True, attention=attention))


class _Console:
    """Routes of records, prints and warnings; ``stack`` removes them."""

    def __init__(self, stack: contextlib.ExitStack, is_first: bool) -> None:
        self._stack = stack
        self._is_first = is_first
        self._early: list[logging.LogRecord] | None = []
        self._logger = MMLogger.get_current_instance()
        self._route(self._logger)
        self._add(self._logger.filters, redact_record)
        if not is_first:
            for handler in self._logger.handlers:
                stack.callback(handler.setLevel, handler.level)
                handler.setLevel(logging.ERROR)
        self._add(self._logger.handlers, _Handler(self._keep))
        # Python's own loggers, of which that of torch has a handler itself. The logger of another
        # process shows no warnings, so Python's handling of them stays.
        if is_first:
            root = logging.getLogger()
            root.addHandler(handler := _Handler(self._forward, logging.WARNING))
            stack.callback(root.removeHandler, handler)
        for other in logging.getLogger('torch').handlers:
            self._add(other.filters, self._passes)
        self._python_shows = warnings.showwarning
        stack.callback(setattr, warnings, 'showwarning', warnings.showwarning)
        warnings.showwarning = self._show_warning
        self.stdout = _Stdout(sys.stdout, self._log_print)
        stack.callback(setattr, sys, 'stdout', sys.stdout)
        sys.stdout = self.stdout

    def attach(self, logger: logging.Logger) -> None:
        """Use this logger, and write what came before to its file."""
        early, self._early = self._early or [], None
        self._logger = logger
        self._route(logger)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                for record in early:
                    if record.levelno >= handler.level:
                        handler.handle(record)

    def report_early(self) -> None:
        """Write the hidden warnings to stderr unless there is a log file with them."""
        for record in self._early or ():
            if getattr(record, 'is_hidden_warning', False):
                sys.stderr.write(f'{record.getMessage()}\n')

    def _route(self, logger: logging.Logger) -> None:
        for handler in logger.handlers:
            is_stream = isinstance(handler, logging.StreamHandler)
            if is_stream and not isinstance(handler, logging.FileHandler):
                self._add(handler.filters, _is_shown)
                self._stack.callback(handler.setFormatter, handler.formatter)
                handler.setFormatter(_Formatter(handler.formatter))

    def _add(self, items: list[Any], item: Any) -> None:
        items.append(item)
        self._stack.callback(items.remove, item)

    def _keep(self, record: logging.LogRecord) -> None:
        if self._early is not None:
            self._early.append(record)

    def _forward(self, record: logging.LogRecord) -> None:
        if not hasattr(record, 'quiet'):
            record.quiet = _is_quiet(record.name, record.levelno, record.getMessage())
        self._logger.handle(record)

    def _passes(self, record: logging.LogRecord) -> bool:
        """Forward a record of torch's handler, unless only that handler would show it."""
        if not self._is_first and not _is_quiet(record.name, record.levelno, record.getMessage()):
            return True
        self._forward(record)
        return False

    def _log(self, level: int, text: str, **marks: bool) -> None:
        record = logging.LogRecord(self._logger.name, level, __file__, 0, text, None, None)
        vars(record).update(marks)
        self._logger.handle(record)

    def _log_print(self, text: str) -> None:
        self._log(logging.INFO, text, quiet=True)

    def _show_warning(
        self, message: Any, category: type[Warning], filename: str, lineno: int, *args: Any
    ) -> None:
        module = _emitter()
        noise = issubclass(category, _FOR_DEVELOPERS) or _is_noise(module, str(message))
        quiet = noise or _package(module) in _QUIET
        if not self._is_first and not quiet:
            return self._python_shows(message, category, filename, lineno, *args)
        text = f'{message} ({category.__name__} at {filename}:{lineno})'
        self._log(logging.WARNING, text, quiet=quiet, is_hidden_warning=quiet and not noise)


class _Handler(logging.Handler):
    """Handler that calls a function with each record."""

    def __init__(
        self, emit: Callable[[logging.LogRecord], None], level: int = logging.NOTSET
    ) -> None:
        super().__init__(level)
        self.emit = emit  # type: ignore[method-assign]


class _Formatter(logging.Formatter):
    """MMEngine's formatter, without the prefix of plain records."""

    def __init__(self, formatter: logging.Formatter | None) -> None:
        super().__init__()
        self._formatter = formatter or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        if not getattr(record, 'plain', False):
            return self._formatter.format(record)
        lines = record.getMessage().split('\n')
        for i in record.attention:
            lines[i] = colored(lines[i], color='yellow', attrs=['bold'])
        return '\n'.join(lines)


class _Stdout:
    """Standard output without the prints of some packages; all others pass."""

    def __init__(self, stream: TextIO, log: Callable[[str], None]) -> None:
        self._stream = stream
        self._log = log
        self._rest = ''

    def write(self, text: str) -> int:
        if _package(_emitter(_PRINTERS)) not in _QUIET:
            return self._stream.write(text)
        *lines, self._rest = (self._rest + text).split('\n')
        for line in filter(str.strip, lines):
            self._log(line)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def log_rest(self) -> None:
        """Log what a package printed without a final newline."""
        if self._rest.strip():
            self._log(self._rest)
        self._rest = ''

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_shown(record: logging.LogRecord) -> bool:
    """Filter of a handler for the console."""
    quiet = getattr(record, 'quiet', None)
    if quiet is None:
        quiet = _is_quiet(_emitter(), record.levelno, record.getMessage())
    return not quiet


def _is_quiet(module: str, level: int, text: str) -> bool:
    if level >= logging.ERROR:
        return False
    if _is_noise(module, text):
        return True
    is_shown = _SHOWN.search(module) or _SHOWN_NOTES.search(text)
    return level < logging.WARNING and _package(module) in _QUIET and not is_shown


def _is_noise(module: str, text: str) -> bool:
    return _package(module) in _QUIET | {'torch'} and _NOISE.search(text) is not None


def _emitter(between: tuple[str, ...] = _REPORTERS) -> str:
    """Return the module whose code logs, prints or warns at this moment."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get('__name__', '')
        if not any(name == other or name.startswith(f'{other}.') for other in between):
            return name
        frame = frame.f_back
    return ''


def _package(module: str) -> str:
    return module.partition('.')[0]
