"""How good the recommendations are, by the commands themselves: a Markdown table from results that are kept.

Usage: onerec.py DATA [test] [what=ROW,ROW...] [seeds=0,1,2] [users=N]    hours; goes on where it was stopped
       onerec.py DATA table [users=N]                                     prints what is kept, and runs nothing
DATA: beauty, ml-100k, industrial (the part of it that its held-out rows tell)

Rows: those of RECIPES, below, and popular, co-occurrence and sasrec; what= is all of them by default, and may be `main` or
`ablations`. Everything is made in bench/.onerec by kvtools embed, pairs, semid-build, pretrain onerec and recgen --evaluate,
and by sasrec.py beside this file. A step whose output is there is not run again. A model is named for its options and seed, so
that another recipe makes another one; a changed program does not: delete bench/.onerec then. Results are lines of JSON there.

The last item of a user is for testing, the one before for validation, all items ranked, seen ones left out. Without the word
test, validation is looked at and nothing else; with it, the main rows are tested, once each, and ablations still validated.
Seeds change all that is left to chance in training; IDs have one seed, since they are given to all models. users=N takes the
first N users, to try the script.
"""

import hashlib
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from ours import CLICKS, DATA, HERE, KVTOOLS

# What a row is: words of `pretrain onerec` beside its defaults, the IDs it knows items by, words of `recgen` after those of
# RECGEN, and whether it is an ablation: a change of the generator, whose words come first, that only validation may judge.
IDS = {
    "beauty": {
        "plain": ["semid-build", "--codes", "256", "--collisions", "nearest"],
        "aligned": ["semid-build", "--codes", "256", "--collisions", "nearest", "--pairs", "PAIRS"],
    },
    "ml-100k": {
        "plain": ["semid-build", "--codes", "64", "--collisions", "nearest"],
        "aligned": ["semid-build", "--codes", "64", "--collisions", "nearest", "--align-steps", "150", "--pairs", "PAIRS"],
    },
    "industrial": {"aligned": ["convert", DATA / "amazon_industrial_and_scientific" / "index.json"]},  # those published
}
EMBED = {
    "beauty": [DATA / "amazon_beauty_2014" / "item_keywords.json"],
    "ml-100k": [DATA / "ml-100k" / "ml-100k.item", "--text", "movie_title", "--text", "class", "--dim", "64"],
}
USERS = {"ml-100k": DATA / "ml-100k" / "ml-100k.user"}
RECGEN = ["--beam", "128"]
SASREC = {
    "beauty": ["d=64", "rate=0.003", "dropout=0.5", "every=2"],
    "ml-100k": ["d=64", "rate=0.001", "dropout=0.5", "history=200", "batch=32"],
    "industrial": ["d=64", "rate=0.003", "dropout=0.5"],  # not tuned
}
ALONE = ["--near", "0"]
RECIPES = {
    "generator": {"pretrain": ALONE},
    "generator-8ep": {"pretrain": [*ALONE, "--steps", "8ep"]},
    "generator+near": {},
    "generator+blend": {"pretrain": ALONE, "recgen": ["--blend", "auto"]},
    "generator+near+blend": {"recgen": ["--blend", "auto"]},
    "generator+near-without-share": {"pretrain": ["--training", "near_share=0"]},
    "without-item-scores": {"pretrain": ["--architecture", "item_scores=0"], "ablation": True},
    "2048-items-scored": {"pretrain": ["--architecture", "item_scores=2048"], "ablation": True},
    "without-warm-start": {"pretrain": ["--training", "warm_start=no"], "ablation": True},
    "without-recent-items": {"pretrain": ["--architecture", "recent=0"], "ablation": True},
    "one-rate": {"pretrain": ["--training", "embedding_rate=1"], "ablation": True},
    "without-static": {"pretrain": ["--without", "static"], "ablation": True, "only": "ml-100k"},
    "without-positive": {"pretrain": ["--without", "positive"], "ablation": True, "only": "ml-100k"},
    "without-lifelong": {"pretrain": ["--without", "lifelong"], "ablation": True},
    "short-of-2-items": {"pretrain": ["--architecture", "short=2"], "ablation": True},
    "dense-of-equal-work": {"pretrain": ["--architecture", "experts=0"], "ablation": True},
    "plain-IDs": {"ids": "plain", "ablation": True},
    "full-attention": {"pretrain": ["--architecture", "attention=full"], "ablation": True},
    "lazy-decoder": {"pretrain": ["--decoder", "lazy"], "ablation": True},
    "without-item-table": {"pretrain": ["--architecture", "item_table=0"], "ablation": True},
    "without-dropout": {"pretrain": ["--training", "dropout=0"], "ablation": True},
}
COUNTED = ("popular", "co-occurrence")
# HR@10 and NDCG@10 of others, on the test part; spec/onerec.md §7.2 and §9 tell where from
PUBLISHED = {
    "beauty": {
        "popular": (".0152", ".0068", "S3-Rec's table"),
        "co-occurrence": (".0795", ".0495", "the specification's own count"),
        "sasrec": (".0740", ".0423", "tuned, cornac"),
        "TIGER": (".0648", ".0384", "its paper"),
    },
    "ml-100k": {},
    "industrial": {},
}
FIGURES = ("hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20")


class Work:
    """One data set's folder, its artifacts and results. users: the first so many; 0 is all."""

    def __init__(self, data, users=0):
        self.data, self.folder = data, HERE / ".onerec" / (f"{data}-{users}" if users else data)
        self.clicks, self._users = CLICKS[data], users
        self.results = self.folder / "results.jsonl"
        if users:
            self.clicks = self.folder / self.clicks.name

    def begin(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._users and not self.clicks.exists():
            lines = CLICKS[self.data].read_text().splitlines(keepends=True)
            header = [] if self.data == "beauty" else [lines.pop(0)]
            users = [re.match(r"[^\s,]+", line)[0] for line in lines]
            wanted = set(list(dict.fromkeys(users))[: self._users])
            kept = [line for user, line in zip(users, lines, strict=True) if user in wanted]
            self.clicks.write_text("".join([*header, *kept]))

    def made(self, name, command, *words):
        """The path of an artifact; its command is run where it is not there, and the seconds noted beside it."""
        path, note = self.folder / name, self.folder / f"{name}.json"
        if not path.exists():
            told = json.loads(note.read_text()) if note.exists() else {"seconds": 0.0}
            words = [str(word) for word in (*command, *words, "-q", "-o", path)]
            say(f"kvtools {' '.join(words)}")
            begun = time.monotonic()
            try:
                subprocess.run([KVTOOLS, *words], check=True)
            finally:  # a training that was stopped goes on next time, and its seconds add up
                note.write_text(json.dumps({"seconds": told["seconds"] + time.monotonic() - begun, "words": words}))
        return path

    def seconds(self, path):
        return json.loads((self.folder / f"{path.name}.json").read_text())["seconds"]

    def ids(self, which):
        words = IDS[self.data][which]
        if words[0] == "convert":
            return self.made(f"{which}-{digest(words)}.ids", words)
        embeddings = self.made("items.kvs", ["embed", *EMBED[self.data]])
        if "PAIRS" in words:
            pairs = self.made("pairs.kvs", ["pairs", self.clicks])
            words = [pairs if word == "PAIRS" else word for word in words]
        return self.made(f"{which}-{digest(words)}.ids", words, embeddings)

    def kept(self):
        """{(row, part, seed): result}, the last of each, of rows that are still made as they were."""
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        found = {(line["row"], line["part"], line["seed"]): line for line in map(json.loads, lines)}
        return {key: line for key, line in found.items() if line["recipe"] == self.recipe(key[0])}

    def recipe(self, row):
        """All that a row's figures depend on, as one string."""
        if row in COUNTED:
            return "counted"
        if row == "sasrec":
            return digest(SASREC[self.data])
        if row not in RECIPES:
            return None
        told = RECIPES[row]
        return digest([*self.pretrain(told), *IDS[self.data][told.get("ids", "aligned")], *self.recgen(told)])

    def pretrain(self, told):
        table = ["--users", USERS[self.data]] if self.data in USERS else []
        changed = RECIPES["generator"].get("pretrain", []) if told.get("ablation") else []
        return [*table, *changed, *told.get("pretrain", [])]

    def recgen(self, told):
        return [*RECGEN, *told.get("recgen", [])]

    def keep(self, row, part, seed, figures, **more):
        line = {"row": row, "part": part, "seed": seed, "recipe": self.recipe(row), **figures, **more}
        with self.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        say(f"{row}, {part}, seed {seed}: hr@10 {line['hr@10']:.4f}, ndcg@10 {line['ndcg@10']:.4f}")

    def evaluate(self, part, *words):
        words = [str(word) for word in ("recgen", self.clicks, "--evaluate", part, "--json", "-q", *words)]
        say(f"kvtools {' '.join(words)}")
        done = subprocess.run([KVTOOLS, *words], check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[0])

    def run(self, row, parts, seeds):
        """Whatever of a row's results is not kept yet."""
        kept = self.kept()
        if row in COUNTED:
            for part in parts:
                if (row, part, 0) not in kept:
                    ids = self.ids("aligned")
                    self.keep(row, part, 0, self.evaluate(part, "--baseline", row, "--items", ids))
            return
        for seed in seeds:
            wanted = [part for part in parts if (row, part, seed) not in kept]
            if wanted and row == "sasrec":
                self.sasrec(wanted, seed)
            elif wanted:
                self.generate(row, wanted, seed)

    def sasrec(self, parts, seed):
        words = [sys.executable, HERE / "sasrec.py", self.clicks, *SASREC[self.data], f"seeds={seed}"]
        done = subprocess.run([*words, *(["test"] if "test" in parts else [])], check=True, stdout=subprocess.PIPE, text=True)
        for line in map(json.loads, done.stdout.splitlines()):
            if line["part"] in parts:
                seconds = line.pop("seconds")
                self.keep("sasrec", line.pop("part"), line.pop("seed"), line, train_seconds=seconds)

    def generate(self, row, parts, seed):
        told = RECIPES[row]
        ids, words = self.ids(told.get("ids", "aligned")), [*self.pretrain(told), "--seed", seed]
        name = f"{digest([ids.name, *words])}-{seed}"
        command = ["pretrain", "onerec", self.clicks, "--items", ids, "--log", self.folder / f"{name}.log", *words]
        model = self.made(f"{name}.safetensors", command)
        table = ["--table", USERS[self.data]] if self.data in USERS else []
        for part in parts:
            figures = self.evaluate(part, "--model", model, *table, *self.recgen(told), "--seed", seed)
            figures["model"] = model.name
            self.keep(row, part, seed, figures, train_seconds=self.seconds(model), recgen_seconds=figures.pop("seconds"))

    # ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def print_tables(self):
        kept = self.kept()
        published = {} if self._users else PUBLISHED[self.data]
        main = [row for row in (*COUNTED, "sasrec", *RECIPES) if row not in ABLATIONS]
        for part in ("test", "valid"):
            if any(key[1] == part for key in kept):
                self.print_main(part, main, kept, published if part == "test" else {})
        base = gathered(kept, "generator", "valid")
        changed = [row for row in ABLATIONS if gathered(kept, row, "valid")]
        if base and changed:
            print(f"\n### {self.data}: what each part gives, validation, difference to the generator\n")
            print("| | HR@10 | NDCG@10 | NDCG@10 differs by | seeds | training, s |\n|---|---|---|---|---|---|")
            for row in ("generator", *changed):
                lines = gathered(kept, row, "valid")
                change = statistics.mean(one["ndcg@10"] for one in lines) / statistics.mean(one["ndcg@10"] for one in base) - 1
                cells = f"{spread(lines, 'hr@10')} | {spread(lines, 'ndcg@10')} | {change:+.1%} | {len(lines)}"
                print(f"| {row} | {cells} | {mean(lines, 'train_seconds', '.0f')} |")
        if kept:
            print(
                "\nSeconds are of training, validation between epochs and start-up included. ID level: the item's ID was named."
            )

    def print_main(self, part, rows, kept, published):
        n_users = next(line["users"] for key, line in kept.items() if key[1] == part)
        print(f"\n### {self.data}: {'test' if part == 'test' else 'validation'}, {n_users:,} users\n")
        title = "| | HR@5 | HR@10 | HR@20 | NDCG@5 | NDCG@10 | NDCG@20 | ID level HR@10, NDCG@10 | seeds | training, s |"
        print(title + (" published HR@10, NDCG@10 |" if published else ""))
        print("|---" * (11 if published else 10) + "|")
        for row in (*rows, *(name for name in published if name not in rows)):
            lines = gathered(kept, row, part)
            if not lines and row not in published:
                continue
            figures = " | ".join(spread(lines, name) for name in FIGURES) if lines else " | ".join([""] * len(FIGURES))
            of_ids = ", ".join(mean(lines, f"id_{name}", ".4f") for name in ("hr@10", "ndcg@10")).strip(", ")
            title = row + (f" (weight {mean(lines, 'blend', '.2f')})" if row.endswith("blend") else "")
            line = f"| {title} | {figures} | {of_ids} | {len(lines) or ''} | {mean(lines, 'train_seconds', '.0f')} |"
            told = "published: {}, {} ({})".format(*published[row]) if row in published else ""
            print(line + (f" {told} |" if published else ""))


ABLATIONS = [row for row, told in RECIPES.items() if told.get("ablation")]


def gathered(kept, row, part):
    return [line for key, line in sorted(kept.items()) if key[:2] == (row, part)]


def spread(lines, name):
    """`mean ± standard deviation` over seeds, the latter where there are several."""
    values = [line[name] for line in lines]
    return f"{statistics.mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def mean(lines, name, form):
    values = [line[name] for line in lines if name in line]
    return f"{statistics.mean(values):{form}}" if values else ""


def digest(words):
    """Of options, which files they name by whatever path."""
    told = (word.name if isinstance(word, Path) else str(word) for word in words)
    return hashlib.blake2b("\0".join(told).encode(), digest_size=4).hexdigest()


def say(words):
    print(words, file=sys.stderr, flush=True)


def main():
    data, *words = sys.argv[1:]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    bare = {word for word in words if "=" not in word}
    what, seeds, n_users = given.pop("what", ""), given.pop("seeds", "0,1,2"), int(given.pop("users", 0))
    assert not given, given
    assert bare <= {"test", "table"}, bare
    work = Work(data, n_users)
    if "table" not in bare:
        everybody = [*COUNTED, "sasrec", *RECIPES]
        rows = {"": everybody, "main": [r for r in everybody if r not in ABLATIONS], "ablations": ["generator", *ABLATIONS]}
        chosen = rows[what] if what in rows else what.split(",")
        assert set(chosen) <= set(everybody), f"what= {', '.join(everybody)}"
        work.begin()
        for row in chosen:
            if RECIPES.get(row, {}).get("only", data) == data:
                parts = ("test",) if "test" in bare and row not in ABLATIONS else ("valid",)
                work.run(row, parts, [int(seed) for seed in seeds.split(",")])
    work.print_tables()


if __name__ == "__main__":
    main()
