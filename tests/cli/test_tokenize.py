"""tokenize-video on clips made here, and on the real ones where they are."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import make_clip

from kvtools.artifact.stream import Reader


def records(raw):
    return list(Reader(io.BufferedReader(io.BytesIO(raw)), "test"))


def test_a_record_holds_patches_grid_and_times(sh, clip):
    (record,) = records(sh("kvtools tokenize-video clip.mp4").out)
    n_frames, rows, cols = record.tensors["grid"]
    assert record.tensors["pixels"].shape == (n_frames * rows * cols, 3, 14, 14)
    assert record.tensors["seconds"].tolist() == [0.0, 0.64, 1.32, 1.96]
    assert record.fields["duration"] == pytest.approx(2.0)
    assert record.fields["source"] == record.fields["source"] | {"width": 160, "height": 120, "frames": 50, "codec": "h264"}


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ("--frames 3", [0.0, 0.96, 1.96]),
        ("--frames 1", [0.0]),
        ("--frames 99999", [i / 25 for i in range(50)]),
        ("--max-frames 2", [0.0, 1.96]),
        ("--start 0.5 --end 1 --frames 2", [0.48, 1.0]),
        ("--frames 3 --pick key", [0.0, 0.96, 1.92]),
    ],
)
def test_frames_are_chosen_as_asked(sh, clip, options, seconds):
    (record,) = records(sh(f"kvtools tokenize-video clip.mp4 {options}").out)
    assert record.tensors["seconds"].tolist() == pytest.approx(seconds)


def test_a_clip_of_one_frame_and_one_below_a_second_work(sh, tmp_path):
    make_clip(tmp_path / "one.mp4", n_frames=1)
    make_clip(tmp_path / "few.mp4", n_frames=3)
    one, few = records(sh("kvtools tokenize-video one.mp4 few.mp4").out)
    assert one.tensors["seconds"].tolist() == [0.0]
    assert len(few.tensors["seconds"]) == 2


@pytest.mark.parametrize("cap", [1, 7, 130, 1000])
def test_the_cap_holds(sh, clip, cap):
    done = sh(f"kvtools tokenize-video --max-tokens {cap} --frames 20 clip.mp4")
    assert (done.code, done.err) == (0, "")
    (record,) = records(done.out)
    assert len(record.tensors["pixels"]) <= 4 * cap


def test_pick_reference_skips_frames_nobody_refers_to(sh, clip):
    import av

    with av.open(str(clip)) as container:
        times = {
            round(float(f.pts * f.time_base), 4): av.video.frame.PictureType(f.pict_type).name
            for f in container.decode(video=0)
        }
    (record,) = records(sh("kvtools tokenize-video --frames 25 --pick reference clip.mp4").out)
    kinds = [times[round(s, 4)] for s in record.tensors["seconds"]]
    assert set(kinds) <= {"I", "P", "B"}
    (everything,) = records(sh("kvtools tokenize-video --frames 25 clip.mp4").out)
    assert kinds.count("B") < [times[round(s, 4)] for s in everything.tensors["seconds"]].count("B")


def test_folders_lists_and_keys(sh, tmp_path):
    for name in ("d/a2.mp4", "d/a10.mp4", "d/deep/a2.mp4", "e/a2.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        make_clip(tmp_path / name, n_frames=2)
    keys = [r.key for r in records(sh("kvtools tokenize-video d e/a2.mp4").out)]
    assert keys == ["d/a2.mp4", "a10.mp4", "deep/a2.mp4", "e/a2.mp4"]
    listed = sh("printf 'e/a2.mp4\\n\\nd/a10.mp4\\n' | kvtools tokenize-video --list -")
    assert [r.key for r in records(listed.out)] == ["a2.mp4", "a10.mp4"]


def test_a_folder_of_frames_is_a_clip(sh, tmp_path):
    from PIL import Image

    (tmp_path / "shots").mkdir()
    for i in (1, 2, 10):
        Image.new("RGB", (56, 28), (i * 20, 0, 0)).save(tmp_path / "shots" / f"f{i}.png")
    (record,) = records(sh("kvtools tokenize-video --fps 4 --frame-tokens 1:768 shots").out)
    assert record.key == "shots"
    assert record.tensors["seconds"].tolist() == [0.0, 0.25, 0.5]
    assert record.tensors["grid"].tolist() == [3, 2, 4]
    assert record.tensors["pixels"][::8, 0, 0, 0].tolist() == [20, 40, 200]


def test_parts_that_are_missing_or_there_twice_are_named(kv, tmp_path):
    for i in range(5):
        make_clip(tmp_path / f"c{i}.mp4", n_frames=4)
    clips = " ".join(f"c{i}.mp4" for i in range(5))
    for i in range(5):
        assert kv(f"tokenize-video {clips} --shard {i}/5 --jobs 1 -o p-{i}.kvs")[0] == 0
    fault = "kvtools cat: parts 1/5, 4/5 of tokenize-video are missing; part 3/5 of tokenize-video is there twice."
    assert kv("cat p-0.kvs p-2.kvs p-3.kvs p-3.kvs -o all.kvs") == (65, f"{fault} Give each part once, or --partial.\n")
    assert not (tmp_path / "all.kvs").exists()
    assert kv("cat p-0.kvs p-2.kvs --partial -o some.kvs") == (0, "")
    assert kv("cat p-3.kvs -o one.kvs") == (0, "kvtools cat: parts 0/5, 1/5, 2/5, 4/5 of tokenize-video are missing.\n")
    assert kv("cat p-4.kvs p-0.kvs p-1.kvs p-2.kvs p-3.kvs -o all.kvs") == (0, "")


def test_parts_are_those_of_one_step_and_are_followed_through_joined_streams(kv, sh, tmp_path):
    for name in "abcd":
        make_clip(tmp_path / f"{name}.mp4", n_frames=4)
    lines = [f"tokenize-video {a}.mp4 {b}.mp4 --shard {i}/2 --jobs 1 -o {a}{i}.kvs" for a, b in ("ab", "cd") for i in (0, 1)]
    lines += ["tokenize-video c.mp4 d.mp4 --fps 3 --shard 1/2 --jobs 1 -o other.kvs", "cat a0.kvs -q -o a0b.kvs"]
    assert kv(*lines)[0] == 0
    joined, both, two = tmp_path / "joined.kvs", tmp_path / "both.kvs", tmp_path / "two.kvs"
    for path, names in ((joined, "a0 a1"), (both, "a0 c0"), (two, "a0 a0")):
        path.write_bytes(b"".join((tmp_path / f"{name}.kvs").read_bytes() for name in names.split()))
    assert kv("cat a0.kvs a1.kvs c0.kvs c1.kvs -o 1.kvs", "cat joined.kvs -o 2.kvs", "cat 2.kvs c0.kvs c1.kvs -o 3.kvs") == (
        0,
        "",
    )
    assert kv("cat 1.kvs 3.kvs --prefix -o 4.kvs", "cat 4.kvs a0.kvs a1.kvs -o 5.kvs") == (0, "")
    of_a, of_c = (f"of tokenize-video {names}" for names in ("a.mp4 b.mp4", "c.mp4 d.mp4"))
    told = f"part 1/2 {of_a} is missing; part 0/2 {of_c} is missing. Give each part once, or --partial.\n"
    assert kv("cat a0.kvs c1.kvs -o 6.kvs") == (65, f"kvtools cat: {told}")
    assert kv("cat c0.kvs other.kvs -o 6.kvs")[0] == 65
    assert (
        "part 1/2 of tokenize-video is missing" in kv("cat a0b.kvs 1.kvs --key a.mp4 -o 7.kvs", "cat 7.kvs a0b.kvs -o 6.kvs")[1]
    )
    assert "part 0/2 of tokenize-video is there twice" in kv("cat two.kvs a1.kvs -o 6.kvs")[1]
    assert kv("cat both.kvs --partial -o 8.kvs", "cat 8.kvs a1.kvs -o 9.kvs") == (0, "")
    piped = sh("cat a0.kvs a1.kvs | kvtools cat - c0.kvs c1.kvs -o p.kvs; kvtools cat p.kvs -o q.kvs")
    assert (piped.code, piped.err) == (0, "")
    assert sh("cat both.kvs | kvtools cat - a1.kvs -o r.kvs; test ! -e r.kvs", pipefail=False).code == 0


def test_shards_put_together_are_the_whole(sh, tmp_path):
    for i in range(5):
        make_clip(tmp_path / f"c{i}.mp4", n_frames=2 + i)
    whole = sh("kvtools tokenize-video c?.mp4 | kvtools sum -").out
    line = "for i in 0 1 2; do kvtools tokenize-video c?.mp4 --shard $i/3 -o p-$i.kvs; done; kvtools cat p-?.kvs"
    assert sh(f"{line} | kvtools sum -").out == whole
    assert [r.key for r in records(sh("kvtools cat p-?.kvs").out)] == [f"c{i}.mp4" for i in range(5)]


def test_output_does_not_depend_on_jobs(sh, tmp_path):
    for i in range(6):
        make_clip(tmp_path / f"c{i}.mp4", n_frames=1 + 9 * i)
    outs = [sh(f"kvtools tokenize-video c?.mp4 --jobs {jobs}").out for jobs in (1, 2, 5)]
    assert outs[0] == outs[1] == outs[2]


def test_a_worker_that_hangs_is_given_up_and_replaced(sh, clip, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\n"
        "if 'kvtools.video.worker' in ' '.join(sys.orig_argv):\n"
        "    import kvtools.video.frame_index as d\n"
        "    real = d.open_index\n"
        "    d.open_index = lambda path, **k: time.sleep(99) if 'hang' in path else real(path, **k)\n"
    )
    begun = time.monotonic()
    sh("cp clip.mp4 z.mp4; cp clip.mp4 hang.mp4")
    done = sh("kvtools tokenize-video --timeout 2 --jobs 1 clip.mp4 hang.mp4 z.mp4 -o a.kvs", PYTHONPATH=str(tmp_path))
    assert done.code == 65
    assert "hang.mp4: its decoder gave nothing for 2 s. Give a longer --timeout, or leave it out." in done.err
    assert time.monotonic() - begun < 15
    assert sh("kvtools info --json a.kvs").out.count(b'"records": 2') == 1


def test_a_worker_that_crashes_is_told_and_replaced(sh, clip, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, os\n"
        "if 'kvtools.video.worker' in ' '.join(sys.orig_argv):\n"
        "    import kvtools.video.frame_index as d\n"
        "    real = d.open_index\n"
        "    d.open_index = lambda path, **k: os.kill(os.getpid(), 11) if 'crash' in path else real(path, **k)\n"
    )
    done = sh("cp clip.mp4 crash.mp4; kvtools tokenize-video --jobs 1 crash.mp4 clip.mp4 -o a.kvs", PYTHONPATH=str(tmp_path))
    assert done.code == 65
    assert "crash.mp4: the decoder crashed (signal 11)" in done.err
    assert sh("kvtools info --json a.kvs").out.count(b'"records": 1') == 1


def test_strict_stops_at_the_first_bad_clip_and_nothing_bad_alone_leaves_a_file(sh, clip, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    assert sh("kvtools tokenize-video --strict bad.mp4 clip.mp4 -o a.kvs").code == 65
    assert sh("kvtools tokenize-video bad.mp4 -o b.kvs").code == 65
    assert not [name for name in os.listdir(tmp_path) if name in ("a.kvs", "b.kvs")]


def test_a_folder_without_videos_is_refused_and_an_empty_shard_is_not(sh, clip, tmp_path):
    (tmp_path / "empty").mkdir()
    done = sh("kvtools tokenize-video empty")
    message = "kvtools tokenize-video: empty: no video and no picture lies there. Name another folder.\n"
    assert (done.code, done.out, done.err) == (66, b"", message)
    assert sh("kvtools tokenize-video --shard 0/2 clip.mp4 | kvtools info -").code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_stopped_run_resumes_to_the_same_bytes(sh, tmp_path, number):
    for i in range(12):
        make_clip(tmp_path / f"c{i:02}.mp4", n_frames=60)
    assert sh("kvtools tokenize-video c??.mp4 --jobs 1 -o whole.kvs").code == 0
    words = ["tokenize-video", *(f"c{i:02}.mp4" for i in range(12)), "--jobs", "1", "-o", "a.kvs"]
    run = subprocess.Popen([sys.executable, "-m", "kvtools", *words], cwd=tmp_path, stderr=subprocess.PIPE)
    partial = tmp_path / ".a.kvs.part"
    while run.poll() is None and (not partial.exists() or partial.stat().st_size < 1000):
        time.sleep(0.005)
    run.send_signal(number)
    assert run.wait(20) == 75
    assert b"Run again" in run.stderr.read()
    assert not (tmp_path / "a.kvs").exists()
    assert sh("kvtools tokenize-video c??.mp4 --jobs 1 --fps 1 -o a.kvs").code == 2
    assert sh("kvtools tokenize-video c??.mp4 --jobs 1 -o a.kvs").code == 0
    assert sh("cmp a.kvs whole.kvs").code == 0
    assert not partial.exists()


def test_a_job_that_ends_before_a_clip_is_done_does_not_ask_to_be_queued_again(sh, clip):
    done = sh("kvtools tokenize-video clip.mp4 -o a.kvs", SLURM_JOB_END_TIME=str(int(time.time()) + 5))
    assert (done.code, done.err) == (1, "kvtools tokenize-video: stopped before a clip was done. Give the job more time.\n")


def test_a_piped_run_that_is_stopped_does_not_look_finished(sh, clip):
    done = sh("kvtools tokenize-video clip.mp4 | kvtools check -", SLURM_JOB_END_TIME="1", pipefail=False)
    assert done.code == 65


def test_every_good_clip_is_written_beside_every_broken_one(sh, data):
    folder = data / "video"
    done = sh(
        f"kvtools tokenize-video {folder}/clips {folder}/broken -o all.kvs --timeout 30; echo $?; kvtools check all.kvs",
        pipefail=False,
    )
    assert done.out.split()[0] == b"65"
    keys = {json.loads(line)["key"] for line in sh("kvtools info --json --records all.kvs").out.splitlines()}
    assert {p.name for p in (folder / "clips").iterdir()} <= keys
    valid = {"av1_1frame.mp4", "one_frame_h263.3gp", "one_frame_h264_sar.mp4", "one_frame_hevc.mp4", "one_frame_rot90.mp4",
             "tiny_1x1.mp4", "tiny_2x2.mp4", "webm_h264_no_duration.webm", "webm_no_duration_vp9.webm"}  # fmt: skip
    bad = {p.name for p in (folder / "broken").iterdir()} - valid
    assert valid <= keys
    assert not bad & keys
    told = [line for line in done.err.splitlines() if line.startswith("kvtools tokenize-video: ")]
    assert told.pop() == "kvtools tokenize-video: clips: 49 written; 15 bad; 707 frames of 397.2 s."
    assert sorted(line.split(": ")[1] for line in told) == sorted(bad)


def test_memory_does_not_grow_with_the_clip(sh, data, tmp_path):
    import av

    source = data / "video" / "clips" / "mllm_1_baby_reading.mp4"
    for name, repeats in (("short", 1), ("long", 60)):
        with av.open(str(source)) as one, av.open(str(tmp_path / f"{name}.mp4"), "w") as out:
            stream = out.add_stream_from_template(one.streams.video[0])
            packets = [p for p in one.demux(video=0) if p.dts is not None]
            span = packets[-1].dts + packets[-1].duration - packets[0].dts
            for n in range(repeats):
                with av.open(str(source)) as again:
                    for packet in again.demux(video=0):
                        if packet.dts is not None:
                            packet.dts += n * span
                            packet.pts += n * span
                            packet.stream = stream
                            out.mux(packet)
    peaks = {}
    for name in ("short", "long"):
        line = f"kvtools tokenize-video {name}.mp4 -o {name}.kvs"
        code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:]); "
        code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        peaks[name] = int(sh(f'{sys.executable} -c "{code}" {line}').out)
    (record,) = records((tmp_path / "long.kvs").read_bytes())
    assert record.fields["duration"] > 580
    assert len(record.tensors["seconds"]) == 192
    assert peaks["long"] <= 1.3 * peaks["short"], peaks


def test_upright_pixels_equal_those_without_the_tag(sh, data):
    clips = data / "video" / "clips"
    out = {n: records(sh(f"kvtools tokenize-video {clips}/rot_{n}.mov").out)[0] for n in (0, 90, 180, 270)}
    upright = {n: tuple(r.tensors["grid"][1:]) for n, r in out.items()}
    assert upright == {0: (22, 40), 90: (40, 22), 180: (22, 40), 270: (40, 22)}


def test_clocks_equal_those_of_ffprobe(sh, data):
    import shutil

    if shutil.which("ffprobe") is None:
        pytest.skip("no ffprobe on this machine")
    for name in ("fire2_vfr_rot180.mp4", "flower.webm", "mllm_2_cooking.avi", "eye_makeup_mpeg4.avi"):
        clip = data / "video" / "clips" / name
        probe = sh(
            f"ffprobe -v error -select_streams v:0 -show_entries frame=best_effort_timestamp_time -of csv=p=0 {clip}"
        ).out
        lines = [line.strip(b",") for line in probe.split()]
        times = np.array([float(line) for line in lines if line != b"N/A"])  # ffprobe 5.1 has none for the last of an AVI
        (record,) = records(sh(f"kvtools tokenize-video --frames 500 --max-tokens 57000 --frame-tokens 16:768 {clip}").out)
        assert len(record.tensors["seconds"]) == len(lines), name
        assert np.abs(record.tensors["seconds"][: len(times)] - times).max() < 1e-3, name
