#!/usr/bin/env bash
# Tests as a Slurm job: one task for each GPU.
set -euo pipefail

USAGE='usage: slurm_test.sh PARTITION JOB CONFIG CKPT [arguments of test.py]'
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
require "${1:-}" PARTITION
require "${2:-}" JOB
require "${3:-}" CONFIG
require "${4:-}" CKPT
run_srun "$1" "$2" test.py "$3" "$4" "${@:5}"
