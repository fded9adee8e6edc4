#!/usr/bin/env bash
# The figures of bench/README.md that one idle machine makes in some hours, as Markdown on stdout; the other scripts are run by hand,
# as README.md says. What onerec.py trains takes hours more: it is run by hand, and only its tables are printed here.
# Usage: make bench            real clips are looked for in ../shared/data or $KVTOOLS_DATA
set -euo pipefail
cd "$(dirname "$0")/.."
export KVTOOLS_DATA=${KVTOOLS_DATA:-$PWD/../shared/data}

peers=bench/.venv
if [ ! -e $peers/.ready ]; then
  python -m venv $peers
  $peers/bin/pip install --quiet -c constraints.txt -r bench/requirements.txt
  $peers/bin/pip install --quiet --no-deps keye-vl-utils==1.0.0 qwen-vl-utils==0.0.14 torchvision==0.28.0 \
    "requests==2.*" "packaging==26.*" "urllib3==2.*" "idna==3.*" "certifi" "charset-normalizer==3.*"
  touch $peers/.ready
fi
# flwr and pfl want other versions of small packages than constraints.txt has: only what computes is held
federated=bench/.venv-federated
if [ ! -e $federated/.ready ]; then
  python -m venv $federated
  grep -E '^(torch|numpy|scipy)==' constraints.txt > $federated/pins.txt
  $federated/bin/pip install --quiet -c $federated/pins.txt "flwr[simulation]==1.42.0" "pfl[pytorch]==0.6.0" k-means-constrained
  touch $federated/.ready
fi
python bench/make_clips.py bench/.clips
python bench/video.py bench/.clips $peers/bin/python
python bench/pipe.py
python bench/start.py
python bench/semid.py $peers/bin/python
python bench/methods.py
python bench/align.py test n_steps=1000
python bench/generate.py $peers/bin/python
python bench/train.py $peers/bin/python
python bench/scaling.py beauty
python bench/engine.py
for data in beauty ml-100k; do python bench/onerec.py $data table; done
python bench/keye_speed.py $peers/bin/python
python bench/keye.py
python bench/mix.py $peers/bin/python
python bench/formats.py
python bench/open_answers.py
python bench/endpoint.py
python bench/etree.py $federated/bin/python
python bench/etree_drills.py "$KVTOOLS_DATA"
python bench/etree_science.py "$KVTOOLS_DATA"
python bench/kills.py bench/.kills
