"""Whether two versions of kvtools write the same: commands on small inputs made with a seed, and a digest of each output.

    python tests/same_outputs.py --kvtools BIN/kvtools --folder DIR             prints NAME DIGEST, a line an output
    python tests/same_outputs.py --kvtools OLD --kvtools NEW --folder DIR       exits 1 where NEW differs from OLD

Digests of trained weights depend on the processor, so both versions run on the machine that compares them. With two versions,
every artifact that the first one wrote is also checked and described by the second. Not compared: histories, times, and words
on stderr. One interpreter runs all commands of a version, since each interpreter that loads torch takes seconds.
"""

import argparse
import hashlib
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from contextlib import chdir, contextmanager
from pathlib import Path

sys.dont_write_bytecode = True
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402

KEYE_SIZES = (
    "vision.width=32", "vision.hidden=48", "vision.layers=1", "vision.heads=2", "vision.table_side=5", "language.width=32",
    "language.hidden=48", "language.layers=2", "language.heads=2", "language.kv_heads=1", "language.head_dim=16",
)  # fmt: skip
KEYE = " ".join(f"--architecture {size}" for size in KEYE_SIZES) + " --batch-tokens 1024 --length 512 --media clips.kvs"
ONEREC = "clicks.csv --items items.ids --batch 64 --near 0 " + " ".join(f"--architecture {size}" for size in (
    "width=16", "heads=2", "experts=2", "expert_hidden=8", "decoder_layers=1", "encoder_layers=1", "queries=2",
))  # fmt: skip
TREE = "etree-train --tree fleet.tree --data digits.csv fleet.devices"
FAILURES = "leaf:20%@2,aggregator:1@3,late:2@3,root@6,partition@7-8,repeat:20%@4,reorder@5-6"

# NAME [EXIT CODE]: COMMAND > OUTPUTS. The output - is stdout. Those marked ~ hold results of floating-point sums, which differ
# a little between processors; the others are the same on every machine.
JOBS = f"""
tokenize: tokenize-video videos --frame-tokens 4:16 -o clips.kvs > clips.kvs
tokenize-part: tokenize-video --frames 8 --max-tokens 64 --frame-tokens 4:16 --start 0.2 --end 1 --pick key videos/a.mp4 > -
tokenize-shard-0: tokenize-video --shard 0/2 --frame-tokens 4:16 --decoder decord --fps 3 videos -o part-0.kvs > part-0.kvs
tokenize-shard-1: tokenize-video --shard 1/2 --frame-tokens 4:16 --decoder decord --fps 3 videos -o part-1.kvs > part-1.kvs
cat: cat part-0.kvs part-1.kvs -o all.kvs > all.kvs
cat-key: cat --key b.mp4 clips.kvs -o b.kvs --compress 0 > b.kvs
cat-json: cat -n 2 --json clips.kvs > -
quiz: quiz -q clips.kvs --frames 3 --choices 2 -n 20 -o questions.kvs > questions.kvs
quiz-check: quiz -q videos --task order,match,describe --form check --frames 3 -n 8 --seed 2 -o check.kvs > check.kvs
quiz-open: quiz -q clips.kvs --task order,time,describe --form open --frames 4 -n 9 -o open.kvs > open.kvs
quiz-split: quiz -q clips.kvs --task order --frames 3 --choices 2 --split train:0.6 --group groups.csv -n 6 > -
quiz-labels: quiz -q clips.kvs --labels labels.csv --split test --choices 2 -o labels.kvs > labels.kvs
convert-csv: convert clicks.csv -o clicks.kvs > clicks.kvs
convert-inter 65: convert clicks.inter --column time=when > -
convert-lines: convert lists.txt -o lists.kvs > lists.kvs
convert-messages 65: convert messages.jsonl -o messages.kvs > messages.kvs
convert-llava: convert llava.json -o llava.kvs > llava.kvs
embed: embed --dim 8 keywords.json -o items.kvs --report embed.json > ~items.kvs ~embed.json
embed-table: embed --dim 6 --text title --text class --numeric release_year --words films.item -o films.kvs > ~films.kvs
embed-coarse: embed --dim 4 --power-iterations 2 --no-normalize --seed 3 keywords.json > ~-
pairs: pairs clicks.csv -o pairs.kvs --report pairs.json > ~pairs.kvs pairs.json
pairs-swing: pairs --method swing --top 5 --min-rating 3 --weigh-users clicks.kvs > ~-
pairs-u2i: pairs --method u2i --latest 4 --all --max-users 12 clicks.csv > ~-
semid: semid-build --codes 8 --collisions extend items.kvs -o items.ids --report semid.json > ~items.ids ~semid.json
semid-nearest: semid-build --codes 6 --levels 2 --init random --collisions nearest items.kvs -o near.ids > ~near.ids
semid-balanced: semid-build --codes 8 --method balanced items.kvs > ~-
semid-rqvae: semid-build --codes 4 --method rq-vae --epochs 3 items.kvs -o vae.ids > ~vae.ids
semid-aligned: semid-build -q --codes 8 --pairs pairs.kvs --captions keywords.json --align-steps 5 items.kvs > ~-
semid-append: semid-build --codebook items.ids --append --collisions extend later.npy --keys later.txt > ~-
semid-rqvae-codebook: semid-build --codebook vae.ids later.npy --keys later.txt > ~-
onerec: pretrain onerec {ONEREC} --steps 4 --log onerec.jsonl -o shop.model > ~shop.model ~onerec.jsonl
onerec-near: pretrain onerec {ONEREC} --near 8 --users users.csv --training dropout=0.2 --steps 1ep -o near.model > ~near.model
onerec-full: pretrain onerec {ONEREC} --architecture attention=full --decoder lazy --steps 2 -o full.model > ~full.model
onerec-config: pretrain onerec --near 8 --training dropout=0.3 --steps 2 --print-config > -
recgen: recgen --model shop.model -k 5 --beam 16 clicks.csv -o found.kvs > ~found.kvs
recgen-json: recgen --model near.model --table users.csv -k 3 --beam 16 --users 3,7 --titles films.item clicks.csv --json > ~-
recgen-evaluate: recgen --model shop.model --evaluate test --beam 16 --blend 0.3 --json clicks.csv > ~-
recgen-exact: recgen --model near.model --table users.csv --evaluate valid --exact --keep-seen --json clicks.csv > ~-
recgen-no-trie: recgen --model full.model --no-trie -k 4 --beam 8 --within random clicks.csv > ~-
recgen-sure: recgen --model shop.model --sure -k 4 --beam 4 --within recent clicks.csv > ~-
recgen-co-occurrence: recgen --baseline co-occurrence --items items.ids --evaluate test --json clicks.kvs > ~-
recgen-popular: recgen --baseline popular --items items.ids -k 4 clicks.csv > ~-
keye-matching: pretrain keye llava.json --media pictures --stage matching {KEYE} --steps 2 -o tower.model > ~tower.model
keye: pretrain keye questions.kvs {KEYE} --steps 3 --log keye.jsonl -o keye.safetensors > ~keye.safetensors ~keye.jsonl
keye-sft: pretrain keye labels.kvs check.kvs --media videos --ratio 1,2 --stage sft --init keye.safetensors {KEYE} \
 --valid open.kvs --training flip=0.5 --steps 2 --seed 4 -o sft.safetensors > ~sft.safetensors
keye-config: pretrain keye --stage annealing --size small --training warmup=2% --steps 1e6tok --print-config > -
merge: merge --weights 2,1 keye.safetensors sft.safetensors -o merged.safetensors > ~merged.safetensors
model-directory: convert keye.safetensors -o keye/ --file-size 100kB > ~keye
model-bag: convert keye -o again.safetensors > ~again.safetensors
answer: answer -q questions.kvs --media clips.kvs --model keye.safetensors --model keye --json > ~-
chat: chat -q --model keye.safetensors --greedy --max-new 8 --frame-tokens 4:16 --json videos/a.mp4 What? > ~-
tokenize-encoder: tokenize-video --encoder keye.safetensors --frame-tokens 4:16 videos -o encoded.kvs > ~encoded.kvs
embed-video: embed encoded.kvs --no-normalize > ~-
devices: devices --data digits.csv --devices 12 --coordinates where.npy --partition classes:2 -o fleet.devices > ~fleet.devices
devices-shards: devices --data digits.csv --devices 12 --partition shards:2 --seed 3 > -
devices-dirichlet: devices --data digits.csv --devices 12 --partition dirichlet:0.5 > -
devices-mixture: devices --data digits.csv --devices 12 --partition mixture:0.3 > -
devices-quantity: devices --data digits.csv --devices 20 --coordinates where.npy --partition quantity:1.0 --last-mile 5:2 > ~-
devices-iid: devices --data digits.csv --devices 12 --coordinates where.npy --rtt > ~-
devices-graph: devices --data digits.csv --partition shards:2 --graph edges.txt > -
devices-pings: devices --delay pings.csv --symmetrize --unit s > ~-
tree: kma-cluster -k 4 --levels 2,1 --ratios 1,2,2,1 --data digits.csv --pretrain 2 --public 1 fleet.devices -o fleet.tree \\
 > ~fleet.tree
tree-k-medoids: kma-cluster -k 3 --method k-medoids fleet.devices > -
tree-balanced: kma-cluster -k 3 --method balanced --slack 1 fleet.devices > -
tree-random: kma-cluster -k 3 --method random --seed 2 fleet.devices > -
tree-kma-code: kma-cluster -k 3 --method kma-code --data digits.csv fleet.devices > ~-
tree-accuracy-only: kma-cluster -k 3 --method accuracy-only --data digits.csv fleet.devices > ~-
train: {TREE} --rounds 3 --barrier subtree --compute 1 --log run.jsonl -o fleet.model > ~fleet.model ~run.jsonl
train-fedavg: {TREE} --algorithm fedavg --rounds 3 --weights uniform > ~-
train-hierfavg: {TREE} --algorithm hierfavg --epochs 8 --model mlp:5 > ~-
train-gossip: {TREE} --algorithm gossip --rounds 3 > ~-
train-d-psgd: {TREE} --algorithm d-psgd --rounds 3 --bandwidth 10 > ~-
train-individual: {TREE} --algorithm individual --rounds 2 > ~-
train-grouped: {TREE} --algorithm grouped --rounds 2 --every 2 > ~-
train-secure: {TREE} --rounds 2 --secure > ~-
train-fail: {TREE} --rounds 4 --fail {FAILURES} --compare --quorum 0.5 --late carry --regroup 0.5 --log fail.jsonl \\
 > ~- ~fail.jsonl
train-fail-secure: {TREE} --rounds 3 --secure --fail leaf:20%@2-4,late:2@3 > ~-
train-queues: {TREE} --rounds 2 --routing queues --bandwidth 5 > ~-
train-config: etree-train --rounds 3 --fail root@6 --print-config > -
"""
COMMANDS = (
    "tokenize-video", "pretrain keye", "chat", "semid-build", "pretrain onerec", "recgen", "kma-cluster", "etree-train",
    "embed", "pairs", "quiz", "answer", "convert", "merge", "devices", "info", "cat", "check", "sum", "plot",
)  # fmt: skip
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
TIMES = {"seconds", "wall_s", "tokens_per_s", "mfu", "load_s", "save_s"}  # what the clock says


def make_inputs(folder):
    """Clips, pictures, items, clicks, users, conversations, labelled samples and networks, the same on every machine."""
    from PIL import Image

    rng = np.random.default_rng(3)
    (folder / "videos").mkdir()
    for n, name in enumerate("abcdef"):
        make_clip(folder / "videos" / f"{name}.mp4", rng, n_frames=30 + 5 * n, width=160 - 16 * n, height=96 + 8 * n)
    (folder / "labels.csv").write_text(
        "file,label,split\n" + "".join(f"{name}.mp4,{'wide' if name < 'd' else 'tall'},{'test' if name in 'ade' else 'train'}\n"
                                       for name in "abcdef"))  # fmt: skip
    (folder / "groups.csv").write_text("file,group\n" + "".join(f"{name}.mp4,{name < 'c'}\n" for name in "abcdef"))
    (folder / "pictures").mkdir()
    documents = []
    for n in range(6):
        pixels = np.kron(rng.integers(0, 255, (4, 6, 3)), np.ones((14, 14, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{n}.png")
        talk = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": f"Picture number {n}."}]
        documents.append({"id": f"p{n}", "image": f"{n}.png", "conversations": talk})
    (folder / "llava.json").write_text(json.dumps(documents))
    lines = [
        {"messages": [{"role": "user", "content": "Two and two?"}, {"role": "assistant", "content": "Four."}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "And three?"}]},
                      {"role": "assistant", "content": "5"}], "mode": "no_think"},
        {"instruction": "Name a colour.", "input": "", "output": "Red."},
        {"nothing": "of use"},
    ]  # fmt: skip
    (folder / "messages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    terms = {str(n): [f"term {m}.{n % m}" for m in (5, 7, 11)] for n in range(40)}
    (folder / "keywords.json").write_text(json.dumps(terms))
    rows = [f"{n}\tFilm {n % 13}\t{1950 + n}\tClass{n % 5} Class{n % 3}\n" for n in range(40)]
    title = "item_id:token\ttitle:token_seq\trelease_year:float\tclass:token_seq\n"
    (folder / "films.item").write_text(title + "".join(rows))
    np.save(folder / "later.npy", rng.normal(size=(9, 8)).astype(np.float32))
    (folder / "later.txt").write_text("".join(f"new {n}\n" for n in range(9)))
    clicks = [
        (str(user), str((user * step + step) % 23), str(100 * user + step), str(1 + (user + step) % 5))
        for user in range(24)
        for step in range(9)
    ]
    rows = [["user_id", "item_id", "timestamp", "rating"], *clicks]
    (folder / "clicks.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    rows = [["user_id:token", "item_id:token", "when:float"], *(click[:3] for click in reversed(clicks)), ["7", "7"]]
    (folder / "clicks.inter").write_text("".join("\t".join(row) + "\n" for row in rows))
    (folder / "lists.txt").write_text("".join(f"u{n} {n} {n + 1} {2 * n} {n % 4}\n" for n in range(9)))
    (folder / "users.csv").write_text("user_id,age,gender\n" + "".join(f"{n},{20 + n % 5},{'fm'[n % 2]}\n" for n in range(24)))

    samples = [f"{n % 4 + 0.1 * (n % 7):.1f},{n % 3},{n * n % 11},{n % 4}\n" for n in range(240)]
    (folder / "digits.csv").write_text("a,b,c,label\n" + "".join(samples))
    (folder / "edges.txt").write_text("".join(f"{n} {n % 10 + 1} {5 + n}\n{n} {(n + 3) % 10 + 1} {9}\n" for n in range(1, 11)))
    pings = [f"city {a},city {b},{10 + 3 * a + b}\n" for a in range(8) for b in range(a) if (a, b) != (5, 2)]
    (folder / "pings.csv").write_text("source,target,ms\n" + "".join(pings))
    np.save(folder / "where.npy", rng.uniform(0, 50, (12, 2)).astype(np.float32))


def make_clip(path, rng, n_frames, width, height, rate=25):
    """A square that moves over a background. Planes of YUV and libx264 without its assembly: with them, and with swscale, the
    bytes differ from run to run."""
    import av

    background = np.kron(rng.integers(20, 200, (height // 8, width // 8)), np.ones((8, 8))).astype(np.uint8)
    options = {"threads": "1", "bf": "2", "g": "12", "x264-params": "asm=0:no-mbtree=1:sync-lookahead=0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(n_frames):
            luma = background.copy()
            luma[20:60, 2 * i % (width - 40) : 2 * i % (width - 40) + 40] = 120 + 3 * i % 100
            colours = [np.full((height // 4, width), shade, np.uint8) for shade in (90 + i, 150 - i)]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.concatenate([luma, *colours]), format="yuv420p")))
        container.mux(stream.encode(None))


def jobs():
    """(name, exit code, command line, outputs) of each job."""
    for line in JOBS.replace(" \\\n ", " ").strip().splitlines():
        name, code, command, outputs = re.fullmatch(r"(\S+?)(?: (\d+))?: (.*) > (.*)", line).groups()
        yield name, int(code or 0), command, outputs.split()


def furnish(folder, names):
    """Inputs, and what the jobs of these names make of them, in a folder."""
    make_inputs(folder)
    with chdir(folder):
        run_all(names)


def run_all(names=()):
    """Run the jobs in this folder with the kvtools of this interpreter; {output: what described() says}."""
    found = {}
    for name, code, command, outputs in jobs():
        if names and name not in names:
            continue
        given, out = call(command)
        assert given == code, f"kvtools {command}\nexit code {given}, {code} expected\n{Path('stderr.txt').read_text()[-2000:]}"
        for output in outputs:
            path = output.removeprefix("~")
            if path == "-":
                path = f"{name}.out"
                Path(path).write_bytes(out)
            found[f"{name} {path}"] = {"is_exact": "~" not in output, **described(path)}
    for command in COMMANDS if not names else ():
        parameters = json.loads(call(f"{command} --describe")[1])
        kept = [json.dumps([p["names"], p["type"], p["default"]]) for p in parameters["options"]]
        found[f"options {command}"] = {"is_exact": True, "digest": digest_of("\n".join(kept).encode()), "options": sorted(kept)}
    return found


def call(line):
    """(exit code, stdout) of one command, run in this process; what it says on stderr goes to stderr.txt."""
    from kvtools import cli

    with redirected(1, "stdout.bin"), redirected(2, "stderr.txt"):
        code = cli.run(shlex.split(line))
    return code, Path("stdout.bin").read_bytes()


@contextmanager
def redirected(fd, path):
    """A standard stream led to a file; to a terminal where the path is TERMINAL; closed, as Python sees it, where CLOSED."""
    name, flags, mode = (("stdin", os.O_RDONLY, "r"), ("stdout", _NEW, "w"), ("stderr", _NEW, "w"))[fd]
    stream, kept = getattr(sys, name), os.dup(fd)
    opened = pty.openpty() if path == "TERMINAL" else (os.open(os.devnull if path == "CLOSED" else path, flags),)
    os.dup2(opened[-1], fd)
    with open(fd, mode, closefd=False) as replaced:
        setattr(sys, name, None if path == "CLOSED" else replaced)
        try:
            yield
        finally:
            setattr(sys, name, stream)
    os.dup2(kept, fd)
    for each in (kept, *opened):
        os.close(each)


def described(path):
    """{"digest", "config", "figures"} of an output: processors agree on the figures to three digits."""
    if os.path.isdir(path):
        weights = sorted(Path(path).glob("*.safetensors"))
        tensors = [pair for file in weights for pair in described(file)["figures"].items()]
        texts = [file.read_bytes() for file in sorted(Path(path).glob("*.json"))]
        parts = [*(described(file)["digest"] for file in weights), *map(digest_of, texts)]
        return {"digest": digest_of(" ".join(parts).encode()), "figures": {"files": len(parts), **dict(tensors)}}
    data = Path(path).read_bytes()
    if data[:4] == b"\x50\x2a\x4d\x18" or data[8:9] == b"{":
        from kvtools.artifact import Reader, open_artifact

        code, line = call(f"sum {path}")
        assert code == 0, path
        artifact = open_artifact(str(path))
        if isinstance(artifact, Reader):
            arrays = {name: [] for record in open_artifact(str(path)) for name in record.tensors}
            for record in artifact:
                for name, array in record.tensors.items():
                    arrays[name].append(array.ravel())
            tensors = {name: np.concatenate(parts) for name, parts in arrays.items()}
            config = [head.config for head in artifact.heads]
        else:
            tensors = artifact.tensors
            config = without_times({name: x for name, x in artifact.fields.items() if name not in ("history", "crc32")})
        return {"digest": line.split()[0].decode(), "config": config, "figures": figures_of(tensors)}
    lines = data.splitlines()
    numbers = []
    if data[:1] == b"{":
        values = [without_times(json.loads(line)) for line in lines]
        lines = [json.dumps(value, sort_keys=True).encode() for value in values]
        numbers = [x for value in values for x in numbers_in(value)]
    return {"digest": digest_of(b"\n".join(lines)), "figures": figures_of({"numbers": np.array(numbers, float)})}


def without_times(value):
    if isinstance(value, dict):
        return {name: without_times(x) for name, x in value.items() if name not in TIMES}
    return [without_times(x) for x in value] if isinstance(value, list) else value


def numbers_in(value):
    """Every number of a JSON value, in order."""
    if isinstance(value, dict | list):
        return [x for each in (value.values() if isinstance(value, dict) else value) for x in numbers_in(each)]
    return [float(value)] if isinstance(value, int | float) else []


def figures_of(tensors):
    """{"tensors", "values", "norm"}: how many tensors and numbers, and the sum over tensors of the root mean square."""
    arrays = [
        np.asarray(array).astype(np.float64).ravel() for name, array in sorted(tensors.items()) if not name.endswith(".bytes")
    ]
    arrays = [array[np.isfinite(array)] for array in arrays]
    norms = [float(np.sqrt(np.mean(array**2))) if array.size else 0.0 for array in arrays]
    return {"tensors": len(arrays), "values": sum(array.size for array in arrays), "norm": sum(norms)}


def digest_of(data):
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def outputs_of(kvtools, folder, inputs, names=()):
    """The outputs of one kvtools, run by the interpreter beside it in a folder of its own."""
    subprocess.run(["cp", "-r", str(inputs), str(folder)], check=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PMI"))} | {"PYTHONPATH": ""}
    words = [str(Path(kvtools).parent / "python"), str(Path(__file__).resolve()), "--inside", *names]
    done = subprocess.run(words, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"{kvtools}: failed.")
    return json.loads((folder / "outputs.json").read_text())


def differences(old, new):
    """What NEW did not write as OLD did, one line each."""
    for name, was in old.items():
        now = new.get(name)
        if now is None:
            yield f"{name}: not written"
        elif "options" in was:  # they may grow
            yield from (f"{name}: lost or changed: {option}" for option in sorted({*was["options"]} - {*now["options"]}))
        elif now["digest"] != was["digest"]:
            yield f"{name}: {was['digest']} before, {now['digest']} now; {was.get('figures')} before, {now.get('figures')} now"
        elif now.get("config") != was.get("config"):
            yield f"{name}: config or fields were {json.dumps(was['config'])[:600]}, and are {json.dumps(now['config'])[:600]}"


def unopened(kvtools, folder):
    """Artifacts in a folder that this kvtools does not check or describe."""
    # files of a Hugging Face directory have no kind, and check refuses them
    paths = sorted(p for p in folder.glob("*") if p.suffix in (".kvs", ".ids", ".safetensors", ".model", ".devices", ".tree"))
    for command in ("check", "info"):
        done = subprocess.run([kvtools, command, *map(str, paths)], capture_output=True, text=True, check=False)
        yield from done.stderr.splitlines()
        if done.returncode and not done.stderr:
            yield f"{command}: exit code {done.returncode}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kvtools", action="append", default=[], help="the command; a second one is compared with the first")
    parser.add_argument("--folder", type=Path, help="where to work; must not exist")
    parser.add_argument("--only", action="append", default=[], help="only the job of this name; may be repeated")
    parser.add_argument("--inside", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside is not None:
        Path("outputs.json").write_text(json.dumps(run_all(given.inside)))
        return 0
    given.folder.mkdir(parents=True)
    inputs = given.folder / "inputs"
    inputs.mkdir()
    make_inputs(inputs)
    every = [
        outputs_of(os.path.abspath(kvtools), given.folder / f"{n}", inputs, given.only)
        for n, kvtools in enumerate(given.kvtools)
    ]
    for name, output in every[0].items():
        print(f"{name:<40} {output['digest']}")
    if len(every) == 1:
        return 0
    faults = [*differences(*every), *unopened(os.path.abspath(given.kvtools[1]), given.folder / "0")]
    print("\n".join([f"{len(every[0])} outputs, {len(faults)} differences", *faults]))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
