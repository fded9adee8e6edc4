#!/usr/bin/env bash
# From a trained recommender to one that earns more of a reward, on your own files.
#
#   bash examples/rl-onerec.sh MODEL INTERACTIONS [USERS]
#
# MODEL:        from kvtools pretrain onerec, as examples/recommend.sh makes it
# INTERACTIONS: those that it was trained with
# USERS:        its table of user features, where it has one
#
# REWARDS  the objectives of the ranker, as "hit column:rating"; default: hit
# STEPS    how long to train; default: 1ep, each user once
# OUT      the folder to write to; default: rewarded
#
# A file that exists is not made again, so the script can be run again after exit code 75, when training was stopped. Delete OUT to
# start over.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2; }
model=$1 clicks=$2 users=${3:-}
out=${OUT:-rewarded}
mkdir -p "$out"

# once FILE COMMAND...: run a command that makes the file, unless the file exists; kvtools writes a file whole or not at all
once() { [ -e "$1" ] || { echo "$ ${*:2}" >&2; "${@:2}"; }; }

# A ranker of the training part. An AUC near 0.5 is that of chance: do not go on with such a ranker.
objectives=()
for reward in ${REWARDS:-hit}; do objectives+=(--reward "$reward"); done
once "$out/ranker.safetensors" kvtools rl pscore --model "$model" "$clicks" "${objectives[@]}" -v -o "$out/ranker.safetensors"

# The recommender, moved towards the ranker's score while IDs stay legal. --verbose prints the held-out figures before and after.
once "$out/model.safetensors" kvtools rl ecpo --model "$model" "$clicks" ${users:+--users "$users"} \
  --reward "pscore:$out/ranker.safetensors" --reward format:0.1 --steps "${STEPS:-1ep}" --log "$out/curve.jsonl" -v \
  -o "$out/model.safetensors"
kvtools plot "$out/curve.jsonl" -o "$out/curve.png" --force

# The test part, which neither command has read: hits before and after.
for each in "$model" "$out/model.safetensors"; do
  kvtools recgen --evaluate test --beam 128 --model "$each" ${users:+--table "$users"} "$clicks"
done
