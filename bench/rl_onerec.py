"""Whether reinforcement learning helps a recommender, by the commands themselves: a Markdown table from results that are kept.

Usage: rl_onerec.py beauty|ml-100k MODEL [test] [what=lift,legality,choice,groups] [seeds=0,1,2] [steps=N]
       rl_onerec.py beauty|ml-100k MODEL table          prints what is kept, and runs nothing
       rl_onerec.py beauty|ml-100k MODEL rate           rollouts a second, against a beam call a user

MODEL is a generator of that data from kvtools pretrain onerec. Everything is made in bench/.rl; a run whose output is there is
not run again. The reward is the P-Score of a ranker from kvtools rl pscore, trained on the training part; figures are of
held-out users. The validation part chooses the weights; the test part is read for one column alone, and with the word test.

lift: ECPO towards the reward, three seeds, with the settings that are recommended. legality and choice: harder training without
the joint loss, alone, and with the format reward of random or of top proposals. groups: 8, 32 and 128 items a group, ten of
which are given to each held-out user.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from ours import CLICKS, DATA, HERE, KVTOOLS

USERS = {"beauty": None, "ml-100k": DATA / "ml-100k" / "ml-100k.user"}
OBJECTIVES = {"beauty": ["hit"], "ml-100k": ["hit", "column:rating"]}
STEPS = 16  # of a lift; longer runs follow the ranker away from what users take next


def training(*words):
    return [option for word in words for option in ("--training", word)]


LIFT = ["--lr", "5e-5", *training("valid_users=6000")]
HARD = ["--lr", "2e-3", "--batch", "16", *training("next_token=0", "valid_users=400", "valid=25%")]
RUNS = {
    "lift": {"ecpo": LIFT},
    "legality": {"alone": HARD, "random 5 of 40": [*HARD, "--reward", "format:1"]},
    "choice": {"top 5 of 40": [*HARD, "--reward", "format:1", "--training", "format_choice=top"]},
    "groups": {f"group {n}": [*LIFT, "--group", str(n), "--training", "valid_k=10"] for n in (8, 32, 128)},
}


def main(data, model, *words):
    chosen = dict(word.split("=") for word in words if "=" in word)
    folder = HERE / ".rl" / data
    folder.mkdir(parents=True, exist_ok=True)
    if "table" in words:
        return table(folder)
    if "rate" in words:
        return rate(data, model)
    common = [CLICKS[data], "--model", model]
    ranker = folder / "ranker.safetensors"
    if not ranker.exists():
        objectives = [word for name in OBJECTIVES[data] for word in ("--reward", name)]
        kvtools("rl", "pscore", *common, *objectives, "--steps", "3ep", "--log", folder / "ranker.jsonl", "-o", ranker)
    table_of_users = ["--users", USERS[data]] if USERS[data] else []
    for what in chosen.get("what", ",".join(RUNS)).split(","):
        for name, options in RUNS[what].items():
            seeds = chosen.get("seeds", "0,1,2" if what == "lift" else "0").split(",")
            for seed in seeds:
                out = folder / f"{name.replace(' ', '-')}-{seed}.safetensors"
                if out.exists():
                    continue
                begun = time.monotonic()
                kvtools(
                    "rl", "ecpo", *common, *table_of_users, "--reward", f"pscore:{ranker}", "--seed", seed, "--batch", "32",
                    "--steps", chosen.get("steps", STEPS), "--training", "valid=50%", *options,
                    "--log", out.with_suffix(".jsonl"), "-o", out,
                )  # fmt: skip
                line = {"what": what, "name": name, "seed": int(seed), "seconds": round(time.monotonic() - begun, 1)}
                line |= last_line(out.with_suffix(".jsonl"))
                if what == "lift" and "test" in words:
                    ask = ["--evaluate", "test", "--beam", "64", "--json", *(["--table", USERS[data]] if USERS[data] else [])]
                    for key, which in (("test_hr@10_before", model), ("test_hr@10", out)):
                        line[key] = json.loads(kvtools("recgen", "--model", which, *ask, CLICKS[data]))["hr@10"]
                with (folder / "results.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
    return table(folder)


def last_line(log):
    return json.loads(log.read_text().splitlines()[-1])


def table(folder):
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    titles = ["run", "seed", "reward", "gain (95 % interval)", "HR@10", "gain (95 % interval)", "legal without the trie"]
    titles += ["test HR@10", "s"]
    print(f"| {' | '.join(titles)} |")
    print("|---" * len(titles) + "|")
    for line in lines:
        reward, hits, legal = (
            f"{line[f'valid_{name}_before']:.4f} → {line[f'valid_{name}']:.4f}" for name in ("reward", "hr@10", "legal_share")
        )
        test = f"{line['test_hr@10_before']:.4f} → {line['test_hr@10']:.4f}" if "test_hr@10" in line else ""
        gains = [gain_of(line, "gain"), hits, gain_of(line, "hr@10_gain"), legal, test]
        cells = [f"{line['what']}: {line['name']}", line["seed"], reward, *gains, line["seconds"]]
        print(f"| {' | '.join(map(str, cells))} |")
    lifts = [line for line in lines if line["what"] == "lift"]
    if len(lifts) > 1:
        gains = [line["gain"] for line in lifts]
        hits, before = (sum(line[name] for line in lifts) for name in ("hr@10_gain", "valid_hr@10_before"))
        told = f"{statistics.mean(gains):+.4f} ± {statistics.stdev(gains):.4f}, HR@10 {hits / before:+.2%}"
        print(f"\nGain over {len(lifts)} seeds: {told}.")


def gain_of(line, name):
    low, high = line[f"{name}_ci95"]
    return f"{line[name]:+.4f} ({low:+.4f} to {high:+.4f})"


def rate(data, model):
    """Rollouts a second of processor time: groups of 40 for batches of 64 users, against a call a user, ours and a T5's."""
    import generate_peers
    import torch

    from kvtools.artifact import source_name
    from kvtools.onerec.rl import data as rl_data
    from kvtools.onerec.rl import rollouts
    from kvtools.onerec.rl.prompts import PromptSet
    from kvtools.onerec.run.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(model)
    source = rl_data.open_source_of(
        str(CLICKS[data]), checkpoint, source_name(model), columns={}, wanted=[], users=None, report=lambda *_: 0
    )
    prompts = PromptSet(rl_data.training_batcher(source, checkpoint), 64, 0)
    batches = [next(prompts.from_step(0))] * 3
    torch.set_num_threads(1)
    rates = {}
    for name, size in (("64 users a call", 64), ("a user a call", 1)):
        n, begun = 0, 0.0
        for turn, batch in enumerate([batches[0], *batches]):  # the first of all compresses histories, which is then kept
            begun = time.process_time() if turn < 2 else begun
            n = 0 if turn < 2 else n
            for begin in range(0, len(batch), size):
                part = batch.take(range(begin, min(begin + size, len(batch))))
                with torch.inference_mode():
                    context = checkpoint.model.context(prompts.batcher.batch(part.rows))
                    n += rollouts.beams(checkpoint.model, context, checkpoint.ids.trie, 40).ids_BG.numel()
        rates[name] = n / (time.process_time() - begun)
        print(f"{name}: {rates[name]:,.0f} rollouts/s")
    print(f"{rates['64 users a call'] / rates['a user a call']:.1f}× of our own call a user")
    work = generate_peers.Work(batch=1, beam=40, length=64, items=len(checkpoint.ids))
    run, _ = generate_peers.t5(work, torch.float32, d=64, n_enc=2, n_dec=2, n_heads=4, d_head=16, ffn=128)
    run()
    begun = time.process_time()
    for _ in range(16):
        run()
    print(f"transformers' T5 of that width, a user a call: {16 * 40 / (time.process_time() - begun):,.0f} rollouts/s")


def kvtools(*words):
    words = [str(word) for word in words]
    print("$ kvtools", *words, file=sys.stderr, flush=True)
    return subprocess.run([KVTOOLS, *words], check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
