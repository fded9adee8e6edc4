"""Small random checkpoints, saved by the libraries that publish them."""

import transformers

QWEN = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "bos_token_id": None, "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}  # fmt: skip


def qwen(path, *, shard="50GB", **changes):
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**{**QWEN, **changes})).eval()
    model.save_pretrained(path, max_shard_size=shard)
    return model


def write_safetensors(path, tensors):
    from safetensors.torch import save_file

    save_file(tensors, str(path), metadata={"format": "pt"})


def read_safetensors(path):
    from safetensors.torch import load_file

    return load_file(str(path))
