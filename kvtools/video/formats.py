"""Which files are videos and pictures: by their suffix, else by their first bytes."""

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".ppm", ".pgm",
    ".jp2", ".tga",
)  # fmt: skip
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".f4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".divx", ".flv", ".ts", ".mts", ".m2ts", ".m2t",
    ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".vob", ".wmv", ".asf", ".3gp", ".3g2", ".ogv", ".ogm", ".gif", ".apng",
    ".mxf", ".rm", ".rmvb", ".y4m", ".ivf", ".obu", ".h264", ".264", ".h265", ".265", ".hevc", ".dv", ".nut", ".mjpeg", ".mjpg",
    ".wtv", ".gxf",
)  # fmt: skip
# beside videos in folders, and no video: these are not opened
OTHER_SUFFIXES = (
    ".txt", ".json", ".jsonl", ".csv", ".tsv", ".md", ".srt", ".vtt", ".ass", ".xml", ".html", ".pdf", ".log", ".yaml", ".yml",
    ".py", ".sh", ".parquet", ".npy", ".npz", ".pt", ".safetensors", ".kvs", ".zip", ".gz", ".xz", ".zst", ".7z",
    ".wav", ".mp3", ".m4a", ".m4b", ".aac", ".flac", ".ogg", ".oga", ".opus", ".wma", ".mka", ".weba", ".ac3", ".dts", ".amr",
    ".aif", ".aiff", ".svg", ".part", ".tmp",
)  # fmt: skip

_BEGIN_BYTES = 400
_MAGIC = (
    (0, b"\x1aE\xdf\xa3"),  # Matroska
    (0, b"FLV\x01"),
    (0, b"\0\0\x01\xba"),  # MPEG program stream
    (0, b"\0\0\x01\xb3"),  # MPEG video
    (0, b"OggS"),
    (0, b"0&\xb2u\x8ef\xcf\x11"),  # ASF
    (0, b"\x06\x0e+4\x02\x05\x01\x01"),  # MXF
    (0, b"GIF8"),
    (0, b"YUV4MPEG2"),
    (0, b"DKIF"),  # IVF
    (0, b".RMF"),
    (8, b"AVI "),
)
_NO_FILM = (b"M4A ", b"M4B ", b"heic", b"heix", b"mif1", b"avif", b"crx ")  # brands of MP4 that are sound or pictures


UNKNOWN = "data of another format, or damaged"
_MP4, HEIC, _MATROSKA = "an MP4 video", "a HEIC picture", "a Matroska or WebM video"
_PNG, _JPEG = "a PNG picture that is damaged", "a JPEG picture that is damaged"
MAYBE_VIDEO = (_MP4, HEIC, _MATROSKA, _PNG, _JPEG)
_CONTENTS = {
    b"<!doctype html": "HTML", b"<html": "HTML", b"<head": "HTML", b"<?xml": "XML", b"<svg": "an SVG drawing", b"<": "markup",
    b"{": "JSON", b"[": "JSON", b"version https://git-lfs": "a pointer of Git LFS to a file that was not fetched",
    b"%pdf": "a PDF document", b"pk\x03\x04": "a zip archive", b"\x1f\x8b": "gzip data", b"\x28\xb5\x2f\xfd": "zstd data",
    b"\x1a\x45\xdf\xa3": _MATROSKA, b"\x89png": _PNG, b"\xff\xd8\xff": _JPEG,
}  # fmt: skip


def content_of(head: bytes) -> str:
    """What a file holds whose name promises a picture or a video, as its first bytes tell: "HTML", "an empty file"."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "an empty file"
    for begin, name in _CONTENTS.items():
        if text.startswith(begin):
            return name
    if head[4:8] == b"ftyp":
        return HEIC if head[8:12] in (b"heic", b"heix", b"mif1", b"msf1") else _MP4
    is_text = b"\0" not in head and all(byte >= 32 or byte in b"\t\r\n" for byte in head)
    if is_text and not head.startswith(b"YUV4MPEG2 "):
        return f"text that begins with {head[:20].decode('utf-8', 'replace')!r}"
    return UNKNOWN


def is_video(path: str) -> bool:
    """Whether the first bytes of a file are those of a video format. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        begin = file.read(_BEGIN_BYTES)
    if any(begin[at : at + len(magic)] == magic for at, magic in _MAGIC):
        return True
    if begin[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        return begin[8:12] not in _NO_FILM
    # packets of 188 bytes that begin with 0x47; in camera files each has a time of 4 bytes before it
    return any(begin[at::step][:2] == b"GG" for at, step in ((0, 188), (4, 192)))
