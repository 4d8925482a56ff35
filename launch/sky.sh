#!/usr/bin/env bash
# Submits launch/sky.yaml as a managed job, which survives spot preemptions.
#
#   launch/sky.sh --run mine --bucket my-bucket [--nodes 2] [--gpus H100:8] [--dry_run] -- \
#       --config configs/multitask.py:gpt2
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=options.sh
. "$(dirname "$0")/options.sh"

run="" bucket="" nodes=1 gpus=H100:8 dry_run=""
parse "run bucket nodes gpus" "dry_run" "$@"
accelerated
need run bucket # they say where the run continues after a preemption
words "the command goes through an environment variable"
command=(sky jobs launch --yes -n "$run" "--num-nodes=$nodes" "--gpus=$gpus"
  --env "RUN=$run" --env "BUCKET=$bucket" --env "ARGS=$module ${arguments[*]}" "$(dirname "$0")/sky.yaml")
printf '%q ' "${command[@]}"
echo
[[ -n $dry_run ]] || "${command[@]}"
