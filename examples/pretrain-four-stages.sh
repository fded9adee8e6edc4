#!/usr/bin/env bash
# The four stages of Keye-VL's report on two cores: questions are made from clips without labels, a tower is trained to match clips
# with their descriptions, a projector is trained between the tower and a decoder, all parts are trained to answer, and two annealed
# models, trained on different mixtures, are averaged. At the end: the accuracy on questions about clips that no stage was trained
# on, for each stage.
#
#   examples/pretrain-four-stages.sh [FOLDER]     videos, 30 or more to learn anything; by default the clips of `make demo`
#   STEPS=600 examples/pretrain-four-stages.sh …  steps of each stage; default 40, which only shows that everything runs
set -euo pipefail
demo=$(dirname "$0")/../.demo
clips=$(realpath -m "${1:-$demo/clips}")
work=${WORK:-$demo/four-stages}
steps=${STEPS:-40}
[ -d "$clips" ] || { echo "$clips: no such folder; run make demo first, or name one with videos" >&2; exit 66; }
mkdir -p "$work"
cd "$work"

show() { printf '\n$ %s\n' "$*"; }
say() { show "$@"; "$@"; }

# ── clips, and self-supervised questions about them ──────────────────────────────────────────────────────────────────────
# small frames: 16 to 24 tokens each. If there are few films, they are cut into pieces of one second, so that there are enough clips;
# the held-out clips are then other pieces of the same films.
tokenize() { kvtools tokenize-video "$@" --frame-tokens 16:24 --max-tokens 512 --force || [ $? = 65 ]; } # bad clips are named and skipped
if [ "$(find "$clips" -maxdepth 1 -type f | wc -l)" -ge 12 ]; then
  show kvtools tokenize-video "$clips" --fps 3 --frame-tokens 16:24 --max-tokens 512 -o clips.kvs
  tokenize "$clips" --fps 3 -o clips.kvs
else
  for second in 0 1 2 3 4 5 6 7 8 9; do
    mkdir -p "pieces/$second"
    for clip in "$clips"/*; do ln -sf "$clip" "pieces/$second/$second-$(basename "$clip")"; done
    show kvtools tokenize-video "pieces/$second" --start "$second" --end $((second + 1)) --fps 8 -o "piece-$second.kvs"
    tokenize "pieces/$second" --start "$second" --end $((second + 1)) --fps 8 -o "piece-$second.kvs" 2>/dev/null # shorter films have no frame there
  done
  kvtools cat piece-?.kvs -o clips.kvs --force
fi
for side in train:0.6 test:0.4; do
  part=${side%:*}
  [ "$part" = train ] && n=400 || n=100
  say kvtools quiz -q clips.kvs --split "$side" --task describe --form open --frames 4 -o "describe-$part.kvs" --force
  say kvtools quiz -q clips.kvs --split "$side" --task time --frames 4 --choices 2 -n $n -o "time-$part.kvs" --force
  say kvtools quiz -q clips.kvs --split "$side" --task match --frames 4 --choices 2 -n $n -o "match-$part.kvs" --force
done

# ── the stages ───────────────────────────────────────────────────────────────────────────────────────────────────────────
: >stages.jsonl
stage() { # stage NAME OUTPUT OPTIONS...
  say kvtools pretrain keye --stage "$1" "${@:3}" --media clips.kvs --steps "$steps" --batch-tokens 2048 --length 1024 \
    --log stages.jsonl -o "$2" --force
}
both=(time-train.kvs match-train.kvs)
stage matching 0.safetensors describe-train.kvs
stage alignment 1.safetensors --init 0.safetensors describe-train.kvs
stage multitask 2.safetensors --init 1.safetensors describe-train.kvs "${both[@]}" --training jitter=0.2
stage annealing a.safetensors --init 2.safetensors "${both[@]}" --ratio 3,1
stage annealing b.safetensors --init 2.safetensors "${both[@]}" --ratio 1,3 --seed 1
say kvtools merge a.safetensors b.safetensors -o keye.safetensors --force
say kvtools plot stages.jsonl -o stages.png --force
show "kvtools info keye.safetensors | grep -E 'model|history'"
kvtools info keye.safetensors | grep -E 'model|history'

# ── what it has learnt, of clips held out ───────────────────────────────────────────────────────────────────────────────
say kvtools answer time-test.kvs match-test.kvs --media clips.kvs --model 1.safetensors --model 2.safetensors \
  --model a.safetensors --model b.safetensors --model keye.safetensors
