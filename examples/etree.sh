#!/usr/bin/env bash
# A tree against FedAvg on 100 devices with two shards of MNIST each, on the E-Tree authors' graph; about a minute on two cores.
# In a third run devices fail.
# Usage: etree.sh [DATA]    a folder with fl/mnist and net/etree_authors, by default ../shared/data or $KVTOOLS_DATA
set -euo pipefail
data=${1:-${KVTOOLS_DATA:-../shared/data}}
work=${WORK:-.demo/etree}
mkdir -p "$work"

kvtools devices --data "$data/fl/mnist" --partition shards:2 --graph "$data/net/etree_authors/data100.in" -o "$work/fleet.devices" --force
rm -f "$work/run.jsonl"
for method in k-medoids kma balanced; do
  kvtools kma-cluster -k 10 --method $method --data "$data/fl/mnist" "$work/fleet.devices" -o "$work/$method.tree" --force
  kvtools info "$work/$method.tree" | grep quality | sed "s/^quality/$method/"
done
# links of 10 Mbit/s: a tree saves the time that a server's link costs
train() { kvtools etree-train --data "$data/fl/mnist" --epochs 50 --bandwidth 10 --log "$work/run.jsonl" --force "$@" "$work/fleet.devices"; }
train --tree "$work/balanced.tree" -o "$work/tree.model"
train --tree "$work/balanced.tree" --algorithm fedavg --every 5 -o "$work/star.model"
# the cost of losing a tenth of the devices, an aggregator and the root is printed at the end
train --tree "$work/balanced.tree" --fail leaf:10%@5,aggregator:1@8,root@12 --regroup 0.5 --compare -o "$work/ill.model"
kvtools plot "$work/run.jsonl" -o "$work/run.png" --force
tail -n 1 "$work/run.jsonl"
