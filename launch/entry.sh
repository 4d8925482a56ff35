#!/usr/bin/env bash
# In the container: `train …`, `evaluate …`, `doctor` run the module; anything else runs as it stands.
set -euo pipefail

case ${1:-doctor} in
  train | evaluate | ask | prepare | convert | gating | doctor)
    module=${1:-doctor}
    shift || true
    exec python -m "rmt_jax.$module" "$@"
    ;;
  *) exec "$@" ;;
esac
