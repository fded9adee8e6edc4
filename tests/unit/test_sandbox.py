"""Code of strangers in the sandbox: what pictures need works, and nothing else reaches the machine."""

import io
import os
import sys
import time
import zlib
from statistics import median

import numpy as np
import pytest
from PIL import Image

from kvtools.keye.sandbox.session import Limits, Sandbox

PICTURE = "/mnt/data/photo.png"
LIMITS = Limits(memory_bytes=256 << 20, picture_bytes=8 << 20)
HASTY = Limits(timeout_s=0.5, memory_bytes=256 << 20)
PRELUDE = "from PIL import Image\nimport numpy as np\nimg = Image.open(image_path)\n"


def png(width=64, height=48):
    rng = np.random.default_rng(3)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(LIMITS) as made:
        yield made


@pytest.fixture(scope="module")
def hasty():
    with Sandbox(HASTY) as made:
        yield made


def run(sandbox, code, pictures=None):
    sandbox.open({PICTURE: png()} if pictures is None else pictures, image_path=PICTURE)
    return sandbox.run(code)


def test_a_crop_is_made_and_comes_back(sandbox):
    code = PRELUDE + (
        "import os\nos.makedirs('/mnt/data/temp_processed_images', exist_ok=True)\n"
        "part = img.crop((8, 4, 40, 28)).resize((64, 48), Image.LANCZOS)\n"
        "path = os.path.join('/mnt/data/temp_processed_images', 'part.jpg')\npart.save(path, quality=90)\nprint(path)\n"
    )
    output = run(sandbox, code)
    expected = np.asarray(Image.open(io.BytesIO(png())).crop((8, 4, 40, 28)).resize((64, 48), Image.LANCZOS))
    assert (output.reason, output.text) == (None, "/mnt/data/temp_processed_images/part.jpg\n")
    assert np.array_equal(output.pictures["/mnt/data/temp_processed_images/part.jpg"], expected)


def test_rotation_contrast_and_sums_of_pixels_work(sandbox):
    code = PRELUDE + (
        "from PIL import ImageEnhance, ImageOps\n"
        "turned = ImageOps.autocontrast(ImageEnhance.Contrast(img.convert('RGB')).enhance(1.5).rotate(90, expand=True))\n"
        "turned.save('turned.png')\nprint(turned.size, float(np.asarray(turned).mean()) > 0)\n"
    )
    output = run(sandbox, code)
    assert (output.reason, output.text) == (None, "(48, 64) True\n")
    assert output.pictures["/turned.png"].shape == (64, 48, 3)


def test_variables_and_pictures_live_from_run_to_run(sandbox):
    run(sandbox, PRELUDE + "half = img.resize((32, 24))\nhalf.save('half.png')")
    output = sandbox.run("again = Image.open('half.png')\nprint(again.size, half.size)")
    assert (output.reason, output.text) == (None, "(32, 24) (32, 24)\n")


def test_a_new_session_knows_nothing_of_the_last(sandbox):
    run(sandbox, "secret = 1")
    assert run(sandbox, "print(secret)").reason == "NameError: name 'secret' is not defined"


# the code of published data: Thyme's and DeepEyes' layouts, and what people write around them
REAL = {
    "a function, a main, a random name": (
        "import os\nimport random\nimport string\nfrom PIL import Image\n\n"
        "def crop(path: str, box: tuple) -> str:\n"
        '    """Crop."""\n    with Image.open(path) as image:\n        part = image.crop(box)\n'
        "    name = ''.join(random.choices(string.ascii_letters + string.digits, k=8)) + '.jpg'\n"
        "    folder = '/mnt/data/temp_processed_images/'\n    if not os.path.exists(folder):\n        os.makedirs(folder)\n"
        "    processed_path = os.path.join(folder, name)\n    part.save(processed_path)\n    return processed_path\n\n"
        "if __name__ == '__main__':\n    processed_path = crop(image_path, (0, 0, 32, 24))\n    print(processed_path)\n"
    ),
    "a box outside of the picture": PRELUDE + "img.crop((-10, 0, 90, 48)).save('/mnt/data/a.png')\nprint('/mnt/data/a.png')",
    "errors that are caught": PRELUDE
    + "try:\n    import cv2\n    grey = cv2.imread(image_path)\nexcept ImportError as e:\n    grey = img.convert('L')\n"
    "try:\n    1 / 0\nexcept Exception as e:\n    print(f'{type(e).__name__}: {e}')\ngrey.save('grey.png')\nprint('grey.png')",
    "arrays": PRELUDE
    + "a = np.array(img).astype(np.float32)\nb = np.clip((a - a.mean()) * 1.5 + 128, 0, 255).astype(np.uint8)\n"
    "assert isinstance(b, np.ndarray) and b.dtype == np.uint8 and type(b) == np.ndarray\n"
    "Image.fromarray(b).save('/mnt/data/b.png')\nprint('saved to /mnt/data/b.png')",
    "old and new names": PRELUDE
    + "how = Image.Resampling.LANCZOS if hasattr(Image, 'Resampling') else Image.LANCZOS\nImage.MAX_IMAGE_PIXELS = None\n"
    "img.resize((img.width * 2, img.height * 2), how).rotate(-90, expand=True, fillcolor='white').save('c.png')\nimg.show()\n"
    "print('%s has %d' % ('c.png', 1), '{:.2f} {}'.format(1.234, 'c.png'))",
    "drawing and text": PRELUDE
    + "from PIL import ImageDraw, ImageFont\ndraw = ImageDraw.Draw(img)\ntry:\n    font = ImageFont.truetype('arial.ttf', 20)\n"
    "except IOError:\n    font = ImageFont.load_default()\ndraw.rectangle([2, 2, 20, 20], outline='red', width=2)\n"
    "draw.text((3, 3), 'A', fill=(255, 0, 0), font=font)\nimg.save('d.jpg', quality=95)\nprint('d.jpg')",
    "filters": PRELUDE
    + "from PIL import ImageEnhance, ImageFilter, ImageOps\nimg = ImageOps.equalize(img.convert('RGB'))\n"
    "img = ImageEnhance.Sharpness(img.filter(ImageFilter.UnsharpMask(2, 150, 3))).enhance(2.0)\n"
    "counts = {}\nfor pixel in img.getdata():\n    counts[pixel] = counts.get(pixel, 0) + 1\n"
    "img.save(os.path.join('/mnt/data', 'e.png')) if 'os' in dir else img.save('e.png')\nprint('e.png')".replace(
        "img.save(os.path.join('/mnt/data', 'e.png')) if 'os' in dir else ", ""
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_code_as_people_write_it_gives_its_picture(sandbox, name):
    output = run(sandbox, REAL[name])
    assert (output.reason, output.failure) == (None, None)
    assert len(output.pictures) == 1
    assert isinstance(output.parts[-1], np.ndarray)


def test_calculations_print_text(sandbox):
    code = (
        "import math\nfrom fractions import Fraction\nfrom datetime import datetime\nimport json\n"
        "print(math.comb(10, 3), Fraction(1, 3) + Fraction(1, 6))\nprint(json.dumps({'a': round(math.pi, 2)}))\n"
        "print((datetime.strptime('2024-03-01', '%Y-%m-%d') - datetime(2024, 2, 1)).days)"
    )
    assert run(sandbox, code).parts == ['120 1/2\n{"a": 3.14}\n29']


def test_a_library_that_is_not_there_is_named(sandbox):
    output = run(sandbox, "import cv2\nimg = cv2.imread(image_path)")
    assert (output.failure, output.reason) == ("library", "the sandbox has no library cv2")
    assert output.parts == ["Error: the sandbox has no library cv2"]


def test_text_and_pictures_come_in_the_order_of_the_lines(sandbox):
    output = run(sandbox, PRELUDE + "img.save('a.png')\nprint('one')\nprint('two: a.png')\nprint('three')")
    assert [part if isinstance(part, str) else part.shape for part in output.parts] == ["one", (48, 64, 3), "three"]


def test_the_same_code_gives_the_same_bytes(sandbox):
    code = (
        PRELUDE
        + "noise = np.random.randint(0, 255, (9, 9, 3)).astype('u1')\nImage.fromarray(noise).save('n.png')\nprint({'a', 'b'})"
    )
    first, second = run(sandbox, code), run(sandbox, code)
    assert first.text == second.text
    assert np.array_equal(first.pictures["/n.png"], second.pictures["/n.png"])


# code -> how its refusal begins
HOSTILE = {
    # network
    "import socket": "import of socket is not allowed",
    "import urllib.request": "import of urllib.request is not allowed",
    "from http import client": "import of http is not allowed",
    "import requests": "import of requests is not allowed",
    "import ssl, asyncio": "import of ssl is not allowed",
    # processes
    "import os\nos.fork()": "the attribute fork is not allowed",
    "import os\nos.system('id')": "the attribute system is not allowed",
    "import subprocess": "import of subprocess is not allowed",
    "import multiprocessing": "import of multiprocessing is not allowed",
    "import threading": "import of threading is not allowed",
    "import os\nwhile True:\n    os.fork()": "the attribute fork is not allowed",
    "import os\nos.execv('/bin/sh', ['sh'])": "the attribute execv is not allowed",
    "import os\nos.kill(os.getppid(), 9)": "the attribute",
    "import signal": "import of signal is not allowed",
    "import pty": "import of pty is not allowed",
    # reads and writes outside
    "print(open('/etc/passwd').read())": "FileNotFoundError",
    "open('/tmp/planted', 'w').write('x')": "PermissionError",
    "open('../../etc/shadow', 'rb')": "FileNotFoundError",
    "import os\nprint(os.listdir('/etc'))\nos.remove('/etc/hosts')": "FileNotFoundError",
    "import os\nprint(os.environ)": "the attribute environ is not allowed",
    "import os\nos.symlink('/etc/passwd', '/mnt/data/photo.png')": "the attribute symlink is not allowed",
    "import os\nos.link('/etc/passwd', 'p')": "the attribute link is not allowed",
    "import os\nos.chmod('/etc', 0)": "the attribute chmod is not allowed",
    "from os import rename": "ImportError: cannot import name 'rename'",
    "import shutil": "import of shutil is not allowed",
    "import pathlib": "import of pathlib is not allowed",
    "import glob": "import of glob is not allowed",
    "import io\nio.open('/etc/passwd')": "AttributeError: the sandbox has no io.open",
    "import io\nio.FileIO('/etc/passwd')": "the attribute FileIO is not allowed",
    "import tempfile": "import of tempfile is not allowed",
    "print(open('/proc/self/environ').read())": "FileNotFoundError",
    "print(open('/proc/1/root/etc/shadow').read())": "FileNotFoundError",
    PRELUDE + "Image.open('/proc/self/mem')": "FileNotFoundError",
    PRELUDE + "img.save('/tmp/planted')": "ValueError: unknown file extension: /tmp/planted",
    PRELUDE + "np.load('/etc/passwd', allow_pickle=True)": "AttributeError: the sandbox has no numpy.load",
    PRELUDE + "np.fromfile('/etc/passwd', dtype=np.uint8)": "the attribute fromfile is not allowed",
    PRELUDE + "np.memmap('/etc/passwd', mode='r')": "the attribute memmap is not allowed",
    PRELUDE + "np.loadtxt('/etc/passwd')": "the attribute loadtxt is not allowed",
    PRELUDE + "np.asarray(img).tofile('/tmp/planted')": "the attribute tofile is not allowed",
    PRELUDE + "np.asarray(img).dump('/tmp/planted')": "the attribute dump is not allowed",
    PRELUDE + "np.savetxt('/tmp/planted', [1])": "the attribute savetxt is not allowed",
    "from PIL import ImageFont\nImageFont.truetype('/etc/passwd')": "OSError: the sandbox has no fonts",
    # memory, time, output
    "x = [0] * 10**10": "not enough memory",
    "x = 'a'\nwhile True:\n    x += x": "not enough memory",
    "x = bytearray(1 << 34)": "not enough memory",
    "x = []\nwhile True:\n    try:\n        x.append(' ' * 10**6)\n    except MemoryError:\n        pass": "stopped after",
    "'{:1000000000}'.format(1)": "not enough memory",
    "from PIL import Image\nImage.new('RGB', (60_000, 60_000))": "not enough memory",
    PRELUDE + "np.ones((100_000, 100_000))": "not enough memory",
    PRELUDE + "img.resize((50_000, 50_000))": "not enough memory",
    "while True:\n    pass": "stopped after",
    "while True:\n    try:\n        1 / 0\n    except BaseException:\n        pass": "stopped after",
    "9 ** 9 ** 9": "stopped after",
    "import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')": "stopped after",
    "import itertools\nlist(itertools.repeat(1))": "not enough memory",
    "import json\njson.loads('[' * 100_000)": "recursion is too deep",
    "def f():\n    return f()\nf()": "recursion is too deep",
    "print('a' * 10**7)": "printed more than",
    "while True:\n    print('spam ' * 100)": "printed more than",
    PRELUDE + "for n in range(10**6):\n    img.resize((1000, 1000)).save(f'{n}.png')": "",
    PRELUDE + "for n in range(4):\n    img.resize((1000, 1000)).save(f'{n}.png')": "saved pictures of more than",
    # the interpreter itself
    "import ctypes": "import of ctypes is not allowed",
    "import pickle": "import of pickle is not allowed",
    "import marshal": "import of marshal is not allowed",
    "import sys": "import of sys is not allowed",
    "import importlib": "import of importlib is not allowed",
    "import gc": "import of gc is not allowed",
    "import inspect": "import of inspect is not allowed",
    "import builtins": "import of builtins is not allowed",
    "import types": "import of types is not allowed",
    "import numpy._core.multiarray": "import of numpy._core.multiarray is not allowed",
    "from PIL.Image import os": "ImportError",
    PRELUDE + "Image.os.path.join": "AttributeError: the sandbox has no PIL.Image.os",
    PRELUDE + "Image.sys.modules": "the attribute",
    PRELUDE + "np.ctypeslib": "the attribute ctypeslib is not allowed",
    PRELUDE + "img.im": "the attribute im is not allowed",
    PRELUDE + "np.asarray(img).ctypes": "the attribute ctypes is not allowed",
    "__import__('os').system('id')": "the",
    "__builtins__": "the name __builtins__ is not allowed",
    "eval('1')": "NameError",
    "exec('import os')": "NameError",
    "compile('1', '', 'eval')": "NameError",
    "getattr(int, '__subclasses__')": "the attribute __subclasses__ is not allowed",
    "getattr(int, str('mro'))": "the attribute mro is not allowed",
    "list(map(getattr, [int], ['__base__']))": "the attribute __base__ is not allowed",
    "import numpy as np\ngetattr(1, np.array(['real'])[0])": "the attribute real is not allowed",
    "globals()": "NameError",
    "vars(print)": "NameError",
    "().__class__.__bases__[0].__subclasses__()": "the attribute __",
    "(lambda: 0).__globals__": "the attribute __globals__ is not allowed",
    "print.__self__": "the attribute __self__ is not allowed",
    "try:\n    1 / 0\nexcept Exception as e:\n    e.__traceback__.tb_frame": "the attribute",
    "(x for x in [1]).gi_frame": "the attribute gi_frame is not allowed",
    "def f():\n    yield\nf()": "a statement of type Yield is not allowed",
    "try:\n    import cv2\nexcept ImportError:\n    from PIL import Image as cv2\ncv2.im": "the attribute im is not allowed",
    "try:\n    import cv2\nexcept ImportError:\n    cv2 = print\ncv2.im": "the attribute im is not allowed",
    # names that are data
    "'{0.__class__}'.format(0)": "attributes in a format string are not allowed",
    "str.format('{0.__class__}', 0)": "attributes in a format string are not allowed",
    "list(map(str.format, ['{0.__init__.__globals__}'], [print]))": "attributes in a format string are not allowed",
    "getattr('{0.__class__}', 'format')(0)": "attributes in a format string are not allowed",
    "'{x.__class__}'.format_map({'x': 0})": "the attribute format_map is not allowed",
    "import numpy as np\ntype(np.array(['a'])[0])('{0.__class__}')": "TypeError: 'Kind' object is not callable",
    "import string\nstring.Formatter()": "the attribute Formatter is not allowed",
    "import functools\nfunctools.update_wrapper": "the attribute update_wrapper is not allowed",
    "import collections\ncollections.namedtuple('A', 'b')": "the attribute namedtuple is not allowed",
    "import json\njson.loads('{}', object_hook=(lambda d: d.__class__))": "the attribute __class__ is not allowed",
    # classes
    "class A:\n    pass": "a statement of type ClassDef is not allowed",
    "type('A', (), {})": "type makes no classes here",
    "type(int)('A', (), {})": "TypeError: 'Kind' object is not callable",
    "import math\ntype(math)(**{'__array_interface__': {}})": "TypeError: 'Kind' object is not callable",
    "type(lambda: 0)(1, {})": "TypeError: 'Kind' object is not callable",
    "print.x = 1": "assignment to the attribute x is not allowed",
    "def f(__class__):\n    pass": "the name __class__ is not allowed",
    "dict(__class__=1)": "the name __class__ is not allowed",
    "import math as __loader__": "the name __loader__ is not allowed",
    # memory of numpy and Pillow
    PRELUDE + "a = np.arange(9)\nb = a[:]\na.resize(10**6, refcheck=False)": "the attribute resize of an array is not allowed",
    PRELUDE + "getattr(np.arange(9), 'resize')(10)": "the attribute resize of an array is not allowed",
    PRELUDE + "np.ndarray((1,), 'O', bytearray(8))": "TypeError: 'Kind' object is not callable",
    PRELUDE + "type(np.ones(1))((1,), 'O', bytearray(8))": "TypeError: 'Kind' object is not callable",
    PRELUDE + "np.arange(9).view(object)": "the attribute view is not allowed",
    PRELUDE + "a = np.arange(9)\na.strides = (10**9,)": "assignment to the attribute strides is not allowed",
    PRELUDE + "np.vectorize(lambda x: x.__class__)([1])": "the attribute __class__ is not allowed",
    PRELUDE + "np.array([print], dtype=object)[0].__self__": "the attribute __self__ is not allowed",
    PRELUDE + "img.getdata().setmode('RGBA')": "the attribute setmode is not allowed",
    # no programs
    "async def f():\n    pass": "a statement of type AsyncFunctionDef is not allowed",
    "match 1:\n    case _:\n        pass": "a statement of type Match is not allowed",
    "from math import *": "import of * and of private names is not allowed",
    "from . import x": "import of . is not allowed",
    "def f(:": "the code is not Python",
    "(" * 5000 + ")" * 5000: "the code is not Python",
    "raise SystemExit(0)": "SystemExit",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "\0": "the code is not Python",
}


class WithoutSeccomp(Sandbox):
    """The sandbox of a kernel that has no filter."""

    _PROGRAM = (
        "-c",
        "from kvtools.keye.sandbox import seccomp, worker\nseccomp.install = lambda: False\nworker.main()",
    )


@pytest.fixture(scope="module")
def bare():
    with WithoutSeccomp(LIMITS) as made:
        yield made


def hold(sandbox, code):
    output = run(sandbox, code)
    assert output.reason is not None
    assert output.reason.startswith(HOSTILE[code])
    assert not os.path.exists("/tmp/planted")


@pytest.mark.parametrize("code", HOSTILE, ids=lambda code: repr(code[-40:]))
def test_hostile_code_is_contained_and_named(sandbox, hasty, code):
    sandbox = hasty if HOSTILE[code] in ("", "stopped after") else sandbox
    hold(sandbox, code)
    assert run(sandbox, "print(1)").text == "1\n"  # and the next session is served


def test_hostile_code_is_contained_where_the_kernel_has_no_filter(bare):
    for code, reason in HOSTILE.items():
        if reason not in ("", "stopped after"):
            hold(bare, code)


def bomb_png():
    """A PNG of 30,000 x 30,000 black pixels in some kilobytes."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = 30_000
    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress((b"\0" * (1 + side // 8)) * side, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [bomb_png(), b"not a picture", png()[:200], b"", png() + b"\0" * 10**6, b"GIF89a" + b"\xff" * 100],
    ids=["bomb", "text", "cut", "empty", "tail", "gif"],
)
def test_a_hostile_picture_is_contained(sandbox, data):
    output = run(sandbox, "from PIL import Image\nprint(Image.open(image_path).size)", {PICTURE: data})
    assert output.reason is not None or output.text == "(64, 48)\n"
    assert run(sandbox, "print(1)").text == "1\n"


class WithoutPolicy(Sandbox):
    """The sandbox as a hole in Python would find it: code may contain anything."""

    _PROGRAM = (
        "-c",
        (
            "import builtins, ctypes, multiprocessing, socket, threading\n"
            "from kvtools.keye.sandbox import policy, seccomp, worker\n"
            "policy.compiled = lambda source: compile(source, 'code', 'exec')\n"
            "policy.builtin_names = lambda **_: dict(vars(builtins))\n"
            "KEEP = seccomp.install\nseccomp.install = lambda: KEEP() if FILTER else False\nFILTER = True\nworker.main()"
        ),
    )


class WithoutBoth(WithoutPolicy):
    """And on a kernel that has no filter: the limits of resources, the root directory and the user are left."""

    _PROGRAM = ("-c", WithoutPolicy._PROGRAM[1].replace("FILTER = True", "FILTER = False"))


OUTSIDE = (
    "open('/etc/passwd')",
    "open('/tmp/planted', 'w')",
    "__import__('socket').socket()",
    "__import__('os').fork()",
    "__import__('os').kill(PARENT, 9)",
    "__import__('os').listdir('/')",
    "__import__('os').execv('/bin/true', ['true'])",
    "__import__('os').symlink('/etc', '/tmp/planted')",
    "__import__('os').mkdir('/tmp/planted')",
    "__import__('threading').Thread(target=print).start()",
    "__import__('os').memfd_create('x')",
    "__import__('os').dup(1)",
    "__import__('os').pipe()",
    "__import__('resource').setrlimit(7, (100, 100))",
    "__import__('os').setuid(0)",
    "print(__import__('ctypes').CDLL(None).ptrace(16, PARENT, 0, 0) and 1 / 0)",
)


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp and namespaces are Linux's")
@pytest.mark.parametrize("kind", [WithoutPolicy, WithoutBoth])
def test_the_kernel_refuses_what_code_should_not_reach(kind):
    with kind(LIMITS) as made:
        made.open({})
        is_root = os.geteuid() == 0
        for code in OUTSIDE:
            if kind is WithoutBoth and not is_root and "PARENT" in code:
                continue  # processes of the same user: the namespaces of a user do not hide them all
            reason = made.run(code.replace("PARENT", str(os.getpid()))).reason
            assert reason is not None, code
            assert reason.startswith(
                ("PermissionError", "OSError", "RuntimeError", "FileNotFound", "BlockingIO", "ValueError", "Zero")
            ), code
    assert not os.path.exists("/tmp/planted")


def test_answers_that_are_no_messages_are_contained():
    code = (
        "import gc, os, struct\nfrom kvtools.keye.sandbox.child import Session\n"
        "fd = next(o for o in gc.get_objects() if isinstance(o, Session))._replies\nos.write(fd, {})\nwhile True: pass"
    )
    header = '{"blobs":[3],"pictures":[{"name":"a","size":7}]}'
    bad = (
        "b'\\xff' * 99",
        "struct.pack('<I', 2) + b'[]'",
        "struct.pack('<I', 15) + b'{\"blobs\": [-5]}'",
        "struct.pack('<I', 4000) + b'[' * 4000",
        f"struct.pack('<I', {len(header)}) + b'{header}abc'",
    )
    with WithoutPolicy(HASTY) as made:
        for data in bad:
            made.open({})
            assert made.run(code.replace("{}", data)).failure in ("ended", "time")


def test_a_session_that_was_ended_says_so(hasty):
    assert run(hasty, "while True:\n    pass").reason == "stopped after 0.5 s"
    assert hasty.run("print(1)").reason == "the session has ended"


def test_the_environment_does_not_reach_the_worker(monkeypatch):
    monkeypatch.setenv("KEY_OF_A_SERVER", "secret")
    with WithoutPolicy() as made:
        made.open({})
        assert made.run("import os\nprint(dict(os.environ))").text.count("secret") == 0


def test_a_run_costs_little(sandbox):
    seconds = []
    for _ in range(7):
        begun = time.perf_counter()
        assert run(sandbox, "print(1)").reason is None
        seconds.append(time.perf_counter() - begun)
    print(f"median of a session with one run: {1000 * median(seconds):.0f} ms")
