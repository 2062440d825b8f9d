#!/usr/bin/env bash
# One run after another for several seeds, each with as many processes as it likes (a sweep with -m takes one only):
#   scripts/seeds.sh 1 2 3 -- experiment=tiny trainer.devices=2
set -e
seeds=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    seeds+=("$1")
    shift
done
[ ${#seeds[@]} -gt 0 ] || { echo "usage: scripts/seeds.sh SEED... [-- key=value ...]" >&2; exit 2; }
shift || true
root=$(cd "$(dirname "$0")/.." && pwd)
for seed in "${seeds[@]}"; do
    "$root/.venv/bin/python" "$root/src/train.py" seed="$seed" "$@"
done
