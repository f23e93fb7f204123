"""``make gpu-check``: the rehearsal on a CPU, resumption and error handling."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mmvmamba.ops import has_kernel

from .benchmark_modules import BENCHMARKS, load

ROOT = Path(__file__).resolve().parents[1]
FILES = {'results.json', 'log.txt', 'summary.md', 'summary.json'}
#: Stands in for ``python -m gpu_steps``: each item does what plan.json says.
CHILD = """
import argparse, json, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, os.getcwd())
from gpu_steps.context import Context
parser = argparse.ArgumentParser()
parser.add_argument('step')
for name in ('--out', '--device', '--seconds'):
    parser.add_argument(name)
args = parser.parse_args()
out = Path(args.out)
plan = json.loads((out / 'plan.json').read_text()).get(args.step, {})
begin = time.monotonic()
def write(**event):
    with open(out / f'step{args.step}.jsonl', 'a') as file:
        file.write(json.dumps(event) + '\\n')
if 'exit' in plan:
    sys.exit(plan['exit'])
write(plan=list(plan))
for name in Context(int(args.step), None, out, args.device, 0).order(plan):
    action = plan[name]
    if time.monotonic() - begin > float(args.seconds):
        break
    print('item', name)
    write(begin=name, time=time.time())
    if action == 'kill':
        os.kill(os.getpid(), signal.SIGKILL)
    if action == 'hang':
        os.system(f'sleep 60 & echo $! > {out}/sleeper; wait')
    row = action if isinstance(action, dict) else {}
    reason = {} if row.get('status', 'passed') == 'passed' else {'reason': 'it was planned'}
    write(row=dict(item=name, status='passed') | reason | row)
    write(end=name)
    if action == 'broken device':
        sys.exit(75)
"""
DONE = 'ten calls, all results finite'
MACHINE = {'run': {'machine': {}, 'versions': {}}, 'gpu': 'G', 'cpu': 'C', 'torch': 'T'}
STEP_1 = {'machine': MACHINE,
          'extension': {'how': 'reused', 'seconds': 0, 'architectures': []}}  # fmt: skip


native = pytest.mark.skipif(not has_kernel('ss2d_scan', 'cpu'), reason='no native kernel')
gpu_check, gpu_report, gpu_steps = map(load, ('gpu_check', 'gpu_report', 'gpu_steps'))


# ---- the whole -----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def rehearsal(tmp_path_factory):
    """The folder of a run on the CPU: `make gpu-check DEVICE=cpu`."""
    if not has_kernel('ss2d_scan', 'cpu') and shutil.which('c++') is None:
        pytest.skip('neither the extension nor a compiler to build it')
    out = tmp_path_factory.mktemp('gpu_check')
    command = ['make', 'gpu-check', 'DEVICE=cpu', f'OUT={out}', f'PYTHON={sys.executable}']
    command.append('MINUTES=3')
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    return out, done.stdout


def test_the_rehearsal_runs_every_step(rehearsal):
    out, _ = rehearsal
    assert {path.name for path in out.iterdir()} == FILES
    results = json.loads((out / 'results.json').read_text())
    for number, step in gpu_steps.STEPS.items():
        record = results['steps'][str(number)]
        assert record['title'] == step.title
        needs_gpu = step.title in ('tests', 'counters')
        assert record['status'] == ('skipped' if needs_gpu else 'passed'), record
        assert set(record['done']) == set(record['plan']) != set()
        for row in record['rows']:
            assert row['status'] == 'passed' or (row['status'] == 'skipped' and row['reason']), row
    cuda = [row for record in results['steps'].values() for row in record['rows']
            if row.get('reason') == 'needs CUDA (DEVICE=cpu)']  # fmt: skip
    tools = {'memcheck', 'racecheck', 'initcheck', 'synccheck'}
    tools = {f'{tool}, native' for tool in tools}
    others = {'triton kernels', 'ten calls, triton', 'rank 6, triton', 'compiled', 'warps 16, 8'}
    assert {row['item'] for row in cuda} >= tools | others


def test_the_last_output_is_the_table(rehearsal):
    out, text = rehearsal
    summary = (out / 'summary.md').read_text()
    assert summary in (out / 'log.txt').read_text()
    lines = [line for line in text.splitlines() if line.startswith('| ')]
    assert lines[-1] == summary.splitlines()[-1] and lines[-1].startswith('| 8. counters | skipped')
    for word in ('GPU', 'torch', 'needs CUDA (DEVICE=cpu)', 'a GPU is required', 'it needs a GPU'):
        assert word in summary
    steps = json.loads((out / 'summary.json').read_text())['steps']
    assert {step['title']: step['status'] for step in steps.values()}['exactness'] == 'passed'


def test_a_second_run_has_nothing_left_to_do(rehearsal):
    out, _ = rehearsal
    before = json.loads((out / 'results.json').read_text())['steps']
    env = os.environ | {'DEVICE': 'cpu', 'PYTHON': sys.executable}
    command = ['bash', str(BENCHMARKS / 'gpu_check.sh'), str(out)]
    done = subprocess.run(command, cwd=out, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    after = json.loads((out / 'results.json').read_text())['steps']
    assert {k: v for k, v in before.items() if k != '1'} == {
        k: v for k, v in after.items() if k != '1'
    }


def test_the_report_of_the_rehearsal(rehearsal):
    out, _ = rehearsal
    command = [sys.executable, str(BENCHMARKS / 'gpu_report.py'), str(out)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r'^\| ss2d_scan \| 2 x 9x14 x 24, rank 6 .* 10 runs \|$', text, re.M)
    times = r'[\d.]+ / [\d.]+ \| \d+% / \d+% \| skipped \| skipped \|'
    assert re.search(rf'^\| 32x48, 2 \| fp32 \| stage 0 \| eager \| {times}', text, re.M)
    assert re.search(r'^\| rank 48, native \| \d+ \| \d+ \|', text, re.M)
    assert '- mamba_ssm, vmamba: it needs a GPU' in text


def test_the_page_has_the_tables():
    """The tables are those of the report, or a sentence if there is no run."""
    page = (ROOT / 'docs/benchmarks.md').read_text()
    tables = page.partition(gpu_report.BEGIN)[2].partition(gpu_report.END)[0].strip()
    assert '### Sweeps' in tables or tables == gpu_report.tables({}).strip()


# ---- a run whose steps go wrong ------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs steps that do what a plan says, and returns their records and the exit status."""
    script = tmp_path / 'child.py'
    script.write_text(CHILD)
    out = tmp_path / 'out'
    out.mkdir()
    monkeypatch.setattr(gpu_check, 'source_digest', lambda number: 'sources')
    monkeypatch.setattr(gpu_check, 'LEAST_SECONDS', 0)

    def run_plan(plan, device='cpu', minutes=1.0, numbers=(1, 2, 3)):
        (out / 'plan.json').write_text(json.dumps({'1': STEP_1} | plan))
        command = (sys.executable, str(script))
        check = gpu_check.Check(out, device, minutes, command)
        check.run(numbers)
        status = check.summarize(numbers)
        check.log_file.close()
        results = json.loads((out / 'results.json').read_text())
        return {int(number): record for number, record in results['steps'].items()}, status

    run_plan.out = out
    return run_plan


def set_limits(monkeypatch, number, **limits):
    changed = gpu_check.dataclasses.replace(gpu_check.STEPS[number], **limits)
    monkeypatch.setitem(gpu_check.STEPS, number, changed)


def is_alive(pid):
    """Return True if a process runs and has not become a zombie."""
    state = Path(f'/proc/{pid}/stat')
    try:
        return state.read_text().rpartition(')')[2].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


def rows(record):
    return {row['item']: row['status'] for row in record['rows']}


def test_a_step_that_crashes_goes_on_after_the_crash(run):
    plan = {'2': {'a': 1, 'b': 'kill', 'c': 1}, '3': {'d': 1}}
    steps, status = run(plan)
    assert status == 1
    assert rows(steps[2]) == {'a': 'passed', 'b': 'failed', 'c': 'passed'}
    assert 'SIGKILL' in steps[2]['rows'][1]['reason']
    assert steps[2]['status'] == 'failed' and steps[3]['status'] == 'passed'
    assert 'step 2: b: the process was killed by SIGKILL' in (run.out / 'summary.md').read_text()


def test_a_new_process_follows_one_that_lost_the_device(run):
    steps, status = run({'2': {'a': 'broken device', 'b': 1}, '3': {'c': 1}})
    assert rows(steps[2]) == {'a': 'passed', 'b': 'passed'} and status == 0


def test_only_what_failed_is_tried_again(run):
    run({'2': {'a': 1, 'b': {'status': 'failed'}}, '3': {'c': 1}})
    log = (run.out / 'log.txt').read_text()
    assert (log.count('item a'), log.count('item b'), log.count('item c')) == (1, 1, 1)
    steps, status = run({'2': {'a': 1, 'b': 1}, '3': {'c': 1}})
    log = (run.out / 'log.txt').read_text()
    assert (log.count('item a'), log.count('item b'), log.count('item c')) == (1, 2, 1)
    assert rows(steps[2]) == {'a': 'passed', 'b': 'passed'} and status == 0


def test_what_has_not_run_comes_before_what_failed(run):
    run({'2': {'a': {'status': 'failed'}}}, numbers=(1, 2))
    run({'2': {'a': 1}, '3': {'c': 1}})
    log = (run.out / 'log.txt').read_text()
    assert log.index('item c') < log.rindex('item a')


def test_a_run_that_is_out_of_time_is_continued(run):
    steps, status = run({'2': {'a': 1, 'b': 'hang', 'c': 1}, '3': {'d': 1}}, minutes=3 / 60)
    assert status == 3
    assert rows(steps[2]) == {'a': 'passed'} and steps[2]['status'] == 'unfinished'
    assert steps[3]['status'] == 'not run'
    assert steps[2]['reason'] == '2 of 3 left'
    steps, status = run({'2': {'a': 1, 'b': 1, 'c': 1}, '3': {'d': 1}})
    assert status == 0 and rows(steps[2]) == dict.fromkeys('abc', 'passed')
    assert (run.out / 'log.txt').read_text().count('item a') == 1


@pytest.mark.slow  # its runs end after seconds of waiting
def test_an_item_longer_than_a_run_does_not_block_the_others(run):
    plan = {'2': {'a': 'hang', 'b': 1}, '3': {'d': 1}}
    run(plan, minutes=3 / 60)
    steps, status = run(plan, minutes=6 / 60)
    assert status == 3 and steps[2]['reason'] == '1 of 2 left'
    assert rows(steps[2]) == {'b': 'passed'} and steps[3]['status'] == 'not run'
    steps, status = run(plan, minutes=6 / 60)
    assert status == 3 and rows(steps[3]) == {'d': 'passed'}


def test_an_item_that_hangs_ends_with_its_step(run, monkeypatch):
    set_limits(monkeypatch, 2, limit=1, item_seconds=1)
    monkeypatch.setattr(gpu_check, 'GRACE', 1)
    steps, status = run({'2': {'a': 1, 'b': 'hang', 'c': 1}, '3': {'d': 1}})
    assert status == 1
    assert rows(steps[2]) == {'a': 'passed', 'b': 'failed'}
    assert steps[2]['rows'][1]['reason'] == "exceeded the step's time limit"
    sleeper = int((run.out / 'sleeper').read_text())
    assert not is_alive(sleeper)
    assert steps[3]['status'] == 'passed'


def test_a_step_whose_limit_is_reached_leaves_the_rest(run, monkeypatch):
    set_limits(monkeypatch, 2, limit=0)
    steps, status = run({'2': {'a': 1}, '3': {'d': 1}})
    assert status == 3 and steps[2]['status'] == 'unfinished'


def test_a_step_that_cannot_begin_has_failed(run):
    steps, status = run({'2': {'exit': 'No module named torch'}, '3': {'d': 1}})
    assert status == 1 and steps[2]['status'] == 'failed'
    reason = 'the process ended with status 1, see log.txt: No module named torch'
    assert steps[2]['reason'] == reason
    assert steps[3]['status'] == 'passed'


def test_nothing_runs_without_the_kernels(run):
    plan = {'1': STEP_1 | {'kernels': {'status': 'failed'}}, '2': {'a': 1}}
    steps, status = run(plan)
    assert status == 1 and steps[1]['status'] == 'failed'
    assert steps[2]['status'] == 'not run'


@pytest.mark.parametrize(('device', 'status'), [('cpu', 0), ('cuda', 1)])
def test_a_gpu_run_in_which_every_test_skips_has_failed(run, device, status):
    skips = {'a': {'status': 'skipped'}, 'b': {'status': 'skipped'}}
    steps, got = run({'2': {'x': 1}, '3': skips, '4': skips}, device=device, numbers=(1, 2, 3, 4))
    assert got == status
    if device == 'cuda':
        assert steps[3]['reason'] == 'nothing ran: all 2 items were skipped'
        assert steps[4]['status'] == 'skipped'  # a sanitizer may be missing


def test_retries_come_last_and_keep_the_failure_until_they_end(run):
    run({'2': {'a': {'status': 'failed'}, 'b': 1, 'c': 'hang'}}, minutes=3 / 60, numbers=(1, 2))
    plan = {'2': {'a': 'hang', 'b': 1, 'c': 1}}
    steps, status = run(plan, minutes=3 / 60, numbers=(1, 2))
    assert status == 1
    assert rows(steps[2]) == {'a': 'failed', 'b': 'passed', 'c': 'passed'}
    log = (run.out / 'log.txt').read_text()
    assert log.rindex('item c') < log.rindex('item a')


def test_results_of_other_sources_or_another_machine_are_set_aside(run, monkeypatch):
    plan = {'2': {'a': 1}, '3': {'c': 1}}
    run(plan)
    monkeypatch.setattr(gpu_check, 'source_digest', lambda number: f'changed {number // 3}')
    monkeypatch.setattr(gpu_check, 'now', lambda: 'then')
    run(plan, numbers=(1, 2))
    assert (run.out / 'log.txt').read_text().count('item a') == 2
    copy = json.loads((run.out / 'results-then.json').read_text())
    assert copy['steps']['3']['status'] == 'passed'
    steps, status = run({'1': STEP_1 | {'machine': MACHINE | {'cpu': 'another'}}}, numbers=(1,))
    assert status == 0 and steps[2]['rows'] == steps[3]['rows'] == []


def test_a_step_depends_on_its_own_sources(monkeypatch):
    digests = {number: gpu_check.source_digest(number) for number in gpu_check.STEPS}
    assert len(set(digests.values())) == len(digests)
    set_limits(monkeypatch, 4, files=())
    changed = {n for n in gpu_check.STEPS if gpu_check.source_digest(n) != digests[n]}
    assert changed == {4}


def test_results_are_not_shown_under_the_name_of_another_machine(run):
    run({'2': {'a': 1}})
    other = MACHINE | {'cpu': 'another'}
    steps, status = run({'1': {'machine': other, 'extension': {'status': 'failed'}}})
    assert status == 1 and steps[2]['rows'] == []


def test_items_that_are_gone_are_dropped(run):
    run({'2': {'a': 1, 'pytest': {'status': 'failed'}}}, numbers=(1, 2))
    steps, status = run({'2': {'a': 1, 'b': 1}}, numbers=(1, 2))
    assert status == 0 and rows(steps[2]) == {'a': 'passed', 'b': 'passed'}


def test_the_machine_is_named_though_the_build_failed(run):
    machine = {'gpu': 'NVIDIA H200', 'cpu': 'C', 'torch': 'T'}
    machine['run'] = {'machine': {'gpu': 'NVIDIA H200', 'cpu': 'C'}, 'versions': {'nvcc': '13.0'}}
    run({'1': {'machine': machine, 'extension': {'status': 'failed'}}}, device='cuda')
    text = (run.out / 'summary.md').read_text()
    assert '| GPU | NVIDIA H200 |' in text and 'nvcc 13.0' in text


def test_what_a_killed_run_left_is_taken_over(run):
    run({'2': {'a': 1}}, numbers=(1,))
    events = [{'plan': ['a', 'b']}, {'begin': 'a', 'time': 0}]
    events += [{'row': {'item': 'a', 'status': 'passed'}}, {'end': 'a'}, {'begin': 'b', 'time': 0}]
    text = '\n'.join(map(json.dumps, events)) + '\n{"row": {"it'
    (run.out / 'step2.jsonl').write_text(text)
    steps, status = run({'2': {'a': 1, 'b': 1}}, numbers=(1, 2))
    assert status == 0 and rows(steps[2]) == {'a': 'passed', 'b': 'passed'}
    assert 'item a' not in (run.out / 'log.txt').read_text()


def test_the_results_of_another_device_are_not_mixed_in(run, capsys):
    run({}, numbers=(1,))
    arguments = ['--out', str(run.out), '--device', 'cuda']
    assert gpu_check.main(arguments) == 2
    assert 'choose another folder' in capsys.readouterr().err


def test_a_folder_that_cannot_be_used_is_named(run, capsys):
    arguments = ['--device', 'cpu', '--out']
    running = gpu_check.Check(run.out, 'cpu', 1)
    assert gpu_check.main([*arguments, str(run.out)]) == 2
    assert 'another run is writing to' in capsys.readouterr().err
    running.log_file.close()
    (run.out / 'results.json').write_text('{"steps"')
    assert gpu_check.main([*arguments, str(run.out)]) == 2
    assert 'results.json is not a results file' in capsys.readouterr().err
    assert gpu_check.main([*arguments, str(run.out / 'results.json')]) == 2
    assert 'results.json' in capsys.readouterr().err


def children(pid):
    command = ['ps', '-o', 'pid=', '--ppid', str(pid)]
    done = subprocess.run(command, capture_output=True, text=True)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(sys.platform != 'linux' or shutil.which('ps') is None, reason='no ps')
@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_process(tmp_path, signum):
    """As at the end of a batch job; after SIGTERM there is a summary, too."""
    arguments = ['--out', str(tmp_path), '--device', 'cpu', '--steps', '1-2']
    command = [sys.executable, str(BENCHMARKS / 'gpu_check.py'), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.rstrip().endswith('] machine'):  # the step's process is at work
                break
        (step,) = children(process.pid)
        process.send_signal(signum)
        process.stdout.read()
    deadline = time.monotonic() + 20
    while is_alive(step) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_alive(step)
    if signum == signal.SIGTERM:
        assert process.returncode == 128 + signum
        assert {path.name for path in tmp_path.iterdir()} == FILES
        assert '| 2. exactness | not run |' in (tmp_path / 'summary.md').read_text()


@pytest.mark.parametrize(
    ('text', 'steps'),
    [('1-8', [1, 2, 3, 4, 5, 6, 7, 8]), ('3', [1, 3]), ('2,5-6', [1, 2, 5, 6])],
)
def test_steps(text, steps):
    assert gpu_check.parse_steps(text) == steps


@pytest.mark.parametrize(
    ('option', 'value', 'message'),
    [
        ('--steps', '9', "numbers from 1 to 8, such as 1-8 or 3,5-6, but got '9'"),
        ('--steps', 'all', "but got 'all'"),
        ('--steps', '3-2', "but got '3-2'"),
        ('--steps', '2-', "but got '2-'"),
        ('--minutes', '0', "a positive number, but got '0'"),
        ('--minutes', 'nan', "but got 'nan'"),
        ('--device', 'gpu', "invalid choice: 'gpu'"),
    ],
)
def test_wrong_options_are_named(option, value, message, capsys):
    with pytest.raises(SystemExit) as error:
        gpu_check.parse_args(['--out', 'x', option, value])
    assert error.value.code == 2 and message in capsys.readouterr().err


# ---- single steps --------------------------------------------------------------------------------


def test_a_test_is_an_item(tmp_path):
    """The plugin of step 3 records each test, stops in time and leaves out what is done."""
    (tmp_path / 'test_it.py').write_text(
        'import pytest, time\n'
        'def test_passes(): pass\n'
        'def test_fails(): assert 1 == 2, "no"\n'
        'def test_skips(): pytest.skip("why")\n'
        '@pytest.fixture\n'
        'def broken():\n    yield\n    raise ValueError("torn down")\n'
        'def test_fails_late(broken): pass\n'
    )
    code = (
        'import sys, pytest\n'
        'from pathlib import Path\n'
        'from gpu_steps import STEPS\n'
        'from gpu_steps.context import Context\n'
        'from gpu_steps.tests import Recorder\n'
        'out, seconds = Path(sys.argv[1]), float(sys.argv[2])\n'
        'context = Context(3, STEPS[3], out, "cpu", seconds)\n'
        'context.done = set(sys.argv[3:])\n'
        'pytest.main([str(out), f"--rootdir={out}", "-q"], plugins=[Recorder(context)])\n'
    )

    def events(seconds, *done):
        command = [sys.executable, '-c', code, str(tmp_path), str(seconds), *done]
        subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=True)
        found = gpu_check.read_events(tmp_path / 'step3.jsonl')
        (tmp_path / 'step3.jsonl').unlink()
        return found

    found = events(60)
    names = ['passes', 'fails', 'skips', 'fails_late']
    assert found[0]['plan'] == [f'test_it.py::test_{name}' for name in names]
    outcomes = [(e['row']['status'], e['row'].get('reason')) for e in found if 'row' in e]
    assert outcomes == [
        ('passed', None),
        ('failed', 'call: AssertionError: no assert 1 == 2'),
        ('skipped', 'why'),
        ('failed', 'teardown: ValueError: torn down'),
    ]
    late = events(-1)
    assert len(late[0]['plan']) == 4 and sum('end' in e for e in late) == 1
    rest = events(60, *found[0]['plan'][:3])
    assert [e['begin'] for e in rest if 'begin' in e] == ['test_it.py::test_fails_late']


@pytest.mark.parametrize(
    ('tool', 'status', 'output', 'want'),
    [
        ('memcheck', 0, f'{DONE}\n========= ERROR SUMMARY: 0 errors', 'passed'),
        ('racecheck', 0, f'{DONE}\n========= RACECHECK SUMMARY: 0 hazards displayed', 'passed'),
        ('memcheck', 0, '========= ERROR SUMMARY: 0 errors', 'failed'),  # the calls did not run
        ('memcheck', 0, DONE, 'failed'),  # nor did the tool
        ('memcheck', 255, '========= Error: Device not supported. Please refer to', 'skipped'),
        ('memcheck', 255, '========= Error: Target application terminated before first '
         'instrumented API call', 'skipped'),
        ('memcheck', 255, 'Traceback (most recent call last):\n========= Error: Target application '
         'terminated before first instrumented API call', 'failed'),
        ('memcheck', 86, '========= Invalid __global__ read of size 4 bytes\n'
         '=========     at void mmvmamba::forward_kernel<int>(int)+0x10', 'failed'),
        ('racecheck', 86, '========= Error: Race reported between Write access at void '
         'mmvmamba::forward_kernel<int>(int)+0x80\n=========     and Read access', 'failed'),
        # What our kernel leaves unwritten shows where PyTorch's kernel reads it.
        ('initcheck', 86, '========= Uninitialized __global__ memory read\n'
         '=========     at void at::native::elementwise_kernel<4>()+0x1', 'failed'),
        ('initcheck', 1, 'ImportError: no torch', 'failed'),
    ],
)  # fmt: skip
def test_what_a_sanitizer_says(tool, status, output, want):
    row = load('gpu_steps.sanitizers').judge_sanitizer(tool, status, output)
    assert row.get('status', 'passed') == want
    if '_kernel' in output:
        assert '_kernel' in row['reason'] and row['reports'] == 1


def test_a_missing_sanitizer_is_named(monkeypatch, tmp_path):
    sanitizers = load('gpu_steps.sanitizers')
    monkeypatch.setattr(sanitizers, 'find_tool', lambda *_: None)
    monkeypatch.setattr(sanitizers, 'require', lambda *_: None)
    context = load('gpu_steps.context')
    on_gpu = context.Context(4, gpu_steps.STEPS[4], tmp_path, 'cuda', 10)
    with pytest.raises(context.Skip, match='compute-sanitizer is not installed'):
        sanitizers.sanitize(on_gpu, 'memcheck', 'native')


def test_registers_of_the_compiled_kernels(tmp_path):
    usage = 'REG:{} STACK:{} SHARED:0 LOCAL:0 CONSTANT[0]:1040 TEXTURE:0 SURFACE:0 SAMPLER:0'
    half, end = 'N3c104HalfE', 'EEvNS_12ScanBackwardE'
    names = {
        f'14forward_kernelI{half}Lb1ELb1EEEvNS_11ScanForwardE': (123, 0),
        f'19forward_lane_kernelI{half}Lb1ELb1ELb0EEEvNS_11ScanForwardE': (96, 0),
        f'19forward_lane_kernelI{half}Lb1ELb1ELb1EEEvNS_11ScanForwardE': (95, 0),
        f'20backward_lane_kernelIddLb1ELb0{end}': (128, 56),
        f'15backward_kernelI{half}S2_Lb1ELb1{end}': (159, 0),
        f'15backward_kernelI{half}fLb1ELb1{end}': (168, 0),
        f'15backward_kernelI{half}fLb0ELb0{end}': (255, 8),
        '51_GLOBAL__N__9a_15_scan_combine_cu14combine_kernelIfEEvNS_8ScanCallE': (40, 0),
    }
    names = {f'_ZN8mmvmamba{name}': used for name, used in names.items()}
    names['_ZN2at6native5otherEv'] = (10, 0)
    text = ''.join(f' Function {n}:\n  {usage.format(*v)}\n' for n, v in names.items())
    program = tmp_path / 'cuobjdump'
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
    program.chmod(0o755)
    got = load('gpu_steps.sweeps').resources_of(tmp_path / 'x.so', str(program))
    assert got == [
        dict(kernel='backward', dtype='float16', states='1', registers=159, stack=0),
        dict(kernel='backward', dtype='float16', states='any', registers=255, stack=8),
        dict(kernel='backward summary', dtype='float64', states='many', registers=128, stack=56),
        dict(kernel='backward, wide gradient', dtype='float16', states='1', registers=168, stack=0),
        dict(kernel='combine', dtype='float32', states='any', registers=40, stack=0),
        dict(kernel='forward', dtype='float16', states='1', registers=123, stack=0),
        dict(kernel='forward by lanes', dtype='float16', states='1', registers=96, stack=0),
        dict(kernel='forward summary', dtype='float16', states='1', registers=95, stack=0),
    ]


def broken(module, x):
    raise TypeError('an argument too many')


@native
def test_a_peer_that_fails_costs_the_others_nothing(tmp_path, monkeypatch):
    op_table = load('gpu_steps.op_table')
    cores, _ = op_table.ops.find_cores(['native', 'composed'], torch.device('cpu'))
    found = (cores | dict(vmamba=broken), {'mamba_ssm': 'not there'}, {'reference': 'wrong'}, [])
    monkeypatch.setattr(op_table, 'find_cores', lambda *_: found)
    context = load('gpu_steps.context').Context(5, gpu_steps.STEPS[5], tmp_path, 'cpu', 10)
    args = op_table.ops.parse_args(['--seconds', '0', '--min-rounds', '1'])
    where = dict(precision='fp32', size='32x48', batch=1, stage=0)
    for _ in range(2):  # what one item finds out is not kept for the next
        got = op_table.compare_ops(context, args, where)
        assert {row['candidate']: (row.get('status'), row.get('reason')) for row in got} == {
            'native': (None, None),
            'composed': (None, None),
            'vmamba': ('skipped', 'TypeError: an argument too many'),
            'mamba_ssm': ('skipped', 'not there'),
            'reference': ('failed', 'wrong'),
        }
        assert all(row.items() >= where.items() for row in got)
    assert set(found[0]) == {'native', 'composed', 'vmamba'} and len(found[1]) == 1


@native
def test_candidates_are_tried_first(monkeypatch):
    """A failure of this package counts; a peer is tried in another process and skipped."""
    op_table = load('gpu_steps.op_table')
    cores, _ = op_table.ops.find_cores(['native'], torch.device('cpu'))
    cores |= dict(reference=broken, vmamba=broken)
    monkeypatch.setattr(op_table.ops, 'find_cores', lambda *_: (cores, {}))
    op_table.find_cores.cache_clear()
    usable, missing, failed, uncaptured = op_table.find_cores(torch.device('cpu'), 'fp32')
    op_table.find_cores.cache_clear()
    assert set(usable) == {'native'} and uncaptured == []
    assert failed == {'reference': 'TypeError: an argument too many'}
    assert missing == {'vmamba': 'it failed at a small size, see log.txt'}


def replace_in_processes(name, text, folder, monkeypatch):
    """Replace a module of the steps in the processes that they run."""
    (folder / 'gpu_steps').mkdir()
    (folder / 'gpu_steps' / '__init__.py').touch()
    (folder / 'gpu_steps' / f'{name}.py').write_text(text)
    monkeypatch.setattr(load('gpu_steps.context'), 'BENCHMARKS', folder)


@pytest.mark.parametrize(
    ('body', 'captured'),
    [('print(RAN)', True), ('print(RAN); 1 / 0', False), ('import os; os.abort()', None)],
)
def test_a_peer_is_captured_in_its_own_process(tmp_path, monkeypatch, body, captured):
    op_table = load('gpu_steps.op_table')
    text = f'RAN = {op_table.RAN!r}\ndef run_peer(*_): {body}\n'
    replace_in_processes('op_table', text, tmp_path, monkeypatch)
    if captured is None:
        with pytest.raises(RuntimeError, match='ended with status -6'):
            op_table.try_peer('vmamba', 'fp16')
    else:
        assert op_table.try_peer('vmamba', 'fp16') is captured


def test_replays_are_timed(monkeypatch):
    ops, released = load('ops'), []
    monkeypatch.setattr(ops.common, 'capture', lambda call: lambda: call('replay'))
    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: released.append(True))
    ran = []
    times = ops.time_replays({'native': ran.append}, torch.device('cpu'), 0.0, 2)
    assert list(times) == ['native'] and len(times['native']) == 2
    assert set(ran) == {'replay'} and released == [True]


@pytest.mark.parametrize('name', ['exactness', 'sanitizers', 'op_table', 'backbones', 'counters'])
def test_calls_whose_kernels_are_compiled_first(name, monkeypatch):
    """On a CPU; its Triton has no bfloat16."""
    launch = pytest.importorskip('mmvmamba.ops.triton.launch')
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    step = load(f'gpu_steps.{name}')
    small = gpu_steps.BackboneSetting('t', '32', 1, 'train', 'fp32', 'eager')
    monkeypatch.setattr(step, 'BACKBONE_SETTINGS', [small], raising=False)
    monkeypatch.setattr(step, 'OP_SETTINGS', [('fp32', '32x48', 2)], raising=False)
    if name == 'counters':
        monkeypatch.setattr(step, 'MAPS', [step.Map(1, 7, 9, 16, 2)])
    with launch.recording() as launches:
        for call in step.triton_calls(torch.device('cpu')):
            try:
                call()
            except RuntimeError as error:
                assert 'not torch.bfloat16' in str(error)
    assert {'scan_kernel', 'backward_kernel'} <= {item.kernel.__name__ for item in launches}


def test_a_backbone_that_fails_costs_vmamba_nothing(tmp_path, monkeypatch):
    backbones = load('gpu_steps.backbones')
    wrong = torch.nn.Linear(1, 1)  # takes no images
    monkeypatch.setattr(backbones.backbone, 'build_peer', lambda *_: wrong)
    monkeypatch.setattr(backbones.backbone, 'find_peers', lambda: 'timm')
    context = load('gpu_steps.context').Context(6, gpu_steps.STEPS[6], tmp_path, 'cpu', 10)
    setting = gpu_steps.BackboneSetting('t', '32', 1, 'inference', 'fp32', 'eager')
    got = backbones.compare(context, setting)
    reasons = {row['model']: row.get('reason', '') for row in got}
    assert list(reasons) == [
        'vmamba-t-native', 'swin-t', 'convnext-t', 'vmamba-t-triton', 'authors-t',
    ]  # fmt: skip
    assert got[0]['images_per_s'] > 0 and all(row['status'] == 'skipped' for row in got[1:])
    assert reasons['vmamba-t-triton'] == reasons['authors-t'] == 'needs CUDA (DEVICE=cpu)'
    assert all(reasons[f'{name}-t'].startswith('RuntimeError: mat1') for name in backbones.PEERS)


AUTHORS_CODE = """
from torch import nn
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 4, 4, 4)
        self.classifier = nn.Sequential()
        self.classifier.norm = nn.BatchNorm2d(4)
        self.classifier.head = nn.Linear(3, 1)
    def forward(self, x):
        assert x.is_contiguous() and self.features.weight.is_contiguous()
        return self.classifier(self.features(x))
vmamba_tiny_s1l8 = Network
"""


@pytest.fixture
def authors_code(tmp_path, monkeypatch):
    """A stand-in for the authors' code, which is forgotten afterwards."""
    folder = tmp_path / 'classification' / 'models'
    folder.mkdir(parents=True)
    (folder / 'vmamba.py').write_text(AUTHORS_CODE)
    (tmp_path / 'selective_scan_cuda_oflex.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in list(sys.modules):
        if name.partition('.')[0] in ('classification', 'selective_scan_cuda_oflex'):
            del sys.modules[name]


def test_the_authors_code_needs_its_kernels():
    with pytest.raises(ImportError, match='selective_scan_cuda_oflex'):
        load('backbone').build_model('authors-t', (32, 32), None)


@pytest.mark.usefixtures('authors_code')
def test_the_authors_code_runs_up_to_the_norm_of_contiguous_maps():
    backbone = load('backbone')
    arguments = ['--models', 'authors-t', '--channels-last', '--seconds', '0', '--min-rounds', '1']
    args = backbone.parse_args(arguments)
    where = (torch.device('cpu'), (8, 12), 2, 'inference', ('fp32', 'eager'))
    (row,) = backbone.compare(args, *where)
    assert (row['model'], row['source']) == ('authors-t', 'VMamba') and row['images_per_s'] > 0


@pytest.mark.parametrize(
    ('body', 'reason'),
    [('pass', None), ('raise ValueError("not here")', 'ValueError: not here'),
     ('import os; os._exit(3)', 'exit status 3')],
)  # fmt: skip
def test_the_authors_network_is_tried_in_its_own_process(tmp_path, monkeypatch, body, reason):
    backbones = load('gpu_steps.backbones')
    replace_in_processes('backbones', f'def try_authors(): {body}\n', tmp_path, monkeypatch)
    assert backbones.why_no_authors.__wrapped__('cuda') == reason


def test_kernels_are_compiled_before_they_run(tmp_path, monkeypatch):
    """Calls that fail are left out, and compilation stops at its deadline."""
    launch = pytest.importorskip('mmvmamba.ops.triton.launch')
    compilation = pytest.importorskip('mmvmamba.ops.triton.compilation')
    kernels = load('gpu_steps.kernels')
    monkeypatch.setattr(kernels, 'require', lambda *_: None)
    target = launch.GPUTarget('cuda', 90, 32)
    monkeypatch.setattr(launch, 'device_target', lambda device: target)
    requests = []

    def compile_kernels(launches, target):
        requests.append((len(launches), target))
        yield from [('a', None), ('b', 'CompilationError: no'), ('c', None)]

    monkeypatch.setattr(compilation, 'compile_kernels', compile_kernels)

    def scan():
        x = torch.empty(1, 7, 7, 16, device='meta')
        sizes = [(1, 7, 7, 1, 3), (1, 16, 1), (1, 16), (1, 16, 1), (1, 16)]
        inputs = (torch.empty(size, device='meta') for size in sizes)
        launch.ss2d_scan_forward(x, *inputs, (0,), torch.float32)

    def fail():
        raise RuntimeError('out of memory')

    context = load('gpu_steps.context')
    step = gpu_steps.STEPS[5]
    on_gpu = context.Context(5, step, tmp_path, 'cuda', 10)

    def calls(device):
        assert device.type == 'cuda'
        yield from (scan, fail, scan)
        raise MemoryError('no inputs')

    name, item = kernels.compile_first(on_gpu, calls)
    assert (name, item()) == ('Triton kernels', [dict(kernels=2, failed=1, complete=True)])
    assert requests == [(2, target)]
    on_gpu.step = gpu_check.dataclasses.replace(step, item_seconds=-1)
    assert item() == [dict(kernels=1, failed=0, complete=False)]


def test_kernels_are_compiled_in_each_run(run):
    kernels = {'2': {'Triton kernels': 1, 'a': 1, 'b': {'status': 'failed'}}}
    run(kernels, numbers=(1, 2))
    run(kernels, numbers=(1, 2))
    log = (run.out / 'log.txt').read_text()
    assert (log.count('item Triton kernels'), log.count('item a')) == (2, 1)


def test_tests_run_for_their_launches_first(tmp_path):
    (tmp_path / 'test_it.py').write_text(
        'from pathlib import Path\n'
        'def test_a(): Path("a").touch(); assert False\n'
        'def test_compiled(): Path("compiled").touch()\n'
    )
    code = (
        'import pytest\n'
        'from gpu_steps.tests import LaunchRecorder\n'
        f'arguments = [{str(tmp_path)!r}, "--rootdir={tmp_path}"]\n'
        'raise SystemExit(pytest.main(arguments, [LaunchRecorder(60)]))\n'
    )
    env = os.environ | {'PYTHONPATH': str(BENCHMARKS)}
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, check=True)
    assert (tmp_path / 'a').exists() and not (tmp_path / 'compiled').exists()


def test_tests_run_though_their_kernels_do_not_compile(tmp_path, monkeypatch, caplog):
    tests, kernels = load('gpu_steps.tests'), load('gpu_steps.kernels')

    def fail(*_):
        raise RuntimeError('a process pool broke')

    monkeypatch.setattr(kernels, 'compile_calls', fail)
    context = load('gpu_steps.context').Context(3, gpu_steps.STEPS[3], tmp_path, 'cuda', 10)
    with caplog.at_level('INFO', 'gpu_steps'):
        tests.compile_first(context, [])
    assert 'a process pool broke' in caplog.text


NCU = (
    'ID', 'Process ID', 'Process Name', 'Host Name', 'Kernel Name', 'Context', 'Stream',
    'Block Size', 'Grid Size', 'Device', 'CC', 'Section Name', 'Metric Name', 'Metric Unit',
    'Metric Value',
)  # fmt: skip


def ncu_output(launches):
    """Return the output of ncu for kernels and their metrics, among other lines."""
    lines = ['==PROF== Connected to process 7', 'a "word" of the program', NCU]
    for number, (kernel, metrics) in enumerate(launches):
        where = (number, 7, 'python3', '127.0.0.1', kernel, 1, 7, '(128, 1, 1)', '(9, 1, 1)', 0)
        for name, value in metrics.items():
            lines.append((*where, '9.0', 'Command line profiler metrics', name, 'unit', value))
    lines.append('==PROF== Disconnected from process 7')
    return '\n'.join(
        line if isinstance(line, str) else ','.join(f'"{cell}"' for cell in line) for line in lines
    )


def test_counters():
    """Times are nanoseconds, and thousands have commas."""
    counters = load('gpu_steps.counters')
    stall = counters.STALL.format
    full = {
        counters.TIME: '250,000', counters.INSTRUCTIONS: '4,400,000', counters.ISSUE: '81.52',
        counters.OCCUPANCY: '31.25', counters.BYTES[0]: '600,000,000',
        counters.BYTES[1]: '400,000,000', counters.CONFLICTS: '5,000', counters.REGISTERS: '93',
        stall('wait'): '1.5', stall('long_scoreboard'): '3.25', stall('barrier'): '0.75',
    }  # fmt: skip
    part = full | {counters.CONFLICTS: 'n/a', counters.TIME: '1.25e+03'}
    first, second = counters.read_counters(
        ncu_output([('forward_kernel', full), ('sum', part)]), elements=100_000
    )
    assert first == dict(
        kernel='forward_kernel', us=250, instructions=44, issue=81.52, occupancy=31.25,
        gb_per_s=4000, conflicts=50, registers=93, stall='long_scoreboard 3.2',
    )  # fmt: skip
    assert (second['kernel'], second['us'], second['conflicts']) == ('sum', 1.25, None)
    assert counters.read_counters('==ERROR== no kernel', 1) == []


def test_the_command_of_the_counters(tmp_path, monkeypatch):
    counters = load('gpu_steps.counters')
    metrics = dict.fromkeys(counters.METRICS, '1,000')
    (tmp_path / 'csv').write_text(ncu_output([('forward_kernel', metrics)]))
    ncu = tmp_path / 'ncu'
    ncu.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/args\ncat {tmp_path}/csv\n')
    ncu.chmod(0o755)
    monkeypatch.setattr(counters, 'require', lambda *_, **__: None)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    context = load('gpu_steps.context').Context(8, gpu_steps.STEPS[8], tmp_path, 'cuda', 10)
    (row,) = counters.count(context, counters.MAPS[1], 'triton')
    assert (row['backend'], row['map']) == ('triton', '128 x 14x14 x 384, rank 24')
    assert row['kernel'] == 'forward_kernel' and row['us'] == 1
    arguments = (tmp_path / 'args').read_text().splitlines()
    assert arguments[-1].endswith("counters.profiled_call((128, 14, 14, 384, 24), 'triton')")
    assert counters.TIME in arguments[arguments.index('--metrics') + 1].split(',')


@pytest.mark.parametrize(
    ('output', 'error', 'message'),
    [
        (
            'Profiling failed because a driver resource was unavailable. Ensure',
            'Skip',
            'ncu: drive',
        ),
        ('==ERROR== ERR_NVGPUCTRPERM - The user', 'Skip', 'ncu: ERR_NVGPUCTRPERM'),
        ('==ERROR== Unknown metric', 'RuntimeError', 'ended with status 1 and 0 kernels'),
    ],
)
def test_counters_that_cannot_be_read(tmp_path, monkeypatch, output, error, message):
    counters = load('gpu_steps.counters')
    ncu = tmp_path / 'ncu'
    ncu.write_text(f'#!/bin/sh\necho "{output}"\nexit 1\n')
    ncu.chmod(0o755)
    monkeypatch.setattr(counters, 'require', lambda *_, **__: None)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    context = load('gpu_steps.context').Context(8, gpu_steps.STEPS[8], tmp_path, 'cuda', 10)
    with pytest.raises(Exception, match=message) as raised:
        counters.count(context, counters.MAPS[0], 'native')
    assert raised.type.__name__ == error


def test_bytes_that_the_core_must_move():
    row = dict(map='8x12', batch=2, channels=96, precision='fp16', low_rank_maps=32 / 96)
    positions = 2 * 8 * 12
    x, proj, y = 2 * 96 * positions, 2 * 32 * positions, 4 * 96 * positions
    product, scan = x + proj, x + proj + y
    scan_backward = (x + proj + y) + (x + proj)  # inputs, then their gradients
    product_backward = (proj + x) + (proj + x)  # of its input, then of its weight
    total = product + scan + scan_backward + product_backward + 3 * x  # grad_x = a + b
    assert load('gpu_steps.op_table').least_bytes(row) == dict(
        forward_bytes=product + scan, training_bytes=total
    )


@pytest.mark.parametrize('what', ['right', 'wrong', 'NaN', 'exact NaN', 'random'])
def test_exactness(tmp_path, monkeypatch, what):
    exactness = load('gpu_steps.exactness')
    calls = iter(range(100))

    def scan(**inputs):
        y = (inputs['x'] * inputs['D'].sum()).tanh()
        y = y + sum(v.sum() for v in inputs.values())
        factor = {'wrong': 1.01, 'NaN': float('nan')}.get(what, 1.0)
        return y * (1 + next(calls) * 1e-6 if what == 'random' else factor)

    def exact(**inputs):
        y = (inputs['x'] * inputs['D'].sum()).tanh()
        y = y + sum(v.sum() for v in inputs.values())
        return y * (float('nan') if what == 'exact NaN' else 1.0)

    monkeypatch.setattr(exactness, 'scan_functions', lambda *_: (scan, exact))
    context = load('gpu_steps.context').Context(2, gpu_steps.STEPS[2], tmp_path, 'cpu', 10)
    (row,) = exactness.check_exactness(context, exactness.CPU_CASES[0], 'native')
    reasons = {
        'wrong': 'error 0.0', 'NaN': 'not finite', 'exact NaN': 'not finite',
        'random': 'is not bitwise equal',
    }  # fmt: skip
    if what == 'right':
        assert 'status' not in row and row['repeats'] == 10
    else:
        assert row['status'] == 'failed' and reasons[what] in row['reason']


# ---- the tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize('package', ['timm', 'torchvision'])
@pytest.mark.parametrize('family', ['swin', 'convnext'])
def test_peers_of_other_packages(package, family):
    pytest.importorskip(package)
    backbone = load('backbone')
    model = backbone.build_model(f'{family}-t', (64, 64), package).eval()
    with torch.no_grad():
        y = model(torch.randn(1, 3, 64, 64))
    # The map of the last stage, with channels last or first, normalized over its channels.
    assert sorted(y.shape) == [1, 2, 2, 768]
    y = y.movedim(list(y.shape).index(768), -1)
    torch.testing.assert_close(y.mean(-1), torch.zeros(1, 2, 2), rtol=0, atol=1e-4)


def test_ratios_of_a_gpu_run():
    """Over the authors' kernels, Swin-T and the copy bandwidth, by hand."""
    ops = [dict(item='copy bandwidth', status='passed', gb_per_s=4000.0)]
    for stage in range(4):
        item = f'fp16, image 224, batch 128, stage {stage}'
        where = dict(item=item, status='passed', precision='fp16', size='224', batch=128)
        where |= dict(stage=stage, forward_bytes=2e9, training_bytes=6e9)
        ops.append(where | dict(candidate='native', forward_ms=1.0, training_ms=3.0))
        ops.append(where | dict(candidate='triton', forward_ms=2.0, training_ms=2.5))
        ops.append(where | dict(candidate='vmamba', forward_ms=4.0, training_ms=9.0))
        missing = where | dict(status='skipped', reason='it is not installed')
        ops.append(missing | dict(candidate='mamba_ssm'))
    # An item that failed before it could be measured.
    ops.append(dict(item='x', status='failed', candidate='native', reason='no memory'))
    nets = []
    speeds = dict(
        vmamba_t_native=(3000, 600), vmamba_t_triton=(4000, 600), swin_t=(2000, 800),
        authors_t=(1000, 1200),
    )  # fmt: skip
    for model, (speed, memory) in speeds.items():
        nets.append(dict(
            item='T, inference, 224, batch 128, amp, eager', status='passed', size='224',
            model=model.replace('_', '-'), batch=128, mode='inference', precision='amp',
            run='eager', images_per_s=speed, peak_mib=memory,
        ))  # fmt: skip
    other = dict(model='vmamba-s-native', size='96', batch=3, mode='train', precision='fp32')
    item = dict(item='another', status='passed', run='eager', images_per_s=7, peak_mib=9)
    nets.append(other | item)
    kernel = dict(
        item='x', status='passed', map='56x56', kernel='forward_kernel', us=250.0, issue=81.5,
        occupancy=31.2, gb_per_s=4000.0, conflicts=None, registers=93.0, stall='wait 1.5',
    )  # fmt: skip
    kernels = [
        kernel | dict(backend='native', instructions=44.0),
        kernel | dict(backend='native', instructions=88.0),
        kernel | dict(backend='triton', instructions=52.0),
        kernel | dict(backend='native', instructions=9.0, map='14x14'),
    ]
    steps = {'5': {'rows': ops}, '6': {'rows': nets}, '8': {'rows': kernels}}
    results = {'steps': steps}
    text = gpu_report.tables(results)
    line = '50% / 50% | {} | 25% / 60% | 4 / 3.6 | skipped | not run | not run |'
    assert f'| 224, 128 | fp16 | all blocks | eager | 14 / 42 | {line.format("28 / 35")}' in text
    assert f'| 224, 128 | fp16 | stage 3 | eager | 1 / 3 | {line.format("2 / 2.5")}' in text
    assert '- mamba_ssm: it is not installed' in text and '- native: no memory' in text
    nets.append(dict(item='T, train, 224, batch 128, amp, eager', status='failed', reason='x'))
    failed = ' | '.join(['failed'] * 5)
    assert f'| T, 224, 128 | train | amp | eager | CUDA | {failed} |' in gpu_report.tables(results)
    where = '| T, 224, 128 | inference | amp | eager |'
    assert f'{where} CUDA | 3000 | 600 | 3 / 0.5 | 1.5 / 0.75 | not run |' in text
    assert f'{where} Triton | 4000 | 600 | 4 / 0.5 | 2 / 0.75 | not run |' in text
    assert '| S, 96, 3 | train | fp32 | eager | CUDA | 7 | 9 | not run |' in text
    counts = '| 56x56 | CUDA | forward_kernel | 250 | 44 | 81.5 | 31.2 | 4000 | n/a | 93 |'
    assert f'{counts} wait 1.5 |' in text
    for row in ops[1:-1]:
        if 'forward_ms' in row:
            row |= dict(
                forward_graph_ms=row['forward_ms'] / 2, training_graph_ms=row['training_ms']
            )
    captured = gpu_report.tables(results)
    assert '| 224, 128 | fp16 | all blocks | graph | 7 / 42 | 100% / 50% | 14 / 35 |' in captured
    assert '| 224, 128 | fp16 | all blocks | eager | 14 / 42 |' in captured
    assert '| 224, 128 | fp16 | stage 3 | graph | 0.5 / 3 |' in captured
    assert '| 224, 128 | fp16 | stage 3 | eager |' not in captured
    for row in gpu_report.matching(ops, dict(candidate='vmamba', status='passed')):
        del row['forward_graph_ms'], row['training_graph_ms']
    part = gpu_report.tables(results)
    line = '| 224, 128 | fp16 | stage 3 | {} | {} | {} | {} | {} | {} |'
    assert (
        line.format('graph', '0.5 / 3', '100% / 50%', '1 / 2.5', '50% / 60%', 'not captured')
        in part
    )
    assert line.format('eager', '1 / 3', '50% / 50%', '2 / 2.5', '25% / 60%', '4 / 3.6') in part
    assert 'CUDA 0.5 ms forward, 3 ms training' in gpu_report.summary_text(results)
    for row in ops:
        row.pop('forward_graph_ms', None)
        row.pop('training_graph_ms', None)
    summary = gpu_report.summary_text(results)
    assert (
        "CUDA 1 ms forward, 3 ms training; Triton 2 ms forward, 2.5 ms training; authors' 3.60 x"
        in summary
    )
    assert (
        'CUDA 3000, Triton 4000 images/s (T, inference, 224, batch 128, amp, eager), '
        "2.00 x Swin-T, 4.00 x authors'" in summary
    )
    assert 'CUDA 132 instructions; Triton 52 instructions' in summary


def test_tables_are_put_between_the_marks(tmp_path, capsys):
    page = tmp_path / 'page.md'
    page.write_text(f'before\n{gpu_report.BEGIN}\nold\n{gpu_report.END}\nafter\n')
    assert gpu_report.main(['--write', str(page)]) == 0
    text = page.read_text()
    assert text.startswith('before\n') and text.endswith('\nafter\n') and 'old' not in text
    assert gpu_report.main(['--write', str(page)]) == 0 and page.read_text() == text
    page.write_text('nothing')
    assert gpu_report.main(['--write', str(page)]) == 1
    assert gpu_report.main([str(tmp_path)]) == 1
    assert 'results.json' in capsys.readouterr().err


# ---- tests that must not skip --------------------------------------------------------------------


@pytest.mark.parametrize('required', [False, True])
def test_tests_of_kernels_that_are_not_there(tmp_path, required):
    """A source tree without an extension, from whose root `python -m pytest` imports."""
    for name in ('mmvmamba', 'tests'):
        ignored = shutil.ignore_patterns('_C*', '_build_info*', '.mim', '__pycache__')
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / 'pyproject.toml', tmp_path)
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONSAFEPATH'}
    env |= {'MMVMAMBA_REQUIRE_CUDA': '1' if required else '0', 'CUDA_VISIBLE_DEVICES': ''}
    command = [sys.executable, '-m', 'pytest', 'tests/test_ops/test_cuda.py', '-q']
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    text = done.stdout + done.stderr
    if required:
        assert done.returncode == 4
        (line,) = [line for line in text.splitlines() if line.strip()]
        assert line.startswith(
            'ERROR: MMVMAMBA_REQUIRE_CUDA=1, but no kernels can run on a GPU: triton: '
        )
        where = f'(mmvmamba was imported from {tmp_path / "mmvmamba"})'
        assert line.endswith(f'; native: it was not built {where}')
    else:
        assert done.returncode == 0
        for kernels in ('native', 'triton'):
            assert f'the {kernels} kernels of {tmp_path / "mmvmamba"} cannot run on a GPU: ' in text
        assert ' passed' not in text
