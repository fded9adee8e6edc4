"""Conversations mixed and packed by Hugging Face: datasets, a tokenizer's chat template, trl's packing. JSON on stdout.

Usage: mix_peers.py FOLDER TOKENIZER N LENGTH [processes=2]      FOLDER: think.jsonl and no_think.jsonl; imports are not timed

The two files are read, shuffled, taken from by ratio, mapped in batches to tokens and masks of the assistant's text by the
template, packed by best fit (trl.pack_dataset) and saved. No format is checked, no duplicate looked for.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import cpu_torchvision  # noqa: F401 - before transformers
import datasets
from transformers import PreTrainedTokenizerFast
from trl import pack_dataset

TEMPLATE = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
WEIGHTS = {"think": 230, "no_think": 330}


def main(folder, tokenizer_file, n, length, processes=2):
    datasets.disable_progress_bars()
    folder, out = Path(folder), Path(folder) / "packed"
    shutil.rmtree(out, ignore_errors=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file)
    tokenizer.chat_template = TEMPLATE
    begin = time.perf_counter()
    total = sum(WEIGHTS.values())
    parts = [
        datasets.load_dataset("json", data_files=str(folder / f"{mode}.jsonl"), split="train", cache_dir=str(folder / "cache"))
        .shuffle(seed=0)
        .select(range(n * weight // total))
        for mode, weight in WEIGHTS.items()
    ]
    mixed = datasets.concatenate_datasets(parts).shuffle(seed=0)

    def encode(batch):
        made = tokenizer.apply_chat_template(
            batch["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True, padding=False
        )
        return {"input_ids": made["input_ids"], "assistant_masks": made["assistant_masks"]}

    encoded = mixed.map(encode, batched=True, num_proc=processes, remove_columns=mixed.column_names)
    packed = pack_dataset(encoded, length)
    packed.save_to_disk(str(out))
    seconds = time.perf_counter() - begin
    tokens = sum(map(len, packed["input_ids"]))
    print(json.dumps({"samples": len(mixed), "seconds": seconds, "tokens": tokens, "rows": len(packed)}))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
