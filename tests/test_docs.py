"""The pages: links lead somewhere, named files exist, commands are understood and are marked.

A shell block stands below a comment that says which tests run its commands, perhaps with smaller
data, `<!-- run by tests/x.py -->`, or what a test lacks: data, a GPU or a network,
`<!-- needs COCO and GPUs -->`. What ends with `--help` is run here.
"""

import functools
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]
READMES = sorted((ROOT / 'configs').rglob('README.md'))
FOLDERS = 'benchmarks|configs|csrc|demo|docs|mmvmamba|requirements|tests|tools'
#: What a command may name and a reader has to fill in.
PLACEHOLDERS = ('NAME', '*')


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path):
    """The fenced blocks of a page: the line above, the language and the text."""
    found = re.findall(r'^(.*)\n```(\S*)\n((?:.*\n)*?)```$', path.read_text(), re.MULTILINE)
    return [(above, language, text) for above, language, text in found]


def shell_blocks(path):
    return [(above, text) for above, language, text in blocks(path) if language == 'bash']


def commands(text):
    """The single commands of a block, as words, and the variables set before each."""
    for line in text.replace('\\\n', ' ').splitlines():
        words, variables = [], []
        for word in [*shlex.split(line, comments=True), '&&']:
            if word == '&&':
                if words:
                    yield variables, words
                words, variables = [], []
            elif not words and re.match(r'[A-Z]\w*=', word):
                variables.append(word.partition('=')[0])
            else:
                words.append(word)


def inline_commands(path):
    """Commands in sentences and tables."""
    text = re.sub(r'^```.*?^```$', '', path.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r'`((?:[A-Z_]+=\S+ )*(?:python|make|bash|pip|tools/\w+\.sh)\s[^`]+)`', text)
    return [' '.join(command.replace('\\|', '|').split()) for command in found]


ALL_COMMANDS = [
    pytest.param(variables, words, id=f'{name_of(path)}: {" ".join(words)}'[:100])
    for path in [*PAGES, *READMES]
    for text in [*(text for _, text in shell_blocks(path)), *inline_commands(path)]
    for variables, words in commands(text)
]


@functools.cache
def parser_of(script):
    """`parse_args` of a script, which reads sys.argv."""
    path = ROOT / script
    assert path.is_file(), script
    return runpy.run_path(str(path), run_name='tool')['parse_args']


def parses(monkeypatch, script, arguments):
    pytest.importorskip('mmengine')
    monkeypatch.setattr(sys, 'argv', [script, *arguments])
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    try:
        parser_of(script)()
    except SystemExit as stop:
        assert not stop.code, f'{script} does not take {arguments}'


def check_make(words):
    text = (ROOT / 'Makefile').read_text()
    for word in words:
        name, is_variable, _ = word.partition('=')
        pattern = rf'^{name}( \?=|\W.*:)' if is_variable else rf'^{re.escape(name)}:'
        assert re.search(pattern, text, re.MULTILINE), word


def check_pip(words):
    text = (ROOT / 'pyproject.toml').read_text()
    extras = text.split('[project.optional-dependencies]')[1].split('[tool')[0]
    for word in words:
        named = re.search(r'^(?:\.|mmvmamba)\[(.*)\]', word)
        for extra in named[1].split(',') if named else ():
            assert re.search(rf'^{extra} = ', extras, re.MULTILINE), word


def check_shell_script(monkeypatch, script, arguments):
    usage = re.search(rf'usage: {Path(script).name} (.*?) \[', (ROOT / script).read_text())[1]
    count = len(usage.split())
    assert len(arguments) >= count, f'{script} takes {usage}, but got {arguments}'
    tool = Path(script).stem.partition('_')[2]
    checkpoint = ['CHECKPOINT'] if 'CKPT' in usage else []
    parses(monkeypatch, f'tools/{tool}.py', ['CONFIG', *checkpoint, *arguments[count:]])


@pytest.mark.parametrize(('variables', 'words'), ALL_COMMANDS)
def test_command_is_understood(variables, words, monkeypatch):
    program, *arguments = words
    if program == 'bash':
        program, *arguments = arguments
    if program == 'make':
        check_make(arguments)
    elif program == 'pip':
        assert arguments[0] == 'install'
        check_pip(arguments[1:])
    elif program == 'python' and arguments[0] != '-m':
        parses(monkeypatch, arguments[0], arguments[1:])
    elif program == 'python' and arguments[1].startswith('mmvmamba'):
        module = ROOT / arguments[1].replace('.', '/')
        assert module.with_suffix('.py').is_file() or (module / '__main__.py').is_file()
    elif program == 'benchmarks/gpu_check.sh':
        assert (ROOT / program).is_file() and len(arguments) <= 1
    elif program.endswith('.sh'):
        check_shell_script(monkeypatch, program, arguments)
        known = (ROOT / 'tools/launch.sh').read_text() + (ROOT / program).read_text()
        assert all(name in known or name.startswith('PET_') for name in variables), variables
    else:
        others = {'torchrun', 'tensorboard', '.venv/bin/pre-commit', 'pytest', 'git', 'cd'}
        assert program in others or words[:3] == ['python', '-m', 'build'], words
    for word in words:
        if re.match(r'configs/.*\.py$', word) and not any(p in word for p in PLACEHOLDERS):
            assert (ROOT / word).is_file(), word


def signs(words):
    """Text that a test of a command must contain."""
    if words[0] == 'pip':
        return [word for word in words if word.startswith('-')]
    scripts = [word for word in words if re.search(r'^(?!configs/|mmvmamba::).*\.(py|sh)$', word)]
    return [Path(script).name for script in scripts] or words[-1:]


@pytest.mark.parametrize('path', [*PAGES, *READMES], ids=name_of)
def test_blocks_say_who_runs_them(path):
    for _, language, text in blocks(path):
        assert language, f'a block without a language in {name_of(path)}: {text}'
    for above, text in shell_blocks(path):
        mark = re.fullmatch(r'<!-- (run by|needs) (.*) -->', above)
        assert mark, f'{name_of(path)} has a block that no comment marks: {text}'
        if mark[1] == 'needs':
            assert re.search(r'COCO|ADE20K|ImageNet|data|GPU|network|minutes', mark[2]), above
            continue
        files = re.findall(r'tests/[\w/]+\.py|\.ci/run|Makefile', mark[2])
        test = '\n'.join((ROOT / file).read_text() for file in files)
        if path.name in test and '```bash' in test:
            continue  # it goes through the blocks of the page
        for _, words in commands(text):
            assert '--help' in words or all(said in test for said in signs(words)), (above, words)


@pytest.mark.parametrize('path', PAGES, ids=name_of)
def test_python_is_python(path):
    for _, language, text in blocks(path):
        if language == 'python':
            compile(text, name_of(path), 'exec')


@functools.cache
def anchors(path):
    """GitHub's anchors of the headings of a page."""
    text = re.sub(r'^```.*?^```$', '', path.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
    return {re.sub(r'[^\w -]', '', title).strip().lower().replace(' ', '-') for title in titles}


@pytest.mark.parametrize('path', [*PAGES, ROOT / 'CHANGELOG.md', *READMES], ids=name_of)
def test_links_and_files(path):
    text = re.sub(r'^```.*?^```$', '', path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if re.match(r'https?:', target):
            continue
        file, _, anchor = target.partition('#')
        to = (path.parent / file).resolve() if file else path
        assert to.exists() and to.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(to), target
    for named in re.findall(rf'`((?:{FOLDERS})/[\w./-]+)`', text):
        assert any((folder / named).exists() for folder in (ROOT, path.parent)), named


def test_every_page_is_in_the_index():
    index = (ROOT / 'docs/index.md').read_text()
    for path in [*PAGES, ROOT / 'CHANGELOG.md', *READMES]:
        if path.parent != ROOT / 'docs' / 'api' and path.name != 'index.md':
            parts = path.relative_to(ROOT).with_suffix('').as_posix()
            entry = parts.removeprefix('docs/') if parts.startswith('docs/') else f'../{parts}'
            assert re.search(rf'^(.* <)?{re.escape(entry)}>?$', index, re.MULTILINE), path


def test_the_front_page_is_short():
    """One screen of text beside its picture, code and tables."""
    text = re.sub(r'^```.*?^```$', '', (ROOT / 'README.md').read_text(), flags=re.M | re.S)
    prose = [line for line in text.splitlines() if line and not line.startswith(('|', '!', '#'))]
    assert '![' in text and len(prose) <= 50


def python_blocks(name):
    return [text for _, language, text in blocks(ROOT / 'docs' / name) if language == 'python']


def test_example_of_the_ops():
    (example,) = python_blocks('ops.md')
    names = {}
    exec(example, names)
    for name, shape in re.findall(r'^(\w) = .*# (\(.*\))$', example, re.MULTILINE):
        assert tuple(names[name].shape) == eval(shape) and names[name].isfinite().all()


def test_examples_of_scans(tmp_path, monkeypatch, capsys):
    """The module of the page is a file, and its config is built by OpenMMLab."""
    pytest.importorskip('mmpretrain')
    import torch
    from mmengine.config import Config
    from mmpretrain.models import build_classifier

    from mmvmamba.nn.ss2d import OUT_NORMS
    from mmvmamba.ops import SCAN_PATTERNS, scan_orders

    monkeypatch.setattr(scan_orders, '_PATHS', {**scan_orders._PATHS})
    module, path, model, config, norm = python_blocks('scans.md')
    (tmp_path / 'my_scans.py').write_text(module)
    (tmp_path / 'my_config.py').write_text(config.replace("'./", f"'{ROOT}/"))
    monkeypatch.syspath_prepend(tmp_path)
    try:
        exec(path, {})
        assert capsys.readouterr().out.endswith(path.splitlines()[-1].removeprefix('# ') + '\n')
        exec(model, names := {})
        assert names['scores'].shape == (1, 10)
        cfg = Config.fromfile(tmp_path / 'my_config.py')
        classifier = build_classifier(cfg.model)
        assert classifier.backbone.settings.scan == 'spiral'
        assert classifier(torch.randn(1, 3, 64, 64)).shape == (1, 6)
        exec(norm, names := {})
        assert type(names['model'].layers[0].blocks[0].op.out_norm) is torch.nn.RMSNorm
    finally:
        SCAN_PATTERNS.pop('spiral', None)
        OUT_NORMS.pop('rms', None)
        sys.modules.pop('my_scans', None)


def test_example_of_the_analysis(capsys):
    pytest.importorskip('mmengine')
    (example,) = python_blocks('analysis.md')
    names = {}
    exec(example, names)
    for name, shape in re.findall(r'^(\w+) = .*# (\(.*\))$', example, re.MULTILINE):
        assert tuple(names[name].shape) == eval(shape) and names[name].isfinite().all()
    head = 768 * (1000 + 7 * 7)
    assert names['counter'].total == 4_905_609_984 - head
    assert 'G multiply-adds' in capsys.readouterr().out


def test_backbone_in_both_spellings():
    pytest.importorskip('mmengine')
    from mmvmamba.models import MM_VSSM, VMamba

    settings = []
    for cls, block in zip((MM_VSSM, VMamba), python_blocks('migrating.md'), strict=True):
        names = {}
        exec(block, names)
        config = names['backbone']
        assert config.pop('type').rpartition('.')[2] == cls.__name__
        settings.append(cls(**config).settings)
    assert settings[0] == settings[1]


@pytest.mark.slow
def test_pages_build_without_a_warning(tmp_path):
    """Build the pages as `make docs` does, with the installed Sphinx."""
    for name in ('sphinx', 'myst_parser', 'furo', 'mmengine'):
        pytest.importorskip(name)
    options = ['--fail-on-warning', '--keep-going', '--quiet', '--conf-dir', 'docs']
    command = [sys.executable, '-m', 'sphinx', *options, '-b', 'html', '.', str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / 'index.html').is_file() and (tmp_path / 'docs/api/ops.html').is_file()
