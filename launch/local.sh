#!/usr/bin/env bash
# Trains with N processes on this machine, a GPU each where there are GPUs:
#   launch/local.sh N --config FILE --workdir DIR --data DIR [...]
# One process uses all GPUs of a machine by itself: this is for trying out several.
# Ctrl-C or SIGTERM: all save the same step and exit with 75; the same command goes on.
set -euo pipefail
number=${1:?usage: launch/local.sh N --config FILE --workdir DIR --data DIR}
shift
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')

pids=()
for ((index = 0; index < number; index++)); do
  JAX_LOCAL_DEVICE_IDS=$index osteojax train --coordinator "localhost:$port" \
    --num-processes "$number" --process-id "$index" "$@" &
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT

status=0
for pid in "${pids[@]}"; do
  wait "$pid" && code=0 || code=$?
  while kill -0 "$pid" 2>/dev/null; do # the signal ended the wait, not the process
    wait "$pid" && code=0 || code=$?
  done
  ((code == 0)) || status=$code
done
exit "$status"
