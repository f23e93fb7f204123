#!/usr/bin/env bash
# Tests as a Slurm job: one task for each GPU.
set -euo pipefail

usage() {
    cat << 'USAGE'
usage: slurm_test.sh PARTITION JOB CONFIG CKPT [arguments of test.py]

  PARTITION  Slurm partition
  JOB        name of the job
  CONFIG     config file
  CKPT       checkpoint file or URL

environment:
  GPUS           number of processes, one for each GPU (default: 8)
  GPUS_PER_NODE  how many of them on a node (default: GPUS, 8 at most)
  CPUS_PER_TASK  cores of a process (default: 5)
  SRUN_ARGS      more arguments of srun, separated by spaces; --gres=none asks for no GPU
  PORT           a free port of the first node (default: 29500)
  PYTHON         the Python to run (default: python)
USAGE
}

source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
require "${1:-}" PARTITION
require "${2:-}" JOB
require "${3:-}" CONFIG
require "${4:-}" CKPT
run_srun "$1" "$2" test.py "$3" "$4" "${@:5}"
