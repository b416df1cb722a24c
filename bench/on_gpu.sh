#!/usr/bin/env bash
# What to run first on a machine with a GPU, each part with a limit of time, its output kept: whether the kernels are right, whether
# compute-sanitizer finds anything, how fast limits and networks are, and the times of whole solves beside those of two CPU cores.
#   bench/on_gpu.sh BIN OUT [correct|sanitize|fast|solves|torch ...]   BIN: folder of the built programs; OUT: for logs; no part: all
set -uo pipefail
if (($# < 2)); then
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) bin=$(cd "$1" && pwd) out=$2
shift 2
mkdir -p "$out"
export MOE_SOURCE_DIR=${here%/*} # the numbers of tests/data, if BIN was built elsewhere
failed=0

# part NAME SECONDS COMMAND...: the last lines of the output are shown, all of it is in OUT/NAME.log
part() {
  local name=$1 seconds=$2
  shift 2
  local start=$SECONDS status=0
  timeout "$seconds" "$@" >"$out/$name.log" 2>&1 || status=$?
  echo "== $name: status $status (124: $seconds s were not enough), $((SECONDS - start)) s"
  tail -n "${lines:-4}" "$out/$name.log"
  ((status == 0)) || failed=1
  return "$status"
}

correct() {
  part kernels 120 "$bin/moe_tests" --test-case='*on the device*'
  part runs 180 "$bin/moe_tests" --source-file='*gpu_solve*'
  part references 240 "$bin/moe_tests" --source-file='*tests/reference/*' --test-case-exclude='*[slow]*,moe_train*'
}

# What the sanitizers slow down a hundredfold: the kernels at the sizes of their tests, every one of them.
sanitize() {
  local tool
  for tool in memcheck racecheck initcheck; do
    part "$tool" 150 compute-sanitizer --tool "$tool" --error-exitcode 3 "$bin/moe_tests" --test-case='*on the device*'
  done
}

fast() {
  local lines=60
  part bench_network_kernels 60 "$bin/bench_gpu_network" kernels
  part bench_network_steps 180 "$bin/bench_gpu_network" steps
  part bench_network_many 60 "$bin/bench_gpu_network" many
  part bench_limit_sweep 60 "$bin/bench_gpu_limit" sweep
  part bench_limit_sums 30 "$bin/bench_gpu_limit" sums
  part bench_limit_pairs 30 "$bin/bench_gpu_limit" pairs
  part bench_limit_memory 60 "$bin/bench_gpu_limit" memory
}

# Beside PyTorch, where python3 has it for this card.
torch() {
  local lines=30
  part torch 420 python3 "$here/torch_gpu_networks.py" "$bin/bench_gpu_network"
}

# Seconds of default solves (768 neuron samples, 100 steps, 6 replicas), and of more samples, side by side.
solves() {
  local solve=("$bin/dmft_solve" --regime II --param mssp --quiet) cores lines=3 pids=()
  cores=$(nproc)
  timed() { # NAME FIRST_CORE ARGUMENTS: on two cores of their own
    part "$1" 500 taskset -c "$2,$(($2 + 1))" bash -c 'TIMEFORMAT="%R s"; time "$@"' - "${solve[@]}" --device cpu --threads 2 --out "$out/$1.h5" "${@:3}"
  }
  if ((cores >= 8)); then
    timed cpu_sgd $((cores - 2)) --optimizer sgd & pids+=($!)
    timed cpu_adam $((cores - 4)) --optimizer adam & pids+=($!)
    timed cpu_sgd_10 $((cores - 6)) --optimizer sgd --neurons 7680 & pids+=($!)
  else
    echo "== on $cores cores CPU solves would disturb what is timed on the GPU: run them alone"
  fi
  on_gpu() { part "$1" 120 bash -c 'TIMEFORMAT="%R s"; time "$@"' - "${solve[@]}" --device cuda --threads 6 --out "$out/$1.h5" "${@:2}"; }
  on_gpu gpu_sgd --optimizer sgd
  on_gpu gpu_adam --optimizer adam
  on_gpu gpu_sgd_10 --optimizer sgd --neurons 7680
  on_gpu gpu_adam_10 --optimizer adam --neurons 7680
  on_gpu gpu_sgd_100 --optimizer sgd --neurons 76800
  for one in "${pids[@]}"; do wait "$one" || failed=1; done
}

"$bin/bench_gpu_limit" pairs >/dev/null || exit 1 # says why where there is no device
(($#)) || set -- correct fast solves torch sanitize
for one in "$@"; do
  case $one in
    correct | sanitize | fast | solves | torch) "$one" ;;
    *) echo "on_gpu.sh: there is no part '$one'" >&2 && exit 2 ;;
  esac
done
exit $failed
