#!/usr/bin/env bash
# Tests with torchrun: one process for each GPU, or on the CPU where there is none.
set -euo pipefail

usage() {
    cat << 'USAGE'
usage: dist_test.sh CONFIG CKPT GPUS [arguments of test.py]

  CONFIG  config file
  CKPT    checkpoint file or URL
  GPUS    number of processes on this node, one for each GPU

On several nodes start it on each of them, with the same NNODES, MASTER_ADDR and PORT.

environment:
  NNODES        number of nodes (default: 1)
  NODE_RANK     which of them this is, from 0 (default: 0)
  MASTER_ADDR   address of node 0 (default: 127.0.0.1)
  PORT          a free port of node 0 (default: any free one on a single node, else 29500)
  MAX_RESTARTS  how often all processes start again after one failed (default: 0)
  PYTHON        the Python to run (default: python)
USAGE
}

source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
require "${1:-}" CONFIG
require "${2:-}" CKPT
require_count "${3:-}" GPUS
run_torchrun "$3" test.py "$1" "$2" "${@:4}"
