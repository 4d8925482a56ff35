#!/usr/bin/env bash
# Trains on a Cloud TPU, one VM or a whole pod slice: requests it (or reuses the one of this name),
# copies this checkout to all workers, installs, mounts a bucket for the runs, trains, and does it
# all again after a preemption, with the same run.
#
#   launch/tpu.sh --name rmt --zone us-east5-b --type v6e-16 --bucket my-bucket [--run mine] \
#       [--version v2-alpha-tpuv6e] [--spot] [--restarts 20] [--check] [--dry_run] -- \
#       --config configs/multitask.py:gpt2
# --check first compiles the run's programs for that TPU on this machine (extra `tpu`), and requests
# nothing where one does not fit.
#
# It uses `gcloud compute tpus`, which serves TPUs up to v6e and no longer grows: for TPU7x and later
# Google supports GKE (launch/gke/tpu.yaml) and Compute Engine.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=options.sh
. "$(dirname "$0")/options.sh"

name=rmt zone="" type="" bucket="" run="" version="" spot="" restarts=20 dry_run="" check=""
parse "name zone type bucket run version restarts" "spot check dry_run" "$@"
accelerated
need zone type bucket
# One run id for all restarts: it names the folder in the bucket that the run continues in.
run=${run:-$name}
if [[ -z $version ]]; then
  case $type in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    *) version=tpu-ubuntu2204-base ;;
  esac
fi
root=$(cd "$(dirname "$0")/.." && pwd)
tpus=(gcloud compute tpus)
archive=rmt_jax.tar.gz
[[ -z $check ]] || checked "$type"

say() { printf '%q ' "$@"; echo; }
do_it() {
  say "$@"
  [[ -n $dry_run ]] || "$@"
}
on_all() { do_it "${tpus[@]}" tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }
state() {
  "${tpus[@]}" queued-resources describe "$name" --zone="$zone" --format='value(state.state)' \
    2>/dev/null || true
}

request() {
  local now=""
  [[ -n $dry_run ]] || now=$(state)
  case $now in
    ACTIVE) return ;;
    SUSPENDED | FAILED) # what a preemption leaves; its name must be free again
      do_it "${tpus[@]}" queued-resources delete "$name" --zone="$zone" --force --quiet ;;&
    "" | SUSPENDED | FAILED)
      do_it "${tpus[@]}" queued-resources create "$name" --node-id="$name" --zone="$zone" \
        --accelerator-type="$type" --runtime-version="$version" ${spot:+--spot} || return ;;
  esac
  while [[ -z $dry_run ]] && now=$(state) && [[ $now != ACTIVE ]]; do
    [[ $now != FAILED && $now != SUSPENDED ]] || return 1 # it will not come: request it anew
    echo "waiting for $type in $zone ($now)" >&2
    sleep "${WAIT_SECONDS:-30}"
  done
}

install() {
  do_it git -C "$root" archive --format=tar.gz -o "/tmp/$archive" HEAD &&
    do_it "${tpus[@]}" tpu-vm scp "/tmp/$archive" "$name:" --zone="$zone" --worker=all &&
    on_all "mkdir -p rmt_jax && tar xzf $archive -C rmt_jax && cd rmt_jax && python3 -m venv .venv && \
.venv/bin/pip install -q '.[tpu]' && mkdir -p ~/runs && \
(mountpoint -q ~/runs || gcsfuse --implicit-dirs $bucket ~/runs)"
}

run_it() {
  local line
  line=$(printf '%q ' .venv/bin/python -m "rmt_jax.$module" "$@" --workdir)
  on_all "cd rmt_jax && $line ~/runs/$run"
}

for ((try = 0; try <= restarts; try++)); do
  code=0
  request && install && run_it "${arguments[@]}" || code=$?
  if [[ $code -eq 0 || -n $dry_run ]]; then
    echo "done: gs://$bucket/$run; free the TPU with:"
    say "${tpus[@]}" queued-resources delete "$name" --zone="$zone" --force --quiet
    exit 0
  fi
  # 75: told to stop. Otherwise a living TPU means that the run itself failed: do not loop on that.
  if [[ $code -ne 75 && $(state) == ACTIVE ]]; then exit "$code"; fi
  echo "the TPU was taken away; starting run '$run' again ($((try + 1)) of $restarts)" >&2
done
exit 75
