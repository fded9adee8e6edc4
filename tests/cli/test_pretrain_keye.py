"""Clips and what is said of them become a model: stage after stage, stopped and gone on, and what is refused."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import time
import tomllib

import cinema
import numpy as np
import pytest
import torch
from cinema import SMALL, TRAIN, conversation, curve, write
from conftest import BIN
from safetensors.numpy import load_file, save_file
from shop import say

from kvtools.artifact.files import Sink
from kvtools.artifact.stream import Head, Writer
from kvtools.keye.data.chat_template import ChatTemplate
from kvtools.keye.data.conversations import open_conversations
from kvtools.keye.data.dataloader import ConversationLoader
from kvtools.keye.data.media import Media
from kvtools.keye.data.packing import to_record
from kvtools.keye.data.processor import Processor


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The small cinema's files, here."""
    cinema.furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def info(capfd, name):
    return json.loads(say(f"kvtools info --json {name}", capfd).out)


def parts(path, *prefixes):
    """The tensors of a model whose names begin so."""
    return {name: x for name, x in load_file(path).items() if name.startswith(prefixes)}


def is_same(one, two):
    assert set(one) == set(two)
    assert one
    return all(np.array_equal(x, two[name]) for name, x in one.items())


# ── the four stages ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_four_stages_follow_one_another_and_end_in_an_average(here, capfd):
    def train(stage, more, name):
        done = say(f"{TRAIN} --stage {stage} --steps 2 {more} -o {name}", capfd)
        assert (done.code, done.out, done.err) == (0, b"", ""), stage

    train("matching", "", "seen")
    train("alignment", "--init seen", "aligned")
    train("multitask", "--init aligned", "skilled")
    train("annealing", "--init skilled --seed 1", "a")
    train("annealing", "--init skilled --seed 2", "b")
    assert say(["kvtools merge a b -o merged", " kvtools check merged"][0]).code == 0
    assert say("kvtools check seen aligned merged").code == 0
    layouts = [info(capfd, name)["layout"] for name in ("seen", "aligned", "merged")]
    assert layouts == ["siglip", "keye", "keye"]
    tower = {f"visual.{name}": x for name, x in parts("seen", "vision_model.").items() if ".head." not in name}
    assert is_same(parts("aligned", "visual."), tower), "the tower of stage 0, which alignment leaves alone"
    assert not is_same(parts("skilled", "visual."), tower)
    # what alignment alone starts from and goes to: only the projector is another
    say(f"{TRAIN} --stage alignment --init seen --steps 1 -o other")
    assert is_same(parts("aligned", "model."), parts("other", "model."))
    assert not is_same(parts("aligned", "mlp_AR."), parts("other", "mlp_AR."))
    reported = info(capfd, "skilled")
    assert (reported["stage"], reported["step"]) == ("multitask", 2)
    assert [step["command"] for step in reported["history"]] == ["pretrain keye"] * 3
    table = say("kvtools info skilled", capfd).out.decode()
    assert "model    stage            multitask\n" in table
    assert "model    step             2\n" in table


@pytest.mark.parametrize("stage", ["sft", "cold-start"])
def test_what_comes_after_pretraining_is_the_same_loop(here, capfd, stage):
    modes = [conversation(n, "Which colour?", "<think>Look.</think>red", mode="think") for n in range(4)]
    write(here / "asked.jsonl", modes)
    assert say(f"{TRAIN} --stage {stage} --steps 2 --log log -o m").code == 0
    steps, _ = curve(here / "log")
    assert [(line["stage"], line["step"]) for line in steps] == [(stage, 1), (stage, 2)]


@pytest.mark.parametrize("more", ["--stage matching", "--stage sft", "--stage sft --init whole --lora r=2"])
def test_checkpointed_layers_give_the_same_losses_and_weights(here, more):
    if "--init" in more:
        say(f"{TRAIN} --stage sft --steps 1 -o whole")
    for name in ("yes", "no"):
        assert say(f"{TRAIN} {more} --steps 3 --lr 1e-2 --training checkpoint={name} --log {name}.jsonl -o {name}").code == 0
    assert curve(here / "yes.jsonl") == curve(here / "no.jsonl")
    file = "adapter_model.safetensors" if (here / "yes").is_dir() else ""
    assert is_same(load_file(here / "yes" / file), load_file(here / "no" / file))


def test_a_model_in_a_pipe_is_a_model(sh, here):
    done = sh(f"{TRAIN} --steps 1 | kvtools info --json -")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["step"] == 1


def test_the_loss_falls_and_the_same_command_gives_the_same_bytes(here):
    assert say(f"{TRAIN} --steps 30 --lr 1e-2 --log log -o m").code == 0
    losses = [line["loss"] for line in curve(here / "log")[0]]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert say(f"{TRAIN} --steps 3 -o a").code == say(f"{TRAIN} --steps 3 -o b").code == 0
    assert (here / "a").read_bytes() == (here / "b").read_bytes()


def test_a_recipe_goes_round_and_flags_override_it(here, capfd):
    flags = f"{SMALL} --stage sft --steps 3 --training flip=0.5 --training warmup=0 --lr 1e-3 --seed 4"
    printed = say(f"kvtools pretrain keye --print-config {flags}", capfd)
    assert (printed.code, printed.err) == (0, "")
    (here / "r.toml").write_bytes(printed.out)
    assert say("kvtools pretrain keye --config r.toml --print-config", capfd).out == printed.out
    assert say(f"kvtools pretrain keye asked.jsonl --media clips.kvs {flags} -o a").code == 0
    assert say("kvtools pretrain keye asked.jsonl --media clips.kvs --config r.toml -o b").code == 0
    assert say("kvtools info --config a", capfd).out == printed.out
    assert is_same(load_file("a"), load_file("b"))
    other = tomllib.loads(say("kvtools pretrain keye --config r.toml --print-config --steps 5", capfd).out.decode())
    assert other == tomllib.loads(printed.out.decode()) | {"steps": "5"}


def test_a_log_has_the_keys_that_scripts_rely_on_and_can_be_drawn(here, capfd):
    assert say(f"{TRAIN} --steps 3 --valid held.jsonl --log log -o a").code == 0
    lines = [json.loads(line) for line in (here / "log").read_text().splitlines()]
    for line in (line for line in lines if "rate" in line):
        assert {"stage", "step", "epoch", "loss", "accuracy", "grad_norm", "rate", "tokens", "tokens_per_s", "seconds", "mfu",
                "load_max_over_mean", "in_turn_max_over_mean"} <= set(line)  # fmt: skip
        assert 0 < line["mfu"] < 1
        assert line["load_max_over_mean"] >= 1
    assert {"stage", "step", "epoch", "valid_loss", "valid_accuracy"} == set(lines[-1])
    assert say(f"{TRAIN} --stage annealing --init a --steps 3 --log log2 -o b").code == 0
    done = say("kvtools plot log log2 -o curve.png", capfd)
    assert (done.code, done.err) == (0, "")
    assert (here / "curve.png").read_bytes().startswith(b"\x89PNG")


# ── models of other people's making ──────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def published(here):
    """siglip/ and qwen3/, random and small, written by transformers, with a tokenizer of bytes in qwen3/."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    n_words = -(-ChatTemplate.open(None).size // 64) * 64
    both = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2}
    text = {**both, "num_hidden_layers": 1, "vocab_size": n_words, "max_position_embeddings": 16, "bos_token_id": None,
            "eos_token_id": None}  # fmt: skip
    eyes = {**both, "num_hidden_layers": 2, "image_size": 56, "patch_size": 14}
    transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=eyes)).save_pretrained("siglip")
    config = transformers.Qwen3Config(
        vocab_size=n_words, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, bos_token_id=None, eos_token_id=None, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    transformers.Qwen3ForCausalLM(config).save_pretrained("qwen3")
    (here / "qwen3" / "tokenizer.json").write_bytes(ChatTemplate.open(None).to_bytes())
    return transformers


GIVEN = "kvtools pretrain keye asked.jsonl --media clips.kvs --batch-tokens 512 --length 256"


@pytest.mark.parametrize("order", ["--init siglip --init qwen3", "--init qwen3 --init siglip"])
def test_a_tower_and_a_decoder_of_others_are_put_together_and_go_back(here, capfd, published, order):
    # with a tokenizer of its own beside the tower, which is not the decoder's
    words = (here / "qwen3" / "tokenizer.json").read_text()
    (here / "siglip" / "tokenizer.json").write_text(words.replace('"<|image_pad|>"', '"<|picture|>"'))
    done = say(f"{GIVEN} --stage alignment {order} --training warmup=0 --steps 2 -o m", capfd)
    assert (done.code, done.err) == (0, "")
    theirs = load_file("siglip/model.safetensors")
    tower = {f"visual.{name}": x for name, x in theirs.items() if name.startswith("vision_model.") and ".head." not in name}
    assert is_same(parts("m", "visual."), tower)
    assert is_same(parts("m", "model."), parts("qwen3/model.safetensors", "model."))
    assert say("kvtools convert m -o whole/", capfd).code == 0
    given, written = (json.loads((here / name / "generation_config.json").read_text()) for name in ("qwen3", "whole"))
    assert given.items() <= written.items(), "and the tokens that end an answer"
    assert say("kvtools convert m -o back/").code == 0
    back = parts("back/model.safetensors", "visual.", "mlp_AR.", "model.")
    assert not back.pop("visual.vision_model.embeddings.packing_position_embedding.weight").any(), "which vLLM asks for"
    assert is_same(back, parts("m", "visual.", "mlp_AR.", "model."))


def test_stage_0_goes_on_from_a_published_siglip_and_goes_back_to_it(here, capfd, published):
    done = say(f"{GIVEN} --stage matching --init siglip --tokenizer qwen3 --steps 2 -o m", capfd)
    assert (done.code, done.err) == (0, "")
    assert say("kvtools convert m -o back/").code == 0
    before, after = (load_file(f"{name}/model.safetensors") for name in ("siglip", "back"))
    assert set(before) == set(after)
    assert not is_same(before, after)
    reported = published.SiglipModel.from_pretrained("back", output_loading_info=True)[1]
    assert not reported["missing_keys"]
    assert not reported["unexpected_keys"]


def test_published_words_are_not_learnt_by_another_tokenizer_unasked(here, capfd, published):
    (here / "qwen3" / "tokenizer.json").rename(here / "its.json")
    line = f"{GIVEN} --stage alignment --init siglip --init qwen3 --steps 1 -o m"
    done = say(line, capfd)
    assert (done.code, done.out) == (65, b"")
    assert done.err == (
        "kvtools pretrain keye: qwen3: this model has no tokenizer. Give the one it was trained with: --tokenizer FILE.\n"
    )
    done = say(f"{GIVEN} --stage matching --init siglip --steps 1 -o m", capfd)
    assert "siglip: this model has no tokenizer" in done.err
    assert say(f"{line} --tokenizer its.json").code == 0


def test_rotations_left_out_of_a_published_tower_stay_out(here, capfd, published):
    given = f"{GIVEN} --tokenizer qwen3"
    for more, has in (("--architecture vision.rope=false", False), ("", True)):
        assert say(f"{given} --stage matching --init siglip --steps 1 {more} --force -o seen", capfd).code == 0
        assert say(f"{given} --stage alignment --init seen --init qwen3 --steps 1 --force -o m", capfd).code == 0
        assert info(capfd, "m")["architecture"]["vision"]["rope"] is has


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
CHANGED = "--training flip=0.5 --training recolour=0.5 --training jitter=0.2"
RUNS = {
    "with chance in pictures and shares": f"{TRAIN} more.jsonl --ratio 2,1 {CHANGED}",
    "in stage 0": f"{TRAIN} --stage matching",
}


def started(here, line, n_lines):
    """The command, running, once it has logged so many lines; where it ended first, ended."""
    running = subprocess.Popen([str(BIN / "kvtools"), *line.split()[1:]], cwd=here, stderr=subprocess.PIPE, text=True)
    log = here / line.split("--log ")[1].split()[0]
    while running.poll() is None and not (log.exists() and log.read_text().count("\n") >= n_lines):
        time.sleep(0.002)
    return running


@pytest.mark.parametrize("how", RUNS)
def test_killed_and_run_again_it_ends_with_the_same_bytes(here, how):
    write(here / "more.jsonl", [conversation(n, "Colour?", f"It is {cinema.colour(n)}") for n in range(6)])
    line = f"{RUNS[how]} --steps 24 --training save=1 --log log -o m"
    assert say(line.replace("log -o m", "whole.log -o whole")).code == 0
    wanted = {step["step"]: step for step in curve(here / "whole.log")[0]}
    for n_lines in (3, 9):
        running = started(here, line, n_lines)
        running.send_signal(signal.SIGKILL)
        running.communicate(timeout=60)
        assert running.returncode == -signal.SIGKILL
        assert not (here / "m").exists()
    assert say(line).code == 0
    steps = curve(here / "log")[0]
    # a step that was logged and not yet kept is done again, and comes out as it did
    assert all(step == wanted[step["step"]] for step in steps)
    assert {step["step"] for step in steps} == set(wanted)
    assert len(steps) <= len(wanted) + 2
    assert is_same(load_file("m"), load_file("whole"))


def test_stopped_by_a_signal_and_run_again_it_ends_with_the_same_bytes(here, capfd):
    line = f"{TRAIN} --steps 50 --valid held.jsonl --log log -o m"
    running = started(here, line, 12)
    running.send_signal(signal.SIGUSR2)
    _, reported = running.communicate(timeout=60)
    assert (running.returncode, reported.count("\n")) == (75, 1), reported
    assert "Run again to continue" in reported
    at = curve(here / "log")[0][-1]["step"]
    assert 1 <= at < 50
    for other, word in (
        ("--seed 5", "seed"),
        ("--lr 1", "lr"),
        ("--valid asked.jsonl", "input"),
        ("--dtype bfloat16", "dtype"),
    ):
        done = say(f"{line} {other}", capfd)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert f"the stopped run had {word} " in done.err
    again = say(line, capfd)
    assert (again.code, again.err.splitlines()[0]) == (0, f"kvtools pretrain keye: .m.state: resumes after step {at}.")
    assert [step["step"] for step in curve(here / "log")[0]] == list(range(1, 51))
    assert say(line.replace("log -o m", "whole.log -o whole")).code == 0
    assert curve(here / "log") == curve(here / "whole.log")
    assert is_same(load_file("m"), load_file("whole"))
    assert not [name for name in os.listdir(here) if "state" in name]


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_while_input_is_read_stops_the_run_at_its_first_step(here, number):
    line = f"{TRAIN} --steps 9 -o m"
    words = [str(BIN / "kvtools"), *line.replace("asked.jsonl", "-").split()[1:]]
    running = subprocess.Popen(words, cwd=here, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        # blank lines count for nothing; once more of them are written than a pipe holds, some have been read
        running.stdin.write(b"\n" * (4 << 20))
        running.stdin.flush()
        running.send_signal(number)
        _, reported = running.communicate((here / "asked.jsonl").read_bytes(), timeout=60)
    finally:
        running.kill()
    assert (running.returncode, reported) == (75, b"kvtools pretrain keye: stopped after step 1. Run again to continue.\n")
    assert os.listdir(here / ".m.state") == ["train.state"]


def test_a_run_into_a_pipe_ends_by_a_signal(here):
    words = [str(BIN / "kvtools"), *f"{TRAIN} --steps 100000 --log log".split()[1:]]
    with subprocess.Popen(words, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        while running.poll() is None and not (here / "log").exists():
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        out, _ = running.communicate(timeout=120)
    assert (running.returncode, out) == (143, b"")


def test_a_job_whose_end_is_near_stops_at_the_first_step(here, capfd, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time())))
    done = say(f"{TRAIN} --steps 9 --state kept -o m", capfd)
    assert (done.code, done.err) == (75, "kvtools pretrain keye: stopped after step 1. Run again to continue.\n")
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    write(here / "asked.jsonl", [conversation(0, "Which?", "red")])
    other = say(f"{TRAIN} --steps 9 --state kept -o m", capfd)
    assert (other.code, "the stopped run had input" in other.err) == (2, True)
    assert say(f"{TRAIN} --steps 9 --state kept --force -o m", capfd).code == 0
    assert not (here / "kept").exists()


def test_weights_that_cannot_be_written_are_not_lost(here, capfd, monkeypatch):
    def no_room(sink, *_, **__):
        sink.abandon()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), sink.dst)

    with monkeypatch.context() as full:
        full.setattr("kvtools.keye.checkpoint.weights.write_bag", no_room)
        done = say(f"{TRAIN} --steps 3 --log log -o m", capfd)
    assert (done.code, done.err) == (74, "kvtools pretrain keye: m: no space left on device.\n")
    assert say(f"{TRAIN} --steps 3 --log log -o m", capfd).code == 0
    assert len(curve(here / "log")[0]) == 3, "no step was done again"


# ── validation ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_patience_ends_a_run_and_the_best_weights_are_written(here, capfd):
    # held out is the opposite of what is taught: the sooner the better
    write(here / "held.jsonl", [conversation(n, "Which colour?", cinema.colour(n + 1)) for n in range(12)])
    line = f"{TRAIN} --steps 400 --lr 3e-2 --valid held.jsonl --training patience=3ep"
    assert say(f"{line} --log log -o m").code == 0
    steps, epochs = curve(here / "log")
    best = min(epochs, key=lambda line: line["valid_loss"])
    assert len(epochs) == best["epoch"] + 3 < 30
    assert all(line["score"] == -line["valid_loss"] for line in epochs)
    reported = info(capfd, "m")
    assert reported["validation"] == best["score"]
    assert reported["step"] == steps[-1]["step"]
    assert say(f"{TRAIN} --init m --lr 1e-30 --steps 1 --valid held.jsonl --training patience=9ep --log again -o n").code == 0
    assert curve(here / "again")[1][0]["valid_loss"] == pytest.approx(best["valid_loss"], rel=1e-4)


def test_validation_comes_within_an_epoch_too_and_is_resumed(here, capfd, monkeypatch):
    line = f"{TRAIN} --steps 8 --valid held.jsonl --valid-every 3 --training patience=9ep"
    assert say(f"{line} --log a.jsonl -o a", capfd).code == 0
    steps, epochs = curve(here / "a.jsonl")
    assert [line["step"] for line in epochs] == [2, 3, 4, 6, 6, 8], "an epoch has two steps"
    assert all(0 <= line["valid_accuracy"] <= 1 for line in epochs)
    for _ in range(9):
        monkeypatch.setenv("SLURM_JOB_END_TIME", "1")  # long past: stops after one step
        if say(f"{line} --log b.jsonl -o b", capfd).code == 0:
            break
    assert curve(here / "b.jsonl") == (steps, epochs)
    assert is_same(load_file("a"), load_file("b"))


def test_tensorboard_reads_the_curve(here, capfd):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    line = f"{TRAIN} --steps 4 --valid held.jsonl --log log.jsonl --tensorboard runs/a -o m"
    assert say(line, capfd).code == 0
    steps, epochs = curve(here / "log.jsonl")
    events = reader.EventAccumulator("runs/a")
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(line["step"], pytest.approx(line["loss"])) for line in steps]
    assert events.Scalars("valid/loss")[-1].value == pytest.approx(epochs[-1]["valid_loss"])


def test_without_patience_the_last_weights_are_written_and_validation_is_reported(here, capfd):
    assert say(f"{TRAIN} --steps 2ep --valid held.jsonl --log log -o m").code == 0
    assert say(f"{TRAIN} --steps 2ep -o blind").code == 0
    assert [line["epoch"] for line in curve(here / "log")[1]] == [1, 2]
    assert is_same(load_file("m"), load_file("blind"))
    assert "validation" not in info(capfd, "m")


# ── what is wrong with the data ──────────────────────────────────────────────────────────────────────────────────────────
def test_an_unreadable_clip_is_left_out_named_and_counted_and_the_model_written(here, capfd):
    lines = (here / "asked.jsonl").read_text()
    (here / "more.jsonl").write_text(lines)
    write(here / "bad.jsonl", [conversation("99", "Which colour?", "red"), conversation(98, "Which?", "red")])
    (here / "asked.jsonl").write_text((here / "bad.jsonl").read_text() + lines)
    done = say(f"{TRAIN} --steps 2 -o m", capfd)
    assert done.code == 65
    assert done.err.count("\n") == 1
    assert done.err.startswith(
        "kvtools pretrain keye: asked.jsonl: conversations with an unreadable picture or video were left out, 2 in all ("
    )
    assert "q99: c99: no record of that key" in done.err
    assert info(capfd, "m")["step"] == 2
    strict = say(f"{TRAIN} --steps 2 --strict -o strict", capfd)
    assert (strict.code, strict.err.count("\n"), (here / "strict").exists()) == (65, 1, False)
    assert "Repair the input, or run without --strict." in strict.err


def test_a_torn_video_file_does_not_lose_the_others(here, capfd, clip):
    data = clip.read_bytes()
    (here / "torn.mp4").write_bytes(data[: len(data) // 3])
    talks = [conversation(n, "Which colour?", "red") for n in range(3)]
    for name in ("clip.mp4", "torn.mp4"):
        talks.append(conversation(0, "Does it move?", "yes", id=name))
        talks[-1]["messages"][0]["content"][0] = {"type": "video", "video": name, "frames": 2}
    write(here / "asked.jsonl", talks)
    done = say(f"{TRAIN.replace('--length 256', '--length 512')} --steps 2 -o m", capfd)
    assert (done.code, done.err.count("\n")) == (65, 1), done.err
    assert "were left out, 1 in all (torn.mp4: torn.mp4: " in done.err
    assert (here / "m").exists()


def test_a_video_file_costs_what_a_row_has_room_for_or_what_is_said(here, capfd, clip):
    item = {"type": "video", "video": clip.name}
    write(here / "moving.jsonl", [{**conversation(None, "", "red"), "messages": [
        {"role": "user", "content": [item]}, {"role": "assistant", "content": "red"},
    ]}])  # fmt: skip
    line = TRAIN.replace("asked.jsonl", "moving.jsonl")
    n_tokens = []
    for number, options in enumerate(("", "--frame-tokens 4:8", "--frame-tokens 4:8 --max-tokens 10")):
        done = say(f"{line} --steps 1 {options} --log log{number} -o m{number}", capfd)
        assert (done.code, done.err) == (0, "")
        n_tokens.append(curve(here / f"log{number}")[0][0]["tokens"])
    assert 256 >= n_tokens[0] > n_tokens[1] > n_tokens[2] > 10
    assert "--frame-tokens 8 is not a range. Give LOW:HIGH" in say(f"{line} --frame-tokens 8 -o m", capfd).err


def test_a_clip_that_goes_while_training_is_reported_and_the_model_written(here, capfd, clip):
    from kvtools.keye.run import setup as starting

    talks = [conversation(n, "Which colour?", "red") for n in range(3)] + [conversation(0, "Does it move?", "yes", id="moving")]
    talks[-1]["messages"][0]["content"][0] = {"type": "video", "video": "clip.mp4", "frames": 2}
    write(here / "asked.jsonl", talks)
    epoch_length = starting.epoch_length

    def then_gone(recipe, task):
        try:
            return epoch_length(recipe, task)
        finally:
            clip.unlink(missing_ok=True)
            task.loader._processor.media._cache.clear()

    line = TRAIN.replace("--length 256", "--length 512")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starting, "epoch_length", then_gone)
        done = say(f"{line} --steps 3ep --log log -o m", capfd)
    assert (done.code, done.err.count("\n")) == (65, 1), done.err
    assert "were left out, 1 in all (moving: clip.mp4: " in done.err
    assert all(np.isfinite(step["loss"]) for step in curve(here / "log")[0])


def test_bad_lines_are_named_by_their_numbers(here, capfd):
    with open(here / "asked.jsonl", "a") as file:
        file.write('{"messages": 3}\n{"id": \n')
    done = say(f"{TRAIN} --steps 2 -o m", capfd)
    assert (done.code, done.err.count("\n")) == (65, 1), done.err
    assert "asked.jsonl: conversations that cannot be understood were left out, 2 in all (line 13: " in done.err


def test_conversations_too_long_are_reported_or_cut(here, capfd):
    long = conversation(1, "Which colour?", "blue")
    long["messages"] += [{"role": "user", "content": "And?" * 99}, {"role": "assistant", "content": "No."}]
    write(here / "asked.jsonl", [conversation(0, "Which colour?", "red"), long])
    done = say(f"{TRAIN} --steps 2 -o m", capfd)
    assert (done.code, done.err.count("\n")) == (0, 1), "what does not fit is a choice, not a fault"
    assert "asked.jsonl: conversations longer than a row were left out, 1 in all (q1: " in done.err
    done = say(f"{TRAIN} --steps 2 --training cut=true -o cut", capfd)
    assert (done.code, done.err) == (0, "")


def test_a_loss_that_is_not_finite_names_conversations_and_keeps_the_last_state(here, capfd):
    line = f"{TRAIN} --steps 20 --training warmup=0 --training save=1"
    done = say(f"{line} --lr 1e30 -o m", capfd)
    assert (done.code, done.err.count("\n")) == (1, 1), done.err
    assert re.search("the (loss|gradient) of q.* is not finite", done.err)
    assert "The last saved state is kept, and a run with other options must start over." in done.err
    assert not (here / "m").exists()
    state = load_file(here / ".m.state" / "train.state")
    assert all(np.isfinite(x).all() for name, x in state.items() if name.startswith("model."))
    assert say(f"{line} --lr 1e-3 --force -o m").code == 0
    poisoned = load_file("m")
    poisoned["model.norm.weight"][0] = np.nan
    tell = json.loads(say("kvtools info --json m", capfd).out)
    from kvtools.artifact.bag import write_bag

    words = {name: tell[name] for name in ("system", "layout", "architecture", "unused", "huggingface")}
    write_bag(Sink("poisoned"), "model", poisoned, config={}, history=[], **words)
    done = say(f"{line} --init poisoned -o n", capfd)
    assert (done.code, done.err.count("\n"), (here / "n").exists()) == (1, 1, False)
    assert re.search("step 1: the loss of q.* is not finite", done.err)
    assert "kept" not in done.err


# ── packed rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def pack(name, *, n_tokens_added=0):
    """A stream of packed rows of asked.jsonl, as a step before would make it."""
    talks = open_conversations("asked.jsonl").conversations
    with Media(["clips.kvs"]) as media, Writer(Sink(name), Head("sequence")) as writer:
        source = ConversationLoader(talks, Processor(ChatTemplate.open(None), media), length=256)
        for number, load in enumerate(source.epoch(0)):
            tensors, fields = to_record(source.build(load))
            tensors["tokens"] = tensors["tokens"].copy()
            tensors["tokens"][4] += n_tokens_added
            writer.write(f"r{number}", tensors, **fields)


def test_packed_rows_train_a_model_and_are_resumed(here, capfd, monkeypatch):
    pack("rows.kvs")
    line = f"kvtools pretrain keye rows.kvs {SMALL} --steps 5 --log log -o"
    assert say(f"{line} whole", capfd).err == ""
    with monkeypatch.context() as near:
        near.setenv("SLURM_JOB_END_TIME", str(int(time.time())))
        assert say(f"{line} m").code == 75
    assert say(f"{line} m").code == 0
    assert is_same(load_file("m"), load_file("whole"))
    steps = curve(here / "log")[0]
    assert steps[:5] == steps[5:]


@pytest.mark.parametrize("line", ["cat rows.kvs | {} -", "{} <(cat rows.kvs)", "{} - < rows.kvs"])
def test_packed_rows_come_through_a_pipe_as_well(sh, here, line):
    pack("rows.kvs")
    train = f"kvtools pretrain keye {SMALL} --steps 5 -o"
    assert sh(f"{train} whole rows.kvs").code == 0
    done = sh(line.format(f"{train} m"))
    assert (done.code, done.err) == (0, "")
    assert is_same(load_file("m"), load_file("whole"))


def test_ids_out_of_the_vocabulary_are_one_line(here, capfd):
    pack("rows.kvs", n_tokens_added=70_000)
    done = say(f"kvtools pretrain keye rows.kvs {SMALL} --steps 2 -o m", capfd)
    assert (done.code, done.err.count("\n"), (here / "m").exists()) == (65, 1, False), done.err
    whole = (
        r"kvtools pretrain keye: rows\.kvs: record \d+: tokens are \d+ to \d+, and the model's are 0 to 319\. "
        r"Pack the rows again, with the model's tokenizer\.\n"
    )
    assert re.fullmatch(whole, done.err)


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────────
USAGE = {
    "--architecture colour=3": "--architecture colour=3: there is no setting colour. The settings are ",
    "--architecture vision.width": "--architecture vision.width has no value. Give one, as vision.width=128.",
    "--architecture vision.width=wide": (
        "--architecture vision.width=wide: 'wide' is not a value of vision.width. Give one such as vision.width=128."
    ),
    "--architecture language.kv_heads=3": (
        "--architecture: language: heads is 2, and a multiple of kv_heads, 3, is needed. Give other values."
    ),
    "--architecture language.width=0": (
        "--architecture: width is 0, and a whole number of at least 1 is needed. Give other values."
    ),
    "--architecture vision.heads=5": (
        "--architecture: vision: width is 32, and a multiple of 20 is needed for 5 heads. Give other values."
    ),
    "--training speed=3": "--training speed=3: there is no setting speed. The settings are ",
    "--training weight_decay=-1": "--training weight_decay=-1.0 is not possible. Give 0 or more.",
    "--training clip=0": "--training clip=0.0 is not possible. Give a number above 0.",
    "--training flip=2": "--training flip=2.0 is not possible. Give a number from 0 to 1.",
    "--training rate=linear": "--training rate=linear is not possible. Give cosine or constant.",
    "--training warmup=soon": "--training warmup soon is not a duration. Give one as 500 (steps), 3ep, 2% or 1e9tok.",
    "--training patience=1ep": "--training patience needs --valid DATA. Give both or neither.",
    "--steps 0": "--steps 0 is not the length of a run. Give steps, epochs or tokens, as 500, 3ep or 1e9tok.",
    "--steps 2%": "--steps 2% is not the length of a run. Give steps, epochs or tokens, as 500, 3ep or 1e9tok.",
    "--steps many": "--steps many is not the length of a run. Give steps, epochs or tokens, as 500, 3ep or 1e9tok.",
    "--lr inf": "--lr inf is not finite. Give a finite number.",
    "--lr 0": "--lr 0 is not above 0. Give a finite number above 0.",
    "--length 1": "invalid value for '--length': it must be greater than or equal to 2. See --help.",
    "--length 1024": "--length 1024 is larger than --batch-tokens 512. Raise it, or lower --length.",
    "--ratio 1,2": "--ratio 1,2: the inputs are 1, and each needs one number above 0. Give them as 1.",
    "--seed -1": "invalid value for '--seed': it must be greater than or equal to 0. See --help.",
    "--size huge": "invalid value for '--size': 'huge'",
    "--stage rest": "invalid value for '--stage': 'rest'",
    "--dtype int8": "invalid value for '--dtype': 'int8'",
    "--config odd.toml": "--config odd.toml: pretrain keye has no option colour. See --help.",
    "--valid - -": "several inputs are -, and stdin can be read only once. Give files for the others.",
    "--speed 3": "no such option: --speed",
}


@pytest.mark.parametrize("options", USAGE)
def test_an_option_that_cannot_be_meant_is_refused_on_one_line(here, capfd, options):
    (here / "odd.toml").write_text("colour = 3\n")
    before = sorted(os.listdir(here))
    done = say(f"{TRAIN} --steps 2 {options} -o m", capfd)
    assert (done.code, done.out, done.err.count("\n")) == (2, b"", 1), done.err
    assert done.err.removeprefix("kvtools pretrain keye: ").startswith(USAGE[options])
    assert sorted(os.listdir(here)) == before


ASKED = f"kvtools pretrain keye asked.jsonl {SMALL} --steps 2"
REFUSED = [
    (
        f"{ASKED} --media clips.kvs --init nothing -o m",
        66,
        "nothing: no such file or directory. Look at its name and its permissions.",
    ),
    (f"{ASKED} --media nothing -o m", 66, "nothing: no such file or directory. Look at its name and its permissions."),
    (
        f"{ASKED} --media clips.kvs --tokenizer nothing -o m",
        66,
        "nothing: no such file or directory. Look at its name and its permissions.",
    ),
    (
        f"{ASKED} --media clips.kvs --valid nothing -o m",
        66,
        "nothing: no such file or directory. Look at its name and its permissions.",
    ),
    (
        f"kvtools pretrain keye nothing {SMALL} -o m",
        66,
        "nothing: no such file or directory. Look at its name and its permissions.",
    ),
    (
        f"{ASKED} --media clips.kvs --config nothing -o m",
        66,
        "--config nothing: no such file or directory. Look at its name and its permissions.",
    ),
    (
        f"{ASKED} --media rows.kvs -o m",
        65,
        "rows.kvs: this is a stream of kind sequence, and kind video is needed. Make one with kvtools tokenize-video.",
    ),
    (f"{ASKED} --media cut.kvs -o m", 65, "cut.kvs: it has no end mark; the producer died or the disk filled. Make it again."),
    (f"{ASKED} --media clips.kvs --init cut.model -o m", 65, "cut.model: tensor tokenizer.json: bytes "),
    (
        f"{ASKED} --media clips.kvs --init foreign -o m",
        65,
        (
            "foreign: this is a bag that kvtools did not write, and kind model is "
            "needed. Make one with kvtools pretrain keye or kvtools convert."
        ),
    ),
    (
        f"{ASKED} --media clips.kvs --init clips.kvs -o m",
        65,
        (
            "clips.kvs: this is a stream of kind video, and kind model is needed. "
            "Make one with kvtools pretrain keye or kvtools convert."
        ),
    ),
    (
        f"{ASKED} --media clips.kvs --init wide.model -o m",
        65,
        (
            "wide.model: visual.vision_model.embeddings.patch_embedding.weight is [16, 3, 14, 14], and [32, 3, "
            "14, 14] is needed. Give models of one shape, or another --size or --architecture."
        ),
    ),
    (
        f"{ASKED} --media clips.kvs --init small.model --architecture language.layers=1 -o m",
        65,
        (
            "small.model: model.layers. has 2 layers, and 1 are needed. Give "
            "models of one shape, or another --size or --architecture."
        ),
    ),
    (
        f"{ASKED} --media clips.kvs --init small.model --architecture vision.layers=5 -o m",
        65,
        (
            "small.model: visual.vision_model.encoder.layers. has 1 layers, and 5 are needed. "
            "Give models of one shape, or another --size or --architecture."
        ),
    ),
    (
        f"{ASKED} --media clips.kvs --init small.model --tokenizer other.json -o m",
        65,
        (
            "other.json: <|image_pad|> and <|video_pad|> are tokens 282 and 269 here, and 268 and "
            "269 in the model. Give the tokenizer that the model was trained with."
        ),
    ),
    (
        f"{ASKED} --media clips.kvs --tokenizer clips.kvs -o m",
        65,
        (
            "clips.kvs: this is not a tokenizer.json ('utf-8' codec can't decode byte 0xd2 in "
            "position 64: invalid continuation byte). Give one, or a folder with one."
        ),
    ),
    (
        f"{ASKED} --media clips.kvs rows.kvs -o m",
        2,
        "asked.jsonl, rows.kvs: rows.kvs holds packed rows, and others conversations. Give one or the other.",
    ),
    (
        f"kvtools pretrain keye rows.kvs {SMALL} --ratio 1 -o m",
        2,
        "--ratio 1: packed rows are mixed already. Leave it out.",
    ),
    (
        f"kvtools pretrain keye clips.kvs {SMALL} -o m",
        65,
        "clips.kvs: this is a stream of kind video, and kind conversation is needed. Make one with kvtools convert.",
    ),
    (
        f"kvtools pretrain keye cutrows.kvs {SMALL} -o m",
        65,
        "cutrows.kvs: it has no end mark; the producer died or the disk filled. Make it again.",
    ),
    (
        f"kvtools pretrain keye empty {SMALL} -o m",
        65,
        "empty: there is no conversation in it. Give a file with conversations.",
    ),
    (
        f"kvtools pretrain keye norows.kvs {SMALL} -o m",
        65,
        "norows.kvs: it has no conversations. Nothing is left to learn. Change --length, --media or the data.",
    ),
    (
        f"{ASKED} --media clips.kvs --length 32 -o m",
        65,
        (
            "asked.jsonl: conversations longer than a row were left out, 12 in all (q1: 85 tokens, q11: 84 tokens, q3: 83 "
            "tokens, …). Nothing is left to learn. Change --length, --media or the data."
        ),
    ),
    (
        f"{ASKED} -o m",
        65,
        "asked.jsonl: conversations with an unreadable picture or video were left out, 12 in all (q1: c1: no record of that",
    ),
    (f"{ASKED} --media clips.kvs -o asked.jsonl", 73, "asked.jsonl: exists already. Give --force to overwrite it."),
    (
        f"{ASKED} --media clips.kvs -o no/such/m",
        73,
        "no/such/m: its folder does not exist. Make the folder, or name another output.",
    ),
    (f"{ASKED} --media clips.kvs -o folder", 73, "folder: this is a directory. Give a file name."),
    (f"{ASKED} --media clips.kvs --log no/such/log -o m", 73, "no/such/log: no such file or directory. Give another name."),
    (f"{ASKED} --media clips.kvs --log /dev/full -o m", 74, "/dev/full: no space left on device."),
    (f"{ASKED} --media clips.kvs -o /dev/full", 74, "/dev/full: no space left on device."),
]


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """Everything that is wrong, made once."""
    top = tmp_path_factory.mktemp("bad")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        cinema.furnish(top)
        pack("rows.kvs")
        assert say(f"{TRAIN} --steps 1 -o small.model").code == 0
        assert say(f"{TRAIN} --steps 1 --architecture vision.width=16 -o wide.model").code == 0
        whole = ChatTemplate.open(None).to_bytes().decode()
        (top / "other.json").write_text(whole.replace("<|image_pad|>", "<|a_pad|>"))
        save_file({"x": np.zeros(3, np.float32)}, top / "foreign")
        (top / "folder").mkdir()
        (top / "empty").write_text("")
        with Writer(Sink("norows.kvs"), Head("sequence")):
            pass
        for name, cut in (("clips.kvs", "cut.kvs"), ("rows.kvs", "cutrows.kvs"), ("small.model", "cut.model")):
            (top / cut).write_bytes((top / name).read_bytes()[:-9])
    return top


@pytest.mark.parametrize(("line", "code", "words"), REFUSED)
def test_bad_input_and_bad_output_are_one_line_with_their_code(bad, monkeypatch, capfd, line, code, words):
    monkeypatch.chdir(bad)
    before = sorted(os.listdir(bad))
    if "wide.model" in line:
        line = line.replace("--init wide.model", "--init small.model --init wide.model --architecture vision.width=32")
    done = say(line, capfd)
    shutil.rmtree(".m.state", ignore_errors=True)
    assert (done.code, done.out, done.err.count("\n")) == (code, b"", 1), done.err
    assert done.err.removeprefix("kvtools pretrain keye: ").startswith(words)
    assert sorted(os.listdir(bad)) == before
