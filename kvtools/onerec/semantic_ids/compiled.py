"""What kernels.py runs, for numba to compile: loops over rows, without Python in them.

Legend: N rows, B rows of a block, by number, K codes, C codes of a chunk, D width, E width with the bounds' columns, W
words of eight bytes of a row's scores.
"""

import numpy as np
from numba import njit

from kvtools.machine_code import compiled

N_MOST = 64  # candidates of a row in a chunk that are decided here; rows with more are left
_TIE = 1e-10  # relative difference of distances below which their rounding in float64 might decide
_WORDS = 32  # of eight bytes, whose signs are read together
_ONE = np.uint16(0x3F80)  # of bfloat16
_IN_ANY_ORDER = {"reassoc", "contract", "nsz"}  # of a sum: the bounds on rounding hold for any
_UP = 1 + 2.0**-7  # what stays an upper bound when it is rounded to bfloat16


@njit(inline="always")
def _bits(x: float) -> np.uint16:
    """The bits of a finite number in bfloat16, rounded to the nearest, ties to even."""
    bits = np.float32(x).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@njit(inline="always")
def _value(bits: np.uint16) -> np.float32:
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@compiled(fastmath=_IN_ANY_ORDER)
def write_codes(
    codes_KD: np.ndarray, centre_D: np.ndarray, centred_KD: np.ndarray, bits_KE: np.ndarray, square_K: np.ndarray,
    lost_K: np.ndarray,
) -> None:  # fmt: skip
    """The codes less the centre, and their bits; the squared norms of these, and of what the bits lose."""
    for k in range(len(codes_KD)):
        square = lost = 0.0
        for d in range(codes_KD.shape[1]):
            x = codes_KD[k, d] - centre_D[d]
            bits = _bits(x)
            rest = x - _value(bits)
            centred_KD[k, d], bits_KE[k, d] = x, bits
            square += np.float64(x) * np.float64(x)
            lost += np.float64(rest) * np.float64(rest)
        square_K[k], lost_K[k] = square, lost


@compiled(fastmath=_IN_ANY_ORDER)
def write_rows(
    x_ND: np.ndarray, rows_B: np.ndarray, guess_N: np.ndarray, centre_D: np.ndarray, centred_KD: np.ndarray,
    bias_K: np.ndarray, norm_K: np.ndarray, sums: float, parts: float, rows_BE: np.ndarray,
) -> None:  # fmt: skip
    """The rows of a product, less the centre, with the columns of their bounds: those of centred_codes.py."""
    n_width = x_ND.shape[1]
    for b, row in enumerate(rows_B):
        code = guess_N[row]
        product = square = lost = np.float32(0)
        for d in range(n_width):
            x = x_ND[row, d] - centre_D[d]
            bits = _bits(x)
            rest = x - _value(bits)
            rows_BE[b, d] = bits
            product += x * centred_KD[code, d]
            square += x * x
            lost += rest * rest
        norm = np.sqrt(np.float64(square)) * (1 + sums)
        error = np.sqrt(np.float64(lost)) * (1 + sums)
        score = np.float64(product + bias_K[code])
        least = score - (parts + sums) * abs(score) - 1e-30 - 2 * sums * norm_K[code] * (norm + norm_K[code])
        rows_BE[b, n_width] = rows_BE[b, n_width + 1] = _ONE
        rows_BE[b, n_width + 2] = _bits(-least)
        rows_BE[b, n_width + 3] = _bits(-least - np.float64(_value(_bits(-least))))
        rows_BE[b, n_width + 4] = _bits(error * _UP)
        rows_BE[b, n_width + 5] = _bits(norm * _UP)


@compiled()
def settle(
    words_BW: np.ndarray, signs: int, scores_BC: np.ndarray, first: int, x_ND: np.ndarray, rows_B: np.ndarray,
    codes_KD: np.ndarray, nearest_N: np.ndarray, is_left_B: np.ndarray,
) -> int:  # fmt: skip
    """Read each row's scores of the codes from the number first on for those that may be nearer than its guess, and take the
    nearest of these; returns how many there were. Rows with too many of them, or with two at nearly one distance, are marked,
    here or by an earlier chunk, and left as they are from then on.

    scores_BC: the bits of the scores as unsigned integers, words_BW: the same as int64, and signs: the sign bits of those in a
    word; whole words are three times as fast as scores.
    """
    n_all, found = 0, np.empty(N_MOST, np.int32)
    for b, row in enumerate(rows_B):
        guess = nearest_N[row]
        if first <= guess < first + scores_BC.shape[1]:
            scores_BC[b, guess - first] = ~scores_BC.dtype.type(0)
        if _least(scores_BC[b]) & signs:
            continue
        n_found = _candidates(words_BW[b], signs, scores_BC[b], first, len(codes_KD), found)
        n_all += n_found
        if is_left_B[b]:
            continue
        nearest = _nearest(x_ND[row], codes_KD, guess, found[:n_found]) if n_found <= N_MOST else -1
        if nearest < 0:
            is_left_B[b] = True
        else:
            nearest_N[row] = nearest
    return n_all


@compiled()
def _least(bits_K: np.ndarray) -> int:
    """The bits of a positive number where there is one, else of the largest negative one."""
    least: int = bits_K[0]
    for k in range(len(bits_K)):  # of the forms of this loop that were tried, the one that becomes vector instructions
        bits = bits_K[k]
        if bits < least:  # noqa: PLR1730
            least = bits
    return least


@compiled()
def _candidates(words_W: np.ndarray, signs: int, scores_C: np.ndarray, first: int, n_codes: int, found: np.ndarray) -> int:
    """How many of n_codes have a score without a sign; the numbers of the first of them are in found."""
    n_found, n_lanes = 0, _WORDS * len(scores_C) // len(words_W)
    for group in range(-(-len(words_W) // _WORDS)):
        common = np.int64(-1)
        for word in words_W[group * _WORDS : (group + 1) * _WORDS]:
            common &= word
        if common & signs == signs:
            continue
        for c in range(group * n_lanes, min((group + 1) * n_lanes, len(scores_C), n_codes - first)):
            if not scores_C[c] & signs:
                if n_found < len(found):
                    found[n_found] = first + c
                n_found += 1
    return n_found


@compiled()
def _nearest(x_D: np.ndarray, codes_KD: np.ndarray, guess: int, found: np.ndarray) -> int:
    """The nearest of a guess and what was found; -1 where two are too close to tell."""
    nearest, least, second = guess, _squared_distance(x_D, codes_KD[guess]), np.inf
    for code in found:
        distance = _squared_distance(x_D, codes_KD[code])
        if distance < least:
            nearest, least, second = code, distance, least
        elif distance < second:
            second = distance
    return -1 if second <= least * (1 + _TIE) + 1e-300 else nearest


@compiled(fastmath=_IN_ANY_ORDER)
def _squared_distance(x_D: np.ndarray, c_D: np.ndarray) -> float:
    total = 0.0
    for d in range(len(x_D)):
        difference = np.float64(x_D[d]) - np.float64(c_D[d])
        total += difference * difference
    return total


@compiled()
def largest(bits_BC: np.ndarray, first: int, largest_B: np.ndarray, where_B: np.ndarray) -> None:
    """Note the first of each row's numbers that is larger than the largest so far; bits_BC: int16, of bfloat16."""
    for b in range(len(bits_BC)):
        best = largest_B[b]
        for c in range(bits_BC.shape[1]):
            best = max(best, _ordered(bits_BC[b, c]))
        if best > largest_B[b]:
            c = 0
            while _ordered(bits_BC[b, c]) != best:
                c += 1
            largest_B[b], where_B[b] = best, first + c


@njit(inline="always")
def _ordered(bits: np.int16) -> np.int16:
    """The bits of bfloat16 as an integer, in the order of the numbers."""
    return np.int16(bits ^ ((bits >> np.int16(15)) & np.int16(0x7FFF)))


@compiled()
def move(
    x_BD: np.ndarray, old_B: np.ndarray, new_B: np.ndarray, magics_PD: np.ndarray, sums_PKD: np.ndarray, begin: int, end: int
) -> None:
    """Take columns begin to end of rows out of the sums of their old cells, -1 for none, and into those of their new ones."""
    magic_D = magics_PD[0][begin:end]
    for b in range(len(x_BD)):
        if old_B[b] == new_B[b]:
            continue
        x_D = x_BD[b][begin:end]
        for cell, sign in ((new_B[b], 1.0), (old_B[b], -1.0)):
            if cell < 0:
                continue
            n_left = _add_first_part(x_D, magic_D, sums_PKD[0, cell][begin:end], sign)
            if n_left and len(magics_PD) > 1:
                _add_further_parts(x_D, magics_PD, sums_PKD, cell, sign, begin)


@compiled()
def _add_first_part(x_D: np.ndarray, magic_D: np.ndarray, sum_D: np.ndarray, sign: float) -> int:
    """Returns how many values have more of them than the first part."""
    n_left = 0
    for d in range(len(x_D)):
        x = np.float64(x_D[d])
        cut = (x + magic_D[d]) - magic_D[d]
        sum_D[d] += sign * cut
        n_left += x != cut
    return n_left


@compiled()
def _add_further_parts(
    x_D: np.ndarray, magics_PD: np.ndarray, sums_PKD: np.ndarray, cell: int, sign: float, begin: int
) -> None:
    """x_D: of the columns from begin on."""
    for d in range(len(x_D)):
        left, part = np.float64(x_D[d]), 0
        while left and part < len(magics_PD):
            cut = (left + magics_PD[part, begin + d]) - magics_PD[part, begin + d]
            left -= cut
            if part:
                sums_PKD[part, cell, begin + d] += sign * cut
            part += 1
