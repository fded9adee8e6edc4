"""Low-rank adapters in folders, their training, and what cannot be added to a model; answers by the file."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
TRAIN = "pretrain keye questions.kvs --media clips.kvs --init keye.safetensors --steps 1 -o x.model"


def adapter(name, tensors=None, **config):
    folder = Path(name)
    folder.mkdir()
    settings = {"peft_type": "LORA", "lora_alpha": 4, "r": 2, "base_model_name_or_path": "gone.model", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    if tensors is not None:
        save_file(tensors, str(folder / "adapter_model.safetensors"))


def thin(layer=LAYER, rank=2, width_in=8, width_out=8):
    return {
        f"{layer}.lora_A.weight": np.ones((rank, width_in), np.float32),
        f"{layer}.lora_B.weight": np.ones((width_out, rank), np.float32),
    }


def furnish():
    adapter("bare")
    adapter("dora", thin(), use_dora=True)
    adapter("narrow", thin(width_in=3))
    adapter("foreign", thin("base_model.model.model.poem.0"))
    adapter("half", {name: x for name, x in thin().items() if "lora_A" in name})
    adapter("embedding", {f"{LAYER}.lora_embedding_A": np.ones((2, 2), np.float32)})
    adapter("whole", {name: x.astype(np.int32) for name, x in thin().items()})
    adapter("pattern", thin(), alpha_pattern={"(a+)+": 3})
    adapter("alpha", thin(), lora_alpha="much")
    adapter("lonely", thin())
    adapter("tuned", thin(width_in=32, width_out=32), base_model_name_or_path="keye.safetensors")
    adapter("other", thin(width_in=32, width_out=32))
    Path("unseen.jsonl").write_text('{"messages": [{"role": "user", "content": [{"type": "video", "video": "gone.mp4"}]}]}\n')
    Path("other/kvtools.json").write_text('{"base": "keye.safetensors", "digest": "0"}')


CASES = f"""
kvtools {TRAIN} --lora r=0
kvtools {TRAIN} --lora on=all
kvtools {TRAIN} --lora r=2,alpha=0
kvtools {TRAIN} --lora r=2,alpha=-1
kvtools {TRAIN} --lora r=2,on=tower
kvtools {TRAIN} --lora r=2 --stage alignment
kvtools {TRAIN} --lora r=2 --stage matching
kvtools {TRAIN} --lora r=2 --init keye.safetensors
kvtools {TRAIN.partition(" -o")[0]} --lora r=2
kvtools {TRAIN.replace("keye.safetensors", "tower.model")} --lora r=2
kvtools {TRAIN.replace("keye.safetensors", "tuned")} --lora r=2
kvtools merge keye.safetensors keye.safetensors --adapter bare
kvtools merge keye.safetensors --adapter bare --weights 1
kvtools merge keye.safetensors --adapter nowhere
kvtools merge keye.safetensors --adapter bare
kvtools merge keye.safetensors --adapter dora
kvtools merge keye.safetensors --adapter narrow
kvtools merge keye.safetensors --adapter foreign
kvtools merge keye.safetensors --adapter half
kvtools merge keye.safetensors --adapter embedding
kvtools merge keye.safetensors --adapter whole
kvtools merge keye.safetensors --adapter pattern
kvtools merge keye.safetensors --adapter alpha
kvtools chat Hm? --model lonely
kvtools chat Hm? --model other
kvtools {TRAIN} --valid-every 5
kvtools {TRAIN} --valid questions.kvs --valid-every often
kvtools answer --open unseen.jsonl
kvtools answer questions.kvs --model keye.safetensors --greedy
kvtools answer questions.kvs --model keye.safetensors --stop x -o answers.jsonl
kvtools answer --open questions.kvs --model keye.safetensors --model keye
kvtools answer --open questions.kvs --model keye.safetensors --json
kvtools answer --open questions.kvs --model keye.safetensors --repetition-penalty 0
kvtools answer --open questions.kvs --model keye.safetensors --stop ''
kvtools answer --open questions.kvs --model keye.safetensors --temperature -1
kvtools answer --open questions.kvs --model keye.safetensors --shard 2/2
kvtools answer --open unseen.jsonl --model keye.safetensors --max-new 2
kvtools answer --open questions.kvs --model keye.safetensors -o questions.kvs
kvtools.keye.model.sampling.SamplingConfig(repetition_penalty=0)
"""
