"""Conversations, media, quizzes, tokenizers, checkpoints, and the vision-language model."""

import json
import shutil
from pathlib import Path

import damage
import numpy as np
from damage import array, blob, edited, stream, zeros
from same_outputs import KEYE_SIZES

TRAIN = "pretrain keye --config small.toml --media clips.kvs"


def asked(*parts, answer="Yes.", **more):
    content = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}], **more}


def clip(**words):
    return {"type": "video", "video": "a.mp4", **words}


TALKS = {
    "no-role": {"messages": [{"content": "Hm."}]},
    "no-type": {"messages": [{"role": "user", "content": [{"text": "Hm."}]}]},
    "list": [1],
    "mode": asked("Why?", mode="loud"),
    "role": {"messages": [{"role": "robot", "content": "Hm."}]},
    "roleless": {"messages": [{"content": "x"}]},
    "typeless": {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
    "silent": {"messages": [{"role": "user", "content": ""}]},
    "none": {"messages": []},
    "string": {"messages": "words"},
    "other": {"colour": "red"},
    "part": {"messages": [{"role": "user", "content": [3]}]},
    "type": asked({"type": "smell", "smell": "x"}),
    "sound": {"messages": [{"role": "user", "content": "<audio> What?"}], "audios": ["a.wav"]},
    "marks": {"messages": [{"role": "user", "content": "<image><image> What?"}], "images": ["0.png"]},
    "unmarked": {"messages": [{"role": "user", "content": "<image> What?"}], "images": ["0.png", "1.png"]},
    "source": asked({"type": "image", "image": 3}),
    "mark": asked("Look: <|image_1|> What?"),
    "field": asked("What?", image_path="0.png"),
    "null": asked("What?", images=None),
    "words": asked({"type": "image", "image": "0.png", "zoom": 2}),
    "two-sources": asked({"type": "image", "image": "0.png", "path": "1.png"}),
    "sourceless": asked({"type": "video", "video": []}),
    "values": asked("<video>", videos=["a.mp4"], fps=[1, 2]),
    "unasked": {"messages": [{"role": "assistant", "content": "x"}], "images": ["0.png"]},
    "weighed": asked("Why?", loss_weight=0.5),
    "weight": {"messages": [{"role": "assistant", "content": "x", "loss_weight": 0.5}]},
    "infinite": '{"messages": [{"role": "user", "content": NaN}]}',
}
SHOWN = {
    "nowhere": clip(video="nowhere.mp4"),
    "address": clip(video="https://example.org/a.mp4"),
    "written": {"type": "image", "image": "data:image/png,xyz"},
    "picture": clip(video="pictures/0.png", seconds=[0.5]),
    "frames": clip(frames=0),
    "fps": clip(video="videos/a.mp4", fps=0),
    "end": clip(video="videos/a.mp4", video_start=2, video_end=1),
    "file-frames": clip(video="videos/a.mp4", frames=-1),
    "size": clip(size=[30, 30]),
    "shown": clip(seconds=[0.0, 0.5], shown=[1.0]),
    "seconds": clip(seconds=[]),
    "late": clip(seconds=[0.2, 100]),
    "span": clip(video_start=50),
    "rate": clip(fps="fast"),
    "half-size": clip(resized_width=56),
    "mixed": clip(video=["pictures/0.png", {"video": "a.mp4"}]),
    "times": clip(video=["pictures/0.png"], seconds=[0, 1]),
    "page": {"type": "image", "image": "page.png"},
    "no-cuts": {"type": "video", "video": []},
    "cuts": {"type": "video", "video": [{"seconds": [0.1]}]},
    "narrow": {"type": "video", "video": "narrow"},
    "twice": clip(video="twice.mp4"),
}


def furnish():
    talks = {f"{name}.jsonl": talk if isinstance(talk, str) else json.dumps(talk) + "\n" for name, talk in TALKS.items()}
    shown = {f"shown-{name}.jsonl": json.dumps(asked(item, "What?")) + "\n" for name, item in SHOWN.items()}
    pixels = {"pixels": zeros("U8", 3, 3, 14, 14), "grid": array([1, 1, 3], "I32"), "seconds": zeros("F64", 1)}
    video = {"kind": "video", "key": "narrow", "fps": 2.0, "duration": 1.0, "source": [1, 1]}
    damage.furnish(talks | shown | {
        "small.toml": f'architecture = {json.dumps(KEYE_SIZES)}\nbatch_tokens = 1024\nlength = 512\nsteps = "1"\n',
        "empty.jsonl": "",
        "page.png": "<!DOCTYPE html>",
        "empty-list.json": "[]",
        "cut.parquet": b"PAR1" + bytes(40),
        "mute.jsonl": json.dumps({"messages": [{"role": "user", "content": "Why?"}]}) + "\n",
        "empty.kvs": "",
        "broken.mp4": b"no video",
        "one-folder/twice.mp4": b"one",
        "other-folder/twice.mp4": b"other",
        "binary.json": b"{\0\0",
        "latin.jsonl": b'{"messages": "\xff"}',
        "cut.json": '[{"messages": [',
        "long.jsonl": json.dumps(asked("word " * 4000)) + "\n",
        "good.jsonl": json.dumps(asked("Why?")) + "\n",
        "narrow.kvs": stream("video", [blob(pixels, video)]),
        "other.kvs": stream("video", [blob(pixels, video | {"key": "a.mp4"})]),
        "twice.kvs": stream("video", [blob(each, video) for each in (pixels, pixels | {"seconds": array([1], "F64")})]),
        "no-video.kvs": stream("video", [blob({"grid": zeros("I32", 3)}, video)]),
        "latin.csv": b"file,label\n\xe9.mp4,red\n",
        "columns.csv": "colour,label\nred,1\n",
        "no-label.csv": "file,colour\na.mp4,red\n",
        "same-label.csv": "file,label\n" + "".join(f"{name}.mp4,red\n" for name in "abcdef"),
        "twice.csv": "file,label\na.mp4,red\na.mp4,blue\n",
        "near.csv": "file,label\nx/a.mp4,red\ny/a.mp4,blue\nb.mp4,red\n",
        "broken.csv": 'file,label\na.mp4,"red\n',
        "tokenizer.json": "[]",
        "broken/tokenizer.json": "{",
        "nothing/readme.txt": "",
        "unanswered.jsonl": json.dumps({"id": "q", "messages": [{"role": "user", "content": "Why?"}]}) + "\n",
    })  # fmt: skip
    questions()
    packed()
    talkers()
    models()


def questions():
    def ask(**words):
        more = {"task": "order", "form": "choice", "answer": "A", "choices": ["1", "2"], "clips": ["a.mp4"]} | words
        return json.dumps(asked("Which? A) one B) two") | {"id": "q0"} | more) + "\n"

    damage.furnish({"form.jsonl": ask(form="open"), "answer.jsonl": ask(answer="Z")})


def packed():
    """Streams of packed rows that do not hold together, or do not fit the model."""

    from kvtools.keye.data.chat_template import ChatTemplate
    from kvtools.keye.data.media import Media
    from kvtools.keye.data.references import References

    def row(tokens, *, targets=None, segments=(0,), n_positions=None, keys=("k",), fields=None, **more):
        n = len(tokens)
        tensors = {"tokens": array(tokens, "I32"), "targets": array(targets or [0] + [1] * (n - 1), "U8"),
                   "segments": array(segments, "I32"), "positions": zeros("I32", 3, n_positions or n), **more}  # fmt: skip
        return stream("sequence", [blob(tensors, {"kind": "sequence", "key": "r0", "keys": [*keys], **(fields or {})})])

    def by_reference(*references):
        video = ChatTemplate.open(None).video_token
        shown = {"grid": array([[1, 2, 2]], "I32"), "seconds": zeros("F64", 1)}
        return row([1, video, 2], fields={"references": references}, **shown)

    true = References(Media(["clips.kvs"])).to(clip())
    damage.furnish({
        "row.kvs": row([1, 2, 3]),
        "row-segments.kvs": row([1, 2, 3], segments=(1, 2), keys="kl"),
        "row-grid.kvs": row([1, 2, 3], grid=array([[1, 2, 2]], "I32"), seconds=zeros("F64", 1)),
        "row-keys.kvs": row([1, 2, 3], keys="kl"),
        "row-vocabulary.kvs": row([1, 2, 900_000]),
        "row-visual.kvs": row([1], grid=array([[1, 2, 2]], "I32"), seconds=zeros("F64", 1), pixels=zeros("U8", 4, 3, 14, 14)),
        "row-targets.kvs": row([1, 2, 3], targets=[1, 1, 1]),
        "row-nameless.kvs": by_reference({"type": "video"}),
        "row-two.kvs": by_reference(true, true),
        "row-gone.kvs": by_reference({**true, "video": "gone.mp4"}),
        "row-other.kvs": by_reference({**true, "digest": "0"}),
        "row-size.kvs": by_reference(true),
    })  # fmt: skip


def talkers():
    """Tokenizers of more tokens than the model's, a decoder alone, and encoders of other patches."""
    document = json.loads(Path("keye/tokenizer.json").read_text())
    for name, n_more in (("shifted", 1), ("larger", 99)):
        words = json.loads(json.dumps(document))
        n = max(words["model"]["vocab"].values(), default=-1) + 1
        words["model"]["vocab"] |= {f"word {k}": n + k for k in range(n_more)}
        for entry in words["added_tokens"]:
            entry["id"] += n_more
        damage.furnish({f"{name}.json": json.dumps(words)})
    edited("keye.safetensors", "decoder.model", decoder)
    edited("tower.model", "patches.model", patches)


def decoder(t, f):
    for name in [name for name in t if name.startswith(("visual", "mlp_AR"))]:
        del t[name]
    f.update(layout="qwen3", architecture={"language": f["architecture"]["language"]})
    t["lm_head.weight"] = t["model.embed_tokens.weight"] + 1
    f["architecture"]["language"]["tied"] = False


def patches(t, f):
    f["architecture"]["vision"]["patch"] = 16
    name = next(name for name in t if name.endswith("patch_embedding.weight"))
    t[name] = np.zeros((*t[name].shape[:2], 16, 16), np.float32)


def models():
    def directory(name, change):
        shutil.copytree("keye", name)
        path = Path(name) / "config.json"
        words = json.loads(path.read_text())
        change(words)
        path.write_text(json.dumps(words))

    directory("hf-type", lambda w: w.__setitem__("model_type", "poet"))
    directory("hf-rope", lambda w: w["rope_scaling"].update(rope_type="yarn", type="yarn"))
    directory("hf-part", lambda w: w.__setitem__("vision_config", 3))
    directory("hf-count", lambda w: w.__setitem__("hidden_size", "wide"))
    directory("hf-number", lambda w: w.__setitem__("rms_norm_eps", -1))
    directory("hf-activation", lambda w: w.__setitem__("hidden_act", "relu"))
    directory("hf-merge", lambda w: w["vision_config"].__setitem__("spatial_merge_size", 3))
    directory("hf-sizes", lambda w: w.update(hidden_size=1 << 39, vocab_size=1 << 39))
    directory("hf-layers", lambda w: w.__setitem__("num_hidden_layers", 5))
    directory("hf-shape", lambda w: w.__setitem__("vocab_size", 4096))
    directory("hf-heads", lambda w: w.__setitem__("num_key_value_heads", 3))
    directory("hf-mute", lambda w: None)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (Path("hf-mute") / name).unlink(missing_ok=True)

    def architecture(**words):
        return lambda t, f: f["architecture"].update(words)

    def tied(t, f):
        f["architecture"]["language"]["tied"] = True
        t["lm_head.weight"] = t["model.embed_tokens.weight"] + 1

    model = "keye.safetensors"
    edited(model, "layout.model", lambda t, f: f.__setitem__("layout", "poem"))
    edited(model, "architecture.model", lambda t, f: f.__setitem__("layout", "qwen3"))
    edited(model, "merge.model", architecture(merge=3))
    edited(model, "field.model", architecture(colour=3))
    edited(model, "fields.model", lambda t, f: f["architecture"].__setitem__("language", 3))
    edited(model, "unknown.model", lambda t, f: f["architecture"]["language"].__setitem__("colour", 3))
    edited(model, "width.model", lambda t, f: f["architecture"]["vision"].__setitem__("width", 33))
    edited(model, "kv.model", lambda t, f: f["architecture"]["language"].__setitem__("kv_heads", 3))
    edited(model, "head.model", lambda t, f: f["architecture"]["language"].__setitem__("head_dim", 3))
    edited(model, "count.model", lambda t, f: f["architecture"]["language"].__setitem__("layers", 0))
    edited(model, "lost.model", lambda t, f: t.pop("model.norm.weight"))
    edited(model, "more.model", lambda t, f: t.__setitem__("colour", np.ones(3, np.float32)))
    edited(model, "shape.model", lambda t, f: t.__setitem__("model.norm.weight", np.ones(3, np.float32)))
    edited(model, "dtype.model", lambda t, f: t.__setitem__("model.norm.weight", t["model.norm.weight"].astype(np.int32)))
    edited(model, "system.model", lambda t, f: f.pop("system"))
    edited(model, "tied.model", tied)
    edited(model, "mute.model", lambda t, f: t.pop("tokenizer.json"))
    edited(model, "nan.model", lambda t, f: t["model.norm.weight"].__setitem__(slice(None), np.nan))
    edited(model, "nan-tower.model", lambda t, f: [x.__setitem__(..., np.nan) for n, x in t.items() if n.startswith("visual")])


CASES = (
    "\n".join(
        [f"kvtools convert {name}.jsonl" for name in TALKS]
        + [f"kvtools {TRAIN} shown-{name}.jsonl" for name in SHOWN if name not in ("narrow", "twice")]
    )
    + f"""
kvtools convert empty.jsonl
kvtools convert - < empty.jsonl
kvtools convert binary.json
kvtools convert cut.json
kvtools convert latin.jsonl
kvtools convert empty-list.json
kvtools convert cut.parquet
kvtools {TRAIN} mute.jsonl
kvtools {TRAIN} good.jsonl --stage matching
kvtools {TRAIN} good.jsonl --stage matching --shard-model
kvtools {TRAIN} good.jsonl --shard-model --shard-optimizer
kvtools {TRAIN} good.jsonl --stage alignment -q
kvtools {TRAIN} row.kvs --stage alignment
kvtools {TRAIN} good.jsonl --valid list.jsonl
kvtools {TRAIN} good.jsonl --valid mute.jsonl --training patience=1
kvtools {TRAIN} good.jsonl --media other.kvs
kvtools quiz clips.kvs other.kvs
kvtools cat clips.kvs other.kvs
kvtools check twice.kvs
kvtools {TRAIN} nowhere.jsonl
kvtools {TRAIN} clicks.kvs
kvtools {TRAIN} binary.json
kvtools {TRAIN} empty.jsonl
kvtools {TRAIN} empty.kvs
kvtools {TRAIN} long.jsonl
kvtools {TRAIN} --strict shown-nowhere.jsonl
kvtools {TRAIN} --media narrow.kvs shown-narrow.jsonl
kvtools {TRAIN} --media one-folder --media other-folder shown-twice.jsonl
kvtools {TRAIN} --media items.kvs good.jsonl
kvtools {TRAIN} --media - good.jsonl < clips.kvs
kvtools {TRAIN} - --valid - < good.jsonl
kvtools {TRAIN} good.jsonl row.kvs
kvtools {TRAIN} good.jsonl --ratio 1,2
kvtools {TRAIN} good.jsonl --ratio x
kvtools {TRAIN} row.kvs --ratio 1
kvtools {TRAIN} row-segments.kvs
kvtools {TRAIN} row-grid.kvs
kvtools {TRAIN} row-keys.kvs
kvtools {TRAIN} row-vocabulary.kvs
kvtools {TRAIN} row-visual.kvs
kvtools {TRAIN} row-targets.kvs
kvtools {TRAIN} row-nameless.kvs
kvtools {TRAIN} row-two.kvs
kvtools {TRAIN} row-gone.kvs
kvtools {TRAIN} row-other.kvs
kvtools {TRAIN} row-size.kvs
kvtools {TRAIN} good.jsonl --training patience=2
kvtools {TRAIN} good.jsonl --lr nan
kvtools {TRAIN} good.jsonl --lr 0
kvtools {TRAIN} good.jsonl --length 2000
kvtools {TRAIN} good.jsonl --frame-tokens 9
kvtools {TRAIN} good.jsonl --architecture language.kv_heads=3
kvtools {TRAIN} good.jsonl --architecture colour=3
kvtools {TRAIN} good.jsonl --training colour=3
kvtools {TRAIN} good.jsonl --training checkpoint=maybe
kvtools {TRAIN} good.jsonl --tokenizer tokenizer.json
kvtools {TRAIN} good.jsonl --tokenizer broken
kvtools {TRAIN} good.jsonl --tokenizer nothing
kvtools {TRAIN} good.jsonl --init mute.model
kvtools {TRAIN} good.jsonl --init fleet.model
kvtools {TRAIN} good.jsonl --init clips.kvs
kvtools {TRAIN} good.jsonl --init nowhere
kvtools {TRAIN} good.jsonl --init nan.model
kvtools {TRAIN} good.jsonl --init keye.safetensors --tokenizer larger.json
kvtools {TRAIN} good.jsonl --init keye.safetensors --tokenizer shifted.json
kvtools {TRAIN} llava.json --media pictures --stage matching --init tower.model --tokenizer larger.json
kvtools {TRAIN} good.jsonl --init keye.safetensors --architecture language.layers=1
kvtools {TRAIN} good.jsonl --init keye.safetensors --architecture language.hidden=64
kvtools {TRAIN} good.jsonl --init decoder.model --architecture language.tied=true
kvtools {TRAIN} llava.json --media pictures --stage matching --init decoder.model --tokenizer keye
kvtools {TRAIN} questions.kvs --max-tokens 1
kvtools answer questions.kvs --media clips.kvs --model decoder.model
kvtools tokenize-video --encoder patches.model --frame-tokens 4:16 videos
kvtools {TRAIN} good.jsonl --log keye --init keye.safetensors
kvtools convert hf-type -o x.safetensors
kvtools convert hf-rope -o x.safetensors
kvtools convert hf-part -o x.safetensors
kvtools convert hf-count -o x.safetensors
kvtools convert hf-number -o x.safetensors
kvtools convert hf-activation -o x.safetensors
kvtools convert hf-merge -o x.safetensors
kvtools convert hf-sizes -o x.safetensors
kvtools convert hf-layers -o x.safetensors
kvtools convert hf-shape -o x.safetensors
kvtools convert hf-heads -o x.safetensors
kvtools convert layout.model -o x/
kvtools convert architecture.model -o x/
kvtools convert merge.model -o x/
kvtools convert field.model -o x/
kvtools convert fields.model -o x/
kvtools convert unknown.model -o x/
kvtools convert width.model -o x/
kvtools convert kv.model -o x/
kvtools convert head.model -o x/
kvtools convert count.model -o x/
kvtools convert lost.model -o x/
kvtools convert tied.model -o x/
kvtools convert more.model -o x/
kvtools convert shape.model -o x/
kvtools convert dtype.model -o x/
kvtools convert system.model -o x/
kvtools quiz nowhere.kvs
kvtools quiz clips.kvs -o clips.kvs
kvtools quiz questions.kvs
kvtools quiz no-video.kvs
kvtools quiz broken.mp4
kvtools quiz clips.kvs --task smell
kvtools quiz clips.kvs --question What?
kvtools quiz clips.kvs --positive wide
kvtools quiz clips.kvs --labels labels.csv --positive wide
kvtools quiz clips.kvs --labels labels.csv --task order
kvtools quiz clips.kvs --labels labels.csv --form check --positive round
kvtools quiz clips.kvs --labels columns.csv
kvtools quiz clips.kvs --labels latin.csv
kvtools quiz clips.kvs --labels no-label.csv
kvtools quiz clips.kvs --labels same-label.csv
kvtools quiz clips.kvs --labels twice.csv
kvtools quiz clips.kvs --labels near.csv
kvtools quiz clips.kvs --labels broken.csv
kvtools quiz clips.kvs --split train
kvtools quiz clips.kvs --split train:2
kvtools quiz clips.kvs --task order --frames 2 --choices 8
kvtools quiz clips.kvs --task time --frames 3 --choices 4
kvtools quiz clips.kvs --task order --frames 60
kvtools quiz clips.kvs --frame-tokens x
kvtools answer questions.kvs
kvtools answer - --model - < questions.kvs
kvtools answer good.jsonl --model keye.safetensors
kvtools answer list.jsonl --model keye.safetensors
kvtools answer form.jsonl --model keye.safetensors
kvtools answer answer.jsonl --model keye.safetensors
kvtools answer clips.kvs --model keye.safetensors
kvtools answer questions.kvs --model keye.safetensors
kvtools answer questions.kvs --model tower.model
kvtools answer questions.kvs --media clips.kvs --model mute.model
kvtools answer questions.kvs --media clips.kvs --model hf-mute
kvtools chat videos/a.mp4 What?
kvtools chat --model keye.safetensors
kvtools chat --model keye.safetensors nowhere.mp4
kvtools chat --model keye.safetensors nowhere.mp4 What?
kvtools chat --model keye.safetensors --fps 0 videos/a.mp4 What?
kvtools chat --model keye.safetensors --temperature -1 videos/a.mp4 What?
kvtools chat --model keye.safetensors --top-p 0 videos/a.mp4 What?
kvtools chat --model keye.safetensors --agentic --mode think videos/a.mp4 What?
kvtools chat --model tower.model videos/a.mp4 What?
kvtools chat --model nan.model --frame-tokens 4:16 videos/a.mp4 What?
kvtools chat --model keye.safetensors binary.json What?
kvtools tokenize-video --encoder nan-tower.model --frame-tokens 4:16 videos/a.mp4
SLURM_JOB_END_TIME=1 kvtools {TRAIN} good.jsonl -o stopped.model
kvtools {TRAIN} good.jsonl --seed 3 -o stopped.model
keye().hidden(torch.tensor([50]), torch.zeros(3, 1), [0])
keye().hidden(torch.tensor([], dtype=torch.long), torch.zeros(3, 0), [0])
keye().hidden(torch.tensor([1, 2]), torch.zeros(3, 1), [0])
keye().hidden(torch.tensor([1, 49]), torch.zeros(3, 2), [0])
keye().encode_images(torch.zeros(3, 3, 14, 14), [(1, 1, 3)])
keye().encode_images(torch.zeros(3, 3, 14, 14), [(1, 2, 2)])
segments(1, 2)
segments(0, 2).continuing([-1, 1])
cache().begin(segments(0, 2), torch.device("cpu"))
kvtools.keye.model.siglip.TextTower(texts())(torch.tensor([1] * 5), [0])
kvtools.keye.model.siglip.Siglip(model().vision, texts(output=16))
kvtools.keye.model.sampling.SamplingConfig(temperature=-1)
kvtools.keye.model.sampling.SamplingConfig(top_k=-1)
kvtools.keye.model.sampling.SamplingConfig(top_p=0)
kvtools.keye.model.positions.mrope_positions(np.array([1, 49]), 48, 49, [(1, 2, 2)], [])
kvtools.keye.model.positions.mrope_positions(np.array([1, 49]), 48, 49, [(1, 2, 2)], [np.zeros(2)])
kvtools.keye.model.positions.mrope_positions(np.array([1, 49]), 48, 49, [(1, 4, 4)], [np.zeros(1)])
kvtools.keye.model.positions.mrope_positions(np.array([49, 49]), 48, 49, [(1, 2, 2)], [np.zeros(1)])
kvtools.keye.model.log_probs.log_probabilities(keye(), row([1, 2], [1, 1]))
kvtools.keye.data.frames.spliced([])
kvtools.keye.quiz.orders.orders(2, 8, np.random.default_rng(0))
kvtools.keye.data.media.Media().fetch({{"type": "image", "image": 3}})
kvtools.keye.data.processor.require_patch_size(vision(patch=16))
kvtools.keye.checkpoint.weights.load("decoder.model")
template().encode({{"mode": None, "messages": [{{"role": "user", "content": "Why?"}}]}}, [4])
processor().prompt({{"messages": [{{"role": "user", "content": [{{"type": "image", "image": "0.png"}}]}}]}})
kvtools.train.cross_entropy.linear_cross_entropy(torch.zeros(2, 3), torch.zeros(5, 3), torch.tensor([1, 7]))
kvtools.train.packing.pack([3, 9], 8)
kvtools.train.loop._parameter_groups(torch.nn.Linear(2, 2), kvtools.train.loop.Plan(1, 1, lr_factors={{"tower": 0.1}}), set())
"""
)
