"""Clicks become a generator: what a user types, what the model says of itself, stops and goes on, and what is refused."""

import errno
import json
import os
import re
import signal
import subprocess
import time
import tomllib

import numpy as np
import pytest
import torch
from conftest import BIN, unsaid
from safetensors.numpy import load_file, save_file
from shop import SMALL, TRAIN, add_clicks, furnish, say


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The tiny shop's files, here."""
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def info(capfd, name):
    return json.loads(say(f"kvtools info --json {name}", capfd).out)


def curve(path):
    """Lines of steps and lines of epochs."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "loss" in line], [line for line in lines if "score" in line]


# ── the pipeline ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_items_and_clicks_become_a_model_that_tells_its_story(sh, shop):
    words = {f"i{n}": [f"topic{n % 5}", f"word{n % 7}", f"word{n % 3}"] for n in range(40)}
    (shop / "films.json").write_text(json.dumps(words))
    built = sh("kvtools embed films.json --dim 8 | kvtools semid-build - --codes 4 -o films.ids")
    shared = "11 of 40 items have the codes of another: their vectors tell them apart badly."
    advice = "Where there are interactions, give --pairs, from kvtools pairs."
    assert (built.code, built.err) == (0, f"kvtools semid-build: {shared} {advice}\n")
    done = sh(f"kvtools pretrain onerec clicks.csv --items films.ids {SMALL} --steps 3 | tee m.safetensors | kvtools check -")
    assert (done.code, done.out, unsaid(done.err)) == (0, b"", "")
    info_json = json.loads(sh("kvtools info --json m.safetensors").out)
    assert (info_json["kind"], info_json["step"]) == ("model", 3)
    assert [step["command"] for step in info_json["history"]] == ["embed", "semid-build", "pretrain onerec"]
    assert info_json["pathways"] == {
        "static": "off: no user table",
        "short": "on",
        "positive": "on",
        "lifelong": "off: no history is longer than 40",
        "near": "off: not asked for",
    }
    tensors = load_file(shop / "m.safetensors")
    weights = {name for name in tensors if not name.startswith(("catalogue.", "counts."))}
    buffers = {name for name in weights if name.endswith((".bias", ".load", ".recent")) and ".feed." in name}
    buffers |= {"item_scores.scored", "item_scores.gain"}
    assert info_json["parameters"] == sum(tensors[name].size for name in weights - buffers)
    table = sh("kvtools info m.safetensors").out.decode()
    assert "off: no user table" in table
    assert f"{info_json['parameters']:,}" in table


def test_a_stream_of_clicks_gives_the_same_model(sh, shop, capfd):
    sh(f"{TRAIN} --steps 3 -o m.safetensors")
    piped = TRAIN.replace("clicks.csv", "-")
    done = sh(f"kvtools convert clicks.csv | {piped} --steps 3 | kvtools sum -")
    assert done.code == 0, done.err
    assert done.out.split()[0] == say("kvtools sum m.safetensors", capfd).out.split()[0]


def test_a_recipe_goes_round_and_flags_override_it(shop, capfd):
    flags = f"{SMALL} --steps 3 --near 2 --without positive --training dropout=0.25 --training patience=0 --lr 1e-3 --seed 4"
    printed = say(f"kvtools pretrain onerec --print-config {flags}", capfd)
    assert (printed.code, printed.err) == (0, "")
    (shop / "r.toml").write_bytes(printed.out)
    assert say("kvtools pretrain onerec --config r.toml --print-config", capfd).out == printed.out
    assert say(f"kvtools pretrain onerec clicks.csv --items items.ids {flags} -o a.safetensors").code == 0
    assert say("kvtools pretrain onerec clicks.csv --items items.ids --config r.toml -o b.safetensors").code == 0
    assert say("kvtools info --config a.safetensors", capfd).out == printed.out
    digests = say("kvtools sum a.safetensors b.safetensors", capfd).out.split()
    assert digests[0] == digests[2]
    other = tomllib.loads(say("kvtools pretrain onerec --config r.toml --print-config --steps 5", capfd).out.decode())
    assert other == tomllib.loads(printed.out.decode()) | {"steps": "5"}


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(sh, shop, capfd):
    line = f"{TRAIN} --steps 5 --near 2"
    done = sh(f"{line} -o a.safetensors && {line} > b.safetensors && cmp a.safetensors b.safetensors")
    assert (done.code, unsaid(done.err)) == (0, "")
    say(f"{line} --seed 1 -o c.safetensors")
    digests = say("kvtools sum a.safetensors c.safetensors", capfd).out.split()
    assert digests[0] != digests[2]


def test_checkpointed_layers_give_the_same_losses_and_weights(shop):
    more = "--users users.csv --architecture experts=4 --architecture moe=both --architecture short=3 --training dropout=0.3"
    for name in ("yes", "no"):
        line = f"{TRAIN} {more} --steps 6 --training accumulate=2 --training checkpoint={name}"
        assert say(f"{line} --log {name}.jsonl -o {name}.model").code == 0
    (steps, validations), (other_steps, other_validations) = curve(shop / "yes.jsonl"), curve(shop / "no.jsonl")
    assert validations == other_validations
    for name in ("loss", "grad_norm", "load_max_over_mean"):
        assert [line[name] for line in steps] == [line[name] for line in other_steps]
    one, other = load_file(shop / "yes.model"), load_file(shop / "no.model")
    assert all(np.array_equal(one[name], other[name]) for name in one)


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_stopped_by_a_signal_and_run_again_it_ends_with_the_same_bytes(sh, shop):
    line = f"{TRAIN} --steps 150 --training patience=0 --training dropout=0.2 --log curve.jsonl -o"
    words = [str(BIN / "kvtools"), *line.split()[1:], "m.safetensors"]
    running = subprocess.Popen(words, cwd=shop, stderr=subprocess.PIPE, text=True)
    log = shop / "curve.jsonl"
    while running.poll() is None and not (log.exists() and log.read_text().count("\n") >= 12):
        time.sleep(0.002)
    running.send_signal(signal.SIGUSR2)
    said = unsaid(running.stderr.read())
    assert running.wait(60) == 75, said
    assert said.count("\n") == 1
    assert "Run again to continue" in said
    assert not (shop / "m.safetensors").exists()
    at = curve(log)[0][-1]["step"]
    assert 10 <= at < 150
    other = sh(f"{line} m.safetensors --seed 5")
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert "the stopped run had seed" in other.err
    again = sh(f"{line} m.safetensors")
    assert again.code == 0
    assert again.err.splitlines()[0] == f"kvtools pretrain onerec: .m.safetensors.state: resumes after step {at}."
    assert [step["step"] for step in curve(log)[0]] == list(range(1, 151)), "no step is done twice, and none is left out"
    assert sh(f"{line.replace('curve', 'whole')} whole.safetensors").code == 0
    assert sh("cmp m.safetensors whole.safetensors").code == 0
    untimed = [
        [{k: x for k, x in step.items() if k not in ("seconds", "tokens_per_s", "mfu")} for step in curve(path)[0]]
        for path in (log, shop / "whole.jsonl")
    ]
    assert untimed[0] == untimed[1]
    assert not [name for name in os.listdir(shop) if "state" in name]


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_while_input_is_read_stops_the_run_at_its_first_step(sh, shop, number):
    line = f"{TRAIN} --steps 9 -o"
    words = [str(BIN / "kvtools"), *line.replace("clicks.csv", "-").split()[1:], "m.safetensors"]
    running = subprocess.Popen(words, cwd=shop, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    head, *rows = (shop / "clicks.csv").read_text().splitlines(keepends=True)
    try:
        # blank lines count for nothing; once more of them are written than a pipe holds, some have been read
        running.stdin.write((head + "\n" * (1 << 20)).encode())
        running.stdin.flush()
        running.send_signal(number)
        _, said = running.communicate("".join(rows).encode(), timeout=60)
    finally:
        running.kill()
    assert running.returncode == 75, said
    assert unsaid(said.decode()) == "kvtools pretrain onerec: stopped after step 1. Run again to continue.\n"
    assert not (shop / "m.safetensors").exists()
    assert os.listdir(shop / ".m.safetensors.state") == ["train.state"]
    assert sh(f"{line} m.safetensors").code == 0
    assert sh(f"{line} whole.safetensors").code == 0
    assert sh("cmp m.safetensors whole.safetensors").code == 0


def test_killed_and_run_again_it_goes_on_from_the_last_state_and_ends_with_the_same_bytes(sh, shop):
    line = f"{TRAIN} --steps 100 --training patience=0 --training save=5 -o"
    words = [str(BIN / "kvtools"), *line.split()[1:], "m.safetensors", "--log", "curve.jsonl"]
    running = subprocess.Popen(words, cwd=shop)
    log = shop / "curve.jsonl"
    while running.poll() is None and not (log.exists() and log.read_text().count("\n") >= 12):
        time.sleep(0.002)
    running.kill()
    assert running.wait(60) == -signal.SIGKILL
    assert not (shop / "m.safetensors").exists()
    again = sh(f"{line} m.safetensors")
    assert again.code == 0
    resumed = re.match(r"kvtools pretrain onerec: \.m\.safetensors\.state: resumes after step (\d+)\.\n", again.err)
    assert resumed, again.err
    assert curve(log)[0][-1]["step"] - int(resumed[1]) <= 5
    assert sh(f"{line} whole.safetensors").code == 0
    assert sh("cmp m.safetensors whole.safetensors").code == 0


def test_a_peak_may_be_given_and_mfu_is_of_it(sh, shop):
    line = f"{TRAIN} --steps 1 -v --log curve.jsonl"
    given = sh(f"{line} --peak 5e8 -o given.safetensors")
    assert "products / (seconds * 5e+08 FLOP/s given)." in given.err
    assert "FLOP/s measured here in float32)." in sh(f"{line} -o measured.safetensors").err
    (step, _), _ = curve(shop / "curve.jsonl")
    n_flops = step["mfu"] * step["seconds"] * 5e8
    assert 1e5 < n_flops < 1e9
    assert sh("cmp given.safetensors measured.safetensors").code == 0


def test_two_runs_do_not_share_a_state(sh, shop):
    line = f"{TRAIN} --training patience=0 -o m.safetensors"
    words = [str(BIN / "kvtools"), *line.split()[1:], "--log", "curve.jsonl", "--steps", "100000"]
    running = subprocess.Popen(words, cwd=shop, stderr=subprocess.DEVNULL)
    try:
        while running.poll() is None and not (shop / "curve.jsonl").exists():
            time.sleep(0.002)
        second = sh(f"{line} --steps 2 --force")
    finally:
        running.kill()
        running.wait(60)
    assert second.code == 73
    assert second.err == (
        "kvtools pretrain onerec: .m.safetensors.state: another run is at work there. Wait for it, or name another output.\n"
    )


def test_a_job_whose_end_is_near_stops_at_the_first_step(shop, capfd, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time())))
    done = say(f"{TRAIN} --steps 9 --state kept -o m.safetensors", capfd)
    assert done.code == 75
    assert unsaid(done.err) == "kvtools pretrain onerec: stopped after step 1. Run again to continue.\n"
    assert os.listdir(shop / "kept") == ["train.state"]
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    add_clicks(shop / "clicks.csv", ["u1,i3,1,2\n"])
    other = say(f"{TRAIN} --steps 9 --state kept -o m.safetensors", capfd)
    assert other.code == 2
    assert "the stopped run had input" in other.err
    assert say(f"{TRAIN} --steps 9 --state kept --force -o m.safetensors", capfd).code == 0
    assert not (shop / "kept").exists()


def test_a_resumed_run_has_as_many_threads_as_the_stopped_one(shop, monkeypatch):
    n_threads = torch.get_num_threads()
    try:
        monkeypatch.setattr("kvtools.train.device.own_cores", lambda _: 3)
        monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time())))
        assert say(f"{TRAIN} --steps 4 -o m.safetensors").code == 75
        monkeypatch.setattr("kvtools.train.device.own_cores", lambda _: 1)
        monkeypatch.delenv("SLURM_JOB_END_TIME")
        assert say(f"{TRAIN} --steps 4 -o m.safetensors").code == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(n_threads)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_stopped_after_its_last_step_has_only_to_write(shop, monkeypatch, steps):
    line = f"{TRAIN} --steps {steps} --training valid_users={steps - 1}"
    assert say(f"{line} -o whole.safetensors").code == 0
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time())))
    for _ in range(steps):
        assert say(f"{line} -o m.safetensors").code == 75
    assert say(f"{line} -o m.safetensors").code == 0
    assert (shop / "m.safetensors").read_bytes() == (shop / "whole.safetensors").read_bytes()


def test_weights_that_cannot_be_written_are_not_lost(shop, capfd, monkeypatch):
    line = f"{TRAIN} --steps 3 --log curve.jsonl -o"
    monkeypatch.setattr("kvtools.onerec.run.checkpoint.write_bag", no_room)
    done = say(f"{line} m.safetensors", capfd)
    assert (done.code, unsaid(done.err)) == (74, "kvtools pretrain onerec: m.safetensors: no space left on device.\n")
    monkeypatch.undo()
    monkeypatch.chdir(shop)
    assert say(f"{line} m.safetensors", capfd).code == 0
    assert len(curve(shop / "curve.jsonl")[0]) == 3, "no step was done again"
    assert say(f"{line} whole.safetensors").code == 0
    assert (shop / "m.safetensors").read_bytes() == (shop / "whole.safetensors").read_bytes()


def no_room(sink, *_, **__):
    sink.abandon()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), sink.dst)


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_log_has_the_keys_that_scripts_rely_on(shop, capfd):
    assert say(f"{TRAIN} --steps 12 --log curve.jsonl -o a.safetensors").code == 0
    steps, epochs = curve(shop / "curve.jsonl")
    assert [step["step"] for step in steps] == list(range(1, 13))
    for step in steps:
        assert {"step", "loss", "tokens", "tokens_per_s", "mfu", "seconds"} <= set(step)
        assert 0 < step["mfu"] < 1
        assert step["loss"] == pytest.approx(np.mean([step[f"loss_{level}"] for level in (1, 2, 3)]))
    assert np.all(np.diff([step["tokens"] for step in steps]) > 0)
    assert epochs[-1]["step"] == 12
    assert {"epoch", "score", "id_hr@10", "id_ndcg@10"} <= set(epochs[0])
    info_json = info(capfd, "a.safetensors")
    assert info_json["validation"] == max(line["score"] for line in epochs)
    assert say(f"{TRAIN} --steps 2 --log curve.jsonl -o b.safetensors").code == 0
    assert len(curve(shop / "curve.jsonl")[0]) == 14, "a log is appended to"


def test_the_loss_falls(shop):
    assert say(f"{TRAIN} --steps 60 --lr 1e-2 --training patience=0 --log curve.jsonl -o m.safetensors").code == 0
    losses = [step["loss"] for step in curve(shop / "curve.jsonl")[0]]
    assert np.mean(losses[-6:]) < 0.9 * np.mean(losses[:6])


@pytest.mark.parametrize(("steps", "n_epochs"), [("7", None), ("2ep", 2), ("0.5ep", 0.5), ("300tok", None)])
def test_steps_may_be_given_in_epochs_and_in_tokens(shop, steps, n_epochs):
    assert say(f"{TRAIN} --steps {steps} --training patience=0 --log curve.jsonl -o m.safetensors").code == 0
    lines, _ = curve(shop / "curve.jsonl")
    if steps == "7":
        assert len(lines) == 7
    elif n_epochs is None:  # the nearest to 300 tokens that whole steps of about 100 can be
        assert abs(lines[-1]["tokens"] - 300) < 110
    else:
        say(f"{TRAIN} --steps 1ep --log epoch.jsonl -o one.safetensors")
        assert len(lines) == round(n_epochs * len(curve(shop / "epoch.jsonl")[0]))


# ── pathways ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
VARIANTS = {
    "": {"static": "off: no user table", "positive": "on", "near": "off: not asked for"},
    "--users users.csv": {"static": "on"},
    "--users users.csv --without static": {"static": "off: switched off"},
    "--without positive --without lifelong": {"positive": "off: switched off", "lifelong": "off: switched off"},
    "--near 3": {"near": "on"},
    "--near 3 --architecture near_tokens=true": {"near": "on"},
    "--architecture short=2": {"lifelong": "on"},
    "--decoder lazy": {},
    "--decoder lazy --near 2": {"near": "on"},
    "--architecture attention=full": {},
    "--architecture experts=0": {},
    "--architecture moe=both": {},
    "--training accumulate=3 --training smoothing=0.1 --training rate=constant": {},
    "--dtype bfloat16": {},
    "--column rating=timestamp": {"positive": "on"},
}


@pytest.mark.parametrize("options", VARIANTS)
def test_every_variant_trains_says_what_is_on_and_recommends(shop, capfd, options):
    done = say(f"{TRAIN} --steps 3 {options} -o m.safetensors", capfd)
    assert (done.code, unsaid(done.err)) == (0, "")
    info_json = info(capfd, "m.safetensors")
    assert VARIANTS[options].items() <= info_json["pathways"].items()
    weights = load_file(shop / "m.safetensors")
    assert any(name.startswith("static.") for name in weights) is (info_json["pathways"]["static"] == "on")
    assert any(name.startswith("pathways.positive") for name in weights) is (info_json["pathways"]["positive"] == "on")
    assert any(name.startswith("pathways.lifelong") for name in weights) is (info_json["pathways"]["lifelong"] == "on")
    assert any(name.startswith("encoder.") for name in weights) is ("lazy" not in options)
    assert all(np.isfinite(x).all() for name, x in weights.items() if not name.startswith("counts."))
    asked = say("kvtools recgen --model m.safetensors clicks.csv --users u1,u2 -k 4 --beam 16 --table users.csv --json", capfd)
    assert asked.code == 0, asked.err
    assert [len(json.loads(line)["items"]) for line in asked.out.splitlines()] == [4, 4]


def test_without_ratings_times_or_validation_there_is_a_model_too(shop, capfd):
    rows = (shop / "clicks.csv").read_text().splitlines()[1:]
    (shop / "bare.csv").write_text("user_id,item_id\n" + "".join(",".join(row.split(",")[:2]) + "\n" for row in rows))
    line = TRAIN.replace("clicks.csv", "bare.csv")
    done = say(f"{line} --steps 3 --training valid_users=0 --log curve.jsonl -o m.safetensors", capfd)
    assert (done.code, unsaid(done.err)) == (0, "")
    info_json = info(capfd, "m.safetensors")
    assert info_json["pathways"]["positive"] == "off: no ratings"
    assert "validation" not in info_json
    assert curve(shop / "curve.jsonl")[1] == []


# ── what is wrong with the data ──────────────────────────────────────────────────────────────────────────────────────────
def test_unknown_items_are_counted_and_named_and_lose_nothing_else(shop, capfd):
    say(f"{TRAIN} --steps 3 -o clean.safetensors")
    add_clicks(shop / "clicks.csv", ["u0,x1,-3,3\n", "u0,x2,-2,3\n", "u0,x1,-1,3\n"])
    done = say(f"{TRAIN} --steps 3 -o m.safetensors", capfd)
    assert done.code == 65
    assert unsaid(done.err) == (
        "kvtools pretrain onerec: clicks.csv: there are items that items.ids does not have, "
        "left out with their 3 interactions, 2 in all (x1, x2).\n"
    )
    digests = say("kvtools sum clean.safetensors m.safetensors", capfd).out.split()
    assert digests[0] == digests[2]
    strict = say(f"{TRAIN} --steps 3 --strict -o strict.safetensors", capfd)
    assert (strict.code, strict.err.count("\n")) == (65, 1)
    assert "Repair the input, or run without --strict." in strict.err
    assert not (shop / "strict.safetensors").exists()


def test_a_bad_row_is_reported_and_the_model_written(shop, capfd):
    add_clicks(shop / "clicks.csv", ["u1,i1,soon,3\n", ",i2,5,3\n"])
    done = say(f"{TRAIN} --steps 2 -o m.safetensors", capfd)
    assert done.code == 65
    assert [line.split(": ", 2)[2] for line in unsaid(done.err).splitlines()] == [
        "rows without user were left out, 1 in all (row 2).",
        "rows whose time cannot be read were left out, 1 in all (row 1).",
    ]
    assert (shop / "m.safetensors").exists()


def test_a_loss_that_is_not_finite_ends_the_run_and_names_users(shop, capfd):
    done = say(f"{TRAIN} --steps 9 --lr 1e30 --training warmup=0 -o m.safetensors", capfd)
    assert (done.code, unsaid(done.err).count("\n")) == (1, 1)
    assert re.search("the loss of users u.* is not finite", done.err)
    assert not (shop / "m.safetensors").exists()


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────────
USAGE = {
    "--architecture colour=3": "there is no setting colour. The settings are width, ",
    "--architecture width": "--architecture width has no value. Give one, as width=64.",
    "--architecture width=wide": "--architecture width=wide: 'wide' is not a value of width. Give one such as width=64.",
    "--architecture width=0": " is not possible. Give 1 or more.",
    "--architecture heads=0": " is not possible. Give 1 or more.",
    "--architecture heads=3": "--architecture width=16 is not divisible by heads=3. Change one.",
    "--architecture experts=1": "--architecture experts=1 is less than active=2. Lower active.",
    "--architecture experts=-1": " is not possible. Give 0 or more.",
    "--architecture expert_hidden=0": "--architecture experts=2 needs the width of an expert. Set expert_hidden.",
    "--architecture short=0": " is not possible. Give 1 or more.",
    "--architecture decoder_layers=0": " is not possible. Give 1 or more.",
    "--architecture positive=-2": " is not possible. Give 0 or more.",
    "--architecture attention=some": " is not possible. Give causal or full.",
    "--architecture moe=some": " is not possible. Give decoder or both.",
    "--architecture decoder=some": " is not possible. Give cross or lazy.",
    "--architecture dropout=1": " is not possible. Give a number from 0 to less than 1.",
    "--training speed=3": "there is no setting speed. The settings are dropout, ",
    "--training dropout=nan": " is not possible. Give a number from 0 to less than 1.",
    "--training smoothing=2": " is not possible. Give a number from 0 to less than 1.",
    "--training weight_decay=-1": " is not possible. Give 0 or more.",
    "--training weight_decay=inf": " is not possible. Give 0 or more.",
    "--training clip=0": " is not possible. Give a number above 0.",
    "--training accumulate=0": " is not possible. Give 1 or more.",
    "--training near_share=1": " is not possible. Give auto, or a number from 0 to less than 1.",
    "--training valid_users=-1": " is not possible. Give 0 or more.",
    "--training rate=linear": " is not possible. Give cosine or constant.",
    "--training warmup=soon": "--training warmup soon is not a duration. Give one as 500 (steps), 3ep, 2% or 1e9tok.",
    "--training save=often": "--training save often is not a duration. Give one as 500 (steps), 3ep, 2% or 1e9tok.",
    "--training patience=-1": "--training patience -1 is not a duration. Give one as 500 (steps), 3ep, 2% or 1e9tok.",
    "--training positive_from=good": " is not possible. Give a rating.",
    "--steps 0": "--steps 0 is not the length of a run. Give ",
    "--steps 2%": "--steps 2% is not the length of a run. Give ",
    "--steps many": "--steps many is not the length of a run. Give steps, epochs or tokens, as 500, 3ep or 1e9tok.",
    "--lr inf": "--lr inf is not finite. Give a finite number.",
    "--lr -1": "'--lr'",
    "--batch 0": "'--batch'",
    "--near 65": "'--near'",
    "--near -1": "'--near'",
    "--seed -1": "'--seed'",
    "--size huge": "'--size'",
    "--decoder eager": "'--decoder'",
    "--dtype int8": "'--dtype'",
    "--without short": "--without short: there is no such pathway. Give static, positive, lifelong or near.",
    "--without encoder": "--without encoder: there is no such pathway. Give static, positive, lifelong or near.",
    "--column colour=red": "--column colour=red is not ROLE=COL. Give one of the roles ",
    "--config odd.toml": "has no option colour",
    "--config clicks.csv": "this is not TOML",
    "--users - -": "several inputs are -, and stdin can be read only once. Give files for the others.",
    "extra.csv": "extra.csv",
    "--speed 3": "--speed",
}


@pytest.mark.parametrize("options", USAGE)
def test_an_option_that_cannot_be_meant_is_reported_on_one_line(shop, capfd, options):
    (shop / "odd.toml").write_text("colour = 3\n")
    before = sorted(os.listdir(shop))
    line = TRAIN.replace("clicks.csv", "") if options.endswith(" -") else TRAIN
    done = say(f"{line} --steps 2 {options} -o m.safetensors", capfd)
    assert (done.code, done.out, done.err.count("\n")) == (2, b"", 1), done.err
    if USAGE[options].startswith("--") and USAGE[options].endswith("."):
        assert done.err == f"kvtools pretrain onerec: {USAGE[options]}\n"
    assert USAGE[options] in done.err
    assert sorted(os.listdir(shop)) == before


REFUSED = [
    ("kvtools pretrain onerec clicks.csv -o m", 2, "--items is missing. Give semantic IDs, from kvtools semid-build."),
    ("kvtools pretrain onerec nothing.csv --items items.ids -o m", 66, "nothing.csv: no such file"),
    ("kvtools pretrain onerec clicks.csv --items nothing -o m", 66, "nothing: no such file"),
    ("kvtools pretrain onerec clicks.csv --items items.ids --users nothing -o m", 66, "nothing: no such file"),
    ("kvtools pretrain onerec clicks.csv --items items.ids --config nothing -o m", 66, "nothing: no such file"),
    ("kvtools pretrain onerec clicks.csv --items clicks.csv -o m", 65, "clicks.csv: this is neither a stream nor a bag"),
    (
        "kvtools pretrain onerec clicks.csv --items foreign -o m",
        65,
        "foreign: this is a bag that kvtools did not write, and kind semantic-id is needed. Make one with kvtools semid-build.",
    ),
    (
        "kvtools pretrain onerec clicks.csv --items clicks.kvs -o m",
        65,
        "clicks.kvs: this is a stream of kind interaction, and kind semantic-id is needed. Make one with kvtools semid-build.",
    ),
    ("kvtools pretrain onerec clicks.csv --items cut.ids -o m", 65, "cut.ids"),
    ("kvtools pretrain onerec cut.kvs --items items.ids -o m", 65, "cut.kvs"),
    (
        "kvtools pretrain onerec clicks.csv --items items.ids --users titles.csv -o m",
        65,
        "titles.csv: there is no user column among item_id, title. Rename it user_id.",
    ),
    ("kvtools pretrain onerec clicks.csv --items items.ids --column time=when -o m", 65, "there is no column 'when'"),
    ("kvtools pretrain onerec users.csv --items items.ids -o m", 65, "users.csv: there is no item column among "),
    ("kvtools pretrain onerec empty.csv --items items.ids -o m", 65, "empty.csv"),
    (
        "kvtools pretrain onerec thin.txt --items items.ids -o m",
        65,
        "thin.txt: no user has two interactions in the training part, the least to learn from; 2 of 4 are in it. Give a user 4",
    ),
    ("kvtools pretrain onerec clicks.csv --items items.ids -o clicks.csv", 73, "clicks.csv: exists already"),
    (
        "kvtools pretrain onerec clicks.csv --items items.ids -o no/such/m",
        73,
        "no/such/m: its folder does not exist. Make the folder, or name another output.",
    ),
    ("kvtools pretrain onerec clicks.csv --items items.ids -o folder", 73, "folder: this is a directory. Give a file name."),
    (f"{TRAIN} --steps 2 --log no/such/log -o m", 73, "no/such/log: no such file"),
    (f"{TRAIN} --steps 2 --log /dev/full -o m", 74, "no space left"),
    (f"{TRAIN} --steps 2 -o /dev/full", 74, "no space left"),
]


@pytest.mark.parametrize(("line", "code", "words"), REFUSED)
def test_bad_input_and_bad_output_are_one_line_with_their_code(shop, capfd, line, code, words):
    save_file({"x": np.zeros(3, np.float32)}, shop / "foreign")
    (shop / "folder").mkdir()
    (shop / "empty.csv").write_text("")
    (shop / "thin.txt").write_text("a i1 i2 i3\nb i1\n")
    say("kvtools convert clicks.csv -o clicks.kvs")
    for name in ("clicks.kvs", "items.ids"):
        (shop / f"cut{name[-4:]}").write_bytes((shop / name).read_bytes()[:-9])
    before = sorted(os.listdir(shop))
    done = say(line, capfd)
    assert (done.code, done.out, unsaid(done.err).count("\n")) == (code, b"", 1), done.err
    if words.endswith("."):
        assert done.err == f"kvtools pretrain onerec: {words}\n"
    assert words in done.err
    assert sorted(os.listdir(shop)) == before


def test_what_is_held_out_is_never_looked_at_wherever_it_stands(shop):
    """Held-out items in the middle of histories, then others in their place: the same model."""
    head, *rows = (shop / "clicks.csv").read_text().splitlines()
    for name, other in (("one", None), ("two", "i0")):
        lines = [f"{head},part"]
        for number, row in enumerate(rows):
            user, item, *rest = row.split(",")
            part = ("train", "train", "test", "train")[number % 4]
            lines.append(",".join([user, other if other and part == "test" else item, *rest, part]))
        (shop / f"{name}.csv").write_text("\n".join(lines) + "\n")
        line = TRAIN.replace("clicks.csv", f"{name}.csv")
        done = say(f"{line} --column part=part --near 3 --steps 4 --training patience=0 -o {name}.model")
        assert done.code == 0
    one, two = (load_file(f"{name}.model") for name in ("one", "two"))
    assert set(one) == set(two)
    assert all(np.array_equal(array, two[name]) for name, array in one.items())


def test_items_of_another_catalogue_are_distinguished_from_no_items(shop, capfd):
    (shop / "elsewhere.txt").write_text("".join(f"u{n} x1 x2 x3 x4 x5\n" for n in range(5)))
    done = say(TRAIN.replace("clicks.csv", "elsewhere.txt") + " --steps 2 -o m.safetensors", capfd)
    assert done.code == 65
    assert (
        "there are items that items.ids does not have, left out with their 25 interactions, 5 in all (x1, x2, x3, …)."
        in done.err
    )
    assert done.err.splitlines()[-1].endswith(
        "elsewhere.txt: none of the items is in items.ids. Give the interactions that belong to it."
    )
    assert done.err.count("\n") == 2
    assert not (shop / "m.safetensors").exists()


def test_a_full_disk_and_a_reader_that_left_are_reported_by_the_code(sh, shop):
    full = sh(f"{TRAIN} --steps 2 > /dev/full")
    assert (full.code, unsaid(full.err).count("\n")) == (74, 1)
    done = sh(f"{TRAIN} -q --steps 2 | :; echo ${{PIPESTATUS[0]}}", pipefail=False)
    assert (done.out, done.err) == (b"141\n", "")


def test_an_output_that_is_there_stays_until_the_new_one_is_whole(shop, capfd):
    say(f"{TRAIN} --steps 2 -o m.safetensors")
    before = (shop / "m.safetensors").read_bytes()
    refused = say(f"{TRAIN} --steps 3 -o m.safetensors", capfd)
    assert refused.code == 73
    failed = say(f"{TRAIN} --steps 3 --lr 1e30 --training warmup=0 --force -o m.safetensors", capfd)
    assert failed.code == 1
    assert (shop / "m.safetensors").read_bytes() == before
    assert say(f"{TRAIN} --steps 3 --force -o m.safetensors").code == 0
    assert info(capfd, "m.safetensors")["step"] == 3
