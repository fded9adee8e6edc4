#!/usr/bin/env bash
# From clicks to recommendations, on your own files.
#
#   bash examples/recommend.sh INTERACTIONS ITEMS [USERS]
#   TEXT="movie_title class" bash examples/recommend.sh ml-100k.inter ml-100k.item ml-100k.user
#
# INTERACTIONS: CSV or TSV with a header, RecBole .inter, or lines USER ITEM ITEM ...
# ITEMS:        item text: RecBole .item, CSV, TSV, or JSON {item: [terms]}
# USERS:        a table of user features; without it that pathway is off
#
# TEXT   the columns of ITEMS to read, as "title category"; not for JSON
# OUT    the folder to write to; default: recommended
# CODES  codes a level; enough that few items share an ID; default: 64
# STEPS  how long to train; default: that of pretrain onerec
#
# A file that exists is not made again, so the script can be run again after exit code 75, when training was stopped, and after 65,
# when bad rows or unknown items were skipped. Delete OUT to start over.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '2,20s/^# \{0,1\}//p' "$0" >&2; exit 2; }
clicks=$1 items=$2 users=${3:-}
out=${OUT:-recommended}
text=()
for column in ${TEXT:-}; do text+=(--text "$column"); done
mkdir -p "$out"

# once FILE COMMAND...: run a command that makes the file, unless the file exists; kvtools writes a file whole or not at all
once() { [ -e "$1" ] || { echo "$ ${*:2}" >&2; "${@:2}"; }; }

# Interactions, checked and sorted. Columns with other names: add --column user=... --column item=...
once "$out/clicks.kvs" kvtools convert "$clicks" -o "$out/clicks.kvs"

# Vectors from item text; pairs of items that users took together, from the training part.
once "$out/items.kvs" kvtools embed "$items" "${text[@]}" --dim 64 -o "$out/items.kvs"
once "$out/pairs.kvs" kvtools pairs "$out/clicks.kvs" -o "$out/pairs.kvs"

# IDs: items that go together share first codes. If many share an ID, see kvtools info, --codes, --levels and --collisions.
once "$out/items.ids" kvtools semid-build --pairs "$out/pairs.kvs" --codes "${CODES:-64}" --collisions nearest \
  "$out/items.kvs" -o "$out/items.ids"

# The generator. --verbose prints which pathways are on, and the validation after each epoch.
once "$out/model.safetensors" kvtools pretrain onerec "$out/clicks.kvs" --items "$out/items.ids" ${users:+--users "$users"} \
  ${STEPS:+--steps "$STEPS"} --log "$out/curve.jsonl" --verbose -o "$out/model.safetensors"

# How often each user's last item is found among all items: by baselines, by the generator, and by a blend.
table=(${users:+--table "$users"})
for row in popular co-occurrence generator blend; do
  case $row in
    generator) who=(--model "$out/model.safetensors" "${table[@]}") ;;
    blend) who=(--model "$out/model.safetensors" "${table[@]}" --blend auto) ;;
    *) who=(--baseline "$row" --items "$out/items.ids") ;;
  esac
  echo "$row:"
  kvtools recgen --evaluate test --beam 128 "${who[@]}" "$out/clicks.kvs" || [ $? = 65 ] # what was left out above is reported again
done

# Ten items per user, as records for a program, and three users to look at. Now the whole history counts.
once "$out/recommendations.kvs" kvtools recgen --model "$out/model.safetensors" "${table[@]}" "$out/clicks.kvs" \
  -o "$out/recommendations.kvs"
kvtools cat --json --limit 3 "$out/recommendations.kvs"
