#!/usr/bin/env bash
# Submits launch/sky.yaml as a managed job, which survives spot preemptions.
#
#   launch/sky.sh --run mine --bucket my-bucket [--nodes 2] [--gpus H100:8] [--dry_run] -- \
#       --config configs/multitask.py:gpt2
set -euo pipefail

run="" bucket="" nodes=1 gpus=H100:8 dry_run=""
while [[ $# -gt 0 ]]; do
  case $1 in
    --run) run=$2; shift 2 ;;
    --bucket) bucket=$2; shift 2 ;;
    --nodes) nodes=$2; shift 2 ;;
    --gpus) gpus=$2; shift 2 ;;
    --dry_run) dry_run=1; shift ;;
    --) shift; break ;;
    *) echo "error: unknown argument '$1'; the training's own arguments come after --" >&2; exit 2 ;;
  esac
done
if [[ -z $run || -z $bucket ]]; then
  echo "error: --run and --bucket are needed: they say where the run continues after a preemption" >&2
  exit 2
fi
command=(sky jobs launch --yes -n "$run" "--num-nodes=$nodes" "--gpus=$gpus"
  --env "RUN=$run" --env "BUCKET=$bucket" --env "ARGS=$*" "$(dirname "$0")/sky.yaml")
printf '%q ' "${command[@]}"
echo
[[ -n $dry_run ]] || "${command[@]}"
