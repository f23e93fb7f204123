#!/usr/bin/env bash
# Build, test and benchmark on a GPU: the eight steps of benchmarks/gpu_steps, one after the other.
#
# usage: [DEVICE=cuda] [MINUTES=8] [STEPS=1-8] [PYTHON=python3] bash benchmarks/gpu_check.sh [OUT]
#
# Needs torch, triton, NumPy, pytest and, to build the kernels, a C++ compiler, nvcc and ninja; no
# network and no OpenMMLab. A run stops after MINUTES; a later one with the same OUT resumes it. OUT,
# by default work_dirs/gpu_check (on a CPU work_dirs/gpu_check_cpu), gets results.json, log.txt,
# summary.md and summary.json. Exit status: 0 passed, 1 failed, 2 wrong arguments, 3 unfinished.
set -euo pipefail

benchmarks=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
device=${DEVICE:-cuda}
out=work_dirs/gpu_check
[[ $device == cuda ]] || out+=_$device
exec "${PYTHON:-python3}" "$benchmarks/gpu_check.py" --out "${1:-${OUT:-$out}}" \
  --device "$device" --minutes "${MINUTES:-8}" --steps "${STEPS:-1-8}"
