"""Videos and pictures, and tokenize-video."""

import io
import os
import tarfile
from pathlib import Path

import av
import damage
import numpy as np
from PIL import Image


def furnish():
    film = Path("videos/a.mp4").read_bytes()
    damage.furnish({
        "text.mp4": "no film\n",
        "cut.mp4": film[: len(film) // 2],
        "damaged.mp4": film[:2000] + bytes(900) + film[2900:],
        "cut.png": Path("pictures/0.png").read_bytes()[:20],
        "pictures-bad/1.png": "no picture\n",
        "pictures-cut/1.png": Path("pictures/0.png").read_bytes()[:60],
        "names.txt": "nowhere.mp4\n",
        "none.txt": "\n",
        "names0": "videos/a.mp4\0videos/b.mp4\0",
        "clips.jsonl": "\n".join(BAD_LINES),
        "bad.tar": "no tar\n",
        "list.mp4": "ffconcat version 1.0\nfile videos/a.mp4\n#\0\n",
        "bad.webp": "RIFF\1\0\0\0WEBP",
    })  # fmt: skip
    Path("unknown.mp4").write_bytes(film.replace(b"avc1", b"zzzz"))
    with av.open("frameless.mkv", "w") as container:
        container.add_stream("mpeg4", rate=25)
        container.start_encoding()
    Path("empty").mkdir()
    Path("mixed").mkdir()
    for name, shape in (("1", (60, 60, 3)), ("2", (60, 90, 3))):
        Image.fromarray(np.zeros(shape, np.uint8)).save(f"mixed/{name}.png")
    cover()
    spoiled()
    with tarfile.open("beside.tar", "w") as tar:
        for name, data in (("1.mp4", film), ("1.json", b"{")):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    Path("torn.tar").write_bytes(Path("beside.tar").read_bytes()[:1500])
    with tarfile.open("late.tar", "w") as tar:
        for name in ("videos/a.mp4", "videos/b.mp4"):
            tar.add(name)
    Path("late.tar").write_bytes(Path("late.tar").read_bytes()[: 512 * 3 + len(film)])
    os.mkfifo("pipe.mp4")
    Image.fromarray(np.zeros((2, 900, 3), np.uint8)).save("thin.png")
    Image.fromarray(np.zeros((9, 900, 3), np.uint8)).save("wide.png")
    for name in ("thin", "wide"):
        Path(name).mkdir()
        os.rename(f"{name}.png", f"{name}/1.png")
    Path(".stopped.kvs.part").write_bytes(Path("clips.kvs").read_bytes()[:-1000])
    Path(".torn.kvs.part").write_bytes(Path("clips.kvs").read_bytes()[:20])
    with av.open("sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


BAD_LINES = [
    "[1]", "{", '{"key": "a"}', '{"path": "videos/a.mp4", "key": 3}', '{"path": "videos/a.mp4", "start": -1}',
    '{"path": "videos/a.mp4", "start": 2, "end": 1}', '{"path": "videos/a.mp4", "start": NaN}',
    '{"path": "gone.mp4", "key": "a"}', '{"path": "videos/a.mp4", "key": "a"}',
    '{"path": "gone.mp4", "take": 1}', '{"path": "gone.mp4", "take": 2}',
]  # fmt: skip


def cover():
    """sound.m4a: a sound file with a cover picture."""
    with av.open("cover.mp4", "w") as container:
        picture = container.add_stream("mjpeg", rate=1, options={"strict": "-2"})
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(picture.encode(None))


def spoiled():
    """spoiled.mkv: one frame, which is damaged."""
    with av.open("spoiled.mkv", "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        for packet in [*stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")), *stream.encode(None)]:
            container.mux(packet)
    film = bytearray(Path("spoiled.mkv").read_bytes())
    film[len(film) // 2 : len(film) // 2 + 40] = bytes(range(40))
    Path("spoiled.mkv").write_bytes(film)


CASES = """
kvtools tokenize-video
kvtools tokenize-video nowhere.mp4
kvtools tokenize-video empty
kvtools tokenize-video --list names.txt
kvtools tokenize-video --list nowhere.txt
kvtools tokenize-video --list none.txt
kvtools tokenize-video --list names0
kvtools tokenize-video text.mp4
kvtools tokenize-video cut.mp4
kvtools tokenize-video damaged.mp4
kvtools tokenize-video --decoder decord damaged.mp4
kvtools tokenize-video sound.mp4
kvtools tokenize-video cut.png
kvtools tokenize-video pictures-bad
kvtools tokenize-video pictures-cut
kvtools tokenize-video thin
kvtools tokenize-video --strict text.mp4 videos/a.mp4
kvtools tokenize-video --start 30 videos/a.mp4
kvtools tokenize-video --start 0.1 --end 0.3 --pick key videos/a.mp4
kvtools tokenize-video unknown.mp4
kvtools tokenize-video frameless.mkv
kvtools tokenize-video --max-tokens 1 wide
kvtools tokenize-video --timeout 0.001 videos/a.mp4
kvtools tokenize-video --fps 0 videos
kvtools tokenize-video --fps nan videos
kvtools tokenize-video --fps 1e-7 videos
kvtools tokenize-video --list clips.jsonl --report report.json
kvtools tokenize-video --root videos videos/a.mp4
kvtools tokenize-video mixed
kvtools tokenize-video bad.tar
kvtools tokenize-video torn.tar
kvtools tokenize-video late.tar -o late-tar.kvs
kvtools tokenize-video beside.tar
kvtools tokenize-video list.mp4
kvtools tokenize-video bad.webp
kvtools tokenize-video cover.mp4
kvtools tokenize-video http://127.0.0.1:9/a.mp4
kvtools tokenize-video pipe.mp4
kvtools tokenize-video -
kvtools tokenize-video --salvage spoiled.mkv
kvtools tokenize-video videos/a.mp4 -o videos/a.mp4 --force
kvtools tokenize-video pictures -o pictures/0.png --force
kvtools tokenize-video videos/a.mp4 --report videos/a.mp4 --force
kvtools tokenize-video videos/a.mp4 -o both.kvs --report both.kvs
kvtools tokenize-video --list - --list0 -
kvtools tokenize-video --start 3 --end 1 videos
kvtools tokenize-video --max-tokens 60000 videos
kvtools tokenize-video --frame-tokens 9:3 videos
kvtools tokenize-video --frame-tokens few videos
kvtools tokenize-video --shard 3/2 videos
kvtools tokenize-video --decoder vlc videos
kvtools tokenize-video --encoder text.mp4 videos
kvtools tokenize-video --encoder shop.model videos
kvtools tokenize-video --encoder keye.safetensors --max-tokens 57000 videos
kvtools tokenize-video videos -o clips.kvs
kvtools tokenize-video --device cuda --encoder keye.safetensors videos
kvtools.video.sample.smart_nframes(1, 25.0)
kvtools.video.pictures.open_frames([], 2.0)
list(kvtools.video.decode.read_pyav("videos/a.mp4", frames("videos/b.mp4", by_decoding=True), [34], n_threads=1))
list(kvtools.video.decode.read_decord("videos/a.mp4", frames("videos/b.mp4"), [0]))
list(kvtools.video.decode.read_decord("nowhere.mp4", frames("videos/a.mp4"), [0]))
kvtools.video.decode._checked(np.zeros((2, 2, 3)), frames("videos/a.mp4"))
SLURM_JOB_END_TIME=1 kvtools tokenize-video --jobs 1 videos
kvtools tokenize-video --fps 3 videos -o stopped.kvs
kvtools tokenize-video videos -o torn.kvs
"""
