"""Instructions of the CUDA emulator against NumPy, and planted errors that it must find."""

import os
import platform
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
import torch.utils.cpp_extension

from .emulator import translate

pytestmark = pytest.mark.skipif(
    shutil.which(translate.compiler()[0]) is None or bool(translate.sanitizer()),
    reason='no C++ compiler, or it compiles with a sanitizer of its own',
)

#: A program reads its input from one file and writes its output to another.
MAIN = """
#include <cuda_runtime.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "ptx.h"

using mmvmamba::ldmatrix_x2;
using torch::headeronly::BFloat16;
using torch::headeronly::Half;

{kernels}

template <class Kernel>
int run(const char* name, Kernel kernel, dim3 blocks, dim3 threads, int shared, char** files) {{
  if (std::strcmp(files[1], name) != 0) return 0;
  const int count = std::atoi(files[4]);
  std::vector<char> in(1 << 16), out(count);
  std::FILE* file = std::fopen(files[2], "rb");
  if (std::fread(in.data(), 1, in.size(), file) == 0) return 2;
  std::fclose(file);
  cuda_emulator::set_seed(std::atoi(files[5]));
  kernel<<<blocks, threads, shared>>>(in.data(), out.data());
  if (const cudaError_t error = cudaGetLastError()) {{
    std::fprintf(stderr, "%s\\n", cudaGetErrorString(error));
    return 1;
  }}
  file = std::fopen(files[3], "wb");
  std::fwrite(out.data(), 1, out.size(), file);
  std::fclose(file);
  return 0;
}}

int main(int, char** files) {{
  int status = 0;
{launches}
  std::fflush(nullptr);
  std::_Exit(status);
}}
"""


class Program:
    """Kernels ``name(const char* in, char* out)`` and their launches in one program."""

    def __init__(self, folder, kernels, sanitize=''):
        self.folder, self.prefix = folder, []
        code, launches = [], []
        for name, (config, body) in kernels.items():
            code.append(f'__global__ void {name}(const char* in, char* out) {{{body}}}')
            launches.append(f'  status |= run("{name}", {name}, {config}, files);')
        source = folder / 'kernels.cu'
        source.write_text(MAIN.format(kernels='\n'.join(code), launches='\n'.join(launches)))
        include = os.path.join(os.path.dirname(torch.__file__), 'include')
        self.path = translate.build_program(
            source, folder / 'program', folder, sanitize, [f'-isystem{include}']
        )

    def start(self, name, values=(0,), count=0, seed=0):
        source, target = self.folder / 'in', self.folder / 'out'
        source.write_bytes(np.asarray(values).tobytes())
        arguments = [*self.prefix, self.path, name, source, target, str(count), str(seed)]
        return subprocess.run([str(v) for v in arguments], capture_output=True, text=True)

    def run(self, name, values, shape, dtype, seed=0):
        """The output of a kernel, an array."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        result = self.start(name, values, count, seed)
        assert result.returncode == 0, result.stderr
        return np.frombuffer((self.folder / 'out').read_bytes(), dtype).reshape(shape)


LANE = 'const int lane = threadIdx.x; '


def multiply(half):
    """The fragments of d += a b: a of 4 words, b of 2, d of 4."""
    body = f"""
  uint32_t a[4], b[2];
  float d[4];
  std::memcpy(a, in + 40 * lane, 16);
  std::memcpy(b, in + 40 * lane + 16, 8);
  std::memcpy(d, in + 40 * lane + 24, 16);
  mmvmamba::mma_16x8x16<{half}>(d, a, b, d);
  std::memcpy(out + 16 * lane, d, 16);
"""
    return '1, 32, 0', LANE + body


#: Names, launch configurations and bodies.
RIGHT = {
    'shuffles': (
        '1, 64, 0',
        LANE
        + """
  const int x = reinterpret_cast<const int*>(in)[lane];
  const double y = x * 0.5;
  int* const o = reinterpret_cast<int*>(out) + 8 * lane;
  o[0] = __shfl_sync(0xffffffff, x, lane * 7 + 3);
  o[1] = __shfl_up_sync(0xffffffff, x, 3u);
  o[2] = __shfl_down_sync(0xffffffff, x, 5u);
  o[3] = __shfl_xor_sync(0xffffffff, x, 9);
  o[4] = __shfl_sync(0xffffffff, x, 11, 8);
  o[5] = __shfl_up_sync(0xffffffff, x, 2u, 8);
  o[6] = __shfl_xor_sync(0xffffffff, x, 9, 8);
  o[7] = static_cast<int>(2 * __shfl_down_sync(0xffffffff, y, 1u, 16));
""",
    ),
    'votes': (
        '1, 32, 0',
        LANE
        + """
  const unsigned mask = lane < 16 ? 0xffffu : 0xffff0000u;
  unsigned* const o = reinterpret_cast<unsigned*>(out) + 4 * lane;
  o[0] = __ballot_sync(0xffffffff, lane % 3 == 0);
  o[1] = __ballot_sync(mask, lane % 3 == 0);
  o[2] = __any_sync(mask, lane == 20);
  o[3] = __all_sync(mask, lane < 16);
""",
    ),
    'arithmetic': (
        '1, 1, 0',
        """
  const float x = 2.5f;
  float* const o = reinterpret_cast<float*>(out);
  o[0] = __popc(0xf0f0u);
  o[1] = __clz(1);
  o[2] = __umulhi(0x80000000u, 6u);
  o[3] = __int_as_float(__float_as_int(x));
  o[4] = __fmaf_rn(x, 2.f, 1.f);
  o[5] = __frcp_rn(x);
  o[6] = __expf(0.f) + max(1, 2) + min(3.f, 4.f);
  o[7] = mmvmamba::exp2_approx(3.f);
  o[8] = mmvmamba::rcp_approx(4.f);
  o[9] = __ldg(&x);
""",
    ),
    # Four 8 x 8 matrices below each other, then two, each as it is and transposed.
    'ldmatrix': (
        '1, 32, 512',
        LANE
        + """
  extern __shared__ __align__(16) unsigned char memory[];
  std::memcpy(memory + 16 * lane, in + 16 * lane, 16);
  __syncthreads();
  uint32_t r[4], t[4], r2[2], t2[2], moved[1];
  mmvmamba::ldmatrix_x4(r, memory + 16 * lane);
  mmvmamba::ldmatrix_x4_trans(t, memory + 16 * lane);
  ldmatrix_x2(r2, memory + 16 * (lane % 16));
  mmvmamba::ldmatrix_x2_trans(t2, memory + 16 * (lane % 16));
  moved[0] = mmvmamba::movmatrix_trans(r[0]);
  uint32_t* o = reinterpret_cast<uint32_t*>(out) + 13 * lane;
  for (uint32_t v : r) *o++ = v;
  for (uint32_t v : t) *o++ = v;
  for (uint32_t v : r2) *o++ = v;
  for (uint32_t v : t2) *o++ = v;
  for (uint32_t v : moved) *o++ = v;
""",
    ),
    'mma': multiply('Half'),
    'mma_bfloat16': multiply('BFloat16'),
    # Two groups in flight: neither is there at first, then the first, then both.
    'copies': (
        '1, 32, 1024',
        LANE
        + """
  extern __shared__ __align__(16) float values[];
  float* const own = values + 8 * lane;
  float* const o = reinterpret_cast<float*>(out) + 6 * lane;
  mmvmamba::cp_async_16(own, in + 32 * lane);
  mmvmamba::cp_async_commit();
  mmvmamba::cp_async_8(own + 4, in + 32 * lane + 16);
  mmvmamba::cp_async_4(own + 6, in + 32 * lane + 24);
  mmvmamba::cp_async_commit();
  o[0] = own[3];
  mmvmamba::cp_async_wait<1>();
  o[1] = own[3];
  o[2] = own[4];
  mmvmamba::cp_async_wait<0>();
  o[3] = own[3];
  o[4] = own[5];
  o[5] = own[6];
""",
    ),
    # A sum over 96 threads, through both kinds of shared memory.
    'sum': (
        '3, dim3(8, 4, 3), 384',
        """
  extern __shared__ float dynamic[];
  __shared__ float fixed[3][32];
  const int i = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const float x = reinterpret_cast<const float*>(in)[i] * (blockIdx.x + 1);
  dynamic[i] = x;
  fixed[i / 32][i % 32] = x;
  __syncthreads();
  float sum = 0;
  for (int j = 0; j < 96; ++j) sum += dynamic[j] + fixed[j / 32][j % 32];
  if (i == 95) reinterpret_cast<float*>(out)[blockIdx.x] = sum;
""",
    ),
}
#: As above; the third is the error, or None where the result is wrong with some seed.
WRONG = {
    'no_barrier': (
        '1, 64, 256',
        """
  extern __shared__ int values[];
  values[threadIdx.x] = threadIdx.x;
  reinterpret_cast<int*>(out)[threadIdx.x] = values[63 - threadIdx.x];
""",
        None,
    ),
    'no_syncwarp': (
        '1, 32, 128',
        """
  extern __shared__ int values[];
  values[threadIdx.x] = threadIdx.x;
  reinterpret_cast<int*>(out)[threadIdx.x] = values[31 - threadIdx.x];
""",
        None,
    ),
    'uninitialized': (
        '1, 32, 0',
        """
  int values[4];
  for (int i = threadIdx.x; i < 3; ++i) values[i] = 0;
  std::memcpy(out + 4 * threadIdx.x, values + 3, 4);
""",
        None,
    ),
    'divergent_barrier': (
        '1, 64, 0',
        'if (threadIdx.x < 40) { __syncthreads(); } else { __syncwarp(0xffffff00); __trap(); }',
        r'__trap\(\) at .*kernels.cu:\d+|deadlock',
    ),
    'exit_before_barrier': (
        '1, 64, 0',
        'if (threadIdx.x == 63) return; __syncthreads();',
        'exits while others wait in __syncthreads|after 1 of 64 threads have exited',
    ),
    'two_barriers': (
        '1, 64, 0',
        'if (threadIdx.x < 32) {\n__syncthreads();\n} else {\n__syncthreads();\n}',
        'wait at different __syncthreads',
    ),
    'exit_before_shuffle': (
        '1, 32, 0',
        'if (threadIdx.x < 31) __shfl_sync(0xffffffff, 1, 0);',
        'a lane exits while others wait for it in a shuffle|lanes 0x80000000 have exited',
    ),
    'lane_beyond_mask': ('1, 32, 0', '__syncwarp(0xffff);', 'lacks the calling lane'),
    'part_of_a_warp': ('1, 48, 0', '__syncwarp();', 'lanes 0xffff0000 have exited or do not exist'),
    'two_operations': (
        '1, 32, 0',
        'if (threadIdx.x < 16) __syncwarp(); else __any_sync(0xffffffff, 1);',
        'wait in different operations',
    ),
    'barrier_and_shuffle': (
        '1, 32, 0',
        'if (threadIdx.x < 16) __syncthreads(); else __shfl_sync(0xffffffff, 1, 0);',
        'a deadlock; 16 of 32 threads wait, the first of them in __syncthreads',
    ),
    'two_instructions': (
        '1, 32, 512',
        'extern __shared__ __align__(16) char m[]; uint32_t r[2]; if (threadIdx.x < 16)\n'
        'ldmatrix_x2(r, m + 16 * threadIdx.x); else\nldmatrix_x2(r, m);',
        'the lanes of a warp wait at different instructions',
    ),
    'misaligned_row': (
        '1, 32, 520',
        'extern __shared__ char m[]; uint32_t r[2]; ldmatrix_x2(r, m + 8 + 16 * threadIdx.x);',
        'a row is not aligned to 16 bytes',
    ),
    'row_beyond_shared': (
        '1, 32, 240',
        'extern __shared__ char m[]; uint32_t r[2]; ldmatrix_x2(r, m + 16 * (threadIdx.x % 16));',
        'a row is not in shared memory',
    ),
    'misaligned_copy': (
        '1, 1, 32',
        'extern __shared__ char m[]; mmvmamba::cp_async_16(m, in + 8);',
        'cp.async at .*: an address is not aligned to 16 bytes',
    ),
    'copy_out_of_shared': (
        '1, 1, 32',
        'mmvmamba::cp_async_16(out, in);',
        'the destination is not in shared memory',
    ),
    'write_beyond_shared': (
        '1, 1, 32',
        'extern __shared__ char m[]; m[32] = 1;',
        'a write beyond the 32 bytes of shared memory, at byte 32',
    ),
    'many_threads': ('1, 1025, 0', '', r'too many threads: a launch at .*\(1025, 1, 1\) threads'),
    'much_shared': ('1, 1, 49153', '', 'too much shared memory: .* 49153 bytes'),
    'large_grid': ('dim3(1, 65536), 1, 0', '', 'too large a grid'),
    'no_blocks': ('0, 1, 0', '', 'no blocks'),
}
#: As above; the third is whether there is a race, for ThreadSanitizer.
RACES = {
    'ordered': (
        '5, 64, 256',
        """
  extern __shared__ int values[];
  __shared__ int total[2];
  for (int i = 0; i < 3; ++i) {
    values[threadIdx.x] = i;
    __syncthreads();
    int sum = values[63 - threadIdx.x];
    sum = __shfl_xor_sync(0xffffffff, sum, 1);
    if (threadIdx.x % 32 == 0) total[threadIdx.x / 32] = sum;
    __syncwarp();
    sum += total[threadIdx.x / 32];
    __syncthreads();
    reinterpret_cast<int*>(out)[64 * blockIdx.x + threadIdx.x] = sum;
  }
""",
        False,
    ),
    'no_barrier': (*WRONG['no_barrier'][:2], True),
    'barrier_before_write': (
        '1, 64, 256',
        """
  extern __shared__ int values[];
  values[threadIdx.x] = threadIdx.x;
  __syncthreads();
  const int x = values[63 - threadIdx.x];
  values[threadIdx.x] = x;
""",
        True,
    ),
    'shuffle_is_no_barrier': (
        '1, 32, 128',
        """
  extern __shared__ int values[];
  values[threadIdx.x] = threadIdx.x;
  __shfl_sync(0xffffffff, 1, 0);
  reinterpret_cast<int*>(out)[threadIdx.x] = values[31 - threadIdx.x];
""",
        True,
    ),
    'error': ('2, 64, 0', 'if (threadIdx.x == 3) __trap(); __syncthreads();', False),
    'deadlock': ('2, 64, 0', WRONG['barrier_and_shuffle'][1], False),
    'blocks': ('2, 32, 0', '__syncthreads(); if (threadIdx.x == blockIdx.x) out[0] = 1;', True),
}


def kernels(table):
    return {name: values[:2] for name, values in table.items()}


@pytest.fixture(scope='module')
def program(tmp_path_factory):
    """The right and the wrong kernels, without a sanitizer."""
    return Program(tmp_path_factory.mktemp('emulator'), kernels(RIGHT) | kernels(WRONG))


@pytest.fixture(scope='module')
def racing(tmp_path_factory):
    """The kernels under ThreadSanitizer, if it runs here."""
    try:
        program = Program(tmp_path_factory.mktemp('tsan'), kernels(RACES), 'thread')
    except subprocess.CalledProcessError:
        pytest.skip('the compiler has no ThreadSanitizer')
    # Its memory map does not fit every random layout of a process.
    fixed = ['setarch', platform.machine(), '-R']
    if shutil.which('setarch') and subprocess.run([*fixed, 'true'], check=False).returncode == 0:
        program.prefix = fixed
    if program.start('none').returncode != 0:
        pytest.skip('ThreadSanitizer does not run here')
    return program


def test_shuffles(program):
    x = np.random.default_rng(0).integers(0, 10**9, 64, dtype=np.int32)
    got = program.run('shuffles', x, (64, 8), np.int32)
    lane = np.arange(32)
    sources = [
        (lane * 7 + 3) % 32,
        np.where(lane >= 3, lane - 3, lane),
        np.where(lane < 27, lane + 5, lane),
        lane ^ 9,
        lane // 8 * 8 + 3,
        np.where(lane % 8 >= 2, lane - 2, lane),
        # From a group of lanes to an earlier one, not to a later one.
        np.where((lane ^ 9) // 8 <= lane // 8, lane ^ 9, lane),
        np.where(lane % 16 < 15, lane + 1, lane),
    ]
    want = np.concatenate([x[:32][np.array(sources)], x[32:][np.array(sources)]], axis=1).T
    np.testing.assert_array_equal(got, want)


def test_votes(program):
    got = program.run('votes', [0], (32, 4), np.uint32)
    thirds = sum(1 << lane for lane in range(0, 32, 3))
    low, high = np.arange(32) < 16, np.arange(32) >= 16
    want = [
        np.full(32, thirds),
        np.where(low, thirds & 0xFFFF, thirds & 0xFFFF0000),
        high,
        low,
    ]
    np.testing.assert_array_equal(got, np.array(want).T)


def test_arithmetic(program):
    got = program.run('arithmetic', [0], (10,), np.float32)
    np.testing.assert_allclose(got, [8, 31, 3, 2.5, 6, 0.4, 6, 8, 0.25, 2.5], rtol=1e-6)


def fragment(matrix):
    """The words of an 8 x 8 matrix by lane: row l / 4, columns 2 (l % 4) and the next one."""
    return matrix.astype(np.uint16).reshape(-1).view(np.uint32)


def test_ldmatrix_and_movmatrix(program):
    matrices = np.arange(256, dtype=np.uint16).reshape(4, 8, 8) * 251
    got = program.run('ldmatrix', matrices, (32, 13), np.uint32)
    plain = [fragment(m) for m in matrices]
    transposed = [fragment(m.T.copy()) for m in matrices]
    want = [*plain, *transposed, *plain[:2], *transposed[:2], transposed[0]]
    np.testing.assert_array_equal(got, np.array(want).T)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_mma(program, dtype):
    generator = torch.Generator().manual_seed(0)
    a, b, d = (torch.randn(s, generator=generator) for s in ((16, 16), (16, 8), (16, 8)))
    if dtype == torch.float16:
        a[3, 4], a[5, 6], b[7, 1] = 6e-8, 60000.0, -1e-6  # subnormal ones, and a large one
    a, b = a.to(dtype), b.to(dtype)
    words_a, words_b = (v.contiguous().view(torch.int16).numpy() for v in (a, b))
    lanes = []
    for lane in range(32):
        g, t = divmod(lane, 4)  # PTX ISA, "Matrix Fragments for mma.m16n8k16"
        rows, columns = [g, g + 8, g, g + 8], [2 * t, 2 * t, 2 * t + 8, 2 * t + 8]
        from_a = [words_a[r, c : c + 2] for r, c in zip(rows, columns, strict=True)]
        from_b = [words_b[k : k + 2, g] for k in (2 * t, 2 * t + 8)]
        from_d = [d.numpy()[r, 2 * t : 2 * t + 2] for r in (g, g + 8)]
        lanes += [v.tobytes() for v in (*from_a, *from_b, *from_d)]
    values = np.frombuffer(b''.join(lanes), np.uint8)
    name = 'mma' if dtype == torch.float16 else 'mma_bfloat16'
    got = program.run(name, values, (32, 4), np.float32)
    want = (d.double() + a.double() @ b.double()).numpy()
    for lane in range(32):
        g, t = divmod(lane, 4)
        part = np.concatenate([want[g, 2 * t : 2 * t + 2], want[g + 8, 2 * t : 2 * t + 2]])
        np.testing.assert_allclose(got[lane], part, rtol=1e-6)


@pytest.mark.parametrize('seed', [0, 1])
def test_copies_arrive_when_they_are_waited_for(program, seed):
    values = np.arange(256, dtype=np.float32).reshape(32, 8)
    got = program.run('copies', values, (32, 6), np.float32, seed)
    poison = np.frombuffer(bytes([0x7F, 0xFF][seed] for _ in range(4)), np.float32)[0]
    want = np.stack([values[:, 3], values[:, 3], values[:, 5], values[:, 6]], axis=1)
    np.testing.assert_array_equal(got[:, [1, 3, 4, 5]], want)
    np.testing.assert_array_equal(got[:, [0, 2]], np.full((32, 2), poison))


@pytest.mark.parametrize('seed', range(4))
def test_shared_memory_of_both_kinds(program, seed):
    got = program.run('sum', np.arange(96, dtype=np.float32), (3,), np.float32, seed)
    np.testing.assert_array_equal(got, np.array([1, 2, 3]) * 2 * 96 * 95 / 2)


@pytest.mark.parametrize('name', [name for name, values in WRONG.items() if values[2]])
def test_errors_have_words(program, name):
    result = program.start(name, count=1)
    assert result.returncode == 1
    assert re.search(WRONG[name][2], result.stderr), result.stderr


@pytest.mark.parametrize('name', ['no_barrier', 'no_syncwarp'])
def test_a_missing_barrier_changes_the_result(program, name):
    threads = 64 if name == 'no_barrier' else 32
    for seed in range(4):
        got = program.run(name, [0], (threads,), np.int32, seed)
        assert not np.array_equal(got, threads - 1 - np.arange(threads))


def test_uninitialized_memory_changes_with_the_seed(program):
    first, second = (program.run('uninitialized', [0], (32,), np.int32, seed) for seed in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize('name', list(RACES))
def test_races(racing, name):
    result = racing.start(name, count=1 << 14)
    if not RACES[name][2]:
        assert 'ThreadSanitizer' not in result.stderr, result.stderr
    else:
        assert 'WARNING: ThreadSanitizer: data race' in result.stderr, result.stderr
        assert re.search(r'kernels\.cu:\d+', result.stderr)


@pytest.mark.slow
def test_address_sanitizer_sees_the_end_of_shared_memory(tmp_path):
    body = 'extern __shared__ char m[]; __syncthreads(); m[threadIdx.x + 1] = 1;'
    program = Program(tmp_path, {'beyond': ('1, 33, 33', body)}, 'address')
    result = program.start('beyond', count=1)
    assert result.returncode != 0
    assert 'heap-buffer-overflow' in result.stderr and 'kernels.cu' in result.stderr, result.stderr


@pytest.mark.parametrize(
    ('cuda', 'want'),
    [
        ('f<<<1, 2>>>();', 'cuda_emulator::launch(f, cuda_emulator::Config(1, 2));'),
        (
            'n::f<A<1>, 2>\n  <<<g(1), b, s>>>(x, // <<<\n y);',
            'cuda_emulator::launch(n::f<A<1>, 2>\n  , cuda_emulator::Config(g(1), b, s), '
            'x, // <<<\n y);',
        ),
        ('x << 3 >> 2;', 'x << 3 >> 2;'),
        (
            'extern __shared__ __align__(16) unsigned char m[];',
            'unsigned char* const m = '
            'static_cast<unsigned char*>(cuda_emulator::dynamic_shared());',
        ),
        (
            '__shared__ float t[4][N + 1];',
            'auto& t = cuda_emulator::static_shared<float [4][N + 1], 0>();',
        ),
    ],
)
def test_translation(cuda, want):
    assert translate.translate(cuda, 'a.cu') == f'#line 1 "a.cu"\n{want}'


@pytest.mark.parametrize(
    'cuda', ['__shared__ float a, b;', 'extern __shared__ float a;', '<<<1, 2>>>();', 'f<<<1>>>;']
)
def test_what_cannot_be_translated_is_refused(cuda):
    with pytest.raises(ValueError, match='^a.cu: '):
        translate.translate(cuda, 'a.cu')


def test_unchanged_sources_keep_their_time(tmp_path):
    source, target = tmp_path / 'source', tmp_path / 'target'
    source.mkdir()
    (source / 'a.cu').write_text('f<<<1, 2>>>();')
    (source / 'ptx.h').write_text('not this')
    assert translate.translate_tree(source, target) == [target / 'a.cu.cpp']
    before = (target / 'a.cu.cpp').stat().st_mtime_ns
    assert 'mma_16x8x16' in (target / 'ptx.h').read_text()
    translate.translate_tree(source, target)
    assert (target / 'a.cu.cpp').stat().st_mtime_ns == before
