"""Routes of records, prints and warnings; tests/test_tools/test_train_test.py runs whole tools."""

import logging
import sys
import types
import warnings

import pytest
from mmengine.logging import MMLogger, print_log

from mmvmamba.engine import console

SOURCE = """
import sys
import warnings
from mmengine.logging import print_log

def log(logger, *args):
    logger.log(*args)

def log_current(text):
    print_log(text, 'current')

def say(text):
    print(text)

def write_lines(lines):
    sys.stdout.writelines(lines)

def warn(*args):
    warnings.warn(*args)
"""


def module(name):
    """A module of a package, whose functions log, print and warn."""
    made = types.ModuleType(name)
    exec(SOURCE, vars(made))
    return made


def show_warnings():
    """Show all warnings but those of files that earlier tests left to the garbage collector."""
    warnings.simplefilter('always')
    warnings.simplefilter('ignore', ResourceWarning)


@pytest.fixture
def run(tmp_path, capsys):
    """Report something in a run; return the console's lines and the text of the log file."""

    def run(report, early=None):
        path = tmp_path / 'run.log'
        with console.concise():
            if early is not None:
                early()
            logger = MMLogger.get_instance('run', log_file=str(path))
            console.attach(logger)
            report(logger)
        out = capsys.readouterr()
        assert not out.err
        return out.out, path.read_text()

    return run


@pytest.mark.parametrize(
    ('name', 'level', 'text', 'shown'),
    [
        ('mmengine.runner.runner', logging.INFO, 'Config: 1000 lines', False),
        ('mmengine.optim.x', logging.INFO, 'paramwise_options -- a:lr=1', False),
        ('mmengine.runner.runner', logging.INFO, 'Model has been "compiled".', True),
        ('mmengine.hooks.logger_hook', logging.INFO, 'Epoch(train) [1][1/2]', True),
        ('mmengine.hooks.logger_hook', logging.INFO, 'Exp name: x', False),
        ('mmseg.evaluation.metrics.iou_metric', logging.INFO, 'per class results:', True),
        ('mmengine.runner.runner', logging.WARNING, 'the data ends', True),
        ('mmengine.fileio.x', logging.WARNING, '"FileClient" will be deprecated', False),
        ('mmengine.fileio.x', logging.ERROR, 'deprecated', True),
        ('mmvmamba.engine.hooks.x', logging.INFO, 'the file matches', True),
        ('my_hooks', logging.INFO, 'my note', True),
        ('my_hooks', logging.INFO, '2 deprecated files', True),
    ],
)
def test_records(run, name, level, text, shown):
    out, log = run(lambda logger: module(name).log(logger, level, text))
    assert text in log
    assert (text in out) is shown


def test_a_record_by_the_name_of_the_current_logger(run):
    def report(logger):
        module('mmdet.datasets.x').log_current('of a package')
        print_log('of this test', 'current')

    out, log = run(report)
    assert 'of this test' in out and 'of a package' not in out
    assert 'of this test' in log and 'of a package' in log


def test_prints(run):
    def report(logger):
        module('pycocotools.coco').say('creating index...')
        module('my_dataset').say('found 3 files')
        print('42 ', end='')
        print('done')
        module('pycocotools.coco').write_lines(['a\n', 'b\n', 'c'])

    out, log = run(report)
    assert out == 'found 3 files\n42 done\n'
    for text in ('creating index...', 'a', 'b', 'c'):
        assert f'INFO - {text}\n' in log


def test_warnings(run):
    def report(logger):
        show_warnings()
        module('mmseg.models.x').warn('avg_non_ignore is False')
        module('torch.functional').warn('indexing: in an upcoming release, it will be required')
        module('my_model').warn('old', DeprecationWarning)
        module('my_model').warn('the mask is empty')
        module('my_model').warn('3 deprecated labels')

    with warnings.catch_warnings():
        out, log = run(report)
    assert [line.split(' - ')[-1].split(' (')[0] for line in out.splitlines()] == [
        'the mask is empty',
        '3 deprecated labels',
    ]
    for text in ('avg_non_ignore', 'indexing', 'old (DeprecationWarning', 'the mask is empty'):
        assert text in log


def test_other_loggers(run):
    def report(logger):
        logging.getLogger('my_package').warning('12 deprecated annotations were dropped')
        logging.getLogger('torch.x').warning('Calling register_constant() on Enum subclasses is')
        logging.getLogger('torch.x').warning('the cache is full')

    out, log = run(report)
    assert 'were dropped' in out and 'the cache is full' in out and 'register' not in out
    for text in ('were dropped', 'the cache is full', 'register_constant'):
        assert log.count(text) == 1


def test_what_comes_before_the_log_file_is_in_it(run):
    def early():
        module('mmdet.datasets').say('Could not import OneDL')
        MMLogger.get_current_instance().info('downloading http://me:secret@host/x.pth')
        MMLogger.get_current_instance().debug('too detailed')

    out, log = run(lambda logger: None, early)
    assert 'OneDL' not in out and 'downloading' in out
    assert 'OneDL' in log and 'downloading' in log and 'too detailed' not in log
    assert 'secret' not in out + log


def test_plain_texts_have_no_prefix_on_the_console(run):
    out, log = run(lambda logger: console.log_plain(logger, '\nData  4 images\n!     note'))
    assert out == '\nData  4 images\n!     note\n'
    assert 'mmengine - INFO - \nData  4 images' in log


def test_attention_stands_out_on_the_console(run, monkeypatch):
    monkeypatch.setattr(console, 'colored', lambda text, **style: f'<{text}>')
    out, log = run(lambda logger: console.log_plain(logger, 'stop! sign\n!    b', [1]))
    assert out == 'stop! sign\n<!    b>\n'
    assert 'stop! sign\n!    b\n' in log


def test_other_processes_of_a_run_show_warnings_only(capsys, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    with warnings.catch_warnings():
        show_warnings()
        shown = []
        warnings.showwarning = lambda message, *args: shown.append(str(message))
        root = list(logging.getLogger().handlers)
        with console.concise('pytorch'):
            MMLogger.get_current_instance().info('downloading')
            module('mmdet.datasets').say('Could not import OneDL')
            module('mmseg.models.x').warn('avg_non_ignore is False')
            module('my_model').warn('the mask is empty')
            assert logging.getLogger().handlers == root
            record = logging.makeLogRecord(
                dict(name='torch.x', levelno=30, msg='the cache is full')
            )
            assert all(handler.filter(record) for handler in logging.getLogger('torch').handlers)
            record.msg = 'Calling register_constant() on Enum subclasses is deprecated'
            assert not any(
                handler.filter(record) for handler in logging.getLogger('torch').handlers
            )
    assert capsys.readouterr().out == ''
    assert shown == ['the mask is empty']


def test_hidden_warnings_are_shown_if_a_run_fails_early(capsys):
    with warnings.catch_warnings(), pytest.raises(KeyError), console.concise():
        show_warnings()
        module('mmseg.models.x').warn('avg_non_ignore of http://me:secret@host/x is False')
        module('mmseg.models.x').warn('pretrained is deprecated')
        module('mmdet.datasets').say('Could not import OneDL')
        module('my_model').warn('the mask is empty')
        raise KeyError
    out, err = capsys.readouterr()
    assert 'the mask is empty' in out and 'avg_non_ignore' not in out
    assert [line.split(' (')[0] for line in err.splitlines()] == [
        'avg_non_ignore of http://host/x is False'
    ]


def test_hidden_warnings_are_only_in_the_log_if_a_run_fails_later(run, capsys):
    def report(logger):
        show_warnings()
        module('mmseg.models.x').warn('avg_non_ignore is False')
        raise KeyError

    with warnings.catch_warnings(), pytest.raises(KeyError):
        run(report)
    assert capsys.readouterr() == ('', '')


def test_everything_is_restored(run):
    handlers = list(logging.getLogger().handlers)
    before = sys.stdout, warnings.showwarning
    run(lambda logger: None)
    assert (sys.stdout, warnings.showwarning) == before
    assert logging.getLogger().handlers == handlers
    assert not any(h.filters for h in logging.getLogger('torch').handlers)


def test_runs_without_the_tools_are_as_they_were(capsys, tmp_path):
    logger = MMLogger.get_instance('plain', log_file=str(tmp_path / 'x.log'))
    console.attach(logger)
    module('mmengine.runner.runner').log(logger, logging.INFO, 'Config: 1000 lines')
    assert 'Config: 1000 lines' in capsys.readouterr().out
