#!/usr/bin/env bash
# Sourced by the recipes here: reads their own options; what follows -- is the command's that they
# start: train, or evaluate or prepare where the first word says so.

fail() { echo "error: $1" >&2; exit 2; }

# parse "VALUES" "SWITCHES" ARGUMENT...: sets the variable that each --option names (a switch to 1),
# and `module` (the command), `place` (its option that names the folder it writes to) and the array
# `arguments`.
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
      fail "unknown argument '$1'; the command's own arguments come after --"
    fi
  done
  [[ $# -gt 1 ]] || fail "the command's arguments are missing: -- --config FILE [--workdir DIR]"
  shift
  module=train place=--workdir
  case $1 in
    train | evaluate) module=$1 ;;
    prepare) module=$1 place=--out ;;
    -*) set -- train "$@" ;;
    *) fail "'$1' after -- is no command that is started here: train, evaluate or prepare" ;;
  esac
  # shellcheck disable=SC2034  # for the script that sources this
  arguments=("${@:2}")
}

# words REASON: the command's arguments must be free of blanks.
words() {
  local argument
  for argument in "${arguments[@]}"; do
    [[ $argument != *[[:space:]]* ]] ||
      fail "'$argument': $1 and takes no blanks; put that setting into the config file"
  done
}

# accelerated: this recipe rents accelerators.
accelerated() {
  [[ $module != prepare ]] ||
    fail "prepare needs no accelerator: launch/node.sh or launch/slurm.sh starts it on CPUs"
}

# checked TPU: compiles the training's programs for that TPU with its own compiler, on this machine,
# and fails where one does not fit. Needs the extra `tpu`; PYTHON names the interpreter. With a
# `dry_run` it says the command alone.
checked() {
  local config="" plan=() overrides=() i
  [[ $module == train ]] || fail "--check compiles a training's programs, and this is $module"
  for ((i = 0; i < ${#arguments[@]}; i++)); do
    case ${arguments[i]} in
      --config) config=${arguments[i + 1]:-} ;;
      --config=*) config=${arguments[i]#--config=} ;;
      --config.*=*) overrides+=("${arguments[i]}") ;;
      --config.*) overrides+=("${arguments[i]}=${arguments[i + 1]:-}") ;;
    esac
  done
  [[ -n $config ]] || fail "--check needs --config FILE after --"
  plan=("${PYTHON:-python3}" -m rmt_jax.doctor --plan "$config" --compile "$1" "${overrides[@]}")
  printf '%q ' "${plan[@]}"
  echo
  [[ -n ${dry_run:-} ]] || "${plan[@]}" || fail "nothing is requested: see above"
}

# folder REASON: the command's arguments must name the folder.
folder() {
  [[ " ${arguments[*]} " == *" $place"* ]] || fail "give $place DIR after --$1"
}

# need NAME...: options that have no default.
need() {
  local option
  for option in "$@"; do
    [[ -n ${!option} ]] || fail "--$option is missing (see the head of $0)"
  done
}
