"""Rewards, rollouts, pairs of answers, and training by them."""

import json
from pathlib import Path

import damage
import numpy as np
from damage import array, blob, edited, stream, zeros


def asked(question, **more):
    return json.dumps({"prompt": question, **more}) + "\n"


def pair(chosen, rejected, **more):
    return json.dumps({"prompt": "Why?", "chosen": chosen, "rejected": rejected, **more}) + "\n"


def rollout(number, **more):
    tensors = {"tokens": array([1, 2], "I32"), "logprobs": zeros("F32", 1), "reward": ("F32", [], bytes(4)),
               "advantage": ("F32", [], bytes(4)), "group": ("I32", [], bytes(4))}  # fmt: skip
    return blob(tensors, {"kind": "rollout", "key": f"a#{number}", **more})


def furnish():
    said = {"prompt": "a", "text": "x", "mode": "auto", "conversation": {"messages": []}}
    turns = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "x"}]
    others = [{"role": "user", "content": "B?"}, {"role": "assistant", "content": "y"}]
    damage.furnish({
        "sums.jsonl": asked("1+1=", answer=2, id="a") + asked("1+2=", answer=3, id="b"),
        "unanswered.jsonl": asked("1+1="),
        "blank.jsonl": asked("1+1=", answer=" "),
        "kind.jsonl": asked("1+1=", answer=2, answer_type="poem"),
        "pairs.jsonl": pair("one", "two"),
        "equal.jsonl": pair("one", "one"),
        "alone.jsonl": json.dumps({"prompt": "Why?", "chosen": "x"}) + "\n",
        "other-prompts.jsonl": json.dumps({"chosen": turns, "rejected": others}) + "\n",
        "no-messages.jsonl": pair([], "two"),
        "even.kvs": stream("rollout", [rollout(n, **said) for n in range(2)]),
        "strange.kvs": stream("rollout", [rollout(0)]),
        "scores.py": "import sys\nprint(sys.argv[1].replace('+', chr(10)))\n",
        "other.py": "import sys\n[print('{\"id\": \"z\", \"score\": 1}') for _ in sys.stdin]\n",
        "twice.py": "import json, sys\nrows = [json.loads(row) for row in sys.stdin]\n"
        "[print(json.dumps({'id': rows[0]['id'], 'score': 1})) for _ in rows]\n",
        "nans.py": "import sys\n[print('NaN') for _ in sys.stdin]\n",
        "slow.py": "import time\ntime.sleep(9)\n",
        "lines.txt": "no cache\n",
    })  # fmt: skip
    Path("folder").mkdir()
    edited("keye.safetensors", "nan.model", lambda t, f: t["model.norm.weight"].__setitem__(slice(None), np.nan))


SAMPLE = "kvtools rl sample sums.jsonl --model keye.safetensors --group 2 --max-new 2 --overlong keep"
GRPO = "kvtools rl grpo sums.jsonl --model keye.safetensors --group 2 --max-new 2 --steps 1"
MPO = "kvtools rl mpo --model keye.safetensors --steps 1"
CASES = f"""
kvtools rl sample sums.jsonl
kvtools rl sample - --model - < sums.jsonl
kvtools rl sample nowhere.jsonl --model keye.safetensors
kvtools rl sample sums.jsonl --model shop.model
{SAMPLE} --temperature -1
{SAMPLE} --reward joy
{SAMPLE} --reward correct:much
{SAMPLE} --reward correct --reward correct:2
{SAMPLE} --reward cmd:
{SAMPLE} --reward "cmd:'a"
{SAMPLE} --reward cmd:./nowhere
{SAMPLE} --reward cmd:false
{SAMPLE} --reward "cmd:python3 scores.py 1+2"
{SAMPLE} --reward "cmd:python3 scores.py a+b+c+d"
{SAMPLE} --reward "cmd:python3 other.py"
{SAMPLE} --reward "cmd:python3 twice.py"
{SAMPLE} --reward "cmd:python3 nans.py" -o nans.kvs
{SAMPLE} --reward "cmd:python3 nans.py" --reward "cmd:python3 nans.py:2"
{SAMPLE} --reward "cmd:python3 slow.py" --timeout 0.01
{SAMPLE} --judge http://localhost:1
{SAMPLE} --reward correct --judge nowhere
{SAMPLE} --reward correct --judge http://localhost:1 --judge-cache folder
{SAMPLE} --modes loud:1
{SAMPLE} --modes think:0
{SAMPLE} --modes think:x
kvtools rl sample unanswered.jsonl --model keye.safetensors --reward correct
kvtools rl sample blank.jsonl --model keye.safetensors --reward correct
kvtools rl sample kind.jsonl --model keye.safetensors --reward correct
kvtools rl sample sums.jsonl --model nan.model
SLURM_JOB_END_TIME=1 {SAMPLE} -o stopped.kvs
kvtools rl pairs even.kvs
kvtools rl pairs strange.kvs
kvtools rl pairs clips.kvs
kvtools rl mpo pairs.jsonl
{MPO} equal.jsonl
{MPO} alone.jsonl
{MPO} other-prompts.jsonl
{MPO} no-messages.jsonl
{MPO} pairs.jsonl --require-gain
{MPO} pairs.jsonl --weights 1,2
{MPO} pairs.jsonl --weights a,b,c
{MPO} pairs.jsonl --weights 0,0,0
{MPO} pairs.jsonl --beta 0
{MPO} pairs.jsonl --lr 0
{MPO} pairs.jsonl --training colour=red
{MPO} pairs.jsonl --training rate=fast
{MPO} pairs.jsonl --training checkpoint=often
kvtools rl grpo sums.jsonl --reward correct
{GRPO}
{GRPO} --reward correct --column user=a
{GRPO} --reward correct --rollouts both.kvs -o both.kvs
{GRPO} --reward correct --rollouts - > stdout.bin
{GRPO} --reward correct --rollouts sums.jsonl -o new.model
{GRPO} --reward length:
kvtools rl mpo pairs.jsonl --model keye.safetensors --log both.model -o ./both.model --force
kvtools rl grpo clicks.csv --model shop.model --reward hit --kl 1
{GRPO} --reward correct --group 1
{GRPO} --reward correct --updates 3
{GRPO} --reward correct --temperature 0
{GRPO} --reward correct --kl -1
{GRPO} --reward correct --clip 2
{GRPO} --reward correct --clip a
{GRPO} --reward correct --require-gain
{GRPO} --reward correct --valid unanswered.jsonl
kvtools rl grpo clips.kvs --model keye.safetensors --reward correct
"""
