#!/usr/bin/env bash
# Trains as a Slurm job: one task for each GPU.
set -euo pipefail

USAGE='usage: slurm_train.sh PARTITION JOB CONFIG WORK_DIR [arguments of train.py]'
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
require "${1:-}" PARTITION
require "${2:-}" JOB
require "${3:-}" CONFIG
require "${4:-}" WORK_DIR
run_srun "$1" "$2" train.py "$3" --work-dir "$4" "${@:5}"
