#!/usr/bin/env bash
# Train the recipe of 128 px on a machine with one GPU that is lent for minutes and has no network.
#
#   MINUTES=13 OUT=/some/folder training/one_gpu.sh
#
# Beforehand, where there is a network, into the folder that is carried there:
#   pip download -d wheels ".[torch,train]"        # leave out torch if the machine has it
#   bootpig-rt fetch-data                          # data/: drawings, 100 MB
# Optional, if its cores are few: samples made at home, in runs/recipe-128-gpu/samples.
#
# What it does: installs the wheels, makes the samples that are missing on all cores, trains stage
# after stage within the time, and copies what there is to OUT every half minute, in pieces of PIECE
# megabytes. Run again with the same folder, it goes on. At home: cat PART* > weights.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${MINUTES:-13}
out=${OUT:-out}
piece=${PIECE:-15}
recipe=${RECIPE:-training/configs/recipe-128-gpu.toml}
runs=${RUNS:-runs/recipe-128-gpu}
python=${PYTHON:-python3}
started=$SECONDS
export PYTHONSAFEPATH=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
if [ -d wheels ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile wheels/*.whl
fi
mkdir -p "$out"

keep() { # the newest result of the latest stage that has one, whole or not at all
  local stage found
  for stage in distill pair base vae; do
    for found in "$runs/$stage/result" "$runs/$stage/so-far"; do
      [ -d "$found" ] || continue
      rm -rf "$out/.new" && mkdir "$out/.new"
      tar -C "$found" -cf - . | split -b "${piece}M" - "$out/.new/$stage.tar."
      cp "$runs/$stage/log.jsonl" "$out/.new/" 2>/dev/null || true
      rm -rf "$out/kept" && mv "$out/.new" "$out/kept"
      return
    done
  done
}

(while sleep 30; do keep || true; done) &
watcher=$!
trap 'kill "$watcher" 2>/dev/null || true; keep' EXIT
left=$(awk -v m="$minutes" -v s="$((SECONDS - started))" 'BEGIN { print m - s / 60 - 0.5 }')
"$python" -m bootpig_rt train "$recipe" --workers "$(nproc)" --max-minutes "$left"
