#!/bin/sh
# The tables of docs/results.md on stacks of blocks: the limit against depth with right and wrong exponents (limits), best learning rate
# against depth and width (rates, with their figure), muP beside MSSP (tables), what temperature and balancing do to the terms of the
# aggregation (terms); half an hour on one core.
#   examples/depth.sh FOLDER limits|rates|tables|terms [FLAGS]      FLAGS go to dmft_validate, of limits to dmft_solve: --neurons 256
# Programs of $MOE_DMFT_BIN, else through ./run.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd -P)
out=${1:?usage: depth.sh FOLDER limits|rates|tables|terms [FLAGS]}
part=${2:?usage: depth.sh FOLDER limits|rates|tables|terms [FLAGS]}
shift 2
mkdir -p "$out"

program() {
  name=$1
  shift
  if [ -n "${MOE_DMFT_BIN:-}" ]; then "$MOE_DMFT_BIN/$name" "$@"; else "$root/run" "$name" "$@"; fi
}
validate() { # NAME FLAGS: $out/NAME.h5
  file=$1
  shift
  echo "$file"
  program dmft_validate "$@" --no-page --out "$out/$file.h5"
}
rates_of_blocks() { # FACTOR: of router and experts beside the others
  echo "--set optimizer.lr_scale.router=$1 --set optimizer.lr_scale.expert_in=$1 --set optimizer.lr_scale.expert_out=$1"
}
sweep() {
  sweep=$1
  shift
  validate "$sweep" "$root/examples/deep_study.toml" --lr-sweep 0.16:1.28:7 --sweep-loss test "$@"
}

case $part in
  limits)
    solve() { # NAME FLAGS
      file=limits_$1
      shift
      echo "$file"
      program dmft_solve --regime II --param mssp --expert-width 4 --residual true --norm rms --optimizer sgd --lr 0.5 --source gaussian \
        --classes 2 --train 8 --test 0 --loss mse --steps 4 --neurons 1600 --replicas 8 --observables none --out "$out/$file.h5" "$@"
    }
    for depth in 1 2 4 8 16 32; do
      for alpha in 1 0.5; do solve "L${depth}_alpha$alpha" --depth $depth --branch-exponent $alpha "$@"; done
    done
    for depth in 2 4 8 16; do # wrong exponents: no multiplier, learning rates of the blocks without their L and with one too much
      solve "L${depth}_alpha0" --depth $depth --branch-exponent 0 "$@"
      # shellcheck disable=SC2046 # flags, one word each
      solve "L${depth}_slow" --depth $depth --branch-exponent 1 $(rates_of_blocks "$(echo $depth | awk '{print 1 / $1}')") "$@"
      # shellcheck disable=SC2046
      solve "L${depth}_fast" --depth $depth --branch-exponent 0.5 $(rates_of_blocks $depth) "$@"
    done
    ;;
  rates)
    sweep rates_L1 "$@"
    for depth in 2 4; do
      for alpha in 1 0.5; do sweep "rates_L${depth}_alpha$alpha" --depth $depth --branch-exponent $alpha "$@"; done
    done
    for alpha in 1 0.5; do sweep "rates_L8_alpha$alpha" --depth 8 --branch-exponent $alpha --neurons 864 "$@"; done
    program dmft_plot "$out/rates_L1.h5" "$out"/rates_L[248]_alpha1.h5 --figures learning_rate,best_loss --format svg,pdf,png --out "$out"
    ;;
  tables)
    slow=$(rates_of_blocks 0.25)
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
    echo "depth.sh: limits, rates, tables or terms, not $part" >&2
    exit 2
    ;;
esac
