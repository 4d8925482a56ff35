#!/usr/bin/env bash
# Submits launch/slurm.sbatch: NODES × GPUS processes, requeued until the training is done.
#
#   launch/slurm.sh [--nodes 2] [--gpus 8] [--time 24:00:00] [--partition NAME] [--account NAME] \
#       [--dry_run] -- --config configs/multitask.py:gpt2 --workdir /shared/runs/mine
#
# The workdir must lie on a disk that all nodes share.
set -euo pipefail

nodes=1 gpus=8 limit=24:00:00 dry_run="" more=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --nodes) nodes=$2; shift 2 ;;
    --gpus) gpus=$2; shift 2 ;;
    --time) limit=$2; shift 2 ;;
    --partition | --account) more+=("$1=$2"); shift 2 ;;
    --dry_run) dry_run=1; shift ;;
    --) shift; break ;;
    *) echo "error: unknown argument '$1'; the training's own arguments come after --" >&2; exit 2 ;;
  esac
done
if [[ " $* " != *" --workdir"* ]]; then
  echo "error: give --workdir DIR after --, on a disk that all nodes share" >&2
  exit 2
fi
command=(sbatch "--nodes=$nodes" "--ntasks-per-node=$gpus" "--gpus-per-node=$gpus"
  "--time=$limit" ${more[@]+"${more[@]}"} "$(dirname "$0")/slurm.sbatch" "$@")
printf '%q ' "${command[@]}"
echo
[[ -n $dry_run ]] || "${command[@]}"
