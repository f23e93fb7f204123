#!/usr/bin/env bash
# Trains as a Slurm job: one task for each GPU.
set -euo pipefail

usage() {
    cat << 'USAGE'
usage: slurm_train.sh PARTITION JOB CONFIG WORK_DIR [arguments of train.py]

  PARTITION  Slurm partition
  JOB        name of the job
  CONFIG     config file
  WORK_DIR   folder of logs and checkpoints

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
require "${4:-}" WORK_DIR
run_srun "$1" "$2" train.py "$3" --work-dir "$4" "${@:5}"
