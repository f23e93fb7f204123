"""Instruction counts of the GPU kernels: the disassembly, the table and the baseline."""

import itertools
import json

import pytest
import torch

from .benchmark_modules import load

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

machine_code, sass, triton_kernels = map(load, ('machine_code', 'sass', 'triton_kernels'))

PROBLEM = triton_kernels.why_not_counted()
needs_compiler = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))


def function(*lines):
    """Format lines as ``cuobjdump -sass`` does: sixteen bytes each, an encoding in two parts."""
    code = ''.join(
        f'        /*{16 * n:04x}*/    {line} ;    /* 0x000000ff00007b82 */\n'
        '                                         /* 0x000fe20000000800 */\n'
        for n, line in enumerate(lines)
    )
    return '\tcode for sm_90\n\t\tFunction : name\n\t.headerflags\t@"EF_CUDA_SM90"\n' + code


def blocks_of(*lines):
    ((_, text),) = machine_code.split_functions(function(*lines))
    return machine_code.read_blocks(text)


PADDING = ('EXIT', 'BRA 0x{:x}', 'NOP', 'NOP', 'NOP')


def padding(address):
    return [line.format(address + 16) for line in PADDING]


# ---- the disassembly -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    'opcodes, kind',
    [
        ('MUFU.EX2 MUFU.RCP', 'special'),
        ('FFMA FADD.FTZ FMUL FMNMX FSETP.GT.AND FSEL DFMA HADD2.F32 HFMA2.MMA HSETP2', 'float'),
        ('HMMA.16816.F32 IMMA HGMMA.64x16x16.F32 UTCHMMA', 'tensor'),
        ('IADD3 IMAD.WIDE IMAD.MOV.U32 LEA.HI.X SHF.R.U32.HI LOP3.LUT PLOP3.LUT ISETP.GE.AND SEL '
         'PRMT UIADD3 ULOP3.LUT USHF.L.U32 UIMAD VIADD VIMNMX SGXT.U32 IABS', 'integer'),
        ('LDG.E.128 STG.E ATOMG.E.ADD RED.E.ADD LD.E ST.E LDGSTS.E', 'global'),
        ('LDS.128 STS LDSM.16.M88.4 STSM.16.M88.4 ATOMS.ADD', 'shared'),
        ('SHFL.BFLY REDUX.SUM VOTE.ANY', 'shuffle'),
        ('BAR.SYNC.DEFER_BLOCKING WARPSYNC.ALL MEMBAR.SC.GPU SYNCS.EXCH.64 LDGDEPBAR', 'barrier'),
        ('LDL.64 STL', 'local'),
        ('MOV LDC.64 ULDC S2R BRA EXIT NOP BSSY BSYNC I2F.RP F2FP.F16.F32.PACK_AB CS2R', 'other'),
    ],
)  # fmt: skip
def test_kinds(opcodes, kind):
    assert {machine_code.kind_of(opcode) for opcode in opcodes.split()} == {kind}


def test_padding_is_not_counted():
    blocks = blocks_of('LDC R1, c[0x0][0x28]', 'NOP', *padding(0x20))
    assert machine_code.count(blocks) == dict(other=3)
    assert machine_code.find_loops(blocks) == {}


def test_predicates_and_both_sides_of_a_branch_count():
    blocks = blocks_of(
        'ISETP.GT.AND P0, PT, R0, RZ, PT',  # 00
        '@!P0 BRA 0x40',  # 10
        '@P1 FADD R0, R0, R1',  # 20
        'BRA 0x50',  # 30
        'MUFU.EX2 R0, R0',  # 40
        '@P2 STG.E [R2], R0',  # 50
        '@P3 EXIT',  # 60
        'FMUL R0, R0, R0',  # 70
        *padding(0x80),
    )
    assert {at: block.successors for at, block in blocks.items() if at <= 0x80} == {
        0x00: [0x40, 0x20], 0x20: [0x50], 0x40: [0x50], 0x50: [0x70], 0x70: [],
    }  # fmt: skip
    counts = dict(integer=1, float=2, special=1, other=4)
    assert machine_code.count(blocks) == counts | {'global': 1}


@pytest.mark.parametrize('branch', ['@P0 BRA 0x10', 'BRA P0, 0x10', 'BRA.U UP0, 0x10'])
def test_a_loop_counts_once_for_each_trip(branch):
    blocks = blocks_of('MOV R0, RZ', 'FADD R0, R0, R1', branch, 'FMUL R0, R0, R0', *padding(0x40))
    assert machine_code.find_loops(blocks) == {0x10: ({0x10}, 1)}
    assert machine_code.count(blocks) == dict(other=3, float=2)
    assert machine_code.count(blocks, trips=[5]) == dict(other=7, float=6)
    assert machine_code.count(blocks, within={0x10}) == dict(other=1, float=1)


NESTED = (
    'MOV R0, RZ',  # 00
    'LDG.E R1, [R2]',  # 10: the outer loop
    'FADD R0, R0, R1',  # 20: the inner loop
    '@P0 BRA 0x90',  # 30: to a part behind the exit, which comes back
    '@P1 BRA 0x20',  # 40
    '@P2 BRA 0x10',  # 50
    'LDS R3, [R4]',  # 60: the second loop
    '@P3 BRA 0x60',  # 70
    'EXIT',  # 80
    'BRA.DIV UR4, 0xc0',  # 90: not followed
    'SHFL.BFLY R5, R6',  # a0
    'BRA 0x40',  # b0
    'STL [R1], R7',  # c0: for a warp of diverged threads
    'BRA 0xa0',  # d0
    *padding(0xE0),
)


def test_nested_loops():
    blocks = blocks_of(*NESTED)
    loops = machine_code.find_loops(blocks)
    assert {at: loop.depth for at, loop in loops.items()} == {0x10: 1, 0x20: 2, 0x60: 1}
    assert loops[0x20].blocks == {0x20, 0x40, 0x90, 0xA0}
    assert loops[0x10].blocks == {0x10, 0x50} | loops[0x20].blocks
    counts = machine_code.count(blocks, trips=[3, 4, 5])
    assert counts == {
        'global': 3, 'float': 12, 'shuffle': 12, 'shared': 5, 'other': 1 + 12 * 4 + 3 + 5 + 1,
    }  # fmt: skip


def test_calls_count_the_subroutine_each_time():
    blocks = blocks_of(
        'CALL.REL.NOINC 0x50',  # 00
        'FADD R0, R0, R1',  # 10
        'CALL.REL.NOINC 0x50',  # 20
        '@P0 BRA 0x10',  # 30
        'EXIT',  # 40
        'MUFU.RCP R0, R0',  # 50
        'RET.REL.NODEC R2 0x0',  # 60
        *padding(0x70),
    )
    assert machine_code.count(blocks) == dict(other=6, float=1, special=2)
    assert machine_code.count(blocks, trips=[10])['special'] == 11


def test_refuses_jumps_to_unknown_targets():
    with pytest.raises(ValueError, match='BRX at 0x0010'):
        blocks_of('MOV R0, RZ', 'BRX R2 -0x1d0', 'EXIT')


# ---- a library -----------------------------------------------------------------------------------


def test_counts_the_loops_of_a_library(tmp_path, monkeypatch):
    name = '_ZN8mmvmamba11scan_kernelINS_11ForwardScanIN3c104HalfELi1ELb0EEEEEvNT_4ArgsE'
    code = function(*NESTED).replace(' name', f' {name}')
    usage = f' Function {name}:\n  REG:123 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:1040\n'
    program = tmp_path / 'cuobjdump'
    (tmp_path / 'code').write_text(code)
    (tmp_path / 'usage').write_text(usage)
    program.write_text(
        f'#!/bin/sh\ncase $1 in -sass) cat {tmp_path}/code;; *) cat {tmp_path}/usage;; esac\n'
    )
    program.chmod(0o755)
    for module in (machine_code, sass):
        monkeypatch.setattr(module, 'cuobjdump', lambda: str(program))
    out = tmp_path / 'sass.json'
    library = tmp_path / 'x.so'
    args = ('--kernels', 'cuda', '--library', str(library), '--depth', '1', '--out', str(out))
    with pytest.raises(SystemExit, match='x.so is not a file'):
        sass.main(args)
    library.touch()
    assert sass.main(args) == 0
    rows = json.loads(out.read_text())['results']
    assert [(row['loop'], row['depth'], row['instructions']) for row in rows] == [
        ('all', 0, 12), ('0x10', 1, 8), ('0x20', 2, 6), ('0x60', 1, 2),
    ]  # fmt: skip
    assert rows[0]['registers'] == 123 and rows[0]['stack_bytes'] == 8
    assert 'ForwardScan' in rows[0]['kernel'] and rows[2]['shuffle'] == 1


# ---- Triton --------------------------------------------------------------------------------------


def scale_kernel(x, y, count, BLOCK: 'tl.constexpr', TWICE: 'tl.constexpr'):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at, mask=at < count, other=0.0).to(tl.float32)
    if TWICE:
        values = tl.exp2(values)
    tl.store(y + at, tl.exp2(values).to(y.dtype.element_ty), mask=at < count)


def test_the_loop_of_a_kernel_counts_as_often_as_it_runs():
    blocks = blocks_of('MOV R0, RZ', 'MUFU.EX2 R0, R0', '@P0 BRA 0x10', *padding(0x30))
    row = triton_kernels.count_thread(machine_code.Function('kernel', blocks, 9, 8, 0), 5)
    assert [row[key] for key in ('special', 'instructions', 'loops')] == [5, 12, 1]


@pytest.fixture
def small_kernels(monkeypatch):
    """Replace the launches of an op: one applies exp2 once, one twice, and the first again."""
    from mmvmamba.ops.triton.launch import Launch

    kernel = triton.jit(scale_kernel)

    def plan(setting):
        count = setting.elements // 4
        x = torch.empty(count, dtype=torch.float16, device='meta')

        def launch(twice):
            args, constants = dict(x=x, y=x, count=count), dict(BLOCK=512, TWICE=twice)
            return Launch(kernel, (count // 512,), args, constants, 4, 4 * count, 1)

        return [launch(False), launch(True), launch(False)]

    monkeypatch.setattr(triton_kernels, 'plan', plan)


@needs_compiler
def test_counts_a_compiled_kernel(small_kernels):
    setting = triton_kernels.Setting('stage4', 'float16', 'forward', 'sm_90')
    rows = triton_kernels.count_settings([setting])
    once, twice, again, total = rows
    names = ['scale_kernel(TWICE=False)', 'scale_kernel(TWICE=True)']
    assert [row['kernel'] for row in rows] == [*names, f'{names[0]} #2', 'all']
    # 512 elements of the map for 128 threads: one exp2 for each element, for a fourth of each
    # element and direction.
    assert once['special'] == 1 / 4 and twice['special'] == 2 / 4 and total['special'] == 1
    assert 0 < once['global'] <= 2 / 4 and once['local'] == once['tensor'] == 0
    for row in rows:
        kinds = sum(row[kind] for kind in machine_code.KINDS)
        assert row['instructions'] == pytest.approx(kinds) and row['loops'] == 0
    assert total['instructions'] == pytest.approx(sum(row['instructions'] for row in rows[:3]))
    assert 0 < once['registers'] <= total['registers'] <= 255 and total['stack_bytes'] == 0
    # The second launch of a kernel finds it in the cache.
    assert once['seconds'] > again['seconds'] and total['seconds'] >= once['seconds']


@needs_compiler
def test_reads_the_registers_of_amd(small_kernels):
    setting = triton_kernels.Setting('stage4', 'float16', 'forward', 'gfx942')
    row = triton_kernels.count_settings([setting])[-1]
    assert 0 < row['registers'] <= 512 and row['sgprs'] > 0 and row['spills'] == 0
    assert 'instructions' not in row


@needs_compiler
def test_command_writes_and_checks_the_baseline(
    small_kernels, tmp_path, monkeypatch, capsys, caplog
):
    baseline = tmp_path / 'baseline.json'
    monkeypatch.setattr(sass, 'BASELINE', baseline)
    args = ('--kernels', 'triton', '--shapes', 'stage4', '--dtypes', 'float16', '--modes')
    assert sass.main([*args, 'forward', 'backward', '--update-baseline', '--check']) == 0
    data = json.loads(baseline.read_text())
    assert data['triton'] == triton.__version__ and len(data['kernels']) == 8
    name = 'stage4 float16 forward sm_90: all'
    assert set(data['kernels'][name]) == {'instructions', *triton_kernels.RESOURCES}
    data['kernels'][name]['instructions'] /= 1.2
    data['kernels']['stage4 float16 forward sm_90: old_kernel'] = data['kernels'][name]
    baseline.write_text(json.dumps(data))
    caplog.clear()
    capsys.readouterr()
    assert sass.main([*args, 'forward', '--check', '--markdown']) == 1
    assert [record.message.split(', in')[0] for record in caplog.records][-1].startswith(name)
    assert '| --- |' in capsys.readouterr().out
    assert sass.main([*args, 'forward', '--update-baseline', '--check']) == 0
    assert len(json.loads(baseline.read_text())['kernels']) == 8


# ---- the baseline --------------------------------------------------------------------------------


def row_of(instructions, kernel='pair', stack_bytes=0):
    setting = triton_kernels.Setting('stage1', 'float16', 'forward', 'sm_90')
    return setting._asdict() | dict(
        kernel=kernel, instructions=instructions, stack_bytes=stack_bytes
    )


@pytest.mark.parametrize('rise, passes', [(1.11, False), (1.09, True), (1.0, True), (0.5, True)])
def test_a_rise_by_more_than_a_tenth_fails(rise, passes):
    name = 'stage1 float16 forward sm_90: pair'
    baseline = dict(triton='3.7.1', kernels={name: dict(instructions=40.0, stack_bytes=0)})
    problems = sass.check([row_of(40 * rise)], baseline)
    assert problems == (
        [] if passes else [f'{name}: {40 * rise:.2f} instructions, in the baseline 40.00']
    )


@pytest.mark.parametrize('stack_bytes, passes', [(72, True), (73, False)])
def test_a_larger_stack_fails(stack_bytes, passes):
    name = 'stage1 float16 forward sm_90: pair'
    baseline = dict(triton='3.7.1', kernels={name: dict(instructions=40.0, stack_bytes=8)})
    problems = sass.check([row_of(40.0, stack_bytes=stack_bytes)], baseline)
    assert problems == (
        [] if passes else [f'{name}: a stack of {stack_bytes} bytes, in the baseline 8']
    )


def test_a_kernel_without_a_baseline_fails():
    (problem,) = sass.check([row_of(1.0, 'new')], dict(triton='3.7.1', kernels={}))
    assert 'new is not in the baseline' in problem


@pytest.mark.skipif(triton is None, reason='triton is missing')
@pytest.mark.parametrize(
    'version, comparable', [('3.7.0', True), ('3.7.1', True), ('3.8.1', False), (None, True)]
)
def test_counts_of_another_compiler_are_not_compared(monkeypatch, version, comparable):
    monkeypatch.setattr(triton, '__version__', '3.7.1')
    problem = sass.why_not_comparable(dict(triton=version, kernels={}))
    assert (problem is None) == comparable
    assert comparable or problem.endswith('triton 3.8.1, but this is 3.7.1')


@needs_compiler
@pytest.mark.parametrize(
    'setting',
    [
        pytest.param(
            setting, marks=() if setting[:2] == ('stage1', 'float16') else pytest.mark.slow
        )
        for setting in itertools.product(
            triton_kernels.SHAPES, triton_kernels.DTYPES, triton_kernels.MODES
        )
    ],
    ids=' '.join,
)
def test_counts_stay_within_the_baseline(setting):
    baseline = sass.read_baseline()
    if problem := sass.why_not_comparable(baseline):
        pytest.skip(problem)
    rows = triton_kernels.count_setting(triton_kernels.Setting(*setting, sass.BASELINE_TARGET))
    assert sass.check(rows, baseline) == []
