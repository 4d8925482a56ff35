#!/usr/bin/env bash
# Submits a JobSet: fills tpu.yaml or gpu.yaml and gives it to kubectl.
#
#   launch/gke/submit.sh (tpu|gpu) --image IMAGE --run mine --bucket my-bucket [--dry_run] -- \
#       --config configs/multitask.py:gpt2
#
# The bucket must be readable and writable for the Kubernetes service account 'rmt-jax'.
set -euo pipefail

kind=${1:-} image="" run="" bucket="" dry_run=""
if [[ $kind != tpu && $kind != gpu ]]; then
  echo "error: the first argument is tpu or gpu" >&2
  exit 2
fi
shift
while [[ $# -gt 0 ]]; do
  case $1 in
    --image) image=$2; shift 2 ;;
    --run) run=$2; shift 2 ;;
    --bucket) bucket=$2; shift 2 ;;
    --dry_run) dry_run=1; shift ;;
    --) shift; break ;;
    *) echo "error: unknown argument '$1'; the training's own arguments come after --" >&2; exit 2 ;;
  esac
done
for needed in image run bucket; do
  if [[ -z ${!needed} ]]; then
    echo "error: --$needed is missing (see the head of $0)" >&2
    exit 2
  fi
done
if [[ ! $run =~ ^[a-z]([a-z0-9-]{0,40}[a-z0-9])?$ ]]; then
  echo "error: --run '$run' must be a Kubernetes name: a-z, 0-9 and '-', from a letter, 42 at most" >&2
  exit 2
fi
if [[ $* == *[\"\\\|\&]* ]]; then
  echo "error: the training's arguments go into YAML and take no quotes, backslashes, | or &" >&2
  exit 2
fi
filled=$(sed -e '/^ *#/d' -e "s|\bIMAGE\b|$image|; s|\bRUN\b|$run|g; s|\bBUCKET\b|$bucket|; s|\bARGS\b|$*|" \
  "$(dirname "$0")/$kind.yaml")
if [[ -n $dry_run ]]; then
  echo "$filled"
  echo "# kubectl apply -f -"
else
  kubectl apply -f - <<<"$filled"
fi
