"""Shell scripts for distributed runs, with stand-ins that record their arguments."""

import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from .fault_jobs import descendants, last_checkpoint, losses

TOOLS = Path(__file__).parents[2] / 'tools'
VARIABLES = ('NNODES', 'NODE_RANK', 'PORT', 'MASTER_ADDR', 'MASTER_PORT', 'GPUS', 'GPUS_PER_NODE')
VARIABLES += ('CPUS_PER_TASK', 'SRUN_ARGS', 'PYTHON', 'MAX_RESTARTS', 'CDPATH')
# What a shell would split, expand or run.
CONFIG, WORK_DIR = 'my configs/it\'s $HOME "a" *.py', 'out dir/$(date)'
OPTIONS = ['--cfg-options', 'a.b=x y', 'c=*', 'd="[(1,2)]"']

# It writes what it got.
RECORDER = """#!{python}
import json, os, sys
record = dict(arguments=sys.argv[1:], environment=dict(os.environ), folder=os.getcwd())
json.dump(record, open(os.environ['RECORD'], 'w'))
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

    def run(name, script, *arguments, cwd=None, **variables):
        folder = make(name)
        record = tmp_path / 'record.json'
        env = {key: value for key, value in os.environ.items() if key not in VARIABLES}
        env.update(PATH=f'{folder}:{env["PATH"]}', RECORD=str(record), **variables)
        elsewhere = cwd or tmp_path / 'some where'
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


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh'])
def test_a_port_in_use(stand_in, script):
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = str(server.getsockname()[1])
        result = stand_in('python', TOOLS / script, *SCRIPTS[script], PORT=port)
        assert result.returncode == 2
        assert f'{script}: error: port {port} is in use; set PORT to a free one' in result.stderr
        # Only the first node listens.
        other = dict(PORT=port, NNODES='2', NODE_RANK='1')
        assert port in stand_in('python', TOOLS / script, *SCRIPTS[script], **other)['arguments']


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='backlogs are those of Linux')
def test_a_port_whose_listener_does_not_answer(stand_in):
    with socket.create_server(('127.0.0.1', 0), backlog=0) as server:
        address, waiting = server.getsockname(), []
        for _ in range(3):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(address)
        script = 'dist_train.sh'
        result = stand_in('python', TOOLS / script, *SCRIPTS[script], PORT=str(address[1]))
        for client in waiting:
            client.close()
    assert result.returncode == 2
    assert f'port {address[1]} is in use' in result.stderr


@pytest.mark.parametrize('script', SCRIPTS)
def test_a_missing_argument_shows_the_usage(stand_in, script):
    arguments = SCRIPTS[script]
    names = []
    for number in range(len(arguments)):
        result = stand_in('srun', TOOLS / script, *arguments[:number])
        assert result.returncode == 2
        assert f'usage: {script} ' in result.stderr
        assert 'docs/tools.md lists the environment variables' in result.stderr
        names.append(result.stderr.split('error: ')[1].split(' is missing')[0])
    # The names are those of the usage line, in its order.
    assert f'usage: {script} {" ".join(names)} [arguments of ' in result.stderr


def test_the_docs_list_the_variables():
    listed = re.findall(r'^\| `(\w+)` \|', (TOOLS.parent / 'docs/tools.md').read_text(), re.M)
    read = re.findall(r'\$\{([A-Z_]+):-', (TOOLS / 'launch.sh').read_text())
    assert set(listed) == set(read) - {'TORCH_DISABLE_SHARE_RDZV_TCP_STORE'}


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
    nodes['MAX_RESTARTS'] = '3'
    given = stand_in('python', TOOLS / 'dist_train.sh', CONFIG, 8, **nodes)['arguments']
    position = given.index(str(TOOLS / 'train.py'))
    options = given[2:position]
    assert dict(zip(options[::2], options[1::2], strict=True)) == {
        '--nnodes': '3',
        '--node-rank': '2',
        '--master-addr': 'node 0',
        '--master-port': '12345',
        '--max-restarts': '3',
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


@pytest.mark.parametrize('script', ['dist_train.sh', 'slurm_train.sh'])
def test_an_exported_cdpath(stand_in, script):
    """With it `cd` prints where it went."""
    name = 'srun' if 'slurm' in script else 'python'
    where = dict(cwd=TOOLS.parent, CDPATH=f'.:{TOOLS.parent}')
    given = stand_in(name, f'{TOOLS.name}/{script}', *SCRIPTS[script], **where)['arguments']
    assert str(TOOLS / 'train.py') in given


def test_the_scripts_are_in_the_package():
    import mmvmamba

    tools = Path(mmvmamba.__file__).parent / '.mim' / 'tools'
    if not tools.exists():
        pytest.skip('the package is used without an installation')
    for script in SCRIPTS:
        assert os.access(tools / script, os.X_OK), script
        assert (tools / script).read_text() == (TOOLS / script).read_text()


def free_port():
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])


# ---- real jobs on the CPU ----


@pytest.fixture
def start(tmp_path):
    """Starts a script from another folder; ends what is still running after the test."""
    processes = []

    def run(script, *arguments, **variables):
        env = {key: value for key, value in os.environ.items() if key not in VARIABLES}
        env.update(PYTHON=sys.executable, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', **variables)
        output = (tmp_path / f'output {len(processes)}').open('w+')
        process = subprocess.Popen(
            [TOOLS / script, *map(str, arguments)],
            cwd=tmp_path,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        processes.append((process, output))
        return process, output

    yield run
    for process, output in processes:
        kill(process)
        output.close()


def kill(process):
    if process.poll() is None:
        for pid in (process.pid, *descendants(process.pid)):
            os.kill(pid, signal.SIGKILL)
        process.wait()


def finish(*started):
    """Waits for them all; returns what they wrote."""
    processes = [process for process, _ in started]
    end = time.monotonic() + 300
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        # torchrun waits five minutes for an agent that failed: tell at once what that one said.
        if any(process.returncode for process in processes):
            break
        time.sleep(0.05)
    texts = []
    for process, output in started:
        kill(process)
        output.seek(0)
        texts.append(output.read())
    assert [process.returncode for process in processes] == [0] * len(processes), texts
    return texts


@pytest.mark.slow
def test_two_agents_on_one_machine_are_one_job(start, classification_config, tmp_path):
    port = free_port()
    finish(
        *(
            start(
                'dist_train.sh',
                *(classification_config, 1, '--work-dir', 'a work dir'),
                NNODES='2',
                NODE_RANK=str(node),
                PORT=port,
                MASTER_ADDR='127.0.0.1',
            )
            for node in range(2)
        )
    )
    # 8 images, 2 in a batch, 2 processes; only the first one writes.
    assert iterations(tmp_path / 'a work dir' / 'epoch_1.pth') == 2
    assert len(list((tmp_path / 'a work dir').glob('*/*.log'))) == 1


@pytest.fixture
def training(start, segmentation_config, tmp_path):
    """Starts an endless training with workers; returns when it is under way."""

    def training(ranks, **variables):
        config = tmp_path / 'endless.py'
        config.write_text(
            f'_base_ = {str(segmentation_config)!r}\n'
            'train_cfg = dict(max_iters=100000)\n'
            'train_dataloader = dict(num_workers=2, persistent_workers=True)\n'
            'default_hooks = dict(checkpoint=dict(interval=100000))\n'
        )
        command = ('dist_train.sh', config, ranks, '--work-dir', 'run', '--no-validate')
        process, output = start(*command, **variables)
        while not losses(tmp_path / 'run'):
            assert process.poll() is None, Path(output.name).read_text()
            time.sleep(0.05)
        return process, output

    return training


def assert_saved(folder, text):
    assert last_checkpoint(folder).name == 'interrupted.pth', text
    done = max(losses(folder))
    assert iterations(folder / 'interrupted.pth') == done
    assert f'after iteration {done} and stopped; continue with --resume' in text


def to_the_group(process):
    os.killpg(process.pid, signal.SIGTERM)


@pytest.mark.parametrize(
    ('ranks', 'send'),
    [(1, to_the_group), pytest.param(2, subprocess.Popen.terminate, marks=pytest.mark.slow)],
)
def test_sigterm(training, ranks, send, tmp_path):
    """The ranks save and end by themselves, and the script with them; nothing starts again."""
    started = training(ranks, MAX_RESTARTS='1')
    everyone = descendants(started[0].pid)
    assert len(everyone) == 1 + 3 * ranks  # torchrun, and each rank with two workers
    send(started[0])
    (text,) = finish(started)
    assert_saved(tmp_path / 'run', text)
    assert 'Traceback' not in text
    assert not any(Path(f'/proc/{pid}').exists() for pid in everyone)


@pytest.mark.slow
def test_sigterm_to_all_processes(training, tmp_path):
    """As Slurm sends it, to torchrun too, which ends with 1; all is saved nevertheless."""
    process, output = training(2)
    for pid in (process.pid, *descendants(process.pid)):
        os.kill(pid, signal.SIGTERM)
    assert process.wait(60) == 1
    assert_saved(tmp_path / 'run', Path(output.name).read_text())


def is_rank(pid):
    try:
        command = Path(f'/proc/{pid}/cmdline').read_bytes()
    except FileNotFoundError:
        return False
    return b'train.py' in command and b'torch.distributed.run' not in command


@pytest.mark.slow
def test_sigterm_before_training(start, segmentation_config, tmp_path):
    """The ranks cannot save yet; torchrun does not start them again."""
    process, _ = start('dist_train.sh', segmentation_config, 1, MAX_RESTARTS='3')
    while not any(is_rank(pid) for pid in descendants(process.pid)):
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert process.wait(60) == 1
    assert not (tmp_path / 'work_dirs').exists()


def iterations(checkpoint):
    return torch.load(checkpoint, weights_only=False)['meta']['iter']


@pytest.mark.slow
@pytest.mark.parametrize(
    ('task', 'last', 'figure'),
    [
        ('detection', 'epoch_1.pth', 'coco/bbox_mAP: '),
        ('segmentation', 'iter_2.pth', 'mIoU'),
    ],
)
def test_training_and_testing_in_two_processes(start, task, last, figure, request, tmp_path):
    """Two jobs at a time: each takes a port of its own."""
    config = request.getfixturevalue(f'{task}_config')
    trainings = [
        start(
            'dist_train.sh',
            config,
            2,
            '--work-dir',
            f'work_{i}',
            '--cfg-options',
            'randomness.seed=0',
        )
        for i in range(2)
    ]
    finish(*trainings)
    states = [
        torch.load(tmp_path / f'work_{i}' / last, weights_only=False)['state_dict']
        for i in range(2)
    ]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    # The options after the numbers are the tool's.
    texts = finish(
        *(start('dist_test.sh', config, f'work_0/{last}', n, '--out', f'{n}.pkl') for n in (1, 2))
    )
    for text in texts:
        assert figure in text
    one, two = (pickle.loads((tmp_path / f'{n}.pkl').read_bytes()) for n in (1, 2))
    assert [sample['img_path'] for sample in one] == [sample['img_path'] for sample in two]


@pytest.mark.slow
def test_fsdp_from_a_file_to_a_test(start, detection_config, tmp_path):
    """Training with shards starts from a checkpoint, goes on from one, and is tested without."""
    finish(start('dist_train.sh', detection_config, 1, '--work-dir', 'plain'))
    sharded = tmp_path / 'sharded.py'
    fsdp = TOOLS.parent / 'configs' / '_base_' / 'fsdp.py'
    sharded.write_text(f'_base_ = [{str(detection_config)!r}, {str(fsdp)!r}]\n')
    load = ('--work-dir', 'sharded', '--resume', '--cfg-options', 'load_from=plain/epoch_1.pth')
    (text,) = finish(start('dist_train.sh', sharded, 2, *load))
    assert 'no checkpoint to resume from' in text
    assert 'weights: from plain/epoch_1.pth' in text
    assert iterations(tmp_path / 'sharded' / 'epoch_1.pth') == 1
    resume = ('--work-dir', 'sharded', '--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    finish(start('dist_train.sh', sharded, 2, *resume))
    assert iterations(tmp_path / 'sharded' / 'epoch_2.pth') == 2
    (text,) = finish(start('dist_test.sh', detection_config, 'sharded/epoch_2.pth', 1))
    assert 'tensors found; missing: none' in text and 'coco/bbox_mAP' in text


def test_shards_need_a_launcher(run_here, detection_config, tmp_path):
    sharded = tmp_path / 'sharded.py'
    fsdp = TOOLS.parent / 'configs' / '_base_' / 'fsdp.py'
    sharded.write_text(f'_base_ = [{str(detection_config)!r}, {str(fsdp)!r}]\n')
    code, err = run_here('train.py', sharded)
    assert code == 2
    assert 'FSDPStrategy needs --launcher' in err
    code, err = run_here('train.py', sharded, '--cfg-options', 'optim_wrapper.clip_grad.max_norm=1')
    assert code == 2
    assert 'FSDPStrategy does not support optim_wrapper.clip_grad' in err
