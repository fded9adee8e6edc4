"""tokenize-video --encoder: what a model sees in clips, whoever made it and however often it was stopped."""

import io
import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import BIN, make_clip
from shop import inside, say

from kvtools.artifact.bag import write_bag
from kvtools.artifact.casts import to_numpy
from kvtools.artifact.digest import Digest
from kvtools.artifact.files import Sink, Spool
from kvtools.artifact.kinds import check
from kvtools.artifact.stream import Reader
from kvtools.keye.checkpoint import weights as checkpoint
from kvtools.keye.data.chat_template import ChatTemplate
from kvtools.keye.model.config import LanguageConfig, ModelConfig, TextConfig, VisionConfig
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.siglip import Siglip
from kvtools.keye.run.video_embedder import VideoEmbedder
from kvtools.video.pool import Outcome

EYES = VisionConfig(width=16, hidden=32, layers=1, heads=2, table_side=4)
CHAT = ChatTemplate.open(None)
ARCH = ModelConfig(
    EYES, LanguageConfig(width=24, hidden=32, layers=1, heads=2, kv_heads=1, head_dim=12, vocabulary=CHAT.size),
    image_token=CHAT.image_token, video_token=CHAT.video_token,
)  # fmt: skip
SMALL = "--frames 3 --frame-tokens 1:16"


def save(path, model):
    checkpoint.save(Sink(str(path), force=True), model, tokenizer_json=CHAT.to_bytes(), fields={"stage": "sft"}, history=[])


def records(raw):
    return list(Reader(io.BufferedReader(io.BytesIO(raw)), "test"))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Models of random weights and clips; c2.mp4 is no video. clips.kvs is made by one job."""
    top = tmp_path_factory.mktemp("shelf")
    torch.manual_seed(1)
    save(top / "keye.safetensors", Keye(ARCH))
    save(top / "other.safetensors", Keye(ARCH))
    save(top / "matching.safetensors", Siglip(EYES, TextConfig(16, 32, 1, 2)))
    broken = Keye(ARCH)
    torch.nn.init.constant_(broken.mlp_AR.linear_2.bias, torch.nan)
    save(top / "nan.safetensors", broken)
    save(top / "sixteen.safetensors", Keye(replace(ARCH, vision=replace(EYES, patch=16))))
    save(top / "wide.safetensors", Keye(replace(ARCH, language=replace(ARCH.language, width=4096))))
    write_bag(Sink(str(top / "shop.safetensors")), "model", {"a": np.zeros(1)}, config={}, history=[], system="onerec")
    whole = (top / "keye.safetensors").read_bytes()
    (top / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    for n in range(5):
        make_clip(top / f"c{n}.mp4", n_frames=4 + 9 * n, width=64, height=48 if n % 2 else 96)
    (top / "c2.mp4").write_text("no video")
    with inside(top):
        assert say(f"kvtools tokenize-video --encoder keye.safetensors {SMALL} . --jobs 1 -o clips.kvs").code == 65
    return top


@pytest.fixture
def here(shelf, monkeypatch):
    monkeypatch.chdir(shelf)
    return shelf


def test_records_hold_what_the_model_sees_and_one_vector_for_it(here):
    model = checkpoint.load("keye.safetensors")[0]
    found = records((here / "clips.kvs").read_bytes())
    assert [record.key for record in found] == ["c0.mp4", "c1.mp4", "c3.mp4", "c4.mp4"]
    for record in found:
        check("video", "stream", record.tensors, record.fields)
        with torch.no_grad():
            seen = model.encode_images(torch.tensor(record.tensors["pixels"]), [tuple(record.tensors["grid"].tolist())])
        assert record.tensors["tokens"].shape == (len(record.tensors["pixels"]) // 4, 24)
        np.testing.assert_allclose(record.tensors["tokens"].astype(np.float32), seen, rtol=2**-8, atol=1e-6)
        mean = seen.double().mean(0).numpy()
        np.testing.assert_allclose(record.tensors["embedding"], mean / np.linalg.norm(mean), atol=1e-5)
        assert record.fields["encoder"]["pooling"] == "mean"


def test_all_else_is_as_without_an_encoder(here):
    assert say(f"kvtools tokenize-video {SMALL} . -o plain.kvs --force").code == 65
    for with_visual_cache, plain in zip(*(records((here / f"{n}.kvs").read_bytes()) for n in ("clips", "plain")), strict=True):
        assert {n: a.tobytes() for n, a in with_visual_cache.tensors.items() if n not in ("tokens", "embedding")} == {
            n: a.tobytes() for n, a in plain.tensors.items()
        }
        assert {n: x for n, x in with_visual_cache.fields.items() if n != "encoder"} == plain.fields


def test_a_model_of_stage_0_gives_what_its_head_says_and_no_tokens(here):
    assert say(f"kvtools tokenize-video --encoder matching.safetensors {SMALL} c3.mp4 -o m.kvs --force").code == 0
    (record,) = records((here / "m.kvs").read_bytes())
    model = checkpoint.load("matching.safetensors")[0]
    with torch.no_grad():
        pooled = model.encode_images(torch.tensor(record.tensors["pixels"]), [tuple(record.tensors["grid"].tolist())])[0]
    np.testing.assert_allclose(record.tensors["embedding"], pooled, atol=1e-6)
    assert np.linalg.norm(record.tensors["embedding"]) == pytest.approx(1)
    assert ("tokens" in record.tensors, record.fields["encoder"]["pooling"]) == (False, "head")


@pytest.mark.parametrize("jobs", [1, 3])
def test_bytes_do_not_depend_on_jobs_nor_on_neighbours(here, jobs, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))  # so many beside one another
    flags = f"--encoder keye.safetensors {SMALL}"
    assert say(f"kvtools tokenize-video {flags} . --jobs {jobs} -o again.kvs --force").code == 65
    assert (here / "again.kvs").read_bytes() == (here / "clips.kvs").read_bytes()
    assert say(f"kvtools tokenize-video {flags} c3.mp4 -o one.kvs --force").code == 0
    (alone,) = records((here / "one.kvs").read_bytes())
    assert bytes(alone.raw) == bytes(records((here / "clips.kvs").read_bytes())[2].raw)


@pytest.mark.mpi
@pytest.mark.skipif(not (BIN / "mpiexec").exists(), reason="no mpiexec; install the mpich extra")
def test_ranks_share_the_clips_and_change_nothing(sh, here):
    line = f"cd {here}; mpiexec -n 3 kvtools tokenize-video --encoder keye.safetensors {SMALL} . --force -o ranks.kvs"
    done = sh(line, pipefail=False)
    assert (done.code, done.err.count("c2.mp4")) == (65, 1), done.err
    assert (here / "ranks.kvs").read_bytes() == (here / "clips.kvs").read_bytes()


def test_a_stopped_run_resumes_to_the_same_bytes_with_the_same_model_only(here, tmp_path, capfd):
    whole = (here / "clips.kvs").read_bytes()
    (here / ".part.kvs.part").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "keye.safetensors").write_bytes((here / "other.safetensors").read_bytes())  # another by the same name
    for model, code in (("other.safetensors", 2), (tmp_path / "keye.safetensors", 2), ("keye.safetensors", 65)):
        done = say(f"kvtools tokenize-video --encoder {model} {SMALL} . -o part.kvs", capfd)
        assert (done.code, "the stopped run had " in done.err) == (code, code == 2)
    assert (here / "part.kvs").read_bytes() == whole


def test_a_run_that_is_asked_to_stop_begins_no_clip(here):
    asked = []

    def stop():
        asked.append(len(asked))
        return len(asked) > 2

    def decoded():
        for record in records((here / "clips.kvs").read_bytes()):
            whole = Spool()
            whole.append(record.raw)
            yield Outcome(record.key, whole)
        yield Outcome("late")

    finish = VideoEmbedder.open("keye.safetensors", device="cpu", dtype="float32").finish(
        1 << 50, stop
    )  # too much for two at once
    done = list(finish(decoded()))
    assert [(outcome.key, outcome.is_done) for outcome in done] == [
        ("c0.mp4", True), ("c1.mp4", True), ("c3.mp4", False), ("c4.mp4", False), ("late", False),
    ]  # fmt: skip


def test_the_model_is_named_in_the_stream_and_in_recipes(here, capfd):
    state = checkpoint.load("keye.safetensors")[0].state_dict()
    digest = Digest()
    for name, weight in state.items():
        if name.startswith(("visual.", "mlp_AR.")):
            digest.add({name: to_numpy(weight)}, {})
    (line,) = map(json.loads, say("kvtools info --json clips.kvs", capfd).out.splitlines())
    assert line["history"][-1]["inputs"] == [str(digest)]
    first = json.loads(say("kvtools info --json --records clips.kvs", capfd).out.splitlines()[0])
    assert first["encoder"] == {"digest": str(digest), "pooling": "mean"}
    printed = say("kvtools info --config clips.kvs", capfd).out
    assert tomllib.loads(printed.decode()) | {"encoder": "keye.safetensors", "dtype": "float32"} == tomllib.loads(
        printed.decode()
    )
    (here / "r.toml").write_bytes(printed)
    assert say("kvtools tokenize-video --config r.toml --print-config", capfd).out == printed
    say("kvtools tokenize-video --config r.toml --force c0.mp4 -o config.kvs")
    (again,) = records((here / "config.kvs").read_bytes())
    assert bytes(again.raw) == bytes(records((here / "clips.kvs").read_bytes())[0].raw)


def test_no_path_of_this_machine_is_kept(here):
    assert say(f"kvtools tokenize-video --encoder {here}/keye.safetensors {SMALL} {here}/c0.mp4 --force -o p.kvs").code == 0
    assert str(here).encode() not in (here / "p.kvs").read_bytes()


def test_bfloat16_sees_nearly_the_same(here, capfd):
    flags = f"--encoder keye.safetensors --dtype bfloat16 {SMALL} --force"
    assert say(f"kvtools tokenize-video {flags} c3.mp4 -o b.kvs").code == 0
    (half,) = records((here / "b.kvs").read_bytes())
    exact = records((here / "clips.kvs").read_bytes())[2]
    assert half.tensors["embedding"] @ exact.tensors["embedding"] > 0.999
    assert half.tensors["embedding"].dtype == np.float32


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ("--encoder absent.safetensors", 66, "absent.safetensors: no such file or directory"),
        ("--encoder cut.safetensors", 65, "cut.safetensors: "),
        ("--encoder shop.safetensors", 65, "shop.safetensors: this is a model of onerec, and a model of keye is needed"),
        ("--encoder c1.mp4", 65, "c1.mp4: this is neither a stream nor a bag of kvtools. Give one, or see kvtools convert."),
        ("--encoder clips.kvs", 65, "clips.kvs: this is a stream of kind video, and kind model is needed"),
        (
            "--encoder sixteen.safetensors",
            65,
            (
                "sixteen.safetensors: the model's patches have 16 pixels a side, and pictures are cut into patches of 14. "
                "Give another model."
            ),
        ),
        ("--encoder wide.safetensors", 2, "--max-tokens 24576 is more than a record holds with --encoder. Give at most 12629."),
        ("--encoder nan.safetensors", 65, "c0.mp4: the encoder gives numbers that are not finite"),
    ],
)
def test_what_is_refused(here, capfd, flags, code, words):
    done = say(f"kvtools tokenize-video {SMALL} c0.mp4 {flags} -o refused.kvs", capfd)
    assert (done.code, done.out) == (code, b"")
    assert done.err.startswith("kvtools tokenize-video: ")
    assert words in done.err
    assert done.err.count("\n") == 1
    assert not (here / "refused.kvs").exists()


def test_clips_become_semantic_ids_and_embeddings_through_pipes(sh, data, here):
    names = [
        data / "video" / "clips" / n for n in ("yoga.mp4", "chaplin.mp4", "arm_wrestling.mp4", "carphone_distorted_qcif.mp4")
    ]
    make = f"cd {here}; kvtools tokenize-video --encoder keye.safetensors {SMALL} {' '.join(map(str, names))} | tee real.kvs"
    done = sh(f"{make} | kvtools semid-build --levels 2 --codes 2 - -o clips.ids --force; kvtools info --json clips.ids")
    assert (done.code, done.err) == (0, "")
    printed = json.loads(done.out)
    assert printed["quality"]["items"] == 4
    assert [step["command"] for step in printed["history"]] == ["tokenize-video", "semid-build"]
    rows = records(sh(f"cd {here}; kvtools embed real.kvs").out)
    assert rows[0].tensors["vectors"].shape == (4, 24)
