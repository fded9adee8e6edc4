"""An evaluation that says what makes its figures wrong, that scores anybody's recommendations, and tables for other tools."""

import csv
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import unsaid
from shop import TRAIN, clicks_of, furnish, inside, say

from kvtools.artifact.files import Sink
from kvtools.onerec.semantic_ids.ids import SemanticIds

N_USERS = 30
RANKS = ("hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20")
COUNT = "kvtools recgen --items items.ids --baseline popular"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The tiny shop; fair.safetensors, which knows the training part, and leaky.safetensors, which knows everything."""
    folder = tmp_path_factory.mktemp("honest")
    furnish(folder)
    head, *rows = (folder / "clicks.csv").read_text().splitlines()
    (folder / "all.csv").write_text("\n".join([f"{head},part", *(f"{row},train" for row in rows)]) + "\n")
    with inside(folder):
        for name, clicks in (("fair", "clicks.csv"), ("leaky", "all.csv")):
            assert say(f"{TRAIN.replace('clicks.csv', clicks)} --steps 20 --lr 1e-2 -o {name}.safetensors").code == 0
    return folder


@pytest.fixture
def shop(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def figures(line, capfd):
    done = say(f"{line} --json", capfd)
    assert done.code == 0, done.err
    return json.loads(done.out), unsaid(done.err)


def test_a_model_that_was_trained_on_what_is_held_out_is_told_even_quietly(shop, capfd):
    fair, said = figures("kvtools recgen --model fair.safetensors clicks.csv --evaluate test --beam 64", capfd)
    assert (fair["seen_in_training"], fair["repeats"], fair["ties"], said) == (0, 0, 0, "")
    leaky, said = figures("kvtools recgen -q --model leaky.safetensors clicks.csv --evaluate valid --beam 64", capfd)
    assert leaky["seen_in_training"] == N_USERS
    assert said == (
        "kvtools recgen: clicks.csv: 30 of 30 held-out interactions were in what the model was trained on, which its figures "
        "profit from. Train it without them.\n"
    )
    rows = (shop / "clicks.csv").read_text().splitlines()
    (shop / "others.csv").write_text("\n".join([rows[0], *(f"v{row[1:]}" for row in rows[1:])]) + "\n")
    others, _ = figures("kvtools recgen --model leaky.safetensors others.csv --evaluate test --beam 64", capfd)
    assert others["seen_in_training"] == 0, "other users may like the same"


def test_repetitions_and_ties_among_what_is_held_out_are_counted(shop, capfd):
    (shop / "few.csv").write_text(
        "uid,iid,timestamp\n"
        "a,i1,1\na,i2,2\na,i3,3\na,i1,4\n"  # the last repeats the first
        "b,i4,1\nb,i5,2\nb,i6,2\nb,i7,9\n"  # valid and train have one time
        "c,i8,1\nc,i9,2\nc,i10,7\nc,i11,7\n"  # test and valid have one time
    )
    line, said = figures(f"{COUNT} few.csv --evaluate test", capfd)
    assert (line["repeats"], line["ties"]) == (1, 1)
    assert said == (
        "kvtools recgen: few.csv: 1 of 3 held-out interactions repeat an earlier item of the user, and count as missed. "
        "Give --keep-seen to have such items recommended.\n"
        "kvtools recgen: few.csv: 1 of 3 held-out interactions have the time of one that is not held out with them; "
        "the order of rows decided which is.\n"
    )
    assert figures(f"{COUNT} few.csv --evaluate valid", capfd)[0]["ties"] == 2
    kept, said = figures(f"{COUNT} few.csv --evaluate test --keep-seen", capfd)
    assert kept["repeats"] == 1
    assert "repeat" not in said
    assert kept["hr@20"] > line["hr@20"]
    assert figures(f"{COUNT} -q few.csv --evaluate test", capfd)[1] == ""


def test_interactions_may_be_split_by_time(shop, capfd):
    rows = [row.split(",") for row in (shop / "clicks.csv").read_text().splitlines()[1:]]
    times = sorted(int(row[2]) for row in rows)
    n_train, n_valid = round(0.7 * len(rows)), round(0.9 * len(rows))
    bounds = times[n_train], times[n_valid]
    parts = ["train" if int(row[2]) < bounds[0] else "valid" if int(row[2]) < bounds[1] else "test" for row in rows]
    marked = ["user_id,item_id,timestamp,part", *(",".join([*row[:3], part]) for row, part in zip(rows, parts, strict=True))]
    (shop / "marked.csv").write_text("\n".join(marked) + "\n")
    for part in ("valid", "test"):
        by_time, _ = figures(f"{COUNT} clicks.csv --split time:0.7,0.2 --evaluate {part}", capfd)
        by_column, _ = figures(f"{COUNT} marked.csv --evaluate {part}", capfd)
        assert {**by_time, "seconds": 0} == {**by_column, "seconds": 0}
    assert say("kvtools convert clicks.csv --split time:0.7,0.2 -o split.kvs").code == 0
    assert figures(f"{COUNT} split.kvs --evaluate test", capfd)[0]["hr@10"] == by_time["hr@10"]
    for n, source in enumerate(("clicks.csv --split time:0.7,0.2", "split.kvs", "marked.csv")):
        assert say(f"kvtools pairs {source} -o pairs-{n}.kvs").code == 0
    sums = say("kvtools sum pairs-0.kvs pairs-1.kvs pairs-2.kvs", capfd).out.split()[::2]
    assert len(sums) == 3
    assert len(set(sums)) == 1
    last, _ = figures(f"{COUNT} marked.csv --split leave-last-out --evaluate test", capfd)
    assert {**last, "seconds": 0} == {**figures(f"{COUNT} clicks.csv --evaluate test", capfd)[0], "seconds": 0}
    assert say(f"{TRAIN} --split time:0.7,0.2 --steps 2 -o later.safetensors").code == 0
    ask = "kvtools recgen --model later.safetensors clicks.csv --evaluate test --beam 64"
    assert figures(f"{ask} --split time:0.7,0.2", capfd)[0]["seen_in_training"] == 0
    assert figures(ask, capfd)[0]["seen_in_training"] > 0, "another split holds out what was trained on"


def _before_test(shop):
    """before.csv: the clicks without each user's last one."""
    head, *rows = (shop / "clicks.csv").read_text().splitlines()
    users = [row.split(",")[0] for row in rows]
    last = {user: n for n, user in enumerate(users)}
    (shop / "before.csv").write_text("\n".join([head, *(row for n, row in enumerate(rows) if n not in last.values())]) + "\n")


@pytest.mark.parametrize("form", ["lists", "csv", "tsv", "lines"])
def test_recommendations_from_anywhere_are_scored_as_our_own(shop, capfd, form):
    _before_test(shop)
    own, _ = figures("kvtools recgen --model fair.safetensors clicks.csv --evaluate test --beam 64", capfd)
    lists = say("kvtools recgen --model fair.safetensors before.csv -k 25 --beam 64 --json", capfd).out.decode()
    rows = [
        (line["user"], item, score, rank)
        for line in map(json.loads, lists.splitlines())
        for rank, (item, score) in enumerate(zip(line["items"], line["scores"], strict=True), start=1)
    ]
    np.random.default_rng(0).shuffle(rows)
    text = {
        "lists": lists,
        "csv": "user_id,item_id,score\n" + "".join(f"{u},{i},{s}\n" for u, i, s, _ in rows),
        "tsv": "Rank\tuserId\tasin\n" + "".join(f"{r}\t{u}\t{i}\n" for u, i, _, r in rows),
        "lines": "".join(json.dumps({"user": u, "item": i, "rank": int(r)}) + "\n" for u, i, _, r in rows),
    }[form]
    (shop / "theirs").write_text(text)
    theirs, said = figures("kvtools recgen clicks.csv --evaluate test --predictions theirs", capfd)
    assert said == ""
    assert theirs["predictions"] == "theirs"
    assert "model" not in theirs
    assert theirs["seen_in_training"] is None
    assert {name: theirs[name] for name in (*RANKS, "users")} == pytest.approx({name: own[name] for name in (*RANKS, "users")})
    assert theirs["unmasked_hr@10"] == pytest.approx(own["hr@10"]), "nothing in the lists is seen"


def test_lists_are_scored_with_and_without_what_their_users_have_seen(shop, capfd):
    clicks = clicks_of(shop / "clicks.csv")
    lines = ["user,item,rank\n"]
    for user, items in list(clicks.items())[:20]:
        lists = [*items[:4], "nobody-knows-this", items[-1], items[-1]]
        lines += [f"{user},{item},{rank}\n" for rank, item in enumerate(lists)]
    lines += ["stranger,i1,1\n", "u1,,2\n", "u2,i3,first\n"]
    (shop / "lists.csv").write_text("".join(lines))
    done = say("kvtools recgen clicks.csv --evaluate test --predictions lists.csv --json -k 1", capfd)
    line = json.loads(done.out)
    assert done.code == 65
    assert "rows without user, item or rank were left out, 2 in all" in done.err
    assert "10 of 30 users have no prediction and count as missed; 1 users of it have no interactions." in done.err
    assert (line["hr@1"], line["hr@5"]) == (0, pytest.approx(20 / 30)), "what nobody knows keeps its place"
    assert line["ndcg@5"] == pytest.approx(20 / 30 / np.log2(3))
    assert (line["unmasked_hr@5"], line["unmasked_hr@10"]) == (0, pytest.approx(20 / 30))
    assert 0 < line["legal_share"] < 1
    kept, _ = (
        json.loads(say("kvtools recgen clicks.csv --evaluate test --predictions lists.csv --json --keep-seen", capfd).out),
        0,
    )
    assert kept["hr@5"] == 0
    assert "unmasked_hr@5" not in kept


def test_recommendations_are_tables_too(shop, capfd):
    ask = "kvtools recgen --model fair.safetensors clicks.csv -k 4 --beam 32 --titles titles.csv"
    lines = [json.loads(line) for line in say(f"{ask} --json", capfd).out.splitlines()]
    expected = [
        (line["user"], rank, item, title, score)
        for line in lines
        for rank, (item, title, score) in enumerate(zip(line["items"], line["titles"], line["scores"], strict=True), start=1)
    ]
    rows = list(csv.reader(io.StringIO(say(f"{ask} --csv", capfd).out.decode())))
    assert rows[0] == ["user", "rank", "item", "title", "score"]
    assert [(user, int(rank), item, title, float(score)) for user, rank, item, title, score in rows[1:]] == expected
    assert say(f"{ask} --parquet -o r.parquet", capfd).code == 0
    table = pq.read_table("r.parquet")
    assert table.column_names == rows[0]
    assert [tuple(row.values()) for row in table.to_pylist()] == expected
    assert say(f"{ask.partition(' --titles')[0]} --csv -o r.csv", capfd).code == 0
    assert (shop / "r.csv").read_text().startswith("user,rank,item,score\n")
    assert say(f"{ask} --csv -o r.csv", capfd).code == 73, "it is there"


def test_figures_beyond_twenty_are_given_where_they_are_asked_for(shop, capfd):
    line, _ = figures(f"{COUNT} clicks.csv --evaluate test -k 35", capfd)
    assert line["hr@20"] <= line["hr@35"]
    assert {"ndcg@35", "id_hr@35"} <= set(line)
    done = say(f"{COUNT} clicks.csv --evaluate test -k 35", capfd)
    assert "hr@35" in done.out.decode().splitlines()[0]


@pytest.mark.parametrize(
    "options", ["", "--near 3", "--architecture item_scores=40", "--architecture item_scores=0 --architecture item_table=0"]
)
def test_items_that_came_after_training_are_recommended_by_their_codes(shop, capfd, options):
    assert say(f"{TRAIN} --steps 20 --lr 1e-2 {options} -o m.safetensors").code == 0
    ids = SemanticIds.open("items.ids")
    keys = np.append(ids.keys, np.array(["new 1", "new 2"], np.dtypes.StringDType()))
    codes = np.concatenate([ids.codes_NS, ids.codes_NS[:1], [[3, 7, 7]]]).astype(np.int32)  # the ID of i0, and one of its own
    replace(ids, keys=keys, codes_NS=codes).save(Sink("longer.ids"), history=[])
    ask = "kvtools recgen --model m.safetensors clicks.csv -k 42 --beam 64 --keep-seen --json"
    done = say(f"{ask} --items longer.ids", capfd)
    assert unsaid(done.err) == (
        "kvtools recgen: longer.ids: 2 items came after the training of m.safetensors, which knows them by their codes alone.\n"
    )
    lines = [json.loads(line) for line in done.out.splitlines()]
    exact = [json.loads(line) for line in say(f"{ask} --items longer.ids --exact", capfd).out.splitlines()]
    before = [json.loads(line) for line in say(ask, capfd).out.splitlines()]
    assert [line["items"] for line in lines] == [line["items"] for line in exact]
    for line in lines:
        assert set(line["items"]) == set(keys.tolist())
        assert line["items"].index("new 1") > line["items"].index("i0"), "which people have taken"
    old = [[item for item in line["items"] if not item.startswith("new")] for line in lines]
    places = [[abs(a.index(item) - b["items"].index(item)) for item in a] for a, b in zip(old, before, strict=True)]
    assert np.mean(places) < 2, "the old items keep about their order"
    (shop / "more.csv").write_text("user_id,item_id,timestamp,rating\nu1,i1,1,2\nu1,new 2,2,3\nu1,i3,4,5\n")
    assert say("kvtools recgen --model m.safetensors --items longer.ids more.csv -k 3 --beam 64 -q --json", capfd).err == ""
    other = say("kvtools recgen --model m.safetensors --items other.ids clicks.csv --json", capfd)
    assert other.code == 65
    assert "Give its own IDs, or these with later items appended by kvtools semid-build --codebook --append." in other.err
