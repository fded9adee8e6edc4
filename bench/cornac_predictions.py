"""Predictions of cornac, scored by cornac and by `kvtools recgen --predictions`: the figures must be equal.

    python -m venv cornac && cornac/bin/pip install -c constraints.txt cornac
    cornac/bin/python bench/cornac_predictions.py ml-100k.inter folder
    kvtools recgen --evaluate test --predictions folder/predictions.csv folder/held.inter --json

Reads a RecBole `.inter` of user, item, rating and timestamp. Each user's last interaction is held out, as kvtools holds it out;
users with fewer than three interactions, and items that are only held out, are left out of both. cornac ranks the items of its
training that a user has not had; a tie would be broken differently, and matrix factorisation has none.
"""

import sys
from pathlib import Path

import numpy as np
from cornac.eval_methods import BaseMethod
from cornac.metrics import NDCG, HitRatio
from cornac.models import MF

log, folder = Path(sys.argv[1]), Path(sys.argv[2])
folder.mkdir(exist_ok=True)
of_user = {}
for row, line in enumerate(log.read_text().splitlines()[1:]):
    user, item, rating, time = line.split("\t")[:4]
    of_user.setdefault(user, []).append((float(time), row, item, rating))
histories = {user: sorted(rows) for user, rows in of_user.items() if len(rows) >= 3}
train = [(user, item, float(rating)) for user, rows in histories.items() for _, _, item, rating in rows[:-1]]
known = {item for _, item, _ in train}
test = [(user, rows[-1][2], float(rows[-1][3])) for user, rows in histories.items() if rows[-1][2] in known]

split = BaseMethod.from_splits(train_data=train, test_data=test, exclude_unknowns=True, rating_threshold=0.0, verbose=False)
model = MF(k=16, max_iter=30, learning_rate=0.01, seed=1, verbose=False)
metrics = [metric(k=k) for metric in (HitRatio, NDCG) for k in (5, 10, 20)]
print({name: float(value) for name, value in split.evaluate(model, metrics, user_based=True)[0].metric_avg_results.items()})

items = list(split.train_set.iid_map)
with open(folder / "predictions.csv", "w") as file:
    file.write("user_id,item_id,score\n")
    for user, _, _ in test:
        scores = model.score(split.train_set.uid_map[user])
        file.writelines(f"{user},{items[n]},{scores[n]:.9g}\n" for n in np.argsort(-scores))
with open(folder / "held.inter", "w") as file:
    file.write("user_id:token\titem_id:token\trating:float\ttimestamp:float\n")
    for user, _, _ in test:
        file.writelines(f"{user}\t{item}\t{rating}\t{time:.0f}\n" for time, _, item, rating in histories[user])
