"""The command line, recipes, ranks, and what every training asks for."""

import fcntl
import os

import damage
from damage import bag

ONEREC = "pretrain onerec clicks.csv --items items.ids"


def furnish():
    damage.furnish({
        "recipe.toml": "steps = 3\nwidth = 2\n",
        "broken.toml": "steps = \n",
        "bad.csv": "user_id,item_id,timestamp\n1,2,3\n,5,6\n",
        ".text.model.state/train.state": "no state\n",
        ".other.model.state/train.state": bag("model", {}),
        ".busy.model.state/lock": "",
    })  # fmt: skip
    fcntl.flock(os.open(".busy.model.state/lock", os.O_RDWR), fcntl.LOCK_EX)
    fcntl.flock(os.open(".busy.kvs.part", os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)


CASES = f"""
kvtools nonsense
kvtools pretrain
kvtools pretrain nonsense
kvtools rl
kvtools info --nonsense
kvtools cat --compress 20 clips.kvs
kvtools recgen --beam 0
kvtools semid-build --method best items.kvs
kvtools {ONEREC} --config nowhere.toml
kvtools {ONEREC} --config broken.toml
kvtools {ONEREC} --config recipe.toml
kvtools {ONEREC} --lr nan
kvtools {ONEREC} --lr -1
kvtools {ONEREC} --steps soon
kvtools {ONEREC} --steps 3%
kvtools {ONEREC} --training dropout
kvtools {ONEREC} --training warmth=3
kvtools {ONEREC} --training dropout=much
kvtools {ONEREC} --training dropout=2
kvtools {ONEREC} --training warmup=soon
kvtools {ONEREC} --training checkpoint=2
kvtools {ONEREC} --device cuda
kvtools {ONEREC} --log nowhere/run.jsonl -o new.model
kvtools {ONEREC} --state clicks.csv -o new.model
kvtools semid-build --memory some items.kvs -o new.ids
kvtools convert --strict bad.csv
kvtools convert bad.csv
kvtools {ONEREC} --steps 1 -o text.model
kvtools {ONEREC} --steps 1 -o other.model
kvtools {ONEREC} --steps 1 -o busy.model
kvtools tokenize-video --jobs 1 videos -o busy.kvs
SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=4 kvtools tokenize-video videos
SLURM_JOB_END_TIME=1 kvtools tokenize-video --jobs 1 videos -o late.kvs
PMI_RANK=0 PMI_SIZE=2 kvtools sum items.ids
PMI_RANK=x PMI_SIZE=2 kvtools sum items.ids
PMI_RANK=2 PMI_SIZE=2 kvtools sum items.ids
mpiexec -n 2 kvtools {ONEREC} --users - < users.csv
mpiexec -n 2 kvtools pretrain keye - < questions.kvs
mpiexec -n 2 kvtools recgen --model shop.model - < clicks.csv
"""
