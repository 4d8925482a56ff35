#!/usr/bin/env bash
# Trains, evaluates or prepares on this machine: one process with all its GPUs (or its CPU), started
# again for as long as it asks for that (exit code 75: it was told to stop and has saved everything).
#
#   launch/node.sh [--processes N] [--restarts N] [--dry_run] -- --config configs/multitask.py \
#       --workdir runs/mine
#   launch/node.sh -- evaluate --workdir runs/mine --lengths 128k
#
# --processes N   N processes that talk over localhost, each with its share of the GPUs. One process
#                 is as fast; this is how a cluster is rehearsed on one machine.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=options.sh
. "$(dirname "$0")/options.sh"

pids=() told="" # to stop
trap 'told=1; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT

processes=1 restarts=100 dry_run=""
parse "processes restarts" "dry_run" "$@"
folder ": a run that is started again must find its folder"
command=("${PYTHON:-python}" -m "rmt_jax.$module" "${arguments[@]}")

gpus() {
  if [[ ${JAX_PLATFORMS:-} == cpu* ]]; then echo 0; return; fi
  find /dev -maxdepth 1 -name 'nvidia[0-9]*' | wc -l
}

once() {
  if [[ $processes -eq 1 ]]; then
    "${command[@]}" &
    pids=($!)
  else
    local share=$(($(gpus) / processes)) port=$((20000 + RANDOM % 20000))
    pids=()
    for ((i = 0; i < processes; i++)); do
      (
        export COORDINATOR_ADDRESS=localhost:$port NUM_PROCESSES=$processes PROCESS_ID=$i
        if [[ $share -gt 0 ]]; then
          CUDA_VISIBLE_DEVICES=$(seq -s, $((i * share)) $((i * share + share - 1)))
          export CUDA_VISIBLE_DEVICES
        fi
        exec "${command[@]}"
      ) &
      pids+=($!)
    done
  fi
  # Told while they were being started: some of them may not have heard it.
  [[ -z $told ]] || kill -TERM "${pids[@]}" 2>/dev/null || true
  local code=0 one
  for pid in "${pids[@]}"; do
    # Not `wait` alone: a signal ends it early, and of one that came just before it bash hears when
    # the process ends. Of a process that is gone it gives the code at once.
    while kill -0 "$pid" 2>/dev/null; do sleep 0.5; done
    one=0
    wait "$pid" || one=$?
    [[ $one -gt $code ]] && code=$one
  done
  return "$code"
}

if [[ -n $dry_run ]]; then
  for ((i = 0; i < processes; i++)); do
    [[ $processes -gt 1 ]] &&
      printf 'COORDINATOR_ADDRESS=localhost:PORT NUM_PROCESSES=%d PROCESS_ID=%d ' "$processes" "$i"
    printf '%q ' "${command[@]}"
    echo
  done
  exit 0
fi

for ((try = 0; try <= restarts; try++)); do
  [[ -z $told ]] || exit 75 # between two tries: all is saved
  code=0
  once || code=$?
  # Stopped from outside: whoever stopped us decides about starting again.
  if [[ $code -ne 75 || -n $told ]]; then exit "$code"; fi
  echo "the run asks to be started again ($((try + 1)) of $restarts)" >&2
done
exit 75
