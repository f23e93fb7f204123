"""``make gpu-check``: the rehearsal on a CPU, and what happens to a run when its steps go wrong."""

import importlib
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

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / 'benchmarks'
FILES = {'results.json', 'log.txt', 'summary.md', 'summary.json'}
#: Stands in for ``python -m gpu_steps``: each item does what plan.json says.
CHILD = """
import argparse, json, os, signal, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument('step')
for name in ('--out', '--device', '--seconds'):
    parser.add_argument(name)
args = parser.parse_args()
out = Path(args.out)
plan = json.loads((out / 'plan.json').read_text()).get(args.step, {})
done = json.loads((out / 'results.json').read_text())['steps'][args.step]['done']
begin = time.monotonic()
def write(**event):
    with open(out / f'step{args.step}.jsonl', 'a') as file:
        file.write(json.dumps(event) + '\\n')
if 'exit' in plan:
    sys.exit(plan['exit'])
write(plan=list(plan))
for name, action in plan.items():
    if name in done:
        continue
    if time.monotonic() - begin > float(args.seconds):
        break
    print('item', name)
    write(begin=name, time=time.time())
    if action == 'kill':
        os.kill(os.getpid(), signal.SIGKILL)
    if action == 'hang':
        time.sleep(60)
    row = action if isinstance(action, dict) else {}
    reason = {} if row.get('status', 'passed') == 'passed' else {'reason': 'it was planned'}
    write(row=dict(item=name, status='passed') | reason | row)
    write(end=name)
    if action == 'broken device':
        sys.exit(75)
"""
MACHINE = {'run': {'machine': {}, 'versions': {}}, 'gpu': 'G', 'cpu': 'C', 'torch': 'T'}
STEP_1 = {'extension': {'package': 'installed', 'how': 'taken', 'seconds': 0, 'architectures': []},
          'machine': MACHINE}  # fmt: skip


def load(name):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


gpu_check, gpu_report, gpu_steps = map(load, ('gpu_check', 'gpu_report', 'gpu_steps'))


# ---- the whole -----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def rehearsal(tmp_path_factory):
    """The folder of a run on the CPU: `make gpu-check DEVICE=cpu`."""
    out = tmp_path_factory.mktemp('gpu_check')
    command = ['make', 'gpu-check', 'DEVICE=cpu', f'OUT={out}', f'PYTHON={sys.executable}']
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
        assert record['status'] == ('skipped' if step.title == 'tests' else 'passed'), record
        assert set(record['done']) == set(record['plan']) != set()
        for row in record['rows']:
            assert row['status'] == 'passed' or (row['status'] == 'skipped' and row['reason']), row
    cuda = [row for record in results['steps'].values() for row in record['rows']
            if row.get('reason', '').startswith('DEVICE=cpu')]  # fmt: skip
    tools = {'memcheck', 'racecheck', 'initcheck', 'synccheck'}
    assert {row['item'] for row in cuda} >= tools | {'kernels', 'compiled', 'threads 256'}


def test_the_last_output_is_the_table(rehearsal):
    out, text = rehearsal
    summary = (out / 'summary.md').read_text()
    assert summary in (out / 'log.txt').read_text()
    lines = [line for line in text.splitlines() if line.startswith('| ')]
    assert lines[-1] == summary.splitlines()[-1] and lines[-1].startswith('| 7. sweeps | passed')
    for word in ('GPU', 'torch', 'this version has no Triton backend', 'it needs a GPU'):
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
    assert re.search(r'^\| 32x48, 2 \| fp32 \| stage 0 \| [\d.]+ / [\d.]+ \| \d+% / ', text, re.M)
    assert re.search(r'^\| rank 48 \| \d+ \| \d+ \|$', text, re.M)
    assert '- mamba_ssm, vmamba: it needs a GPU' in text


def test_the_page_has_the_tables():
    """Without a run they say so; a recorded one is as the report writes it."""
    page = (ROOT / 'docs/benchmarks.md').read_text()
    tables = page.partition(gpu_report.BEGIN)[2].partition(gpu_report.END)[0].strip()
    assert tables.startswith('|')
    if '| GPU | not run |' in page:
        assert tables == gpu_report.tables({}).strip()


# ---- a run whose steps go wrong ------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs steps that do what a plan says, and returns their records and the exit status."""
    script = tmp_path / 'child.py'
    script.write_text(CHILD)
    out = tmp_path / 'out'
    out.mkdir()
    monkeypatch.setattr(gpu_check, 'package_digest', lambda: 'sources')
    monkeypatch.setattr(gpu_check, 'LEAST_SECONDS', 0)

    def run_plan(plan, device='cpu', minutes=1.0, numbers=(1, 2, 3)):
        (out / 'plan.json').write_text(json.dumps({'1': STEP_1} | plan))
        command = (sys.executable, str(script))
        check = gpu_check.Check(out, device, minutes, command)
        check.run(numbers)
        status = check.summarise(numbers)
        results = json.loads((out / 'results.json').read_text())
        return {int(number): record for number, record in results['steps'].items()}, status

    run_plan.out = out
    return run_plan


def set_limits(monkeypatch, number, **limits):
    changed = gpu_check.dataclasses.replace(gpu_check.STEPS[number], **limits)
    monkeypatch.setitem(gpu_check.STEPS, number, changed)


def rows(record):
    return {row['item']: row['status'] for row in record['rows']}


def test_a_step_that_crashes_goes_on_after_the_crash(run):
    plan = {'2': {'a': 1, 'b': 'kill', 'c': 1}, '3': {'d': 1}}
    steps, status = run(plan)
    assert status == 1
    assert rows(steps[2]) == {'a': 'passed', 'b': 'failed', 'c': 'passed'}
    assert 'SIGKILL' in steps[2]['rows'][1]['reason']
    assert steps[2]['status'] == 'failed' and steps[3]['status'] == 'passed'
    assert 'step 2: b: the process ended by SIGKILL' in (run.out / 'summary.md').read_text()


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


def test_an_item_that_hangs_ends_with_its_step(run, monkeypatch):
    set_limits(monkeypatch, 2, limit=1)
    monkeypatch.setattr(gpu_check, 'GRACE', 1)
    steps, status = run({'2': {'a': 1, 'b': 'hang', 'c': 1}, '3': {'d': 1}})
    assert status == 1
    assert rows(steps[2]) == {'a': 'passed', 'b': 'failed'}
    assert steps[2]['rows'][1]['reason'] == "was not done within the step's limit"
    assert steps[3]['status'] == 'passed'


def test_a_step_whose_limit_is_reached_leaves_the_rest(run, monkeypatch):
    set_limits(monkeypatch, 2, limit=-1)
    steps, status = run({'2': {'a': 1}, '3': {'d': 1}})
    assert status == 3 and steps[2]['status'] == 'unfinished'


def test_a_step_that_cannot_begin_has_failed(run):
    steps, status = run({'2': {'exit': 4}, '3': {'d': 1}})
    assert status == 1 and steps[2]['status'] == 'failed'
    assert steps[2]['reason'] == 'the process ended with status 4, see log.txt'
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
        assert steps[3]['reason'] == 'nothing ran: all 2 were skipped'
        assert steps[4]['status'] == 'skipped'  # a sanitizer may be missing


def test_results_of_other_sources_or_another_gpu_are_dropped(run, monkeypatch):
    plan = {'2': {'a': 1}, '3': {'c': 1}}
    run(plan)
    monkeypatch.setattr(gpu_check, 'package_digest', lambda: 'other sources')
    run(plan, numbers=(1, 2))
    assert (run.out / 'log.txt').read_text().count('item a') == 2
    steps, status = run({'1': STEP_1 | {'machine': MACHINE | {'gpu': 'another'}}}, numbers=(1,))
    assert status == 0 and steps[2]['rows'] == steps[3]['rows'] == []


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


def test_a_terminated_run_sums_up(tmp_path):
    """As where the time of a batch job ends: no process is left, and a summary is."""
    arguments = ['--out', str(tmp_path), '--device', 'cpu', '--steps', '1-2']
    command = [sys.executable, str(BENCHMARKS / 'gpu_check.py'), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith('=== step 1'):
                break
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert '| 2. exactness | not run |' in (tmp_path / 'summary.md').read_text()


@pytest.mark.parametrize(
    ('text', 'steps'),
    [('1-7', [1, 2, 3, 4, 5, 6, 7]), ('3', [1, 3]), ('2,5-6', [1, 2, 5, 6])],
)
def test_steps(text, steps):
    assert gpu_check.parse_steps(text) == steps


@pytest.mark.parametrize(
    ('option', 'value', 'message'),
    [
        ('--steps', '8', "numbers from 1 to 7, such as 1-7 or 3,5-6, but got '8'"),
        ('--steps', 'all', "but got 'all'"),
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
        'pytest.main([str(out), f"--rootdir={out}", "-q"], plugins=[Recorder(context, 60)])\n'
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
        ('memcheck', 0, '========= ERROR SUMMARY: 0 errors', 'passed'),
        ('memcheck', 255, '========= Error: Device not supported. Please refer to', 'skipped'),
        ('memcheck', 255, '========= Error: Target application terminated before first '
         'instrumented API call', 'skipped'),
        ('memcheck', 255, 'Traceback (most recent call last):\n========= Error: Target application '
         'terminated before first instrumented API call', 'failed'),
        ('memcheck', 86, '========= Invalid __global__ read of size 4 bytes\n'
         '=========     at void mmvmamba::scan_kernel<int>(int)+0x10', 'failed'),
        ('racecheck', 86, '========= Error: Race reported between Write access at void '
         'mmvmamba::scan_kernel<int>(int)+0x80\n=========     and Read access at void', 'failed'),
        ('initcheck', 86, '========= Uninitialized __global__ memory read\n'
         '=========     at void at::native::vectorized_elementwise_kernel<4>()+0x1', 'passed'),
        ('initcheck', 86, '========= Uninitialized __global__ memory read\n'
         '=========     at void mmvmamba::scan_kernel<int>(int)+0x10', 'failed'),
        ('initcheck', 1, 'ImportError: no torch', 'failed'),
    ],
)  # fmt: skip
def test_what_a_sanitizer_says(tool, status, output, want):
    row = load('gpu_steps.sanitizers').judge_sanitizer(tool, status, output)
    assert row.get('status', 'passed') == want
    if want == 'failed' and 'scan_kernel' in output:
        assert 'scan_kernel' in row['reason'] and row['reports'] == 1


def test_a_missing_sanitizer_is_named(monkeypatch, tmp_path):
    sanitizers = load('gpu_steps.sanitizers')
    monkeypatch.setattr(sanitizers, 'find_sanitizer', lambda: None)
    context = load('gpu_steps.context')
    on_gpu = context.Context(4, gpu_steps.STEPS[4], tmp_path, 'cuda', 10)
    with pytest.raises(context.Skip, match='compute-sanitizer is not installed'):
        sanitizers.sanitize(on_gpu, 'memcheck')


def test_registers_of_the_compiled_kernels(tmp_path):
    usage = 'REG:{} STACK:{} SHARED:0 LOCAL:0 CONSTANT[0]:1040 TEXTURE:0 SURFACE:0 SAMPLER:0'
    names = {
        '_ZN8mmvmamba11scan_kernelINS_11ForwardScanIN3c104HalfELi1ELb0EEEEEvNT_4ArgsE': (123, 0),
        '_ZN8mmvmamba11scan_kernelINS_12BackwardScanIdLi4ELb1EEEEEvNT_4ArgsE': (128, 56),
        '_ZN8mmvmamba51_GLOBAL__N__9a_15_scan_combine_cu14combine_kernelIfEEvl': (40, 0),
        '_ZN2at6native5otherEv': (10, 0),
    }
    text = ''.join(f' Function {n}:\n  {usage.format(*v)}\n' for n, v in names.items())
    program = tmp_path / 'cuobjdump'
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
    program.chmod(0o755)
    got = load('gpu_steps.sweeps').resources_of(tmp_path / 'x.so', str(program))
    assert got == [
        dict(kernel='backward summary', dtype='float64', states='many', registers=128, stack=56),
        dict(kernel='combine', dtype='float32', states='any', registers=40, stack=0),
        dict(kernel='forward', dtype='float16', states='1', registers=123, stack=0),
    ]


def test_a_peer_that_fails_costs_the_others_nothing(tmp_path, monkeypatch):
    op_table = load('gpu_steps.op_table')
    cores, missing = op_table.ops.find_cores(['native', 'composed'], torch.device('cpu'))

    def broken(module, x):
        raise TypeError('an argument too many')

    cores |= dict(vmamba=broken, reference=broken)
    monkeypatch.setattr(op_table.ops, 'find_cores', lambda *_: (cores, missing))
    op_table.find_cores.cache_clear()
    context = load('gpu_steps.context').Context(5, gpu_steps.STEPS[5], tmp_path, 'cpu', 10)
    args = op_table.ops.parse_args(['--seconds', '0', '--min-rounds', '1'])
    got = op_table.compare_ops(context, args, ('32x48', 1, 0, 'fp32'))
    op_table.find_cores.cache_clear()
    reason = 'TypeError: an argument too many'
    assert {row['candidate']: row.get('reason') for row in got} == {
        'native': None, 'composed': None, 'vmamba': reason, 'reference': reason,
    }  # fmt: skip
    statuses = {row['candidate']: row.get('status', 'passed') for row in got}
    # The authors' kernels are a peer; the PyTorch form is part of this package.
    assert statuses['vmamba'] == 'skipped' and statuses['reference'] == 'failed'


def test_a_backbone_that_fails_costs_vmamba_nothing(tmp_path, monkeypatch):
    backbones = load('gpu_steps.backbones')
    wrong = torch.nn.Linear(1, 1)  # takes no images
    monkeypatch.setattr(backbones.backbone, 'build_peer', lambda *_: wrong)
    monkeypatch.setattr(backbones.backbone, 'find_peers', lambda: 'timm')
    context = load('gpu_steps.context').Context(6, gpu_steps.STEPS[6], tmp_path, 'cpu', 10)
    got = backbones.compare(context, ('32', 1, 'inference', 'eager'))
    assert [row['model'] for row in got] == ['vmamba-t', 'swin-t', 'convnext-t']
    assert got[0]['images_per_s'] > 0
    for row in got[1:]:
        assert row['status'] == 'skipped' and row['reason'].startswith('RuntimeError: mat1')


def test_bytes_that_an_op_must_move():
    """x and proj read, the sum written in float32; backwards both again with their gradients."""
    row = dict(map='8x12', batch=2, channels=96, precision='fp16', low_rank_maps=32 / 96)
    positions = 2 * 8 * 12
    x, proj, y = 2 * 96 * positions, 2 * 32 * positions, 4 * 96 * positions
    assert load('gpu_steps.op_table').least_bytes(row) == dict(
        forward_bytes=x + proj + y, training_bytes=3 * (x + proj) + 2 * y
    )


# ---- the tables ----------------------------------------------------------------------------------


def test_ratios_of_a_gpu_run():
    """Over the authors' kernels, Swin-T and the copy bandwidth, by hand."""
    ops = [dict(item='copy bandwidth', status='passed', gb_per_s=4000.0)]
    for stage in range(4):
        item = f'fp16, image 224, batch 128, stage {stage}'
        where = dict(item=item, status='passed', precision='fp16', size='224', batch=128)
        where |= dict(stage=stage, forward_bytes=2e9, training_bytes=6e9)
        ops.append(where | dict(candidate='native', forward_ms=1.0, training_ms=3.0))
        ops.append(where | dict(candidate='vmamba', forward_ms=4.0, training_ms=9.0))
        missing = dict(item=item, status='skipped', reason='it is not installed')
        ops.append(missing | dict(candidate='mamba_ssm'))
    nets = []
    for model, speed, memory in (('vmamba-t', 3000, 600), ('swin-t', 2000, 800)):
        nets.append(dict(
            item='inference, 224, batch 128, amp, eager', status='passed', model=model, size='224',
            batch=128, mode='inference', run='eager', images_per_s=speed, peak_mib=memory,
        ))  # fmt: skip
    results = {'steps': {'5': {'rows': ops}, '6': {'rows': nets}}}
    text = gpu_report.tables(results)
    line = '4 / 3 | skipped | not run | not run |'
    assert f'| 224, 128 | fp16 | all blocks | 14 / 42 | 50% / 50% | not run | {line}' in text
    assert f'| 224, 128 | fp16 | stage 3 | 1 / 3 | 50% / 50% | not run | {line}' in text
    assert '- mamba_ssm: it is not installed' in text
    assert '| 224, 128 | inference | eager | 3000 | 600 | 1.5 | 0.75 | not run | not run |' in text


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
        ignored = shutil.ignore_patterns('_C_*', '_build_info*', '.mim', '__pycache__')
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / 'pyproject.toml', tmp_path)
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONSAFEPATH'}
    env |= {'MMVMAMBA_REQUIRE_CUDA': '1' if required else '0'}
    command = [sys.executable, '-m', 'pytest', 'tests/test_ops/test_cuda.py', '-q']
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    text = done.stdout + done.stderr
    if required:
        assert done.returncode == 4
        (line,) = [line for line in text.splitlines() if line.strip()]
        assert line == (
            'ERROR: MMVMAMBA_REQUIRE_CUDA=1, but the CUDA kernels cannot run: it was not built '
            f'(mmvmamba was imported from {tmp_path / "mmvmamba"})'
        )
    else:
        assert done.returncode == 0
        why = f'the CUDA kernels of {tmp_path / "mmvmamba"} cannot run: it was not built'
        assert why in text and ' passed' not in text
