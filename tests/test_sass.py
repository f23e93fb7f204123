"""Instruction counts of the GPU kernels: the disassembly, the tables and the baseline."""

import itertools
import json
import struct

import pytest
import torch

from .benchmark_modules import load

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

machine_code, sass, triton_kernels = map(load, ('machine_code', 'sass', 'triton_kernels'))
sass_walk, issued = map(load, ('sass_walk', 'issued'))

PROBLEM = triton_kernels.why_not_counted()
needs_compiler = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))
CUDA_PROBLEM = issued.why_not_counted()
needs_nvcc = pytest.mark.skipif(CUDA_PROBLEM is not None, reason=str(CUDA_PROBLEM))


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
    name = '_ZN8mmvmamba14forward_kernelIN3c104HalfELb1ELb1EEEvNS_11ScanForwardE'
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
    assert 'forward_kernel' in rows[0]['kernel'] and rows[2]['shuffle'] == 1


# ---- a walk through the machine code -------------------------------------------------------------


def walk(*lines, arguments=(), thread=0, block=0):
    """Count the instructions of a thread by kind; arguments are numbers of 32 bits."""
    data = struct.pack(f'<{len(arguments)}i', *arguments)
    code = sass_walk.Code(function(*lines), data, 64)
    return dict(code.kinds(code.walk(thread, block)))


LOOP = (
    'S2R R0, SR_TID.X',  # 00
    'ULDC UR4, c[0x0][0x210]',  # 10
    'FADD R4, R4, R5',  # 20: the loop
    'IADD3 R0, R0, 0x1, RZ',  # 30
    'ISETP.LT.AND P0, PT, R0, UR4, PT',  # 40
    '@P0 BRA 0x20',  # 50
    'EXIT',  # 60
)


@pytest.mark.parametrize('end, thread, trips', [(5, 0, 5), (5, 3, 2), (5, 9, 1), (-5, 0, 1)])
def test_a_loop_runs_as_often_as_its_arguments_say(end, thread, trips):
    counts = walk(*LOOP, arguments=[end], thread=thread)
    assert counts == dict(float=trips, integer=2 * trips, other=3 + trips)


def branch_on(*lines, condition='@P0', **options):
    """Return whether a thread that has come through the lines branches over a barrier."""
    target = 16 * (len(lines) + 2)
    counts = walk(*lines, f'{condition} BRA {target:#x}', 'BAR.SYNC 0x0', 'EXIT', **options)
    return 'barrier' not in counts


@pytest.mark.parametrize('lines', [
    ['MOV R2, 0xfffffff9', 'IABS R3, R2', 'ISETP.EQ.AND P0, PT, R3, 0x7, PT'],
    ['MOV R2, 0x1', 'IADD3 R3, P1, -R2, RZ, RZ', 'ISETP.EQ.U32.AND P0, PT, R3, -0x1, !P1'],
    ['MOV R2, 0x1', 'IADD3 R3, P0, -R2, 0x1, RZ'],
    ['MOV R2, 0xffffffff', 'MOV R3, RZ', 'IADD3 R2, P0, R2, 0x1, RZ',
     'IADD3.X R3, R3, RZ, RZ, P0, !PT', 'ISETP.EQ.AND P0, PT, R3, 0x1, PT'],
    ['MOV R2, 0xfffffffe', 'IMAD.WIDE R4, R2, 0x3, RZ', 'ISETP.EQ.AND P0, PT, R5, -0x1, PT'],
    ['MOV R2, 0xfffffffe', 'IMAD.WIDE.U32 R4, R2, 0x3, RZ', 'ISETP.EQ.AND P0, PT, R5, 0x2, PT'],
    ['MOV R2, 0x80000000', 'SHF.R.S32.HI R3, RZ, 0x1f, R2', 'ISETP.EQ.AND P0, PT, R3, -0x1, PT'],
    ['MOV R2, 0x80000000', 'SHF.R.U32.HI R3, RZ, 0x1f, R2', 'ISETP.EQ.AND P0, PT, R3, 0x1, PT'],
    ['MOV R2, 0xc0000000', 'SHF.L.U64.HI R3, R2, 0x1, 0x1', 'ISETP.EQ.AND P0, PT, R3, 0x3, PT'],
    ['MOV R2, 0x5', 'LEA R3, R2, 0x1, 0x4', 'ISETP.EQ.AND P0, PT, R3, 0x51, PT'],
    ['MOV R2, 0xffffffff', 'LEA.HI.SX32 R3, R2, 0x1, 0x4', 'ISETP.EQ.AND P0, PT, R3, RZ, PT'],
    ['MOV R2, 0x6', 'LOP3.LUT R3, R2, 0x3, RZ, 0x3c, !PT', 'ISETP.EQ.AND P0, PT, R3, 0x5, PT'],
    ['MOV R2, 0x6', 'LOP3.LUT P0, RZ, R2, 0x2, RZ, 0xc0, !PT'],
    ['MOV R2, 0x11223344', 'PRMT R3, R2, 0x5410, 0x55', 'ISETP.EQ.AND P0, PT, R3, 0x553344, PT'],
    ['MOV R2, 0xffffffff', 'VIMNMX R3, R2, 0x1, PT', 'ISETP.EQ.AND P0, PT, R3, -0x1, PT'],
    ['MOV R2, 0x7', 'VIADDMNMX R3, R2, -0x1, 0x5, !PT', 'ISETP.EQ.AND P0, PT, R3, 0x6, PT'],
    ['HFMA2.MMA R2, -RZ, RZ, 0, 5.9604644775390625e-08', 'ISETP.EQ.AND P0, PT, R2, 0x1, PT'],
    ['MOV R2, 0x3', 'STL [R1+0x8], R2', 'LDL R3, [R1+0x8]', 'ISETP.EQ.AND P0, PT, R3, R2, PT'],
    ['PLOP3.LUT P0, PT, PT, PT, PT, 0x80, 0x0'],
    ['S2R R2, SR_CTAID.X', 'ISETP.EQ.AND P0, PT, R2, 0x9, PT'],
    ['MOV R2, 0x2', '@!PT MOV R2, 0x3', 'ISETP.EQ.AND P0, PT, R2, 0x2, PT'],
    ['LDC R2, c[0x0][RZ+0x0]', 'MOV R3, c[0x0][0x0]', 'ISETP.EQ.AND P0, PT, R3, 0x40, PT'],
])  # fmt: skip
def test_arithmetic(lines):
    assert branch_on(*lines, block=9)
    assert not branch_on(*lines, block=9, condition='@!P0')


@pytest.mark.parametrize('n, d', [(196, 7), (195, 7), (6, 7), (0, 3), (2**31 - 1, 96)])
def test_divides_as_the_compiler_does(n, d):
    divide = (
        f'MOV R2, {n:#x}', f'MOV R3, {d:#x}', 'I2F.U32.RP R4, R3', 'MUFU.RCP R4, R4',
        'VIADD R4, R4, 0xffffffe', 'F2I.FTZ.U32.TRUNC.NTZ R5, R4', 'IMAD.MOV.U32 R4, RZ, RZ, RZ',
        'IADD3 R6, RZ, -R5, RZ', 'IMAD R6, R6, R3, RZ', 'IMAD.HI.U32 R5, R5, R6, R4',
        'IMAD.HI.U32 R5, R5, R2, RZ', 'IMAD.MOV R6, RZ, RZ, -R5', 'IMAD R6, R3, R6, R2',
        'ISETP.GE.U32.AND P0, PT, R6, R3, PT', '@P0 IADD3 R6, -R3, R6, RZ', '@P0 VIADD R5, R5, 0x1',
        'ISETP.GE.U32.AND P1, PT, R6, R3, PT', '@P1 IADD3 R5, R5, 0x1, RZ',
    )  # fmt: skip
    assert branch_on(*divide, f'ISETP.EQ.U32.AND P0, PT, R5, {n // d:#x}, PT')


@pytest.mark.parametrize('condition', ['@P0', '@!P0'])
@pytest.mark.parametrize('lines', [
    ['LDG.E R2, desc[UR4][R4.64]', 'IADD3 R2, R2, 0x1, RZ', 'ISETP.GE.AND P0, PT, R2, RZ, PT'],
    ['FSETP.GT.AND P0, PT, R2, R3, PT'],
    ['MOV R3, 0x1', 'LDS.64 R2, [R4]', 'ISETP.EQ.AND P0, PT, R3, 0x1, PT'],
])  # fmt: skip
def test_a_branch_on_what_is_unknown_is_an_error(lines, condition):
    with pytest.raises(RuntimeError, match='it is unknown whether BRA'):
        branch_on(*lines, condition=condition)
    assert not branch_on(*lines, condition='@!PT')


def test_an_endless_loop_is_given_up(monkeypatch):
    monkeypatch.setattr(sass_walk, 'MOST_BLOCKS', 10)
    with pytest.raises(RuntimeError, match='no exit after 10 blocks'):
        walk('BRA 0x0')


# ---- the launches of the CUDA kernels ------------------------------------------------------------


@pytest.mark.parametrize(
    'registers, shared, warps, resident',
    [(128, 1024, 4, 16), (128, 114720 + 1024, 7, 14), (128, 116 * 1024, 7, 7), (32, 1024, 2, 64),
     (40, 1024, 16, 48), (255, 1024, 8, 8)],
)  # fmt: skip
def test_resident_warps(registers, shared, warps, resident):
    assert issued.resident_warps(registers, shared, warps) == resident


def test_more_registers_than_the_launch_bounds_fail():
    row = row_of(1.0) | dict(registers=129)
    name = 'stage1 float16 forward sm_90: pair'
    before = dict(instructions=1.0, stack_bytes=0, registers=120)
    assert issued.check([row], dict(kernels={name: before})) == [
        f'{name}: 129 registers, in the baseline 120'
    ]
    assert issued.check([row | dict(registers=128)], dict(kernels={name: before})) == []


def test_counts_of_one_compiler_leave_those_of_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(sass, 'BASELINE', tmp_path / 'baseline.json')
    resources = dict.fromkeys(triton_kernels.RESOURCES, 0)
    rows = {
        'triton': [row_of(1.0) | resources],
        'nvcc': [row_of(2.0) | resources | dict(mode='CUDA forward')],
    }
    for version in ('1.0', '2.0'):
        for compiler in rows:
            sass.update_baseline(rows[compiler], compiler, version)
    baseline = sass.read_baseline()
    assert [baseline[compiler] for compiler in rows] == ['2.0', '2.0']
    assert list(baseline['kernels']) == [
        'stage1 float16 CUDA forward sm_90: pair', 'stage1 float16 forward sm_90: pair'
    ]  # fmt: skip


@needs_nvcc
def test_records_what_is_launched():
    (weights, sweep) = issued.record('stage4', 'forward')
    assert 'pack_weight' in weights.kernel and weights.threads == 64
    assert 'forward_kernel' in sweep.kernel and sweep.threads % 32 == 0
    assert 0 < sweep.shared <= 227 * 1024
    parts, segments = issued.split_of(sweep)
    assert (sweep.blocks, segments) == (triton_kernels.BATCH * parts, 1)
    kernels = [launch.kernel for launch in issued.record('512x512', 'forward')]
    assert sum('combine' in kernel for kernel in kernels) == 1


@needs_nvcc
@pytest.mark.parametrize(
    ('mode', 'special', 'products'),
    [
        # An element and direction has a power of 2 for softplus and one for the decay. 16 channels,
        # 8 ranks and 32 positions take 4 products; there are 12 ranks.
        ('forward', 2, 2 * 4),
        # Two more special functions for the slope of softplus; two products each for the sums of
        # grad B and grad C, and 2 for every 8 ranks and each of the gradients of ranks and weights.
        ('backward', 4, 2 * 4 + 2 * 2 + 2 * 4),
    ],
)
def test_counts_what_must_be_done(mode, special, products):
    rows = {row['kernel']: row for row in issued.count_setting('stage2', mode)}
    assert set(rows) == {'pack weights', 'sweep', 'all'}
    # 800 positions are worked on for 784.
    assert rows['sweep']['special'] == pytest.approx(special * 800 / 784)
    assert rows['sweep']['tensor'] == pytest.approx(products * 32 / (16 * 32) * 800 / 784)
    assert rows['all']['instructions'] == pytest.approx(
        rows['sweep']['instructions'] + rows['pack weights']['instructions']
    )


@needs_nvcc
@pytest.mark.parametrize(
    'shape, mode',
    [
        pytest.param(
            shape, mode, marks=() if mode == 'forward' or shape == 'stage4' else pytest.mark.slow
        )
        for shape, mode in itertools.product(issued.SHAPES, issued.MODES)
    ],
)
def test_launches_stay_within_the_baseline(shape, mode):
    baseline = sass.read_baseline()
    if problem := sass.why_not_comparable(baseline, 'nvcc', issued.nvcc_version()):
        pytest.skip(problem)
    assert issued.check(issued.count_setting(shape, mode), baseline) == []


@needs_nvcc
def test_command_checks_the_launches(tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setattr(sass, 'BASELINE', tmp_path / 'baseline.json')
    out = tmp_path / 'issued.json'
    args = ['--shapes', 'stage4', '--modes', 'forward']
    assert issued.main([*args, '--update-baseline', '--check', '--out', str(out)]) == 0
    assert {row['mode'] for row in json.loads(out.read_text())['results']} == {'CUDA forward'}
    data = json.loads(sass.BASELINE.read_text())
    data['kernels']['stage4 float16 CUDA forward sm_90: sweep']['instructions'] /= 1.2
    sass.BASELINE.write_text(json.dumps(data))
    assert issued.main([*args, '--check', '--kinds', '--markdown']) == 1
    assert 'sweep: ' in caplog.records[-1].message and '| --- |' in capsys.readouterr().out
    sass.BASELINE.write_text(json.dumps(data | dict(nvcc='1.0')))
    with pytest.raises(SystemExit, match='the baseline was counted with nvcc 1.0'):
        issued.main([*args, '--check'])


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
