#!/usr/bin/env bash
# In the container: `train …`, `evaluate …`, `doctor` run that command; anything else runs as it stands.
set -euo pipefail

case ${1:-doctor} in
  train | evaluate | ask | prepare | convert | gating | doctor | report | lmeval)
    exec rmt-jax "${@:-doctor}"
    ;;
  *) exec "$@" ;;
esac
