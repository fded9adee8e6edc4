#!/usr/bin/env bash
# Iterative alignment, as in section 4.2.3 of the Keye-VL report: sample answers, score them, take the best and the worst of each
# prompt, train on these pairs, and repeat. Prints the repetition rate and the accuracy before the first round and after each.
#
# Usage: iterative-alignment.sh MODEL PROMPTS HELD_OUT [ROUNDS]
#   MODEL      of kvtools pretrain keye
#   PROMPTS    JSON Lines such as {"id": "1", "prompt": "7+5=?", "answer": 12}, for the pairs
#   HELD_OUT   others, on which the rates are measured
# MODES, GROUP, MAX_NEW, LR and JUDGE are taken from the environment. Writes round-N.model and round-N.pairs.kvs here.
set -euo pipefail
model=$1 prompts=$2 held_out=$3 rounds=${4:-2}
modes=${MODES:-auto:1} group=${GROUP:-8} max_new=${MAX_NEW:-128}
judge=(${JUDGE:+--judge "$JUDGE"})

measure() { # ROUND MODEL: the rates of greedy answers to held-out prompts
  kvtools rl sample -q "$held_out" --model "$2" --group 1 --temperature 0 --modes "$modes" --max-new "$max_new" --overlong keep \
    --reward correct --reward repetition:0 --report "rates-$1.json" --force -o "rates-$1.kvs"
  python3 - "$1" "rates-$1.json" <<'PYTHON'
import json, sys
rates = json.load(open(sys.argv[2]))
print(f"round {sys.argv[1]}: repetition {rates['reward_repetition']:.3f}, right {rates['reward_correct']:.3f}")
PYTHON
}

measure 0 "$model"
for ((round = 1; round <= rounds; round++)); do
  kvtools rl sample -q "$prompts" --model "$model" --group "$group" --modes "$modes" --max-new "$max_new" --seed "$round" \
    --overlong keep --reward correct --reward format:0.2 --reward repetition:-1 "${judge[@]}" |
    kvtools rl pairs -q --force -o "round-$round.pairs.kvs"
  kvtools rl mpo -q "round-$round.pairs.kvs" --model "$model" --steps 1ep ${LR:+--lr "$LR"} --seed "$round" --force \
    -o "round-$round.model"
  model=round-$round.model
  measure "$round" "$model"
done
