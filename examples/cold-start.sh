#!/usr/bin/env bash
# A cold start on two cores: conversations of three modes become one mixture, without duplicates and without the questions of an
# evaluation; the mixture is drawn, packed and trained on, and the model answers one question in each mode.
#
#   examples/cold-start.sh                          sums with their steps, made here
#   THINK=a.jsonl NO_THINK=b.json AUTO=c.jsonl AGAINST=bench/ examples/cold-start.sh       files of your own
#   STEPS=600 examples/cold-start.sh …              steps of training; default 40, which only shows that everything runs
set -euo pipefail
work=${WORK:-$(dirname "$0")/../.demo/cold-start}
steps=${STEPS:-40}
for name in THINK NO_THINK AUTO AGAINST; do
  [ -z "${!name:-}" ] || printf -v "$name" '%s' "$(realpath "${!name}")"
done
mkdir -p "$work"
cd "$work"

say() { printf '\n$ %s\n' "$*"; "$@"; }

# ── sources: sums, asked in three ways; every tenth is left to the evaluation ────────────────────────────────────────────────
python - <<'PY'
import json
def put(name, rows):
    with open(name, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
sums = [(a, b) for a in range(12, 40) for b in range(3, 20) if (a + b) % 2]
asked = {(a, b): f"What is {a} + {b}?" for a, b in sums}
steps = lambda a, b: f"{a} + {b} = {a + b % 10} + {b - b % 10} = {a + b}."
easy = "<analysis>Both are small. Therefore, /no_think mode is more appropriate.</analysis>"
hard = "<analysis>There is a carry. Therefore, /think mode is more appropriate.</analysis>"
def decided(a, b):
    if a % 10 + b % 10 < 10:
        return f"{easy}{a + b}"
    return f"{hard}<think>{steps(a, b)}</think><answer>\\boxed{{{a + b}}}</answer>"
put("think.jsonl", [{"question": q, "answer": f"{steps(*s)}\n#### {sum(s)}"} for s, q in asked.items()])
put("no_think.jsonl", [{"instruction": q, "output": str(sum(s))} for s, q in asked.items()])
put("auto.jsonl", [{"question": q, "answer": decided(*s)} for s, q in asked.items()])
put("evaluation.jsonl", [{"question": q, "answer": str(sum(s))} for n, (s, q) in enumerate(asked.items()) if n % 10 == 0])
PY
sources=(--think "${THINK:-think.jsonl}" --no-think "${NO_THINK:-no_think.jsonl}" --auto "${AUTO:-auto.jsonl}")

# ── one mixture, and what became of each source ──────────────────────────────────────────────────────────────────────────────
say kvtools coldstart-mix "${sources[@]}" --ratio 2:2:1 --repair --against "${AGAINST:-evaluation.jsonl}" \
  --report mix.json --rejects rejects.jsonl -o mix.kvs --force
say kvtools plot mix.json -o mix.png --force
say kvtools info mix.kvs

# ── the same, packed into rows; trained on; asked ────────────────────────────────────────────────────────────────────────────
say kvtools coldstart-mix -q "${sources[@]}" --ratio 2:2:1 --repair --against "${AGAINST:-evaluation.jsonl}" \
  --length 1024 -o rows.kvs --force
say kvtools pretrain keye rows.kvs --stage cold-start --steps "$steps" --batch-tokens 2048 --log curve.jsonl -o keye.safetensors --force
for mode in think no_think auto; do
  say kvtools chat --model keye.safetensors --mode "$mode" --greedy --max-new 60 "What is 14 + 9?"
done
