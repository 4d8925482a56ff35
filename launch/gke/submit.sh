#!/usr/bin/env bash
# Submits a JobSet: fills tpu.yaml or gpu.yaml and gives it to kubectl.
#
#   launch/gke/submit.sh (tpu|gpu) --image IMAGE --run mine --bucket my-bucket [--check] [--dry_run] -- \
#       --config configs/multitask.py:gpt2
#
# tpu --check first compiles the run's programs for the TPU of tpu.yaml on this machine (extra `tpu`),
# and submits nothing where one does not fit. The bucket must be readable and writable for the
# Kubernetes service account 'rmt-jax'.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../options.sh
. "$(dirname "$0")/../options.sh"

kind=${1:-} image="" run="" bucket="" dry_run="" check=""
[[ $kind == tpu || $kind == gpu ]] || fail "the first argument is tpu or gpu"
shift
parse "image run bucket" "check dry_run" "$@"
accelerated
need image run bucket
words "the command goes into YAML"
[[ $run =~ ^[a-z]([a-z0-9-]{0,40}[a-z0-9])?$ ]] ||
  fail "--run '$run' must be a Kubernetes name: a-z, 0-9 and '-', from a letter, 42 at most"
[[ "${arguments[*]}" != *[\"\\\|\&]* ]] ||
  fail "the command's arguments go into YAML and take no quotes, backslashes, | or &"
said() { sed -n "s/^ *cloud.google.com\/gke-tpu-$1: *//p" "$(dirname "$0")/tpu.yaml"; }
if [[ -n $check ]]; then
  [[ $kind == tpu ]] || fail "--check compiles for TPUs: python -m rmt_jax.doctor --plan says it of GPUs"
  tpu=$(said accelerator) # tpu-v6e-slice, tpu-v5-lite-podslice, tpu-v5p-slice, tpu7x
  tpu=${tpu#tpu-} tpu=${tpu%-*slice}
  checked "${tpu/v5-lite/v5e}:$(said topology)"
fi
filled=$(sed -e '/^ *#/d' -e "s|\bIMAGE\b|$image|; s|\bRUN\b|$run|g; s|\bBUCKET\b|$bucket|; s|\bARGS\b|$module ${arguments[*]}|" \
  "$(dirname "$0")/$kind.yaml")
if [[ -n $dry_run ]]; then
  echo "$filled"
  echo "# kubectl apply -f -"
else
  kubectl apply -f - <<<"$filled"
fi
