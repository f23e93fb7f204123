#!/usr/bin/env bash
# Tests with torchrun: one process for each GPU, or processes on the CPU if there is no GPU.
set -euo pipefail

USAGE='usage: dist_test.sh CONFIG CKPT GPUS [arguments of test.py]'
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
require "${1:-}" CONFIG
require "${2:-}" CKPT
require_count "${3:-}" GPUS
run_torchrun "$3" test.py "$1" "$2" "${@:4}"
