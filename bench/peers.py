"""One contestant over a list of clips: prints {"frames", "seconds", "failed"}; imports and set-up are not timed.

Usage: peers.py CONTESTANT WANTED.json     WANTED: {path: [seconds of each frame that kvtools chose]}

floor-auto, floor-2  every frame decoded in order by PyAV, the wanted ones made RGB, nothing else: one process with
                     FFmpeg's threads, or two processes of one thread
floor-decord         the wanted frames by decord's get_batch
keye                 keye-vl-utils 1.0.0, then the transformers processor of Keye's design, frame by frame
qwen                 qwen-vl-utils 0.0.14, then transformers' Qwen2-VL video processor
"""

import json
import logging
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np

FPS = 2.0


def floor_pyav(path, seconds, threads):
    import av

    wanted = {round(s, 4) for s in seconds}
    with av.open(path) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = threads
        if threads == 0:
            stream.thread_type = "AUTO"
        return sum(
            frame.to_ndarray(format="rgb24").size > 0
            for frame in container.decode(stream)
            if (time := frame.dts if container.format.name == "avi" else frame.pts) is not None
            and round(float(time * frame.time_base), 4) in wanted
        )


def floor_one_thread(item):
    return floor_pyav(*item, threads=1)


def floor_decord(path, seconds):
    import decord

    reader = decord.VideoReader(path)
    # clips of a constant rate: the position tells the time
    positions = [min(len(reader) - 1, round(s * reader.get_avg_fps())) for s in seconds]
    return len(reader.get_batch(positions).asnumpy())


def keye():
    from keye_vl_utils.vision_process import fetch_video
    from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import PaddleOCRVLImageProcessorPil

    processor = PaddleOCRVLImageProcessorPil(min_pixels=3136, max_pixels=1_003_520, image_mean=[0.5] * 3, image_std=[0.5] * 3)

    def run(path, _):
        video, _ = fetch_video({"video": path, "fps": FPS}, return_video_sample_fps=True)
        frames = [frame.permute(1, 2, 0).numpy().astype(np.uint8) for frame in video]
        processor(images=frames, return_tensors="np")
        return len(frames)

    return run


def qwen():
    from qwen_vl_utils.vision_process import fetch_video
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    processor = Qwen2VLVideoProcessor(cap_pixels_per_frame=True)

    def run(path, _):
        video, _ = fetch_video({"video": path, "fps": FPS}, return_video_sample_fps=True)
        processor(videos=[video], do_sample_frames=False, do_resize=False, return_tensors="pt")
        return len(video)

    return run


def main():
    name, wanted_file = sys.argv[1:]
    with open(wanted_file) as file:
        wanted = json.load(file)
    logging.disable(logging.WARNING)
    n_frames, failed = 0, []
    if name == "floor-2":
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(abs, range(8)))  # processes up before the clock starts
            begun = time.perf_counter()
            n_frames = sum(pool.map(floor_one_thread, wanted.items()))
            seconds = time.perf_counter() - begun
    else:
        if name in ("keye", "qwen"):
            import cpu_torchvision  # noqa: F401 - before transformers
        run = {
            "floor-auto": lambda: lambda path, seconds: floor_pyav(path, seconds, 0),
            "floor-decord": lambda: floor_decord,
            "keye": keye,
            "qwen": qwen,
        }[name]()
        begun = time.perf_counter()
        for path, times in wanted.items():
            try:
                n_frames += run(path, times)
            except Exception as error:  # noqa: BLE001 a peer's failure is a finding
                failed.append([path, f"{type(error).__name__}: {error}"[:100]])
        seconds = time.perf_counter() - begun
    print(json.dumps({"frames": n_frames, "seconds": seconds, "failed": failed}))


if __name__ == "__main__":
    main()
