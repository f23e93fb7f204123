"""The limit on a kernel's shared memory, against a stand-in for the CUDA runtime."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
#include <cstdio>
#include <initializer_list>
#include "cuda/scan_shared_memory.h"

namespace { int device = 0, failing = 0; }

cudaError_t cudaGetDevice(int* out) { *out = device; return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* out, cudaDeviceAttr name, int index) {
  *out = name == cudaDevAttrMaxSharedMemoryPerBlockOptin ? 1000 + index : -1;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute name, int bytes) {
  if (failing-- > 0) return cudaErrorInvalidValue;
  std::printf("%d:%d ", device,
              name == cudaFuncAttributeMaxDynamicSharedMemorySize ? bytes : -1);
  return cudaSuccess;
}

int main() {
  std::atomic<uint64_t> first{0}, second{0};
  const auto launch = [](int index, std::atomic<uint64_t>& raised) {
    device = index;
    return mmvmamba::raise_shared_memory_limit(nullptr, raised);
  };
  for (int index : {0, 0, 3, 0, 3}) launch(index, first);  // once for each device
  launch(0, second);                                       // another kernel
  for (int i = 0; i < 2; ++i) launch(64, first);           // beyond the bits: each time
  failing = 1;
  if (launch(5, first) == cudaSuccess) return 1;
  launch(5, first);  // a failure is not remembered
}
"""


def cuda_include():
    """A folder with the headers of the CUDA runtime: of a toolkit, or of NVIDIA's wheels."""
    homes = [os.environ.get('CUDA_HOME'), '/usr/local/cuda']
    nvcc = shutil.which('nvcc')
    homes += [Path(nvcc).resolve().parent.parent] if nvcc else []
    folders = [Path(home) / 'include' for home in homes if home]
    for path in map(Path, sys.path):
        folders += [path / 'nvidia/cu13/include', path / 'nvidia/cuda_runtime/include']
    return next((f for f in folders if (f / 'cuda_runtime_api.h').is_file()), None)


@pytest.mark.skipif(shutil.which('c++') is None, reason='no C++ compiler')
@pytest.mark.skipif(cuda_include() is None, reason='no headers of the CUDA runtime')
def test_the_limit_is_raised_once_for_each_device_and_never_lowered(tmp_path):
    source, program = tmp_path / 'main.cpp', tmp_path / 'main'
    source.write_text(PROGRAM)
    command = ['c++', '-std=c++17', f'-I{ROOT / "csrc"}', f'-isystem{cuda_include()}']
    subprocess.run([*command, str(source), '-o', str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['0:1000', '3:1003', '0:1000', '64:1064', '64:1064', '5:1005']


def test_no_launch_sets_the_limit_by_itself():
    files = sorted((ROOT / 'csrc' / 'cuda').iterdir())
    setters = [f.name for f in files if 'cudaFuncSetAttribute' in f.read_text()]
    assert setters == ['scan_shared_memory.h']
