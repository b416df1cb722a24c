#!/bin/sh
# The figure of README.md on learning-rate transfer: test loss against learning rate under muP and MSSP, networks and limit (digits,
# Adam, regime II; a few minutes on two cores).
#   examples/learning_rate.sh FOLDER [FLAGS]      FLAGS go to dmft_validate: --steps 20 --widths 64,128
# Programs of $MOE_DMFT_BIN, else through ./run.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd -P)
out=${1:?usage: learning_rate.sh FOLDER [FLAGS]}
shift
mkdir -p "$out"

program() {
  name=$1
  shift
  if [ -n "${MOE_DMFT_BIN:-}" ]; then "$MOE_DMFT_BIN/$name" "$@"; else "$root/run" "$name" "$@"; fi
}

for param in mup mssp; do
  program dmft_validate "$root/examples/quickstart.toml" --param "$param" --optimizer adam --eps 0.02 --test 256 \
    --lr-sweep 0.02:1.28:7 --sweep-loss test --out "$out/sweep_$param.h5" "$@"
done
program dmft_plot "$out/sweep_mup.h5" "$out/sweep_mssp.h5" --figures learning_rate,best_loss --format svg,pdf,png --out "$out"
