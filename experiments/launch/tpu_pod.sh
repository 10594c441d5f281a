#!/usr/bin/env bash
# The same command on every host of a TPU slice; docs/tpu.md goes through it.
#
#   experiments/launch/tpu_pod.sh NAME ZONE experiments.sweep \
#       --config=configs/gemma2_9b.py --workdir=gs-mounted/run …
#
# With DRY_RUN=1 it prints what it would run.
set -euo pipefail
if [[ $# -lt 3 ]]; then
  echo "usage: $0 NAME ZONE MODULE [FLAG…]" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
command="cd jumprelu_jax && source .venv/bin/activate && python -m $(printf '%q ' "$@")--processes=auto"
run=(gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command")
if [[ -n ${DRY_RUN:-} ]]; then
  printf '%q ' "${run[@]}"
  echo
else
  exec "${run[@]}"
fi
