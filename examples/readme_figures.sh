#!/bin/sh
# The figures of README.md: muP and MSSP on Fashion-MNIST, limit and networks (about ten minutes on two cores).
#   examples/readme_figures.sh FOLDER [FLAGS]      FLAGS go to dmft_solve and moe_train: --steps 20 --widths 64,128
# Needs Debian's package dataset-fashion-mnist (./run install dataset-fashion-mnist). Programs of $MOE_DMFT_BIN, else through ./run.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd -P)
out=${1:?usage: readme_figures.sh FOLDER [FLAGS]}
shift
mkdir -p "$out"

program() {
  name=$1
  shift
  if [ -n "${MOE_DMFT_BIN:-}" ]; then "$MOE_DMFT_BIN/$name" "$@"; else "$root/run" "$name" "$@"; fi
}

terms=rms_y_init,rms_y_propagating,rms_y_effective,rms_r_effective,rms_u_effective,rms_zeta_init
for param in mup mssp; do
  common() {
    name=$1
    shift
    program "$name" "$root/examples/fashion_mnist.toml" --param "$param" --observables "$terms" "$@"
  }
  common dmft_solve --out "$out/limit_$param.h5" "$@"
  common moe_train --widths 64,256,1024 --seeds 4 --out "$out/networks_$param.h5" "$@"
done
program dmft_plot "$out/limit_mup.h5" "$out/networks_mup.h5" "$out/limit_mssp.h5" "$out/networks_mssp.h5" \
  --figures loss,coordinate_check --format svg,pdf,png --out "$out"
