"""What the modules of the sandbox hold, and which attributes values have there.

These are lists, so that a new function of a library is absent until somebody has looked at it. Left out, and why: what reads or
writes files (numpy.load, ndarray.tofile, fonts), what makes programs, classes or attributes of data (string.Formatter,
collections.namedtuple, functools.wraps, PIL.ImageMath), what leads into memory (ndarray.ctypes, ndarray.view, Image.im),
and what waits (time.sleep).
"""

import collections
import datetime as dt
import decimal
import fractions
import importlib
import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image


class Facade:
    """A module in the sandbox: the listed names, which cannot be set."""

    def __init__(self, module: str, names: Mapping[str, Any]) -> None:
        self.__dict__.update({"__name__": module, **names})

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the sandbox has no {self.__dict__.get('__name__')}.{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        pass


class Kind:
    """A class in the sandbox that can be told and asked for, and makes nothing: isinstance(x, np.ndarray)."""

    def __init__(self, kind: type) -> None:
        self._kind, self.__name__ = kind, kind.__name__

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, self._kind)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kind) and other._kind is self._kind

    def __hash__(self) -> int:
        return hash(self._kind)

    def __repr__(self) -> str:
        return repr(self._kind)

    def __or__(self, _other: object) -> "Kind":
        return self  # in an annotation


# module: its names, * for all that are public
_TABLE = """
PIL.Image: new fromarray frombytes merge blend composite alpha_composite eval linear_gradient radial_gradient Resampling
    Transpose Transform Quantize Palette Dither UnidentifiedImageError DecompressionBombError NEAREST BOX BILINEAR HAMMING
    BICUBIC LANCZOS FLIP_LEFT_RIGHT FLIP_TOP_BOTTOM ROTATE_90 ROTATE_180 ROTATE_270 TRANSPOSE TRANSVERSE AFFINE EXTENT
    PERSPECTIVE QUAD MEDIANCUT MAXCOVERAGE FASTOCTREE ADAPTIVE WEB FLOYDSTEINBERG NONE MAX_IMAGE_PIXELS
PIL.ImageChops: add add_modulo blend composite constant darker difference duplicate hard_light invert lighter logical_and
    logical_or logical_xor multiply offset overlay screen soft_light subtract subtract_modulo
PIL.ImageColor: getcolor getrgb
PIL.ImageDraw: Draw floodfill
PIL.ImageEnhance: Brightness Color Contrast Sharpness
PIL.ImageFilter: BLUR BoxBlur CONTOUR DETAIL EDGE_ENHANCE EDGE_ENHANCE_MORE EMBOSS FIND_EDGES GaussianBlur Kernel MaxFilter
    MedianFilter MinFilter ModeFilter RankFilter SHARPEN SMOOTH SMOOTH_MORE UnsharpMask
PIL.ImageFont: load_default
PIL.ImageOps: autocontrast colorize contain cover crop equalize exif_transpose expand fit flip grayscale invert mirror pad
    posterize scale solarize
PIL.ImageStat: Stat
base64: b64decode b64encode
cmath: *
collections: Counter OrderedDict defaultdict deque
copy: copy deepcopy
datetime: date datetime time timedelta timezone
decimal: Decimal ROUND_DOWN ROUND_HALF_EVEN ROUND_HALF_UP ROUND_UP getcontext
fractions: Fraction
functools: cache cmp_to_key lru_cache partial reduce
io: BytesIO StringIO
itertools: *
json: JSONDecodeError dumps loads
math: *
numpy: abs absolute add all allclose amax amin angle any append apply_along_axis arange arccos arcsin arctan arctan2 argmax
    argmin argsort argwhere around array array_equal array_split asarray ascontiguousarray atleast_1d atleast_2d average
    bincount bitwise_and bitwise_or bitwise_xor block broadcast_to ceil clip column_stack concatenate conj convolve copy
    corrcoef correlate cos cosh count_nonzero cov cross cumprod cumsum deg2rad degrees delete diag diff digitize divide dot
    dsplit dstack e einsum empty empty_like equal exp expand_dims expm1 eye fabs fill_diagonal finfo flip fliplr flipud
    float_power floor floor_divide fmax fmin frombuffer fromfunction full full_like geomspace gradient greater greater_equal
    hanning histogram histogram2d hsplit hstack hypot identity iinfo imag indices inf inner insert interp intersect1d invert
    isclose isfinite isin isinf isnan isscalar kron less less_equal linspace log log10 log1p log2 logical_and logical_not
    logical_or logical_xor logspace matmul max maximum mean median meshgrid mgrid min minimum mod moveaxis multiply nan
    nan_to_num nanargmax nanargmin nanmax nanmean nanmedian nanmin nanstd nansum ndindex ndenumerate negative newaxis
    nonzero not_equal ones ones_like outer pad partition percentile pi piecewise place poly1d polyfit polyval power prod ptp
    put quantile r_ rad2deg radians ravel real reciprocal remainder repeat reshape resize rint roll rollaxis roots rot90
    round searchsorted select set_printoptions setdiff1d sign sin sinh sort split sqrt square squeeze stack std subtract sum
    swapaxes take tan tanh tensordot tile trace transpose trapezoid tri tril triu trunc union1d unique unravel_index unwrap
    vander var vdot vectorize vsplit vstack where zeros zeros_like bool_ int8 int16 int32 int64 intp uint8 uint16 uint32
    uint64 float16 float32 float64 complex64 complex128 dtype
numpy.fft: fft fft2 fftfreq fftshift ifft ifft2 ifftshift irfft rfft
numpy.linalg: LinAlgError cond det eig eigh eigvals inv lstsq matrix_rank norm pinv qr solve svd
numpy.random: choice default_rng normal permutation rand randint randn random seed shuffle uniform
random: betavariate choice choices expovariate gauss normalvariate randint random randrange sample seed shuffle triangular
    uniform
re: A ASCII DOTALL I IGNORECASE M MULTILINE S VERBOSE X compile error escape findall finditer fullmatch match search split
    sub subn
statistics: StatisticsError fmean geometric_mean harmonic_mean mean median median_high median_low mode multimode pstdev
    pvariance quantiles stdev variance
string: ascii_letters ascii_lowercase ascii_uppercase capwords digits hexdigits octdigits printable punctuation whitespace
textwrap: dedent fill indent shorten wrap
time: monotonic perf_counter process_time strftime time
typing: Any Callable Dict Iterable List Optional Sequence Set Tuple Union
uuid: uuid4
"""


def _listed() -> dict[str, list[str]]:
    listed = {}
    for entry in re.split(r"\n(?=\S)", _TABLE.strip()):
        module, _, names = entry.partition(":")
        listed[module] = names.split()
        if listed[module] == ["*"]:
            listed[module] = [name for name in dir(importlib.import_module(module)) if not name.startswith("_")]
    return listed


_LISTED = _listed()
_OWN = ("PIL", "PIL.ImageFile", "os", "os.path", "warnings")  # which the session makes itself
MODULES = (*_LISTED, *_OWN)
# libraries that people use for pictures, and that are not here: code may ask whether they are
ABSENT = (
    "cv2", "easyocr", "imageio", "imutils", "matplotlib", "pandas", "paddleocr", "pytesseract", "scipy", "seaborn",
    "shapely", "skimage", "sklearn", "sympy", "tensorflow", "torch", "torchvision", "tqdm", "transformers", "ultralytics",
    "zxingcpp", "pyzbar",
)  # fmt: skip

_VALUES = (
    str, bytes, bytearray, int, float, complex, list, tuple, dict, set, frozenset, range, slice, re.Pattern, re.Match,
    io.BytesIO, io.StringIO, collections.Counter, collections.OrderedDict, collections.deque, dt.datetime, dt.timedelta,
    decimal.Decimal, decimal.Context, fractions.Fraction,
)  # fmt: skip
_REFUSED = {"detach", "fileno", "format_map", "getbuffer", "from_bytes", "mro"}
_OF_ARRAYS = """
T all any argmax argmin argsort astype choose clip compress conj copy cumprod cumsum diagonal dot dtype fill flat flatten
item itemsize max mean min nbytes ndim nonzero partition prod ptp put ravel repeat reshape resize round searchsorted shape
size sort squeeze std strides sum swapaxes take tobytes tolist trace transpose var real imag eps accumulate outer reduce at
integers normal standard_normal shuffle permutation choice uniform name kind
"""
_OF_PICTURES = """
alpha_composite apply_transparency close convert copy crop effect_spread enhance entropy filter format getbands getbbox
getchannel getcolors getdata get_flattened_data getexif getextrema getpalette getpixel getprojection height histogram info
is_animated load mode n_frames paste point putalpha putdata putpalette putpixel quantize reduce remap_palette resize rotate
save seek show size split tell thumbnail tobytes transform transpose verify width arc chord ellipse line multiline_text
multiline_textbbox pieslice polygon rectangle regular_polygon rounded_rectangle text textbbox textlength getlength count
mean median rms stddev extrema var sum2 Image value truetype open abspath basename dirname exists expanduser getsize isabs
isdir isfile join normpath path relpath sep splitext curdir cwd getcwd listdir makedirs mkdir remove unlink rename hex args
filterwarnings simplefilter
"""

NAMES = (
    {name for kind in _VALUES for name in dir(kind) if not name.startswith("_")}
    | {name for names in _LISTED.values() for name in names}
    | {name.rpartition(".")[2] for name in MODULES}
    | {*_OF_ARRAYS.split(), *_OF_PICTURES.split(), "LOAD_TRUNCATED_IMAGES", "ndarray", "__name__"}
) - _REFUSED


def facades() -> dict[str, Facade]:
    """Each listed module as the sandbox has it, by name; PIL and numpy with the modules below them."""
    made = {}
    for module, names in _LISTED.items():
        known = importlib.import_module(module)
        made[module] = Facade(module, {name: getattr(known, name) for name in names if hasattr(known, name)})
    made["PIL.Image"].__dict__["Image"] = Kind(Image.Image)
    made["PIL.ImageFile"] = Facade("PIL.ImageFile", {"LOAD_TRUNCATED_IMAGES": False})
    made["PIL.ImageFont"].__dict__["truetype"] = _no_font
    made["warnings"] = Facade("warnings", {"filterwarnings": _nothing, "simplefilter": _nothing})
    made["numpy"].__dict__["ndarray"] = Kind(np.ndarray)
    for top in ("PIL", "numpy"):
        below = {name.rpartition(".")[2]: facade for name, facade in made.items() if name.startswith(f"{top}.")}
        made.setdefault(top, Facade(top, {})).__dict__.update(below)
    return made


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _no_font(*_: Any, **__: Any) -> None:
    raise OSError("the sandbox has no fonts but ImageFont.load_default()")
