#!/usr/bin/env bash
# Run a Ray cluster on this machine that asks for a token, a head and a worker node, until Ctrl-C.
#
#   infra/ray/cluster.sh DATA [PORT] [DASHBOARD_PORT] [CPUS_PER_NODE]      (6379, 8265, 1)
#
# The dashboard, through which jobs come, listens on 127.0.0.1. Ray's own ports listen on every interface, as Ray cannot
# be told otherwise: they ask for the token, but on an open network a firewall belongs before them.
#
# Jobs reach object storage with the AWS_* variables that this script is started with.
#
# DATA keeps the token (readable by you alone). CPUS_PER_NODE is for each of the two nodes. What Ray itself keeps while
# it runs is in /tmp/btinet-ray-*, as its sockets need short paths.
set -euo pipefail
data=$(realpath -m "${1:?usage: cluster.sh DATA [PORT] [DASHBOARD_PORT] [CPUS_PER_NODE]}")
port=${2:-6379} dashboard=${3:-8265} cpus=${4:-1}
cd "$(dirname "$0")/../.."

umask 077
mkdir -p "$data"
[ -s "$data/token" ] || head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$data/token"
unset RAY_ADDRESS RAY_AUTH_TOKEN
export PATH=$PWD/.venv/bin:$PATH  # jobs run as the `python` that is found there
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$data/token RAY_TRAIN_ENABLE_STATE_TRACKING=1
scratch=$(mktemp -d /tmp/btinet-ray-XXXXXX)

nodes=()
stop() {
  for node in "${nodes[@]}"; do kill "$node" 2> /dev/null || true; done
  for node in "${nodes[@]}"; do wait "$node" 2> /dev/null || true; done
  rm -rf "$scratch"
}
trap stop EXIT
trap 'exit 0' INT TERM

start() {
  .venv/bin/ray start --block --node-ip-address=127.0.0.1 --num-cpus="$cpus" --object-store-memory=200000000 \
    --disable-usage-stats "$@" &
  nodes+=($!)
}
start --head --port="$port" --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" \
  --temp-dir="$scratch/head"
until .venv/bin/ray health-check --address="127.0.0.1:$port" 2> /dev/null; do
  kill -0 "${nodes[0]}" || { echo "cluster.sh: the head did not start" >&2; exit 1; }
  sleep 1
done
start --address="127.0.0.1:$port" --temp-dir="$scratch/worker"
echo "Ray: export RAY_ADDRESS=http://127.0.0.1:$dashboard RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$data/token"
wait -n "${nodes[@]}"
echo "cluster.sh: a node ended" >&2
exit 1
