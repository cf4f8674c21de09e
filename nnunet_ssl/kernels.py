"""InfoNCE's two sweeps over all similarities as Triton kernels: no tile of them leaves its multiprocessor.

The one file of the science layer that imports more than torch and numpy; ``fused`` imports it where Triton is.

A program owns ROWS rows and walks all columns, as flash attention does: 8 N^2 d operations for the sums and 16 N^2 d
for the gradient. Half of that would do (``tiles``), for atomic additions of whole rows; so no addition depends on the
order of the programs, and two runs give the same bits.
"""

import triton
import triton.language as tl


@triton.jit
def _apart(tile, rows, columns, count, pairs):
    """The tile; -inf where a vector meets itself or its partner, and past the last column."""
    distance = tl.abs(rows[:, None] - columns[None, :])
    kept = (distance != 0) & (distance != pairs) & (columns < count)[None, :]
    return tl.where(kept, tile, float("-inf"))


# Specialised for every number of rows that is or is not a multiple of 16 it would be compiled anew in mid-training.
@triton.jit(do_not_specialize=["count", "pairs"])
def sums(vectors, rest, count, pairs, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """rest (count,) float32 = sums of 2^<x_i, x_j> over j, own and partner's left out; vectors x (count, WIDTH)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    features = tl.arange(0, WIDTH)
    own = tl.load(vectors + rows[:, None] * WIDTH + features[None, :], mask=(rows < count)[:, None], other=0.0)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, count, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        places = vectors + columns[:, None] * WIDTH + features[None, :]
        others = tl.load(places, mask=(columns < count)[:, None], other=0.0)
        tile = _apart(tl.dot(own, tl.trans(others)), rows, columns, count, pairs)
        total += tl.sum(tl.exp2(tile), 1)
    tl.store(rest + rows, total, mask=rows < count)


@triton.jit(do_not_specialize=["count", "pairs"])
def gradients(vectors, factor, total, count, pairs, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """total (count, WIDTH) float32 = sums over j of 2^(<x_i, x_j> - 2) (factor_i + factor_j) x_j, of the same j.

    What multiplies x_j is rounded to the type of the vectors. For float16 its size must stay below 2^16: exponents up
    to 16 and factors up to 1 make 2^15. Typical ones, with exponents near 0, lie far above the smallest numbers.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    features = tl.arange(0, WIDTH)
    inside = rows < count
    own = tl.load(vectors + rows[:, None] * WIDTH + features[None, :], mask=inside[:, None], other=0.0)
    weight = tl.load(factor + rows, mask=inside, other=0.0)
    result = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, count, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        present = columns < count
        places = vectors + columns[:, None] * WIDTH + features[None, :]
        others = tl.load(places, mask=present[:, None], other=0.0)
        weights = weight[:, None] + tl.load(factor + columns, mask=present, other=0.0)[None, :]
        tile = _apart(tl.dot(own, tl.trans(others)), rows, columns, count, pairs)
        pulls = tl.exp2(tile - 2.0) * weights
        result = tl.dot(pulls.to(others.dtype), others, result)
    tl.store(total + rows[:, None] * WIDTH + features[None, :], result, mask=inside[:, None])
