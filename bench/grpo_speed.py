"""One GRPO step against trl's GRPOTrainer on CPU: 8 prompts of 64 tokens, 8 answers each of 128 tokens, one equal small Qwen3.

    python bench/grpo_speed.py [--rounds 3]

Both sample, reward at random, and make one update of all weights, in float32, without a reference model, on one thread. Seconds
are those of the processor, so that a busy machine counts less. The contestants run in turn, and the first step of each is not
counted. The bound is the matrix products alone at the speed measured here: prompts once and each new token once forward, and
prompts and answers forward and backward.
"""

import argparse
import contextlib
import logging
import random
import tempfile
import time
from types import SimpleNamespace

import numpy as np
import torch

from kvtools.keye.model.config import LanguageConfig, ModelConfig, VisionConfig
from kvtools.keye.model.flops import RowShape, row_flops
from kvtools.keye.model.inputs import Example
from kvtools.keye.model.keye import Keye
from kvtools.keye.rl.grpo import GrpoTask, PolicyConfig
from kvtools.keye.rl.prompts import Prompt
from kvtools.keye.rl.rewards import Rewards, Rule
from kvtools.keye.rl.rollouts import Sampler, SamplingPlan
from kvtools.train.device import keep_freed_memory
from kvtools.train.loop import Plan, Trainer
from kvtools.train.resume import train_state
from kvtools.world import World

N_PROMPTS, N_ANSWERS, N_PROMPT, N_NEW, VOCABULARY = 8, 8, 64, 128, 320
CHUNK = 8  # prompts that grow together: the default of rl grpo for 8 answers a prompt
LANGUAGE = LanguageConfig(256, 768, 4, 4, 2, 64, vocabulary=VOCABULARY, tied=True)


class FixedPrompts:
    """In place of a processor: prompts of so many random tokens, and answers that nothing ends."""

    def __init__(self):
        self.template = SimpleNamespace(size=VOCABULARY, stop_tokens=(), decode=lambda ids, **_: str(len(ids)))

    def prompt(self, conversation):
        rng = np.random.default_rng(int(conversation["id"]))
        tokens = rng.integers(0, VOCABULARY - 2, N_PROMPT).astype(np.int32)
        positions = np.broadcast_to(np.arange(N_PROMPT, dtype=np.int32), (3, N_PROMPT))
        return Example(str(conversation["id"]), tokens, np.zeros(N_PROMPT, np.uint8), positions)


def ours(n_steps):
    """Seconds of each of our steps, and the bound."""
    torch.manual_seed(0)
    vision = VisionConfig(16, 32, 1, 2, table_side=4)
    model = Keye(ModelConfig(vision, LANGUAGE, image_token=VOCABULARY - 1, video_token=VOCABULARY - 2))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("model."))
    rng = random.Random(0)
    rewards = Rewards([(Rule("random", lambda _: rng.random()), 1.0)])
    sampler = Sampler(model, FixedPrompts(), rewards, SamplingPlan(N_ANSWERS, N_NEW, overlong="keep"))
    prompts = [Prompt(str(n), {"messages": []}) for n in range(N_PROMPTS)]
    task = GrpoTask(
        model, sampler, sampler, prompts, [], {}, PolicyConfig(), None, batch=N_PROMPTS, chunk=CHUNK, row_tokens=4096,
        trains=frozenset({"decoder"}), world=World(), seed=0, in_dtype=contextlib.nullcontext,
    )  # fmt: skip
    plan = Plan(epochs=n_steps, n_steps=n_steps, lr=1e-5, warmup=0)
    trainer = Trainer(task, plan, train_state(None, {}), World(), device="cpu", peak=0)
    seconds, before = [], time.process_time()
    for step in trainer.run(False):
        seconds += [time.process_time() - before] if step.validation is None else []
        before = time.process_time()
    n_all, n_new = N_PROMPTS * N_ANSWERS, N_PROMPTS * N_ANSWERS * N_NEW
    trained = row_flops(model.config, RowShape([N_PROMPT + N_NEW] * n_all, [], n_new)).training(frozenset({"decoder"}))
    drawn = row_flops(model.config, RowShape([N_PROMPT] * N_PROMPTS + [N_NEW] * n_all, [], n_new)).forward
    return seconds, (trained + drawn) / products_per_second()


def products_per_second():
    """FLOPs of a matrix product a second of the processor."""
    a = torch.randn(1024, 1024)
    begin = time.process_time()
    for _ in range(20):
        a @ a
    return 20 * 2 * 1024**3 / (time.process_time() - begin)


def trls(n_steps):
    """Seconds of each step of GRPOTrainer."""
    import cpu_torchvision  # noqa: F401 - before transformers
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    logging.disable(logging.WARNING)
    words = {f"w{n}": n for n in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", pad_token="w2")
    sizes = {"hidden_size": LANGUAGE.width, "intermediate_size": LANGUAGE.hidden, "num_hidden_layers": LANGUAGE.layers}
    heads = {"num_attention_heads": LANGUAGE.heads, "num_key_value_heads": LANGUAGE.kv_heads, "head_dim": LANGUAGE.head_dim}
    config = Qwen3Config(
        vocab_size=VOCABULARY, tie_word_embeddings=True, eos_token_id=1, pad_token_id=2, **sizes, **heads
    )  # fmt: skip
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in rng.integers(3, VOCABULARY, N_PROMPT)) for _ in range(N_PROMPTS * n_steps)]
    times = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            times.append(-time.process_time())

        def on_step_end(self, *_, **__):
            times[-1] += time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=N_PROMPTS * N_ANSWERS, num_generations=N_ANSWERS,
            max_completion_length=N_NEW, max_steps=n_steps, beta=0.0, learning_rate=1e-5, report_to=[], use_cpu=True,
            bf16=False, save_strategy="no",
            logging_strategy="no", disable_tqdm=True, gradient_checkpointing=False, loss_type="grpo",
            generation_kwargs={"min_new_tokens": N_NEW},
        )  # fmt: skip
        trainer = GRPOTrainer(
            Qwen3ForCausalLM(config), reward_funcs=lambda completions, **_: [random.random() for _ in completions],
            args=settings, train_dataset=Dataset.from_dict({"prompt": texts}), processing_class=fast, callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    return times


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    keep_freed_memory()
    torch.set_num_threads(1)
    ours_s, theirs_s, bounds = [], [], []
    for _ in range(rounds):
        seconds, bound = ours(3)
        ours_s += seconds[1:]
        bounds.append(bound)
        theirs_s += trls(3)[1:]
        print(f"kvtools {seconds}, trl {theirs_s[-2:]}, bound {bound:.2f} s", flush=True)
    ours_m, theirs_m, bound = (float(np.median(x)) for x in (ours_s, theirs_s, bounds))
    print(f"a step: kvtools {ours_m:.2f} s, trl {theirs_m:.2f} s, {theirs_m / ours_m:.2f} times as long")
    print(f"bound of the products {bound:.2f} s, kvtools {ours_m / bound:.2f} times as long")


if __name__ == "__main__":
    main()
