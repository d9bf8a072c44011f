"""Counter-based random numbers: pure functions of seed, purpose, step and micro-batch.

They are derived from raw words of the Philox generator (Salmon et al. 2011), keyed by seed and
purpose and counted by step and micro-batch. numpy may change its distributions but not the raw
words. There is no generator state to save.
"""

import hashlib
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
SPLITMIX_INCREMENT = np.uint64(0x9E3779B97F4A7C15)  # added to splitmix64's state per output


@lru_cache(maxsize=256)
def _purpose_key(purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")


def random_words(seed: int, purpose: str, a: int, b: int, count: int) -> NDArray[np.uint64]:
    """`count` random 64-bit words for (seed, purpose, a, b)."""
    counter = np.array([0, 0, b, a], dtype=np.uint64)
    key = np.array([seed, _purpose_key(purpose)], dtype=np.uint64)
    return np.random.Philox(counter=counter, key=key).random_raw(count)


def uniform(seed: int, purpose: str, a: int, b: int, shape: tuple[int, ...]) -> Floats:
    """Uniform float32 numbers in [0, 1) with 24 random bits each."""
    raw = random_words(seed, purpose, a, b, math.prod(shape))
    # Through int32, from which processors convert many numbers at a time
    numbers = (raw >> np.uint64(40)).astype(np.int32).astype(np.float32)
    numbers *= np.float32(2.0**-24)
    return numbers.reshape(shape)


def random_bits(seed: int, purpose: str, counters: Indices) -> NDArray[np.bool_]:
    """A fair random bit for each counter, independent of order and of the other counters.

    The highest bit of splitmix64's output at that counter; the state starts at a word of (seed,
    purpose).
    """
    (start,) = random_words(seed, purpose, 0, 0, 1)
    states = start + counters.astype(np.uint64) * SPLITMIX_INCREMENT
    return (_splitmix(states) >> np.uint64(63)).astype(np.bool_)


def permute(positions: Indices, size: int, seed: int, epoch: int) -> Indices:
    """The items at `positions` of a random permutation of `size` items, keyed by (seed, epoch).

    A keyed bijection on [0, size) that needs no permutation in memory: a generalised Feistel
    network of eight rounds on a x b >= size values (Black and Rogaway 2002), applied repeatedly
    until the value is below `size`. As a x b exceeds `size` by less than b, almost every value is
    at once.
    """
    b = math.isqrt(max(size - 1, 0)) + 1
    a = -(-size // b)
    keys = random_words(seed, "order", epoch, 0, 8)
    values = _feistel(positions.astype(np.uint64), a, b, keys)
    while (outside := values >= size).any():
        values[outside] = _feistel(values[outside], a, b, keys)
    return values.astype(np.int64)


def permute_each(positions: Indices, sizes: Indices, orders: Indices, seed: int) -> Indices:
    """As `permute`, with a permutation for each position: of `sizes` items, numbered by `orders`.

    All (n,). The keys of a permutation are outputs of splitmix64 at states given by its number.
    """
    b = np.sqrt(np.maximum(sizes - 1, 0)).astype(np.uint64) + np.uint64(1)
    size = sizes.astype(np.uint64)
    a = (size + b - np.uint64(1)) // b
    start = random_words(seed, "orders", 0, 0, 8)[:, None]
    keys = _splitmix(
        _splitmix(start + orders.astype(np.uint64) * SPLITMIX_INCREMENT) + SPLITMIX_INCREMENT
    )
    values = _feistel(positions.astype(np.uint64), a, b, keys)
    while (out := values >= size).any():
        values[out] = _feistel(values[out], a[out], b[out], keys[:, out])
    return values.astype(np.int64)


def _feistel(
    values: NDArray[np.uint64],
    a: int | NDArray[np.uint64],
    b: int | NDArray[np.uint64],
    keys: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    """Adds a hash of the other half to each half in turn, modulo the half's range.

    keys (8,), or (8, n) with `a` and `b` (n,) for separate keys per value.
    """
    tall, wide = np.asarray(a, np.uint64), np.asarray(b, np.uint64)
    left = values // wide
    right = values - left * wide
    for even, odd in zip(keys[::2], keys[1::2], strict=True):
        left += _splitmix(right ^ even) >> np.uint64(32)
        left -= left // tall * tall  # numpy vectorises // but not %
        right += _splitmix(left ^ odd) >> np.uint64(32)
        right -= right // wide * wide
    return left * wide + right


def _splitmix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014); products wrap around."""
    mixed = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
