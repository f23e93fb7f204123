"""The shell scripts that start distributed runs, with stand-ins that record what they are given."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'
VARIABLES = ('NNODES', 'NODE_RANK', 'PORT', 'MASTER_ADDR', 'MASTER_PORT', 'GPUS', 'GPUS_PER_NODE')
VARIABLES += ('CPUS_PER_TASK', 'SRUN_ARGS', 'PYTHON')
# What a shell would split, expand or run.
CONFIG, WORK_DIR = 'my configs/it\'s $HOME "a" *.py', 'out dir/$(date)'
OPTIONS = ['--cfg-options', 'a.b=x y', 'c=*', 'd="[(1,2)]"']

# It writes what it got, and with RUN_TASKS starts the command as the tasks of a job.
RECORDER = """#!{python}
import json, os, subprocess, sys
record = dict(arguments=sys.argv[1:], environment=dict(os.environ), folder=os.getcwd())
json.dump(record, open(os.environ['RECORD'], 'w'))
if 'RUN_TASKS' in os.environ:
    command = [a for a in sys.argv[1:] if not a.startswith('--')]
    command = sys.argv[1 + sys.argv[1:].index(command[0]):]
    tasks = int(os.environ['RUN_TASKS'])
    job = dict(os.environ, SLURM_NTASKS=str(tasks), SLURM_NODELIST='node[1-1]')
    tasks = [
        subprocess.Popen(command, env=dict(job, SLURM_PROCID=str(i), SLURM_LOCALID=str(i)))
        for i in range(tasks)
    ]
    sys.exit(max(task.wait() for task in tasks))
"""


@pytest.fixture
def stand_in(tmp_path):
    """Puts a program of this name on the PATH; returns what a script's run with it recorded."""

    def make(name):
        folder = tmp_path / 'bin'
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(RECORDER.format(python=sys.executable))
        (folder / name).chmod(0o755)
        return folder

    def run(name, script, *arguments, **variables):
        folder = make(name)
        record = tmp_path / 'record.json'
        env = {key: value for key, value in os.environ.items() if key not in VARIABLES}
        env.update(PATH=f'{folder}:{env["PATH"]}', RECORD=str(record), **variables)
        elsewhere = tmp_path / 'some where'
        elsewhere.mkdir(exist_ok=True)
        result = subprocess.run(
            [script, *map(str, arguments)],
            cwd=elsewhere,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if not record.exists():
            return result
        content = json.loads(record.read_text())
        assert content['folder'] == str(elsewhere)
        assert result.returncode == 0, result.stdout + result.stderr
        return content

    return run


SCRIPTS = {
    'dist_train.sh': (CONFIG, '4'),
    'dist_test.sh': (CONFIG, 'a file.pth', '4'),
    'slurm_train.sh': ('part', 'a job', CONFIG, WORK_DIR),
    'slurm_test.sh': ('part', 'a job', CONFIG, 'a file.pth'),
}


@pytest.mark.parametrize('script', SCRIPTS)
def test_a_missing_argument_shows_the_usage(stand_in, script):
    arguments = SCRIPTS[script]
    names = []
    for number in range(len(arguments)):
        result = stand_in('srun', TOOLS / script, *arguments[:number])
        assert result.returncode == 2
        assert f'usage: {script} ' in result.stderr
        names.append(result.stderr.split('error: ')[1].split(' is missing')[0])
    # The names are those of the usage line, in its order.
    assert f'usage: {script} {" ".join(names)} [arguments of ' in result.stderr


@pytest.mark.parametrize('number', ['0', '-1', 'two', '1.5', '08', ' '])
def test_numbers_are_checked(stand_in, number):
    result = stand_in('python', TOOLS / 'dist_train.sh', CONFIG, number)
    assert result.returncode == 2
    assert 'GPUS' in result.stderr and 'usage: dist_train.sh' in result.stderr
    result = stand_in('srun', TOOLS / 'slurm_train.sh', *SCRIPTS['slurm_train.sh'], GPUS=number)
    assert result.returncode == 2
    assert 'GPUS' in result.stderr and 'usage: slurm_train.sh' in result.stderr


@pytest.mark.parametrize(
    ('script', 'tool'), [('dist_train.sh', 'train.py'), ('dist_test.sh', 'test.py')]
)
def test_torchrun_on_one_node(stand_in, script, tool):
    arguments = SCRIPTS[script]
    record = stand_in('python', TOOLS / script, *arguments, *OPTIONS)
    given = record['arguments']
    assert given[:2] == ['-m', 'torch.distributed.run']
    position = given.index(str(TOOLS / tool))
    assert given[position - 2 : position] == ['--nproc-per-node', '4']
    assert given[position + 1 :] == [*arguments[:-1], *OPTIONS, '--launcher', 'pytorch']
    # A job takes a free port, so that two of them do not meet.
    assert '--standalone' in given
    assert not any('port' in option for option in given[:position])


def test_torchrun_on_several_nodes(stand_in):
    nodes = dict(NNODES='3', NODE_RANK='2', PORT='12345', MASTER_ADDR='node 0')
    given = stand_in('python', TOOLS / 'dist_train.sh', CONFIG, 8, **nodes)['arguments']
    position = given.index(str(TOOLS / 'train.py'))
    options = given[2:position]
    assert dict(zip(options[::2], options[1::2], strict=True)) == {
        '--nnodes': '3',
        '--node-rank': '2',
        '--master-addr': 'node 0',
        '--master-port': '12345',
        '--nproc-per-node': '8',
    }


def test_torchrun_parses_what_it_is_given(stand_in):
    """The options are those of the installed torch."""
    from torch.distributed.run import get_args_parser

    for nodes in ({}, dict(NNODES='2', NODE_RANK='1', PORT='12345', MASTER_ADDR='10.0.0.1')):
        given = stand_in('python', TOOLS / 'dist_train.sh', CONFIG, 8, **nodes)['arguments'][2:]
        args = get_args_parser().parse_args(given)
        assert args.nproc_per_node == '8'
        assert args.training_script == str(TOOLS / 'train.py')
        assert args.training_script_args == [CONFIG, '--launcher', 'pytorch']
        assert args.standalone is not bool(nodes)
        assert (args.nnodes, args.node_rank) == (('2', 1) if nodes else ('1:1', 0))


@pytest.mark.parametrize(
    ('script', 'tool'), [('slurm_train.sh', 'train.py'), ('slurm_test.sh', 'test.py')]
)
def test_srun(stand_in, script, tool):
    partition, job, config, last = arguments = SCRIPTS[script]
    variables = dict(
        GPUS='16',
        GPUS_PER_NODE='4',
        CPUS_PER_TASK='7',
        SRUN_ARGS='--exclude=node* --time 1:00:00',
        PORT='12345',
    )
    record = stand_in('srun', TOOLS / script, *arguments, *OPTIONS, **variables)
    given = record['arguments']
    position = given.index('python')
    assert given[:position] == [
        f'--partition={partition}',
        f'--job-name={job}',
        '--gres=gpu:4',
        '--ntasks=16',
        '--ntasks-per-node=4',
        '--cpus-per-task=7',
        '--kill-on-bad-exit=1',
        # Last, so that they win; not expanded.
        '--exclude=node*',
        '--time',
        '1:00:00',
    ]
    positional = [config, '--work-dir', last] if tool == 'train.py' else [config, last]
    assert given[position:] == [
        *('python', '-u', str(TOOLS / tool)),
        *positional,
        *OPTIONS,
        *('--launcher', 'slurm'),
    ]
    assert record['environment']['MASTER_PORT'] == '12345'


@pytest.mark.parametrize(('gpus', 'per_node'), [(None, '8'), ('2', '2'), ('8', '8'), ('32', '8')])
def test_srun_defaults(stand_in, gpus, per_node):
    variables = {} if gpus is None else dict(GPUS=gpus)
    record = stand_in('srun', TOOLS / 'slurm_test.sh', *SCRIPTS['slurm_test.sh'], **variables)
    given = record['arguments'][: record['arguments'].index('python')]
    assert f'--gres=gpu:{per_node}' in given and f'--ntasks-per-node={per_node}' in given
    assert f'--ntasks={gpus or 8}' in given and '--cpus-per-task=5' in given
    assert len(given) == 7
    assert 'MASTER_PORT' not in record['environment']


def test_a_failure_is_the_scripts(stand_in, tmp_path):
    broken = tmp_path / 'broken'
    broken.write_text('#!/bin/sh\nexit 7\n')
    broken.chmod(0o755)
    result = stand_in('srun', TOOLS / 'dist_train.sh', CONFIG, 1, PYTHON=str(broken))
    assert result.returncode == 7


def test_the_scripts_work_by_a_link_and_as_a_copy(stand_in, tmp_path):
    """As in the package's ``.mim``, which is a link in an editable installation, else a copy."""
    (tmp_path / 'link').symlink_to(TOOLS)
    given = stand_in('python', tmp_path / 'link' / 'dist_train.sh', CONFIG, 1)['arguments']
    assert Path(given[given.index(CONFIG) - 1]).samefile(TOOLS / 'train.py')
    copy = tmp_path / 'a copy'
    shutil.copytree(TOOLS, copy, ignore=shutil.ignore_patterns('__pycache__'))
    given = stand_in('python', copy / 'dist_train.sh', CONFIG, 1)['arguments']
    assert given[given.index(CONFIG) - 1] == str(copy / 'train.py')


def test_the_scripts_are_in_the_package():
    import mmvmamba

    tools = Path(mmvmamba.__file__).parent / '.mim' / 'tools'
    if not tools.exists():
        pytest.skip('the package is used without an installation')
    for script in SCRIPTS:
        assert os.access(tools / script, os.X_OK), script
        assert (tools / script).read_text() == (TOOLS / script).read_text()


def test_a_slurm_job_on_the_cpu(stand_in, classification_config, tmp_path):
    """Two tasks of a job find each other: gloo, from Slurm's variables alone."""
    import torch

    scontrol = tmp_path / 'bin' / 'scontrol'
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\necho localhost\n')
    scontrol.chmod(0o755)
    stand_in(
        'srun',
        TOOLS / 'slurm_train.sh',
        *('cpu', 'a job', classification_config, tmp_path / 'work dir'),
        GPUS='2',
        SRUN_ARGS='--gres=none',
        PORT=free_port(),
        PYTHON=sys.executable,
        RUN_TASKS='2',
        OMP_NUM_THREADS='1',
        CUDA_VISIBLE_DEVICES='',
    )
    # 8 images, 2 in a batch, 2 tasks.
    checkpoint = torch.load(tmp_path / 'work dir' / 'epoch_1.pth', weights_only=False)
    assert checkpoint['meta']['iter'] == 2


def free_port():
    import socket

    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])
