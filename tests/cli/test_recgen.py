"""A model and clicks become recommendations: what a user types, what comes out, how good it is, and what is refused."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from conftest import unsaid
from safetensors.numpy import save_file
from shop import TRAIN, add_clicks, clicks_of, furnish, inside, number_ids, say

from kvtools.artifact import open_artifact
from kvtools.artifact.bag import write_bag
from kvtools.artifact.files import Sink, open_source
from kvtools.artifact.stream import Reader, Writer
from kvtools.onerec.recommend.evaluate import over_ranks

N_USERS = 30
ASK = "kvtools recgen --model m.safetensors clicks.csv"
FIGURES = {"users", "hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20", "legal_share", "seconds"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The tiny shop with three models: a.safetensors and b.safetensors of two seeds, and near.safetensors with neighbours."""
    folder = tmp_path_factory.mktemp("shop")
    furnish(folder)
    with inside(folder):
        for name, options in (("m", "--seed 0"), ("b", "--seed 1"), ("near", "--near 4 --users users.csv")):
            assert say(f"{TRAIN} --steps 24 --lr 1e-2 --training patience=0 {options} -o {name}.safetensors").code == 0
    return folder


@pytest.fixture
def shop(trained, tmp_path, monkeypatch):
    """A copy of it, here."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ask(shop, capfd):
    """A line's output as JSON Lines, where it ends with 0 and says nothing."""

    def run(line):
        done = say(f"{line} --json", capfd)
        assert (done.code, unsaid(done.err)) == (0, ""), done.err
        return [json.loads(row) for row in done.out.splitlines()]

    return run


def digest(capfd, name):
    return say(f"kvtools sum {name}", capfd).out.split()[0]


# ── what comes out ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_every_user_is_recommended_items_that_are_there_and_new(shop, ask):
    clicks = clicks_of(shop / "clicks.csv")
    lines = ask(f"{ASK} -k 7 --beam 64")
    assert [line["user"] for line in lines] == list(clicks)
    for line in lines:
        assert set(line) == {"user", "items", "scores"}
        assert len(line["items"]) == len(set(line["items"])) == len(line["scores"]) == 7
        assert set(line["items"]) <= {f"i{n}" for n in range(40)} - set(clicks[line["user"]])
        assert line["scores"] == sorted(line["scores"], reverse=True)
        assert line["scores"][0] <= 0


def test_the_stream_holds_what_json_tells_and_where_it_comes_from(sh, shop):
    done = sh(f"{ASK} -k 5 --beam 64 | tee r.kvs | kvtools check - && {ASK} -k 5 --beam 64 --json")
    assert (done.code, unsaid(done.err)) == (0, "")
    records = list(open_artifact("r.kvs"))
    codes = open_artifact("items.ids").tensors["codes"]
    for record, line in zip(records, map(json.loads, done.out.splitlines()), strict=True):
        assert (record.key, record.fields["items"]) == (line["user"], line["items"])
        items = record.tensors["items"]
        assert [f"i{n}" for n in items] == line["items"]
        np.testing.assert_allclose(record.tensors["scores"], line["scores"], atol=1e-6)
        assert np.array_equal(record.tensors["codes"], codes[items])
    info_json = json.loads(sh("kvtools info --json r.kvs").out)
    assert (info_json["kind"], info_json["records"]) == ("recommendation", N_USERS)
    assert [step["command"] for step in info_json["history"]] == ["pretrain onerec", "recgen"]


def test_clicks_come_through_the_pipe(sh, shop):
    piped = sh(f"kvtools convert clicks.csv | {ASK.replace('clicks.csv', '-')} --beam 32 | kvtools sum -")
    assert piped.code == 0, piped.err
    assert piped.out.split()[0] == sh(f"{ASK} --beam 32 | kvtools sum -").out.split()[0]


def test_only_the_users_that_are_named_are_asked_for(shop, ask, capfd):
    everyone = {line["user"]: line for line in ask(f"{ASK} -k 3 --beam 32")}
    (shop / "list").write_text("u9\nu2\n\nu9\n")
    (shop / "marked").write_text("\ufeffu9\nu2\n", encoding="utf-8")
    for named in ("u9,u2", "list", "marked", ",".join(["u9", *["u2"] * 200])):
        lines = ask(f"{ASK} -k 3 --beam 32 --users {named}")
        assert [line["user"] for line in lines] == ["u9", "u2"]
        for line in lines:
            assert line["items"] == everyone[line["user"]]["items"]
            # float32 sums over another number of rows at once
            assert line["scores"] == pytest.approx(everyone[line["user"]]["scores"], abs=1e-5)


def test_names_come_through_a_pipe_as_well(sh, shop):
    line = f"{ASK} -k 3 --beam 32 --json --users"
    expected = sh(f"{line} u9,u2").out
    assert [sh(f"printf 'u9\\nu2\\n' | {line} -").out, sh(f"{line} <(printf 'u9\\nu2\\n')").out] == [expected, expected]


def test_users_without_history_get_what_is_popular_and_it_is_said(shop, capfd):
    counts = {}
    for items in clicks_of(shop / "clicks.csv").values():
        for item in items[:-2]:
            counts[item] = counts.get(item, 0) + 1
    done = say(f"{ASK} -k 4 --beam 32 --users nobody,u3,noone --json", capfd)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0
    assert unsaid(done.err) == "kvtools recgen: clicks.csv: users without a known item get popular items: 2 (nobody, noone).\n"
    assert [line.get("fallback") for line in lines] == ["popular", None, "popular"]
    assert lines[0]["items"] == sorted(counts, key=lambda item: (-counts[item], int(item[1:])))[:4] == lines[2]["items"]
    say(f"{ASK} -k 4 --beam 32 --users nobody,u3 -o r.kvs")
    assert [record.fields.get("fallback") for record in open_artifact("r.kvs")] == ["popular", None]


def test_titles_are_reported_beside_the_items(shop, ask):
    for line in ask(f"{ASK} -k 3 --beam 32 --titles titles.csv"):
        assert line["titles"] == [f"Item No. {item[1:]}" for item in line["items"]]


def test_titles_that_are_lost_are_reported_even_quietly(shop, capfd):
    (shop / "torn.csv").write_text("item_id,title\ni1,Toy, The\ni2,Good\ni2,Other\n")
    done = say(f"{ASK} -q -k 40 --beam 64 --keep-seen --users u1 --titles torn.csv --json", capfd)
    line = json.loads(done.out)
    assert dict(zip(line["items"], line["titles"], strict=True))["i2"] == "Good"
    assert done.code == 65
    assert "torn.csv: other titles of an item that had one were left out, 1 in all (i2)" in done.err
    assert done.err.count("\n") == 2
    assert say(f"{ASK} --titles torn.csv --strict --json", capfd).code == 65


def test_seen_items_come_when_they_are_asked_for(shop, ask):
    clicks = clicks_of(shop / "clicks.csv")
    lines = ask(f"{ASK} -k 40 --beam 64 --keep-seen")
    assert all(set(line["items"]) == {f"i{n}" for n in range(40)} for line in lines)
    assert sum(np.exp(lines[0]["scores"])) <= 1 + 1e-4, "scores are log-probabilities"
    lines = ask(f"{ASK} -k 40 --beam 64")
    assert all(set(line["items"]) == {f"i{n}" for n in range(40)} - set(clicks[line["user"]]) for line in lines)


def test_who_has_seen_everything_gets_nothing(shop, ask):
    (shop / "all.txt").write_text("".join(f"{user} {' '.join(f'i{n}' for n in range(40))}\n" for user in ("eve", "eva")))
    for options in ("", "--exact", "--blend 0.5", "--no-trie"):
        lines = ask(f"kvtools recgen --model m.safetensors all.txt --beam 64 {options}")
        assert [(line["items"], line["scores"]) for line in lines] == [([], [])] * 2, options


def test_items_of_one_id_share_its_probability(shop, ask):
    # i38 has the ID of i0, i39 that of i1
    together = {}
    for within in ("popular", "recent", "random"):
        line = ask(f"{ASK} --users u1 -k 40 --beam 64 --keep-seen --within {within}")[0]
        scores = dict(zip(line["items"], line["scores"], strict=True))
        together[within] = np.logaddexp(scores["i0"], scores["i38"])
        if within == "random":
            assert scores["i0"] == pytest.approx(scores["i38"])
    assert together["popular"] == pytest.approx(together["recent"], abs=1e-5) == pytest.approx(together["random"], abs=1e-5)


# ── search ───────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("model", ["m", "near"])
def test_a_wide_beam_gives_the_ranking_of_all_items(shop, ask, model):
    table = "--table users.csv" if model == "near" else ""
    line = f"kvtools recgen --model {model}.safetensors clicks.csv {table} -k 10"
    for found, exact in zip(ask(f"{line} --beam 64"), ask(f"{line} --exact"), strict=True):
        assert found["items"] == exact["items"]
        assert found["scores"] == pytest.approx(exact["scores"], abs=1e-5)


@pytest.mark.parametrize("model", ["m", "near"])
def test_a_narrow_beam_that_is_widened_gives_the_ranking_of_all_items(shop, ask, model):
    line = f"kvtools recgen --model {model}.safetensors clicks.csv {'--table users.csv' if model == 'near' else ''} -k 4"
    narrow, sure, exact = (ask(f"{line} {options}") for options in ("--beam 4", "--beam 4 --sure", "--exact"))
    assert [found["items"] for found in sure] == [found["items"] for found in exact]
    assert [found["items"] for found in narrow] != [found["items"] for found in exact]


def test_evaluation_tells_how_many_are_proven(shop, ask):
    other = ASK.replace("m.safetensors", "b.safetensors")  # whose narrow beam proves less
    narrow, sure, wide = (
        ask(f"{other} --evaluate test {options}")[0] for options in ("--beam 2", "--beam 2 --sure", "--beam 64")
    )
    assert narrow["sure_share"] < sure["sure_share"] == wide["sure_share"] == 1.0
    assert (narrow["sure"], sure["sure"]) == (False, True)
    for name in ("hr@5", "hr@10", "hr@20", "ndcg@20", "id_hr@10"):
        assert sure[name] == wide[name]
    for options in ("--blend 0.5", "--no-trie"):
        assert "sure_share" not in ask(f"{ASK} --evaluate test --beam 64 {options}")[0]


@pytest.mark.parametrize("options", ["--json", "--evaluate test"])
def test_who_may_have_missed_something_for_want_of_memory_is_counted(shop, capfd, monkeypatch, options):
    monkeypatch.setattr("kvtools.onerec.recommend.recommend._N_SCORES", 32)
    done = say(f"{ASK.replace('m.safetensors', 'b.safetensors')} -k 4 --beam 4 --sure {options}", capfd)
    assert done.code == 0
    found = re.fullmatch(
        r"kvtools recgen: --sure: better items may be missing for (\d+) of 30, "
        r"since memory limits the beam\. Use --exact\.\n",
        unsaid(done.err),
    )
    assert found, done.err
    assert 0 < int(found[1]) <= 30


def test_without_the_trie_the_model_says_ids_that_no_item_has_and_they_are_dropped(shop, ask):
    free, legal = (ask(f"{ASK} --evaluate test --beam 64 {option}")[0] for option in ("--no-trie", ""))
    assert 0 < free["legal_share"] < 1
    assert legal["legal_share"] == 1.0
    for line in ask(f"{ASK} -k 10 --beam 64 --no-trie"):
        assert set(line["items"]) <= {f"i{n}" for n in range(40)}
        assert len(line["items"]) == len(line["scores"])


def test_a_narrow_beam_gives_a_part_of_what_a_wide_one_gives(shop, ask):
    wide = ask(f"{ASK} -k 40 --beam 64")
    for few, many in zip(ask(f"{ASK} -k 3 --beam 3"), wide, strict=True):
        assert set(few["items"]) <= set(many["items"])
        assert few["scores"][0] <= many["scores"][0] + 1e-5


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_shards_put_together_are_the_whole(sh, shop):
    done = sh(
        f"{ASK} --beam 32 -o whole.kvs; {ASK} --beam 32 --shard 0/2 -o a.kvs; {ASK} --beam 32 --shard 1/2 -o b.kvs;"
        "kvtools cat a.kvs b.kvs -o joined.kvs"
    )
    assert (done.code, unsaid(done.err)) == (0, "")
    whole, joined = (list(Reader(open_source(f"{name}.kvs"), name)) for name in ("whole", "joined"))
    assert [record.key for record in joined] == [record.key for record in whole]
    for one, other in zip(joined, whole, strict=True):
        np.testing.assert_array_equal(one.tensors["items"], other.tensors["items"])
        np.testing.assert_allclose(one.tensors["scores"], other.tensors["scores"], atol=1e-5)  # users share products


def test_the_same_command_gives_the_same_bytes(shop, capfd):
    for name in ("a", "b"):
        assert say(f"{ASK} --beam 32 --within random -o {name}.kvs", capfd).code == 0
    assert (shop / "a.kvs").read_bytes() == (shop / "b.kvs").read_bytes()


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("part", ["valid", "test"])
def test_figures_are_those_of_a_count_by_hand(shop, ask, part):
    line = ask(f"{ASK} --evaluate {part} --beam 64")[0]
    assert set(line) >= FIGURES
    assert (line["model"], line["part"], line["users"]) == ("m.safetensors", part, N_USERS)
    cut = {"valid": 2, "test": 1}[part]
    clicks = clicks_of(shop / "clicks.csv")
    (shop / "before.txt").write_text("".join(f"{user} {' '.join(items[:-cut])}\n" for user, items in clicks.items()))
    rows = (shop / "clicks.csv").read_text().splitlines()
    kept, left = [rows[0]], {user: len(items) - cut for user, items in clicks.items()}
    for row in rows[1:]:
        user = row.split(",")[0]
        kept += [row] if left[user] > 0 else []
        left[user] -= 1
    (shop / "before.csv").write_text("\n".join(kept) + "\n")
    ranks = []
    for answer in ask("kvtools recgen --model m.safetensors before.csv -k 20 --beam 64"):
        target = clicks[answer["user"]][-cut]
        ranks.append(answer["items"].index(target) if target in answer["items"] else None)
    for k in (5, 10, 20):
        hits = [rank for rank in ranks if rank is not None and rank < k]
        assert line[f"hr@{k}"] == pytest.approx(len(hits) / N_USERS)
        assert line[f"ndcg@{k}"] == pytest.approx(sum(1 / np.log2(rank + 2) for rank in hits) / N_USERS)


def test_several_models_give_a_mean_and_its_spread(ask):
    one, two, mean = ask("kvtools recgen --model m.safetensors --model b.safetensors --evaluate test --beam 64 clicks.csv")
    assert (one["model"], two["model"]) == ("m.safetensors", "b.safetensors")
    for name in ("hr@10", "ndcg@10", "ndcg@20"):
        assert mean[name] == pytest.approx((one[name] + two[name]) / 2)
        assert mean[f"{name}_sd"] == pytest.approx(abs(one[name] - two[name]) / np.sqrt(2))
    assert mean["users"] == N_USERS


def test_baselines_stand_in_the_same_table(shop, ask, capfd):
    counting = "kvtools recgen --items items.ids clicks.csv --baseline"
    for name in ("popular", "co-occurrence"):
        line = ask(f"{counting} {name} --evaluate test")[0]
        assert line["baseline"] == name
        assert set(line) >= FIGURES
    done = say(f"{ASK} --model b.safetensors --evaluate valid --beam 64", capfd)
    head, *rows = done.out.decode().splitlines()
    assert head.split() == ["users", "hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20", "legal", "s"]
    assert [row.split()[0] for row in rows] == ["m.safetensors", "b.safetensors", "mean"]
    clicks = clicks_of(shop / "clicks.csv")
    counts = np.zeros(40)
    for items in clicks.values():
        for item in items[:-2]:
            counts[int(item[1:])] += 1
    for line in ask(f"{counting} popular -k 6"):
        new = [n for n in np.argsort(-counts, kind="stable") if f"i{n}" not in clicks[line["user"]]]
        assert line["items"] == [f"i{n}" for n in new[:6]]


@pytest.mark.parametrize("name", ["popular", "co-occurrence"])
def test_a_baseline_too_gives_a_stranger_what_is_popular(shop, capfd, name):
    counting = f"kvtools recgen --items items.ids clicks.csv --baseline {name} --users nobody -k 4 --json"
    done = say(counting, capfd)
    assert (done.code, unsaid(done.err)) == (
        0,
        "kvtools recgen: clicks.csv: users without a known item get popular items: 1 (nobody).\n",
    )
    (line,) = map(json.loads, done.out.splitlines())
    counts = np.zeros(40)
    for items in clicks_of(shop / "clicks.csv").values():
        for item in items[:-2]:
            counts[int(item[1:])] += 1
    assert (line["fallback"], line["items"]) == ("popular", [f"i{n}" for n in np.argsort(-counts, kind="stable")[:4]])


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("--users missing.txt", 66, "--users missing.txt: there is no such file and no such user. Check the name."),
        ("--users ,", 2, "--users ',' holds no name. Give names with commas between, or a file with one a line."),
        ("--table nope.csv", 66, "nope.csv: no such file or directory. Look at its name and its permissions."),
    ],
)
def test_files_that_are_named_have_to_be_there(shop, capfd, options, code, words):
    done = say(f"{ASK} --json {options}", capfd)
    assert (done.code, done.out, unsaid(done.err)) == (code, b"", f"kvtools recgen: {words}\n")


@pytest.mark.parametrize("option", ["--table users.csv", "--sure", "--exact", "--no-trie"])
def test_a_baseline_refuses_what_only_a_model_has(shop, capfd, option):
    done = say(f"kvtools recgen --items items.ids clicks.csv --baseline popular {option} --json", capfd)
    assert (done.code, done.out) == (2, b"")
    assert (
        done.err
        == f"kvtools recgen: {option.split()[0]} cannot be combined with --baseline popular. Leave it out, or give --model.\n"
    )


def test_a_blend_lies_between_the_generator_and_the_counts(shop, ask, capfd):
    line = f"{ASK} --evaluate test --beam 64"
    plain, none, whole = (ask(f"{line} {option}")[0] for option in ("", "--blend 0", "--blend 1"))
    counts = ask("kvtools recgen --items items.ids clicks.csv --baseline co-occurrence --evaluate test")[0]
    assert {k: x for k, x in plain.items() if k != "seconds"} == {k: x for k, x in none.items() if k != "seconds"}
    assert whole["ndcg@5"] == pytest.approx(counts["ndcg@5"])
    done = say(f"{line} --blend auto --json", capfd)
    auto = json.loads(done.out)
    assert (
        unsaid(done.err) == f"kvtools recgen: --blend auto: {auto['blend']:g} by NDCG@10 of 30 users of the validation part.\n"
    )
    valid = [ask(f"{ASK} --evaluate valid --beam 64 --blend {x}")[0]["ndcg@10"] for x in (0, 1, auto["blend"])]
    assert valid[2] == max(valid)
    tuned = say(f"{ASK} --beam 64 -k 5 --blend auto --json", capfd)
    assert tuned.err == done.err
    assert tuned.out == say(f"{ASK} --beam 64 -k 5 --blend {auto['blend']} --json", capfd).out


def test_a_blend_of_counts_alone_keeps_what_was_seen_if_asked_to(ask):
    line = "kvtools recgen --model m.safetensors clicks.csv --evaluate test --beam 64 --keep-seen --blend 1"
    counts = ask("kvtools recgen --items items.ids clicks.csv --baseline co-occurrence --evaluate test --keep-seen")[0]
    assert ask(line)[0]["ndcg@5"] == pytest.approx(counts["ndcg@5"])


def test_a_table_from_stdin_is_read_once(sh, shop):
    line = "kvtools recgen --model near.safetensors clicks.csv --evaluate test --beam 32 --blend auto --json --table"
    piped, named = sh(f"cat users.csv | {line} -"), sh(f"{line} users.csv")
    assert (piped.code, named.code) == (0, 0), piped.err
    figures = [{k: x for k, x in json.loads(done.out).items() if k != "seconds"} for done in (piped, named)]
    assert figures[0] == figures[1]


def test_several_held_out_items_of_a_user_are_one_truth(shop, ask):
    head, *rows = (shop / "clicks.csv").read_text().splitlines()
    left = {user: len(items) for user, items in clicks_of(shop / "clicks.csv").items()}
    marked = []
    for row in rows:
        left[row.split(",")[0]] -= 1
        marked.append(f"{row},{'test' if left[row.split(',')[0]] < 2 else 'train'}")
    (shop / "parts.csv").write_text("\n".join([f"{head},part", *marked]) + "\n")
    line = ask("kvtools recgen --model m.safetensors parts.csv --column part=part --evaluate test --beam 64")[0]
    assert (line["users"], line["held_out"]) == (N_USERS, 2 * N_USERS)
    (shop / "before.csv").write_text("\n".join([head, *(row[:-6] for row in marked if row.endswith(",train"))]) + "\n")
    clicks = clicks_of(shop / "clicks.csv")
    hits = [
        [item in clicks[answer["user"]][-2:] for item in answer["items"]]
        for answer in ask("kvtools recgen --model m.safetensors before.csv -k 8 --beam 64")
    ]
    assert line["pass@8"] == pytest.approx(np.mean([any(each) for each in hits]))
    assert line["recall@8"] == pytest.approx(np.mean([sum(each) / 2 for each in hits]))


def test_a_model_that_knows_users_says_when_it_is_given_nothing_of_them(shop, ask, capfd):
    line = "kvtools recgen --model near.safetensors clicks.csv --beam 32 -k 5"
    done = say(f"{line} --json", capfd)
    assert done.code == 0
    assert unsaid(done.err) == (
        "kvtools recgen: near.safetensors: this model was trained with a user table, and none is given. "
        "Give --table for better results.\n"
    )
    others = ask(f"{line} --table users.csv")
    assert [row["scores"] for row in others] != [json.loads(row)["scores"] for row in done.out.splitlines()]


# ── what is wrong with the data ──────────────────────────────────────────────────────────────────────────────────────────
def test_items_outside_the_catalogue_are_counted_and_lose_nothing_else(shop, capfd):
    say(f"{ASK} --beam 32 -o clean.kvs")
    add_clicks(shop / "clicks.csv", ["u1,x1,1,3\n", "u2,x1,3,3\n", "new,x2,3,3\n"])
    done = say(f"{ASK} --beam 32 -o r.kvs", capfd)
    assert done.code == 65
    assert unsaid(done.err).splitlines() == [
        (
            "kvtools recgen: clicks.csv: there are items that m.safetensors does not have, left out with their 3 interactions, "
            "2 in all (x1, x2)."
        ),
        "kvtools recgen: clicks.csv: users without a known item get popular items: 1 (new).",
    ]
    found = {record.key: record for record in open_artifact("r.kvs")}
    for record in open_artifact("clean.kvs"):
        assert found[record.key].fields["items"] == record.fields["items"]
    assert found["new"].fields["fallback"] == "popular"
    assert len(found) == N_USERS + 1
    strict = say(f"{ASK} --strict --json", capfd)
    assert (strict.code, strict.out, strict.err.count("\n")) == (65, b"", 1)


def test_ids_that_the_model_was_not_trained_with_are_refused(shop, ask, capfd):
    assert ask(f"{ASK} --items items.ids -k 3 --beam 32") == ask(f"{ASK} -k 3 --beam 32")
    done = say(f"{ASK} --items other.ids --json", capfd)
    assert (done.code, done.out) == (65, b"")
    assert done.err == (
        "kvtools recgen: m.safetensors: this model was trained with other IDs than those of other.ids. Give its own IDs, or "
        "these with later items appended by kvtools semid-build --codebook --append.\n"
    )
    number_ids(shop / "elsewhere.ids", [f"x{n}" for n in range(40)], 1)
    assert say(f"{ASK} --items elsewhere.ids --json", capfd).code == 65


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.3, 0.8, 0.9999])
def test_a_model_that_was_cut_is_refused(shop, capfd, fraction):
    whole = (shop / "m.safetensors").read_bytes()
    (shop / "m.safetensors").write_bytes(whole[: int(fraction * len(whole))])
    done = say(f"{ASK} -o r.kvs", capfd)
    assert (done.code, done.out, done.err.count("\n")) == (65, b"", 1), done.err
    assert "m.safetensors: " in done.err
    assert not (shop / "r.kvs").exists()


def test_a_flipped_bit_in_a_models_weights_is_refused(shop, capfd):
    whole = (shop / "m.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for position in np.random.default_rng(0).integers(header, len(whole), 5).tolist():
        bent = bytearray(whole)
        bent[position] ^= 4
        (shop / "bent.safetensors").write_bytes(bent)
        done = say("kvtools recgen --model bent.safetensors clicks.csv -o r.kvs", capfd)
        assert (done.code, done.err.count("\n")) == (65, 1), (position, done.err)


def test_a_model_of_another_version_is_refused(shop, capfd):
    whole = open_artifact("m.safetensors")
    changes = [
        ({"architecture": {**whole.fields["architecture"], "colour": 3}}, {}, "colour"),
        # sizes that no memory holds are held against the tensors before any of it is taken
        (
            {"architecture": {**whole.fields["architecture"], "width": 1 << 20}},
            {},
            "weight begin is [16], and [1048576] is needed. Train the model again.",
        ),
        (
            {"architecture": {**whole.fields["architecture"], "experts": 1 << 62}},
            {},
            "this version of kvtools cannot read the model (",
        ),
        (
            {"architecture": {**whole.fields["architecture"], "encoder_layers": 10**12}},
            {},
            "the architecture has 1000000000001 layers, and there are",
        ),
        ({"codings": {}}, {}, "words"),
        ({}, {"counts.latest": None}, "counts.latest"),
        (
            {},
            {"head_norms.0.weight": np.ones(3, np.float32)},
            "weight head_norms.0.weight is [3], and [16] is needed. Train the model again.",
        ),
        ({}, {"counts.near.indices": whole.tensors["counts.near.indices"] + 40}, "indices"),
        ({}, {"catalogue.codes": whole.tensors["catalogue.codes"][::-1]}, "the catalogue has digest "),
    ]
    for fields, tensors, words in changes:
        words_of = {k: x for k, x in {**whole.fields, **fields}.items() if k not in ("kind", "config", "history", "crc32")}
        kept = {name: np.array(x) for name, x in {**whole.tensors, **tensors}.items() if x is not None}
        write_bag(Sink("odd.safetensors", force=True), "model", kept, config={}, history=[], **words_of)
        done = say("kvtools recgen --model odd.safetensors clicks.csv -o r.kvs", capfd)
        assert (done.code, done.out, done.err.count("\n")) == (65, b"", 1), done.err
        assert words in done.err


MADE_BY = "Make one with kvtools pretrain onerec."
BY_SEMID = "Make one with kvtools semid-build."
REFUSED = [
    ("kvtools recgen clicks.csv", 2, "--model is missing. Give a model from kvtools pretrain onerec, or --baseline."),
    (
        f"{ASK} --baseline popular --items items.ids --json",
        2,
        "--model cannot be combined with --baseline popular. Drop one of them.",
    ),
    ("kvtools recgen --baseline popular clicks.csv --json", 2, "--baseline popular needs a catalogue. Give --items IDS."),
    (f"{ASK} --model b.safetensors --json", 2, "several --model are allowed only with --evaluate. Give one of them."),
    (f"{ASK} -k 20 --beam 4 --json", 2, "-k 20 is larger than --beam 4. Raise --beam or lower -k."),
    (f"{ASK} --exact --no-trie --json", 2, "--exact cannot be combined with --no-trie. Drop one of them."),
    (f"{ASK} --sure --exact --json", 2, "--sure cannot be combined with --exact. Drop one of them."),
    (f"{ASK} --sure --no-trie --json", 2, "--sure cannot be combined with --no-trie. Drop one of them."),
    (f"{ASK} --sure --blend auto --json", 2, "--sure cannot be combined with --blend. Drop one of them."),
    (
        "kvtools recgen --model m.safetensors short.txt --blend auto --json",
        65,
        "short.txt: --blend auto needs valid interactions of known items, and there is none. Give a weight.",
    ),
    (f"{ASK} --blend much --json", 2, "--blend much is no weight. Give a number from 0 to 1, or auto."),
    (f"{ASK} --blend 2 --json", 2, "--blend 2 is no weight. Give a number from 0 to 1, or auto."),
    (f"{ASK} --blend nan --json", 2, "--blend nan is no weight. Give a number from 0 to 1, or auto."),
    (
        "kvtools recgen --baseline popular --items items.ids --blend 0.5 clicks.csv --json",
        2,
        "--blend cannot be combined with --baseline popular. Leave it out, or give --model.",
    ),
    (f"{ASK} --titles titles.csv", 2, "--titles is allowed only with --json, --csv or --parquet. Give one of them."),
    (f"{ASK} --json -o r.kvs", 2, "--json prints on stdout and cannot be combined with -o r.kvs. Drop one of them."),
    (f"{ASK} --evaluate test -o r.kvs", 2, "-o r.kvs cannot be combined with --evaluate. Drop one of them."),
    (f"{ASK} --evaluate test --users u1", 2, "--users u1 cannot be combined with --evaluate. Drop one of them."),
    (f"{ASK} --evaluate test --shard 0/2", 2, "--shard 0/2 cannot be combined with --evaluate. Drop one of them."),
    (
        "kvtools recgen --model - -",
        2,
        "several inputs are -, and stdin can be read only once. Give files for the others.",
    ),
    (
        "kvtools recgen --model items.ids clicks.csv -o r.kvs",
        65,
        f"items.ids: this is a bag of kind semantic-id, and kind model is needed. {MADE_BY}",
    ),
    (
        "kvtools recgen --model foreign clicks.csv -o r.kvs",
        65,
        f"foreign: this is a bag that kvtools did not write, and kind model is needed. {MADE_BY}",
    ),
    (
        "kvtools recgen --model clicks.kvs clicks.csv -o r.kvs",
        65,
        f"clicks.kvs: this is a stream of kind interaction, and kind model is needed. {MADE_BY}",
    ),
    (
        f"{ASK} --items m.safetensors -o r.kvs",
        65,
        f"m.safetensors: this is a bag of kind model, and kind semantic-id is needed. {BY_SEMID}",
    ),
    (
        "kvtools recgen --baseline popular --items foreign clicks.csv --json",
        65,
        f"foreign: this is a bag that kvtools did not write, and kind semantic-id is needed. {BY_SEMID}",
    ),
    (
        "kvtools recgen --model m.safetensors short.txt --evaluate test",
        65,
        "short.txt: there is no test interaction of a known item. Name the column by --column part=COL.",
    ),
    # what other parts of kvtools refuse: fragments
    (f"{ASK} --users items.ids --json", 65, "items.ids: "),
    (f"{ASK} -k 0 --json", 2, "'-k'"),
    (f"{ASK} --beam 0 --json", 2, "'--beam'"),
    (f"{ASK} --evaluate train", 2, "'--evaluate'"),
    (f"{ASK} --within best --json", 2, "'--within'"),
    (f"{ASK} --shard 2/2 --json", 2, "--shard 2/2"),
    (f"{ASK} --column colour=red --json", 2, "--column colour=red"),
    ("kvtools recgen --model nothing clicks.csv -o r.kvs", 66, "nothing: no such file"),
    ("kvtools recgen --model m.safetensors nothing.csv -o r.kvs", 66, "nothing.csv: no such file"),
    (f"{ASK} --items nothing -o r.kvs", 66, "nothing: no such file"),
    (f"{ASK} --titles nothing --json", 66, "nothing: no such file"),
    ("kvtools recgen --model near.safetensors clicks.csv --table nothing --json", 66, "nothing: no such file"),
    ("kvtools recgen --model clicks.csv clicks.csv -o r.kvs", 65, "clicks.csv: "),
    (f"{ASK} --titles users.csv --json", 65, "users.csv: "),
    ("kvtools recgen --model near.safetensors clicks.csv --table titles.csv --json", 65, "titles.csv: "),
    (f"{ASK} -o clicks.csv", 73, "clicks.csv: "),
    (f"{ASK} -o no/such/r.kvs", 73, "no/such/r.kvs: "),
    (f"{ASK} -o /dev/full", 74, "no space left"),
]


@pytest.mark.parametrize(("line", "code", "words"), REFUSED)
def test_bad_input_and_bad_options_are_one_line_with_their_code(shop, capfd, line, code, words):
    save_file({"x": np.zeros(3, np.float32)}, shop / "foreign")
    (shop / "short.txt").write_text("a i1 i2\nb i3 i4\n")
    say("kvtools convert clicks.csv -o clicks.kvs")
    before = sorted(os.listdir(shop))
    done = say(line, capfd)
    assert (done.code, done.out, unsaid(done.err).count("\n")) == (code, b"", 1), done.err
    if words.endswith("."):
        assert done.err == f"kvtools recgen: {words}\n"
    assert words in done.err
    assert sorted(os.listdir(shop)) == before


def test_clicks_that_know_no_item_of_the_model_are_refused(shop, capfd):
    (shop / "elsewhere.txt").write_text("a x1 x2 x3\nb x1 x2 x3\n")
    for line in ("--model m.safetensors", "--baseline popular --items items.ids"):
        done = say(f"kvtools recgen {line} elsewhere.txt -o r.kvs", capfd)
        assert done.code == 65
        src = line.split()[-1]
        assert done.err.splitlines()[-1] == (
            f"kvtools recgen: elsewhere.txt: none of the items is in {src}. Give the interactions that belong to it."
        )
        assert not (shop / "r.kvs").exists()


def test_a_full_disk_and_a_reader_that_left_are_reported_by_the_code(sh, shop):
    done = sh(
        f"{ASK} --beam 16 | :; echo ${{PIPESTATUS[0]}}; {ASK} --beam 16 --json | :; echo ${{PIPESTATUS[0]}};"
        f"{ASK} --beam 16 > /dev/full; echo $?; {ASK} --beam 16 --json > /dev/full; echo $?",
        pipefail=False,
    )
    assert done.out.split() == [b"141", b"141", b"74", b"74"], done.err
    assert unsaid(done.err).splitlines() == ["kvtools recgen: stdout: no space left on device."] * 2


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_stopped_run_goes_on_after_its_last_user(shop, capfd, monkeypatch, is_killed):
    for module in ("query", "recgen"):
        monkeypatch.setattr(f"kvtools.onerec.recommend.{module}.CHUNK", 8)
    assert say(f"{ASK} -o whole.kvs").code == 0
    with monkeypatch.context() as patch:
        if is_killed:
            write, left = Writer.write, iter(range(11))

            def killed(writer, *record, **fields):
                write(writer, *record, **fields)
                if next(left, None) is None:
                    raise KeyboardInterrupt

            patch.setattr(Writer, "write", killed)
        else:
            answers = iter([False, True])
            patch.setattr("kvtools.world.Stop.__bool__", lambda _: next(answers))
        done = say(f"{ASK} -o parts.kvs", capfd)
        assert done.code == (130 if is_killed else 75)
        assert is_killed or "stopped after 16 of 30 users. Run again to continue." in done.err
    assert not (shop / "parts.kvs").exists()
    asked = []

    def counted(query, *rest):
        asked.append(len(query))
        return over_ranks(query, *rest)

    monkeypatch.setattr("kvtools.onerec.recommend.evaluate.over_ranks", counted)
    assert say(f"{ASK} -o parts.kvs").code == 0
    assert asked == [30 - (8 if is_killed else 16)]
    whole, parts = (say(f"kvtools sum {name}.kvs", capfd).out.split()[0] for name in ("whole", "parts"))
    assert parts == whole
