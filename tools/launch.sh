# Functions of dist_train.sh, dist_test.sh, slurm_train.sh and slurm_test.sh.

TOOLS=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-python}

# fail MESSAGE: print the message and the usage of the script, which sets USAGE, and exit.
fail() {
    echo "${0##*/}: error: $1" >&2
    echo "$USAGE" >&2
    echo 'docs/tools.md lists the environment variables' >&2
    exit 2
}

# require VALUE NAME: check that an argument is given.
require() {
    [[ -n $1 ]] || fail "$2 is missing"
}

# require_count VALUE NAME: check that a value is a whole number above 0.
require_count() {
    require "$1" "$2"
    [[ $1 =~ ^[1-9][0-9]*$ ]] || fail "$2 must be a whole number above 0, but got '$1'"
}

# require_free_port PORT: check that no other run listens; torchrun would end with a traceback.
# A listener with a full backlog does not answer, which counts as in use. A port that is bound
# without a listener, or only to another address, is not seen.
require_free_port() {
    local status=0
    timeout 2 bash -c ': <> "/dev/tcp/127.0.0.1/$1"' _ "$1" 2> /dev/null || status=$?
    [[ $status != 0 && $status != 124 ]] || fail "port $1 is in use; set PORT to a free one"
}

# run_torchrun GPUS SCRIPT ARGUMENTS...: run a tool with torchrun.
run_torchrun() {
    local gpus=$1 script=$2 nodes=${NNODES:-1} rendezvous
    shift 2
    require_count "$nodes" NNODES
    # One node needs no address. Without PORT it uses a free one, so that jobs can share a machine.
    rendezvous=(--standalone --local-addr 127.0.0.1)
    if [[ $nodes != 1 || -n ${PORT:-} ]]; then
        rendezvous=(
            --nnodes "$nodes"
            --node-rank "${NODE_RANK:-0}"
            --master-addr "${MASTER_ADDR:-127.0.0.1}"
            --master-port "${PORT:-29500}"
        )
        [[ ${NODE_RANK:-0} != 0 ]] || require_free_port "${PORT:-29500}"
    fi
    [[ -z ${MAX_RESTARTS:-} ]] || rendezvous+=(--max-restarts "$MAX_RESTARTS")
    # After a restart the processes must not find the addresses of the killed ones in the store.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}
    local name status
    for name in TERM USR1 USR2; do
        trap "signal_workers $name" "$name"
    done
    for name in INT HUP QUIT; do
        trap "signal_torchrun $name" "$name"
    done
    # torchrun gets its own process group; the traps pass on the signals to this script's group.
    set -m
    "$PYTHON" -m torch.distributed.run "${rendezvous[@]}" --nproc-per-node "$gpus" \
        "$TOOLS/$script" "$@" --launcher pytorch &
    set +m
    while true; do
        SIGNALLED= status=0
        wait "$!" || status=$?
        [[ -n $SIGNALLED ]] || exit "$status" # wait ends at a signal too
    done
}

# signal_torchrun SIGNAL: end torchrun, which is $!, and all its processes.
signal_torchrun() {
    SIGNALLED=1
    kill -s "$1" "$!" 2> /dev/null || true
}

# signal_workers SIGNAL: let the training processes save and exit with 0, and torchrun after them.
# If torchrun got the signal, it would kill them after 30 seconds and exit with a traceback and 1.
signal_workers() {
    local found pid
    SIGNALLED=1
    found=$(workers)
    kill -s "$1" ${found:-$!} 2> /dev/null || true
    while kill -0 "$!" 2> /dev/null; do
        sleep 0.2
        # Processes that could not save yet died of the signal; torchrun must not restart them.
        for pid in $(workers); do
            [[ " $found " == *" $pid "* ]] || signal_torchrun TERM
        done
    done
}

# workers: print the ids of the processes that torchrun started.
workers() {
    cat "/proc/$!/task"/*/children 2> /dev/null || true
}

# run_srun PARTITION JOB SCRIPT ARGUMENTS...: run a tool with srun.
run_srun() {
    local partition=$1 job=$2 script=$3 gpus=${GPUS:-8} per_node extra=()
    shift 3
    require_count "$gpus" GPUS
    per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    require_count "$per_node" GPUS_PER_NODE
    require_count "${CPUS_PER_TASK:-5}" CPUS_PER_TASK
    # Split into words without expansion; read returns 1 if there is no delimiter.
    read -r -d '' -a extra <<< "${SRUN_ARGS:-}" || true
    if [[ -n ${PORT:-} ]]; then
        export MASTER_PORT=$PORT
    fi
    exec srun --partition="$partition" --job-name="$job" --gres=gpu:"$per_node" \
        --ntasks="$gpus" --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 ${extra[@]+"${extra[@]}"} \
        "$PYTHON" -u "$TOOLS/$script" "$@" --launcher slurm
}
