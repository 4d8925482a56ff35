#!/usr/bin/env bash
# Sourced by the recipes here: reads their own options; what follows -- is the training's.

fail() { echo "error: $1" >&2; exit 2; }

# parse "VALUES" "SWITCHES" ARGUMENT...: sets the variable that each --option names (a switch to 1),
# and the array `training`.
parse() {
  local values=" $1 " switches=" $2 " option
  shift 2
  while [[ $# -gt 0 && $1 != -- ]]; do
    option=${1#--}
    if [[ $1 == --* && $switches == *" $option "* ]]; then
      printf -v "$option" 1
      shift
    elif [[ $1 == --* && $values == *" $option "* ]]; then
      [[ $# -gt 1 && $2 != --* ]] || fail "$1 needs a value"
      printf -v "$option" %s "$2"
      shift 2
    else
      fail "unknown argument '$1'; the training's own arguments come after --"
    fi
  done
  [[ $# -gt 1 ]] || fail "the training's arguments are missing: -- --config FILE [--workdir DIR]"
  # shellcheck disable=SC2034  # for the script that sources this
  training=("${@:2}")
}

# words REASON: the training's arguments must be free of blanks.
words() {
  local argument
  for argument in "${training[@]}"; do
    [[ $argument != *[[:space:]]* ]] ||
      fail "'$argument': $1 and takes no blanks; put that setting into the config file"
  done
}

# need NAME...: options that have no default.
need() {
  local option
  for option in "$@"; do
    [[ -n ${!option} ]] || fail "--$option is missing (see the head of $0)"
  done
}
