"""Reinforcement learning of recommenders, and the ranker."""

from pathlib import Path

import damage
from damage import edited

RL = "rl ecpo --model shop.model clicks.csv --reward hit"


def furnish():
    head, *rows = Path("clicks.csv").read_text().splitlines()
    names = head.split(",")
    rating = names.index("rating")
    unrated = [",".join(cell for n, cell in enumerate(row.split(",")) if n != rating) for row in (head, *rows)]
    damage.furnish({
        "no-rating.csv": "".join(f"{row}\n" for row in unrated),
        "blank.csv": "".join(f"{row},{cell}\n" for row, cell in zip((head, *rows), ["liked", *[""] * len(rows)], strict=True)),
        "alike.csv": "".join(f"{row},{cell}\n" for row, cell in zip((head, *rows), ["liked", *["1"] * len(rows)], strict=True)),
        "few.txt": "a\n",
        "single.csv": "user_id,item_id,timestamp\n1,2,3\n2,3,4\n",
        "strange.csv": "user_id,item_id,timestamp\n1,x,3\n1,y,4\n",
        "words.txt": "1 2 3\n",
        "steps.jsonl": '{"reward": 1.0}\n',
    })  # fmt: skip
    # a ranker of the same catalogue that has no tensors of one, and one of another catalogue
    edited("shop.model", "hollow.model", lambda t, f: f.__setitem__("system", "onerec-pscore"))
    edited("shop.model", "other.model", lambda t, f: f.update(system="onerec-pscore", semantic_ids="other"))


CASES = f"""
kvtools rl ecpo clicks.csv --reward hit
kvtools rl gbpo --model shop.model clicks.csv
kvtools rl ecpo --model shop.model clicks.csv --reward fame
kvtools rl ecpo --model shop.model clicks.csv --reward column
kvtools rl ecpo --model shop.model clicks.csv --reward hit:much
kvtools {RL} --reward hit:2
kvtools {RL} --group 1
kvtools rl grpo --model shop.model clicks.csv --reward hit --group 1
kvtools {RL} --reward format --group 4
kvtools {RL} --training epsilon=2
kvtools {RL} --training format_choice=best
kvtools {RL} --training listed_target=2
kvtools {RL} --training sync=0
kvtools {RL} --valid single.csv
kvtools {RL} --listed few.txt
kvtools {RL} --reward column:colour
kvtools rl ecpo --model shop.model no-rating.csv --reward column:rating
kvtools rl ecpo --model shop.model blank.csv --reward column:liked
kvtools rl ecpo --model shop.model clicks.kvs --reward column:liked
kvtools rl ecpo --model shop.model words.txt --reward column:liked
kvtools rl ecpo --model shop.model clicks.csv --reward duration
kvtools rl ecpo --model shop.model strange.csv --reward hit
kvtools rl ecpo --model shop.model single.csv --reward hit
kvtools rl ecpo --model - - --reward hit < clicks.csv
kvtools rl ecpo --model keye.safetensors clicks.csv --reward hit
kvtools rl ecpo --model items.ids clicks.csv --reward hit
kvtools rl ecpo --model shop.model clicks.csv --reward pscore:nowhere.model
kvtools rl ecpo --model shop.model clicks.csv --reward pscore:shop.model
kvtools rl ecpo --model shop.model clicks.csv --reward pscore:other.model
kvtools rl ecpo --model shop.model clicks.csv --reward pscore:hollow.model
kvtools rl ecpo --model hollow.model clicks.csv --reward hit
kvtools {RL} --lr 0 --steps 1 --require-gain -o same.model
kvtools rl pscore clicks.csv
kvtools rl pscore --model shop.model clicks.csv --reward format
kvtools rl pscore --model shop.model clicks.csv --reward hit:-1
kvtools rl pscore --model shop.model alike.csv --reward column:liked
kvtools plot steps.jsonl -o picture.png
kvtools.onerec.rl.ranker.auc(np.ones(3), np.ones(3, bool))
kvtools.onerec.model.trie.Trie(np.full((1, 4), 1 << 20)).numbers(torch.zeros(1, 4, dtype=torch.long))
"""
