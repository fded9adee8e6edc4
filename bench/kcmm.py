"""eval-kcmm: seconds to score 100,000 predictions, and samples a second against one-at-a-time transformers.

Usage: kcmm.py [score] [generate] [n=100000]. A JSON line a figure. Scoring is the whole command, reading included; cpu_s is its
processor time. Generation: a tiny Keye-VL of random weights on 64 questions with a picture of 224x224, at most 48 new tokens,
greedy; the other side is Qwen3 of transformers with the same decoder, generate() a sample at a time, fed by our own vision
tower, so that both do the same work. Both of float32, one thread, in turn, the best of two.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

TASKS = {"CPV": "CPV", "Video_Topic": "Hot_Videos_Aggregation", "Video_Order": "Collection_Order",
         "PornComment": "Pornographic_Comment", "High_like": "High_like", "SPU": "SPU"}  # fmt: skip
GOLD = {"CPV": '{"颜色": ["红", "蓝"], "尺码": "L"}', "Video_Topic": "是_否_是", "Video_Order": "[Video 3, Video 2, Video 1]"}
THOUGHT = "<think>先看第一张图，再看第二张图。颜色一致，款式也一致，不是不同的商品。" * 8 + "</think>"
SAID = {"CPV": '<answer>\\boxed{{"颜色": ["蓝", "红"], "尺码": "L"}}</answer>', "Video_Topic": "结果是[是，否，是]",
        "Video_Order": "<answer>[视频3，视频2，视频1]</answer>"}  # fmt: skip


def make(folder, n):
    """Six tables of n rows in all, and predictions with thinking."""
    (folder / "images").mkdir()
    Image.new("RGB", (224, 224), (200, 40, 30)).save(folder / "images" / "0.jpg")
    rng = random.Random(0)
    with open(folder / "answers.jsonl", "w") as answers:
        for table, task in TASKS.items():
            rows = ["index\tquestion\tanswer\timage_path\n"]
            for i in range(n // len(TASKS)):
                rows.append(f"{i}\t两张图里的商品相同吗？\t{GOLD.get(table, '是')}\t['0.jpg', '0.jpg']\n")
                said = THOUGHT + SAID.get(table, rng.choice(["是。", "不是", "答案：\\boxed{是}", "两者相同，是同一件商品。"]))
                answers.write(json.dumps({"task": task, "index": i, "prediction": said}, ensure_ascii=False) + "\n")
            (folder / f"{table}.tsv").write_text("".join(rows))


def score(n):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, n)
        for how in ("rules", "reference"):
            begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [Path(sys.executable).parent / "kvtools", "eval-kcmm", "-q", "--json", folder, "--score", how,
                 "--predictions", folder / "answers.jsonl"],
                check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            seconds = time.perf_counter() - begun
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            figures = {"seconds": round(seconds, 2), "cpu_s": round(cpu_s, 2), "peak_bytes": after.ru_maxrss << 10}
            print(json.dumps({"score": how, "predictions": n, **figures}), flush=True)


def generate(n=64, max_new=48):
    import cpu_torchvision  # noqa: F401 - before transformers
    import torch
    import transformers

    from kvtools.keye.bench.benchmark import Generation, Question
    from kvtools.keye.bench.generate import generate_answers
    from kvtools.keye.data.chat_template import ChatTemplate
    from kvtools.keye.data.media import Media
    from kvtools.keye.data.processor import Processor
    from kvtools.keye.model.config import LanguageConfig, ModelConfig, VisionConfig
    from kvtools.keye.model.keye import Keye

    torch.set_num_threads(1)
    template = ChatTemplate.open(None)
    language = LanguageConfig(256, 768, 4, 4, 2, 64, vocabulary=template.size)
    config = ModelConfig(
        VisionConfig(128, 384, 4, 2, table_side=27),
        language,
        image_token=template.image_token,
        video_token=template.video_token,
    )
    torch.manual_seed(0)
    model = Keye(config).eval()
    peer = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=language.vocabulary, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, head_dim=64, attention_bias=False,
            tie_word_embeddings=False, eos_token_id=[*template.stop_tokens], bos_token_id=None, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        picture = str(Path(name) / "0.jpg")
        Image.new("RGB", (224, 224), (200, 40, 30)).save(picture)
        shown = {"type": "image", "image": picture}
        questions = [
            Question("SPU", str(i), [shown, {"type": "text", "text": "相同吗？" * (1 + i % 8)}], "是") for i in range(n)
        ]

        def ours():
            with Media([]) as media:
                return sum(
                    a.tokens for _, a in generate_answers(model, template, media, questions, Generation("auto", max_new))
                )

        @torch.inference_mode()
        def theirs():
            total = 0
            with Media([]) as media:
                processor = Processor.for_model(config, template, media)
                for question in questions:
                    prompt = processor.prompt({"id": question.index, "mode": None, "messages": question.messages("auto")})
                    pixels = torch.from_numpy(prompt.visuals[0].pixels_P3HW)
                    visual_MD = model.encode_images(pixels, [prompt.visuals[0].grid.tolist()])
                    tokens_S = torch.from_numpy(prompt.tokens).long()
                    embedded_SD = peer.model.embed_tokens(tokens_S)
                    embedded_SD[tokens_S == config.image_token] = visual_MD
                    ones_1S = torch.ones(1, len(tokens_S), dtype=torch.long)
                    out = peer.generate(
                        inputs_embeds=embedded_SD[None], attention_mask=ones_1S, max_new_tokens=max_new, do_sample=False
                    )
                    total += out.shape[1]
            return total

        best = {}
        for _ in range(2):
            for side, run in (("ours", ours), ("transformers", theirs)):
                begun = time.perf_counter()
                n_tokens = run()
                seconds = time.perf_counter() - begun
                best[side] = max(best.get(side, (0, 0)), (n / seconds, n_tokens))
        figures = {name: {"samples_per_s": round(rate, 2), "tokens": tokens} for name, (rate, tokens) in best.items()}
        print(json.dumps(figures | {"ratio": round(best["ours"][0] / best["transformers"][0], 2)}), flush=True)


if __name__ == "__main__":
    words = sys.argv[1:]
    n_scored = next((int(word[2:]) for word in words if word.startswith("n=")), 100_000)
    names = [word for word in words if not word.startswith("n=")] or ["score", "generate"]
    if "score" in names:
        score(n_scored)
    if "generate" in names:
        generate()
