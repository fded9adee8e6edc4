"""The cold-start mixture: its options, its sources, and why a sample is none."""

import json
from pathlib import Path

from near_misses import NEAR_MISSES
from PIL import Image

THOUGHT = "<think>Two and two.</think><answer>4</answer>"
CODE = "<think><code>\n```python\n{}\n```\n</code><sandbox_output>{}</sandbox_output></think><answer>4</answer>"
SAVE = "from PIL import Image\nImage.new('RGB', ({}, 28), {}).save('a.png')\nprint('a.png')"
OF_REASON = {reason: (reply, mode) for mode, reply, reason in reversed(NEAR_MISSES)}


def talk(question, *answers, **more):
    messages = [{"role": "user", "content": question}, *({"role": "assistant", "content": answer} for answer in answers)]
    return {"messages": messages, **more}


def coded(code, result):
    """An agentic talk whose code is said to make a picture."""
    before, _, after = CODE.format(code, "\0").partition("\0")
    return talk(
        "Look closer.", [{"type": "text", "text": before}, {"type": "image", "image": result}, {"type": "text", "text": after}]
    )


TALKS = {
    "no-result": talk("Two and two?", "Four."),
    "two-results": talk("Two and two?", "It is \\boxed{4}, or \\boxed{5}."),
    "good": talk("Two and two?", THOUGHT),
    "unasked": {"messages": [{"role": "system", "content": "Hm."}, {"role": "assistant", "content": THOUGHT}]},
    "unanswered": talk("Two and two?"),
    "other-mode": talk("Two and two? /no_think", THOUGHT),
    "two-switches": talk("/think Two and two? /no_think", THOUGHT),
    "early-switch": talk("/think Two and two?", THOUGHT),
    "benched": talk("What is the sum of two and two?", THOUGHT),
    "shown": talk([{"type": "image", "image": "pictures/0.png"}, {"type": "text", "text": "What?"}], THOUGHT),
    "prints": talk("Two and two?", CODE.format("print(4)", "5")),
    "fails": talk("Two and two?", CODE.format("1 / 0", "5")),
    "no-picture": coded("print(4)", "same.png"),
    "other-size": coded(SAVE.format(56, "'red'"), "same.png"),
    "other-picture": coded(SAVE.format(28, "'white'"), "same.png"),
    "stated": coded(SAVE.format(28, "'red'"), "words.png"),
}


def furnish():
    for name, document in TALKS.items():
        Path(f"{name}.jsonl").write_text(json.dumps(document) + "\n")
    Image.new("RGB", (28, 28), "red").save("same.png")
    Path("words.png").write_text("no picture")
    Path("bench.txt").write_text("What is the sum of two and two?\n")
    Path("blank.txt").write_text("")
    Path("infinite.jsonl").write_text('{"messages": NaN}\n')
    Path("cut.json").write_text('[{"messages": 1}, {"mess')
    Path("cut.parquet").write_bytes(b"PAR1 cut")
    Path("report.json").write_text('{"by_mode": {"think": {}}}\n')


MIX = "coldstart-mix --jobs 1 -o mix.kvs"
CASES = f"""
kvtools coldstart-mix
kvtools {MIX} --think good.jsonl --epochs 2 -n 5
kvtools coldstart-mix --think good.jsonl --json
kvtools {MIX} --think good.jsonl --patches reference
kvtools {MIX} --think good.jsonl --ratio 1:2
kvtools {MIX} --think good.jsonl --ratio none
kvtools {MIX} --think good.jsonl --epochs 0
kvtools {MIX} --think good.jsonl --frames many
kvtools {MIX} --think - --auto -
kvtools {MIX} --think nowhere.jsonl
SLURM_JOB_END_TIME=1 kvtools coldstart-mix --jobs 1 --think - -o stopped.kvs < good.jsonl
kvtools coldstart-mix --jobs 1 --think - -o stopped.kvs < benched.jsonl
SLURM_JOB_END_TIME=1 kvtools coldstart-mix --jobs 1 --think - -o stopped.kvs < good.jsonl
kvtools {MIX} --think good.jsonl --against nowhere.jsonl
kvtools {MIX} --think good.jsonl --against blank.txt
kvtools {MIX} --think good.jsonl --against cut.json
kvtools {MIX} --think blank.txt
kvtools {MIX} --think infinite.jsonl
kvtools {MIX} --think infinite.jsonl --strict
kvtools {MIX} --think no-result.jsonl
kvtools {MIX} --think two-results.jsonl
kvtools {MIX} --think cut.json
kvtools {MIX} --think cut.parquet
kvtools {MIX} --think unasked.jsonl
kvtools {MIX} --think unanswered.jsonl
kvtools {MIX} --think other-mode.jsonl
kvtools {MIX} --think two-switches.jsonl
kvtools {MIX} --think early-switch.jsonl
kvtools {MIX} --think good.jsonl --max-tokens 5
kvtools {MIX} --think benched.jsonl --against bench.txt
kvtools {MIX} --think shown.jsonl --against pictures
kvtools {MIX} --agentic fails.jsonl
kvtools {MIX} --agentic prints.jsonl
kvtools {MIX} --agentic no-picture.jsonl
kvtools {MIX} --agentic other-size.jsonl
kvtools {MIX} --agentic other-picture.jsonl
kvtools {MIX} --agentic stated.jsonl
kvtools {MIX} --think good.jsonl -n 5
kvtools plot report.json -o report.png
kvtools.keye.data.modes.parse('Four.', 'loud')
list(kvtools.train.packing.pack_stream([9], int, 4))
""" + "\n".join(f"kvtools.keye.data.modes.parse({reply!r}, {mode!r})" for reply, mode in OF_REASON.values())
