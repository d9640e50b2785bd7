#!/usr/bin/env bash
# Train on several GPUs: tools/dist_train.sh CONFIG GPUS [ARGUMENTS OF tools/train.py]
# On several machines, set NNODES, NODE_RANK, MASTER_ADDR and PORT on each.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 CONFIG GPUS [ARGUMENTS OF tools/train.py]" >&2; exit 2; }
exec python -m torch.distributed.run --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$2" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
  "$(dirname "$0")/train.py" "$1" --launcher pytorch "${@:3}"
