#!/usr/bin/env bash
# Trains with torchrun: one process for each GPU, or processes on the CPU if there is no GPU.
set -euo pipefail

USAGE='usage: dist_train.sh CONFIG GPUS [arguments of train.py]'
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
require "${1:-}" CONFIG
require_count "${2:-}" GPUS
run_torchrun "$2" train.py "$1" "${@:3}"
