#!/usr/bin/env bash
# The first minutes on a GPU, in two calls: what matters most, then the rest.
#
#   benchmarks/first_gpu.sh first       # at most 450 seconds
#   benchmarks/first_gpu.sh second      # at most 280 seconds
#
# Results are in $OUT, or else in benchmarks/results/gpu, and are written while they come. Further
# arguments go to benchmarks.gpu_check. PYTHON says which Python has torch. Exit codes: 0 if all
# holds, 1 if something does not, 2 if something was left out.
set -u
cd "$(dirname "$0")/.." || exit 1
call=${1:-}
case $call in
    first | second) shift ;;
    *)
        echo "usage: $0 first|second [arguments of benchmarks.gpu_check]" >&2
        exit 1
        ;;
esac
export OUT=${OUT:-benchmarks/results/gpu} PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
mkdir -p "$OUT" || exit 1

{
    date -u
    timeout 20 nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem \
        --format=csv 2>&1 || echo "nvidia-smi: none"
    for tool in nvcc ncu compute-sanitizer; do
        path=$(command -v "$tool" || echo none)
        echo "$tool: $path"
    done
    "${PYTHON:-python3}" --version
} | tee "$OUT/machine.txt"

"${PYTHON:-python3}" -m benchmarks.gpu_check --call "$call" "$@" 2>&1 | tee "$OUT/log.txt"
exit "${PIPESTATUS[0]}"
