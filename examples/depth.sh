#!/bin/sh
# The tables of docs/results.md on stacks of blocks: best learning rate against depth and width, muP beside MSSP, what temperature and
# balancing do to the terms of the aggregation (half an hour on one core).
#   examples/depth.sh FOLDER rates|tables|terms [FLAGS]      FLAGS go to dmft_validate: --widths 64,128
# Programs of $MOE_DMFT_BIN, else through ./run.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd -P)
out=${1:?usage: depth.sh FOLDER rates|tables|terms [FLAGS]}
part=${2:?usage: depth.sh FOLDER rates|tables|terms [FLAGS]}
shift 2
mkdir -p "$out"

validate() { # NAME FLAGS: $out/NAME.h5
  name=$1
  shift
  echo "$name"
  if [ -n "${MOE_DMFT_BIN:-}" ]; then set -- "$MOE_DMFT_BIN/dmft_validate" "$@"; else set -- "$root/run" dmft_validate "$@"; fi
  "$@" --no-page --out "$out/$name.h5"
}
sweep() {
  name=$1
  shift
  validate "$name" "$root/examples/deep_study.toml" --lr-sweep 0.16:1.28:7 --sweep-loss test "$@"
}

case $part in
  rates)
    sweep rates_L1 "$@"
    for depth in 2 4; do
      for alpha in 1 0.5; do sweep "rates_L${depth}_alpha$alpha" --depth $depth --branch-exponent $alpha "$@"; done
    done
    for alpha in 1 0.5; do sweep "rates_L8_alpha$alpha" --depth 8 --branch-exponent $alpha --neurons 864 "$@"; done
    ;;
  tables)
    slow="--set optimizer.lr_scale.router=0.25 --set optimizer.lr_scale.expert_in=0.25 --set optimizer.lr_scale.expert_out=0.25"
    for param in mssp mup; do
      sweep "tables_$param" --depth 4 --param $param "$@"
      # shellcheck disable=SC2086 # flags, one word each
      sweep "tables_slow_$param" --depth 4 --param $param $slow --lr-sweep 0.2263:1.81:7 "$@"
    done
    ;;
  terms)
    observables=rms_y_init,rms_y_propagating,rms_y_effective,change_v,rms_zeta_init,rms_zeta_effective,rms_D,rms_r_effective,load_q99,load_max
    for param in mssp mup; do
      for with in plain "router-temperature 4" "router-temperature 0.25" "balance-loss 1" "balance-bias 0.05"; do
        flags=
        [ "$with" = plain ] || flags="--$with"
        # A comparison that finds a deviation ends with status 1: the table is what is wanted.
        # shellcheck disable=SC2086
        validate "terms_${param}_$(echo "$with" | tr ' ' _)" "$root/examples/deep_study.toml" --param $param --depth 2 \
          --routing topk --active-fraction 0.25 --optimizer sgd --lr 1 --train 16 --test 0 --batch 0 --eval-every 1 \
          --matching off --neurons 768 --replicas 8 --widths 64,128,256,512 --seeds 32 --observables $observables $flags "$@" ||
          [ $? -eq 1 ]
      done
    done
    ;;
  *)
    echo "depth.sh: rates, tables or terms, not $part" >&2
    exit 2
    ;;
esac
