#!/usr/bin/env bash
# Submits launch/slurm.sbatch: NODES × GPUS processes, requeued until the command is done.
#
#   launch/slurm.sh [--nodes 2] [--gpus 8] [--time 24:00:00] [--partition NAME] [--account NAME] \
#       [--dry_run] -- --config configs/multitask.py:gpt2 --workdir /shared/runs/mine
#
# `-- evaluate --workdir …` and `-- prepare --out …` start those. The workdir must lie on a disk that all nodes share.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=options.sh
. "$(dirname "$0")/options.sh"

nodes=1 gpus=8 time=24:00:00 partition="" account="" dry_run=""
parse "nodes gpus time partition account" "dry_run" "$@"
folder ", on a disk that all nodes share"
command=(sbatch "--nodes=$nodes" "--ntasks-per-node=$gpus" "--gpus-per-node=$gpus"
  "--time=$time" ${partition:+"--partition=$partition"} ${account:+"--account=$account"}
  "$(dirname "$0")/slurm.sbatch" "$module" "${arguments[@]}")
printf '%q ' "${command[@]}"
echo
[[ -n $dry_run ]] || "${command[@]}"
