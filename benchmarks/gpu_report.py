"""Turn the results of ``gpu_check.sh`` into the tables of docs/benchmarks.md.

Requires only the standard library.

Examples:
    python benchmarks/gpu_report.py work_dirs/gpu_check
    python benchmarks/gpu_report.py work_dirs/gpu_check --write docs/benchmarks.md
"""

import argparse
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from gpu_steps import BACKBONE_SETTINGS, DEPTHS, OP_SETTINGS, STEPS, BackboneSetting

Row = dict[str, Any]

NOT_RUN = 'not run'
ITEM_KEYS = {'item', 'status', 'reason'}
NO_RUN = '**No run on a GPU has been recorded yet.**\n'
BEGIN = '<!-- begin: written by benchmarks/gpu_report.py -->'
END = '<!-- end: written by benchmarks/gpu_report.py -->'
#: Our backends.
OURS = {'native': 'CUDA', 'triton': 'Triton'}
PEERS = {
    'vmamba': "authors'",
    'mamba_ssm': 'mamba_ssm',
    'composed': 'our 1-D scan',
    'reference': 'PyTorch',
}
#: Networks beside VMamba.
NETWORKS = {'authors': "authors'", 'swin': 'Swin', 'convnext': 'ConvNeXt'}


# ---- cells ---------------------------------------------------------------------------------------


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Format a table in Markdown."""
    lines = [headings, ['---'] * len(headings), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines) + '\n'


def number(value: float | None, unit: str = '') -> str:
    """Format to three digits; None gives 'not run'."""
    if value is None:
        return NOT_RUN
    text = f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'
    return text + unit


def over(value: float | None, base: float | None) -> float | None:
    """Divide two values, either of which may be missing."""
    return None if value is None or not base else value / base


def rows_of(results: Row, step: int) -> list[Row]:
    """Return the rows of a step."""
    return results.get('steps', {}).get(str(step), {}).get('rows', [])


def matching(rows: Iterable[Row], keys: Row) -> list[Row]:
    """Select the rows with these values."""
    return [r for r in rows if all(str(r.get(k)) == str(v) for k, v in keys.items())]


def find(rows: Iterable[Row], **keys: Any) -> Row:
    """Find the measured row with these values, or return an empty one."""
    return next((row for row in matching(rows, keys) if row['status'] == 'passed'), {})


def why_not(rows: Sequence[Row], **keys: Any) -> str:
    """Return the placeholder of a cell without a result."""
    # An item that failed as a whole has a row with its name alone.
    whole = [row for row in matching(rows, dict(item=keys.get('item'))) if row.keys() <= ITEM_KEYS]
    statuses = [row['status'] for row in [*matching(rows, keys), *whole]]
    return next((status for status in statuses if status != 'passed'), NOT_RUN)


def group(pairs: Iterable[tuple[Any, str]]) -> dict[Any, list[str]]:
    """Group names by their keys, each name once."""
    groups: dict[Any, dict[str, None]] = {}
    for key, name in pairs:
        groups.setdefault(key, {})[name] = None
    return {key: list(names) for key, names in groups.items()}


# ---- the tables ----------------------------------------------------------------------------------


def head_table(results: Row) -> str:
    """Format the machine and the versions."""
    run = results.get('run', {})
    machine, versions = run.get('machine', {}), run.get('versions', {})
    gpu = machine.get('gpu') or (f'none: {machine["cpu"]}' if machine else NOT_RUN)
    if 'gpu_memory_gib' in machine:
        details = ('gpu_memory_gib', ' GiB'), ('power_limit', ''), ('max_clock', '')
        gpu += ''.join(f', {machine[k]}{unit}' for k, unit in details if machine.get(k))
    names = ('driver', 'torch', 'cuda', 'nvcc', 'triton', 'python', 'mmvmamba')
    software = ', '.join(f'{name} {versions[name]}' for name in names if versions.get(name))
    return table(
        ('', ''),
        [('GPU', gpu), ('software', software or NOT_RUN), ('date', run.get('date', NOT_RUN))],
    )


def step_table(results: Row) -> str:
    """Format the status, counts and one figure of each step."""
    lines = []
    for step in STEPS:
        record = results.get('steps', {}).get(str(step), {})
        count = counts(record)
        lines.append(
            (
                f'{step}. {STEPS[step].title}',
                ' '.join(filter(None, (record.get('status', NOT_RUN), record.get('reason')))),
                *(count[status] for status in ('passed', 'failed', 'skipped')),
                number(record.get('seconds'), ' s') if record.get('seconds') else '',
                FIGURES[step](record['rows']) if record.get('rows') else '',
            )
        )
    headings = ('step', 'result', 'passed', 'failed', 'skipped', 'time', 'figure')
    return table(headings, lines)


def exactness_table(results: Row) -> str:
    """Format the largest error of each case and backend."""
    rows = [row for row in rows_of(results, 2) if 'error' in row]
    lines = [
        (
            row['op'],
            row['input'],
            row['dtype'],
            row['backend'],
            f'{row["error"]:.1e} ({row["worst"]})',
            f'{row["allowed"]:.1e}',
            f'{row["repeats"]} runs' if row['repeats'] else '',
        )
        for row in rows
    ]
    headings = ('op', 'input', 'dtype', 'backend', 'largest error', 'allowed', 'equal bits')
    return table(headings, lines or [(NOT_RUN,) + ('',) * 6])


def op_table(results: Row) -> str:
    """Format time, share of the copy bandwidth and ratios of the core."""
    rows = rows_of(results, 5)
    bandwidth = find(rows, item='copy bandwidth').get('gb_per_s')
    lines = []
    for setting in op_settings(results):
        stages = [op_stage(rows, setting, stage) for stage in range(4)]
        names = [f'stage {stage}' for stage in range(4)]
        measured = {
            name: s
            for name, s in zip(names, stages, strict=True)
            if any('forward_ms' in s[ours] for ours in OURS)
        }
        if len(measured) == 4 or not measured:
            measured = {'all blocks': add_stages(stages)} | measured
        for name, cores in measured.items():
            precision, size, batch = setting
            timed = [row for row in cores.values() if 'forward_ms' in row]
            captured = [row for row in timed if 'forward_graph_ms' in row]
            # What the host adds is shown for the whole network, and for what has no graph.
            eager = name == 'all blocks' or len(captured) < len(timed) or not captured
            for run in ['graph'] * bool(captured) + ['eager'] * eager:
                cells = op_cells(cores, bandwidth, '_graph_ms' if run == 'graph' else '_ms')
                lines.append([f'{size}, {batch}', precision, name, run, *cells])
    ours = [cell for name in OURS.values() for cell in (f'{name}, ms', 'of copy')]
    headings = ('image, batch', 'precision', 'part', 'run', *ours, *PEERS.values())
    text = f'Copy bandwidth, read and written: {number(bandwidth, " GB/s")}.\n\n'
    return text + table(headings, lines) + left_out(rows, 'candidate')


def left_out(rows: Sequence[Row], key: str) -> str:
    """List why rows were skipped or failed."""
    missing = [row for row in rows if key in row and row['status'] != 'passed']
    reasons = group((row['reason'], row[key]) for row in missing)
    lines = [f'- {", ".join(names)}: {reason}\n' for reason, names in reasons.items()]
    return '\nNot measured:\n\n' + ''.join(lines) if lines else ''


def op_stage(rows: Sequence[Row], setting: tuple, stage: int) -> dict[str, Row]:
    """Return the rows of all candidates at a stage; a missing one has its status as ``why``."""
    precision, size, batch = setting
    where = dict(precision=precision, size=size, batch=batch, stage=stage)
    cores = {name: find(rows, candidate=name, **where) for name in (*OURS, *PEERS)}
    for name, row in cores.items():
        cores[name] = row or dict(why=why_not(rows, candidate=name, **where))
    return cores


def add_stages(stages: Sequence[dict[str, Row]]) -> dict[str, Row]:
    """Add the stages of VMamba-T, each as often as it has blocks."""
    keys = [
        *('forward_ms', 'training_ms', 'forward_bytes', 'training_bytes'),
        *('forward_graph_ms', 'training_graph_ms'),
    ]
    total = {}
    for name in stages[0]:
        parts = [stage[name] for stage in stages]
        if all('forward_ms' in part for part in parts):
            weighted = list(zip(DEPTHS, parts, strict=True))
            total[name] = {
                k: sum(depth * part[k] for depth, part in weighted)
                for k in keys
                if all(k in part for part in parts)
            }
        else:
            total[name] = next(({'why': p['why']} for p in parts if 'why' in p), {})
    return total


def op_cells(cores: dict[str, Row], bandwidth: float | None, suffix: str) -> list[str]:
    """Format times and shares of the copy bandwidth of ours, and ratios, each for both passes.

    Args:
        cores (dict[str, Row]): The rows of the candidates.
        bandwidth (float, optional): Of a copy, in GB/s.
        suffix (str): The ending of the keys of the times.
    """
    cells, kinds = [], ('forward', 'training')
    times = {name: [row.get(f'{kind}{suffix}') for kind in kinds] for name, row in cores.items()}
    whys = {
        name: row.get('why') or ('not captured' if 'forward_ms' in row else NOT_RUN)
        for name, row in cores.items()
    }
    for name in OURS:
        shares = [
            over(over(cores[name].get(f'{kind}_bytes'), bandwidth and bandwidth * 1e6), time)
            for kind, time in zip(kinds, times[name], strict=True)
        ]
        missing = whys[name] if None in times[name] else None
        cells += [missing or pair(times[name], number), missing or pair(shares, '{:.0%}'.format)]
    measured = [times[name] for name in OURS if None not in times[name]]
    best = [min(column) for column in zip(*measured, strict=True)] or [None, None]
    for name in PEERS:
        ratios = [over(other, time) for other, time in zip(times[name], best, strict=True)]
        cells.append(whys[name] if None in times[name] else pair(ratios, number))
    return cells


def pair(values: Sequence[float | None], text: Callable[[float], str]) -> str:
    """Format a value of the forward and one of forward and backward."""
    return NOT_RUN if None in values else ' / '.join(map(text, values))


def op_settings(results: Row) -> list[tuple]:
    """Return the standard settings, and others that were measured."""
    rows = [row for row in rows_of(results, 5) if 'forward_ms' in row]
    measured = dict.fromkeys((row['precision'], row['size'], row['batch']) for row in rows)
    return [*OP_SETTINGS, *(key for key in measured if key not in OP_SETTINGS)]


def backbone_table(results: Row) -> str:
    """Format the speed and memory of VMamba with each backend, and their ratios to its peers."""
    rows = rows_of(results, 6)
    settings = dict.fromkeys([*BACKBONE_SETTINGS, *map(setting_of, filter(is_vmamba, rows))])
    lines = []
    for setting, backend in itertools.product(settings, OURS):
        scale = setting.scale
        where = {key: value for key, value in setting._asdict().items() if key != 'scale'}
        ours = find(rows, model=f'vmamba-{scale}-{backend}', **where)
        status = why_not(rows, model=f'vmamba-{scale}-{backend}', item=setting)
        cells = [number(ours[key]) if ours else status for key in ('images_per_s', 'peak_mib')]
        for family in NETWORKS:
            model = f'{family}-{scale}'
            other = find(rows, model=model, **where)
            ratios = [over(ours.get(key), other.get(key)) for key in ('images_per_s', 'peak_mib')]
            missing = why_not(rows, model=model, item=setting)
            cells.append(missing if None in ratios else pair(ratios, number))
        name = f'{scale.upper()}, {setting.size}, {setting.batch}'
        lines.append((name, setting.mode, setting.precision, setting.run, OURS[backend], *cells))
    headings = ('model, image, batch', '', '', '', 'scan', 'images/s', 'peak MiB')
    return table((*headings, *NETWORKS.values()), lines) + left_out(rows, 'model')


def is_vmamba(row: Row) -> bool:
    """Return whether a row is a measurement of ours."""
    return 'images_per_s' in row and row['model'].startswith('vmamba-')


def setting_of(row: Row) -> BackboneSetting:
    """Return the setting of a measured backbone."""
    scale = row['model'].split('-')[1]
    return BackboneSetting(scale, *(row[key] for key in BackboneSetting._fields[1:]))


def sweep_table(results: Row) -> str:
    """Format the time of the op alone over rank, directions, states and warps."""
    lines = []
    for row in rows_of(results, 7):
        if 'forward_ns' in row:
            times = (number(row[f'{kind}_ns'] * 1e3) for kind in ('forward', 'backward'))
            registers = (row.get(f'registers_{kind}', '') for kind in ('forward', 'backward'))
            lines.append((row['item'], *times, *registers))
    headings = ('', 'forward, ps', 'backward, ps', 'registers, forward', 'registers, backward')
    return table(headings, lines or [(NOT_RUN, '', '', '', '')])


def resource_table(results: Row) -> str:
    """Format the registers of the compiled kernels."""
    rows = [row for row in rows_of(results, 7) if 'registers' in row]
    lines = [
        (row['kernel'], row['dtype'], row['states'], row['registers'], row['stack']) for row in rows
    ]
    headings = ('kernel', 'I/O', 'states', 'registers', 'stack, bytes')
    return table(headings, lines or [(NOT_RUN,) + ('',) * 4])


def counter_table(results: Row) -> str:
    """Format the counters of each kernel."""
    rows = [row for row in rows_of(results, 8) if 'kernel' in row]
    keys = ('us', 'instructions', 'issue', 'occupancy', 'gb_per_s', 'conflicts', 'registers')
    lines = [
        (row['map'], OURS[row['backend']], row['kernel'])
        + tuple('n/a' if row[key] is None else number(row[key]) for key in keys)
        + (row['stall'],)
        for row in rows
    ]
    headings = (
        'map', 'scan', 'kernel', 'time, µs', 'instructions', 'issue, %', 'occupancy, %',
        'memory, GB/s', 'bank conflicts', 'registers', 'longest stall',
    )  # fmt: skip
    return table(headings, lines or [(NOT_RUN,) + ('',) * 10])


def tables(results: Row) -> str:
    """Format all tables of docs/benchmarks.md, or state that there is no run."""
    if not results:
        return NO_RUN
    machine = results.get('run', {}).get('machine', {})
    return TEMPLATE.format(
        recorded='' if 'gpu' in machine else NO_RUN,
        head=head_table(results),
        steps=step_table(results),
        exactness=exactness_table(results),
        ops=op_table(results),
        backbones=backbone_table(results),
        sweeps=sweep_table(results),
        resources=resource_table(results),
        counters=counter_table(results),
    )


TEMPLATE = """{recorded}
{head}
### Steps

{steps}
### Exactness

The error is the norm of the difference from float64, divided by the norm. Each row has the error of
the output or gradient that is closest to its tolerance. The PyTorch implementation is not
repeated, because its sums are not deterministic.

{exactness}
### The core and its peers

Each cell: forward / forward and backward. `graph` is the time of the kernels, in a CUDA graph;
`eager` also includes the time that Python takes to launch them, where that is longer. `of copy` is
the time that a copy of the bytes that the core must read and write would take, divided by the time
of the core. It can exceed 100% where maps fit into the L2 cache, as in the last two stages at 224.
The last columns are a peer's time divided by that of the faster of our backends.

{ops}
### Backbones

Channels-last memory and TF32 for all, except for the authors' code, which is written for contiguous
maps; `amp` is float16. The last columns are ratios of ours to the other network: speed / peak
memory.

{backbones}
### Sweeps

The op alone in a CUDA graph, in picoseconds per element and direction: 56 x 56, 96 channels, batch
128, float16, rank 6, one state and four directions unless stated otherwise. The backward time is a
training step minus an inference step. `warps` is the maximum per multiprocessor, forward and
backward, which limits the registers of the CUDA kernels; the build has 20 and 12.

{sweeps}
Registers of the build:

{resources}
### Counters

The kernels of a forward and backward pass in their order, by Nsight Compute. `instructions` counts
thread instructions per element and direction, comparable with the
[static counts](dev/cuda-kernels.md#instruction-counts). Bank conflicts are shared-memory cycles per
1000 elements. The longest stall is the most common reason why a warp waits, in cycles per issued
instruction.

{counters}"""


# ---- the summary ---------------------------------------------------------------------------------


def counts(record: Row) -> Row:
    """Count the rows of a step that passed, failed and were skipped."""
    rows = record.get('rows', [])
    return {
        status: sum(row['status'] == status for row in rows)
        for status in ('passed', 'failed', 'skipped')
    }


def build_figure(rows: Sequence[Row]) -> str:
    """Tell whether the extension was reused or built, and for which architectures."""
    row = find(rows, item='extension')
    if not row:
        return ''
    built = 'reused' if row['how'] == 'reused' else f'built in {row["seconds"]:.0f} s'
    return f'extension {built}, for {", ".join(row["architectures"]) or "the CPU"}'


def exactness_figure(rows: Sequence[Row]) -> str:
    """Return the largest error relative to what is allowed."""
    ratios = [row['error'] / row['allowed'] for row in rows if 'error' in row]
    return f'errors at most {number(max(ratios))} of what is allowed' if ratios else ''


def test_figure(rows: Sequence[Row]) -> str:
    """Return the time of the tests."""
    return f'{sum(row.get("seconds", 0) for row in rows):.0f} s in tests'


def sanitizer_figure(rows: Sequence[Row]) -> str:
    """Return the number of reports."""
    reports = [row['reports'] for row in rows if 'reports' in row]
    return f'{len(reports)} tools, {sum(reports)} reports' if reports else 'no tool ran'


def op_figure(rows: Sequence[Row]) -> str:
    """Return the times of the first setting, and the authors' time divided by the best of ours."""
    first = next((row for row in rows if row.get('candidate') in OURS and 'forward_ms' in row), {})
    if not first:
        return ''
    item, suffix = first['item'], '_graph_ms' if 'training_graph_ms' in first else '_ms'
    found = {name: find(rows, candidate=name, item=item) for name in (*OURS, 'vmamba')}
    times = {name: row for name, row in found.items() if f'training{suffix}' in row}
    ours = {OURS[name]: row for name, row in times.items() if name in OURS}
    forward, training = f'forward{suffix}', f'training{suffix}'
    text = '; '.join(
        f'{name} {row[forward]:.3g} ms forward, {row[training]:.3g} ms training'
        for name, row in ours.items()
    )
    if authors := times.get('vmamba'):
        best = min(row[training] for row in ours.values())
        text += f"; authors' {authors[training] / best:.2f} x in training"
    return f'{text} ({item})'


def backbone_figure(rows: Sequence[Row]) -> str:
    """Return the speed at the first setting, and the ratios of the best of ours to the others'."""
    speeds = [row for row in rows if 'images_per_s' in row]
    item = speeds[0]['item'] if speeds else ''
    found = {name: find(speeds, model=f'vmamba-t-{name}', item=item) for name in OURS}
    ours = {OURS[name]: row['images_per_s'] for name, row in found.items() if row}
    if not ours:
        return ''
    text = ', '.join(f'{name} {number(speed)}' for name, speed in ours.items())
    text += f' images/s ({item})'
    for model, name in (('swin-t', 'Swin-T'), ('authors-t', "authors'")):
        if other := find(speeds, model=model, item=item):
            text += f', {max(ours.values()) / other["images_per_s"]:.2f} x {name}'
    return text


def sweep_figure(rows: Sequence[Row]) -> str:
    """Fit a straight line to the forward's time over the rank, for each backend."""
    fits = {OURS[name]: fit_rank(matching(rows, dict(backend=name))) for name in OURS}
    return '; '.join(f'{name} forward: {fit}' for name, fit in fits.items() if fit)


def fit_rank(rows: Sequence[Row]) -> str:
    """Fit a straight line to the forward's time over the rank, if there are two or more."""
    points = [(row['rank'], row['forward_ns'] * 1e3) for row in rows if 'rank' in row]
    if len(points) < 2:
        return ''
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points)
    slope /= sum((x - mean_x) ** 2 for x, _ in points)
    return f'{mean_y - slope * mean_x:.3g} + {slope:.3g} x rank ps'


def counter_figure(rows: Sequence[Row]) -> str:
    """Return the instructions of all kernels, PyTorch's included, at the first map."""
    counted = [row for row in rows if row.get('instructions') is not None]
    first = matching(counted, dict(map=counted[0]['map'])) if counted else []
    sums = {
        OURS[name]: sum(row['instructions'] for row in matching(first, dict(backend=name)))
        for name in OURS
    }
    return '; '.join(
        f'{name} {number(total)} instructions' for name, total in sums.items() if total
    )


FIGURES: dict[int, Callable[[Sequence[Row]], str]] = {
    1: build_figure,
    2: exactness_figure,
    3: test_figure,
    4: sanitizer_figure,
    5: op_figure,
    6: backbone_figure,
    7: sweep_figure,
    8: counter_figure,
}


def summarize(results: Row) -> Row:
    """Return the contents of ``summary.json``."""
    steps = {}
    for step in STEPS:
        record = results['steps'].get(str(step), {})
        steps[step] = dict(
            title=STEPS[step].title,
            status=record.get('status', NOT_RUN),
            reason=record.get('reason', ''),
            **counts(record),
            seconds=record.get('seconds', 0.0),
            figure=FIGURES[step](record.get('rows', [])),
            failures=[row for row in record.get('rows', []) if row['status'] == 'failed'],
            sources=record.get('environment', {}).get('sources'),
        )
    reasons = {status: grouped(results, status) for status in ('failed', 'skipped')}
    return dict(run=results['run'], device=results['device'], reasons=reasons, steps=steps)


def summary_text(results: Row) -> str:
    """Return the contents of ``summary.md``, which ends with the table of the steps."""
    parts = []
    for status in ('failed', 'skipped'):
        lines = grouped(results, status)
        if lines:
            parts.append(f'{status}:\n\n' + '\n'.join(lines) + '\n')
    return '\n'.join([*parts, head_table(results), step_table(results)])


def grouped(results: Row, status: str) -> list[str]:
    """List rows of a status, those of the same step and reason together."""
    pairs = []
    for step in STEPS:
        record = results['steps'].get(str(step), {})
        if status == 'failed' and record.get('error'):
            pairs.append(((step, record['error']), 'the step itself'))
        for row in record.get('rows', []):
            if row['status'] == status:
                part = row.get('candidate') or row.get('model') or row.get('name')
                item = row['item'].rpartition('::')[2]
                name = f'{part} ({item})' if part else item
                pairs.append(((step, row['reason']), name))
    lines = []
    for (step, reason), names in group(pairs).items():
        rest = f' and {len(names) - 2} more' if len(names) > 3 else ''
        shown = '; '.join(names[: 2 if rest else 3])
        lines.append(f'- step {step}: {shown}{rest}: {reason}')
    return lines


# ---- command -------------------------------------------------------------------------------------


def replace_tables(text: str, new: str) -> str:
    """Put tables between the two markers of a page.

    Raises:
        ValueError: If a marker is missing.
    """
    pattern = re.escape(BEGIN) + r'.*?' + re.escape(END)
    if not re.search(pattern, text, re.DOTALL):
        raise ValueError(f'the page does not have the markers {BEGIN} and {END}')
    whole = f'{BEGIN}\n\n{new}\n{END}'
    return re.sub(pattern, lambda _: whole, text, flags=re.DOTALL)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    add = parser.add_argument
    add('out', nargs='?', type=Path, help='folder of a run (default: state that none exists)')
    add('--write', type=Path, metavar='PAGE.md', help='page to write the tables to')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tables to the standard output or into a page."""
    args = parse_args(argv)
    results: Row = {}
    try:
        if args.out is not None:
            path = args.out / 'results.json'
            results = json.loads(path.read_text(encoding='utf-8'))
            if not isinstance(results, dict) or results.get('benchmark') != 'gpu_check':
                raise ValueError(f'{path} is not a results file of gpu_check.sh')
        if args.write is not None and results.get('device') == 'cpu':
            raise ValueError(f'{args.out} is a rehearsal on a CPU, not a run on a GPU')
        if args.write is None:
            sys.stdout.write(tables(results))
        else:
            page = replace_tables(args.write.read_text(encoding='utf-8'), tables(results))
            args.write.write_text(page, encoding='utf-8')
    except (OSError, ValueError) as error:
        sys.stderr.write(f'{error}\n')
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
