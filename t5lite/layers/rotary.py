"""Rotary positions: queries and keys are rotated by an angle proportional to their position."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from t5lite.layers.spec import Spec, above, at_least, positive


class RotaryScalingSpec(Spec):
    """The base of frequency scalings for texts longer than in pre-training; subclass it."""

    def scaled(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """Returns `[n]` float64 frequencies (radians a position), from those of plain rotary."""
        raise NotImplementedError(f"{type(self).__name__}.scaled")

    @property
    def magnitude(self) -> float:
        """Factor on rotated queries and keys."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class LinearScalingSpec(RotaryScalingSpec):
    """Position interpolation: every frequency is divided by `factor`.

    Source: Chen et al. 2023, arXiv:2306.15595, §2.3.
    """

    factor: float = above(0)

    def scaled(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3ScalingSpec(RotaryScalingSpec):
    """Llama 3.1's: wavelengths above `original_length / low_frequency_factor` are stretched by
    `factor`, those below `original_length / high_frequency_factor` kept, others blended.

    Args:
      original_length: tokens in the longest texts of pre-training.
    Source: Llama Team 2024, arXiv:2407.21783, §3.4.2, and `apply_scaling` of the released code.
    """

    factor: float = above(0, 8.0)
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = positive(8192)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.high_frequency_factor > self.low_frequency_factor > 0,
            "high_frequency_factor",
            "above low_frequency_factor, and both above 0",
        )

    def scaled(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        low, high = self.low_frequency_factor, self.high_frequency_factor
        rotations = self.original_length * frequencies / (2 * math.pi)  # in a pre-training text
        share = np.clip((rotations - low) / (high - low), 0.0, 1.0)  # of the plain frequency
        return frequencies * (share + (1 - share) / self.factor)


@dataclasses.dataclass(frozen=True)
class YarnScalingSpec(RotaryScalingSpec):
    """YaRN: interpolation by parts of the spectrum, and warmer attention.

    Args:
      factor: by which texts are longer than in pre-training.
      original_length: tokens in the longest texts of pre-training.
      beta_fast: pairs with more rotations than this in such a text are kept.
      beta_slow: pairs with fewer are divided by `factor`.
      attention_factor: on rotated queries and keys; None for `0.1 ln(factor) + 1`.
      truncate: whether the borders between pairs are rounded outwards to whole pairs.
    Source: Peng et al. 2023, arXiv:2309.00071, §3.2 to §3.4, and the released code (for borders).
    """

    factor: float = at_least(1)
    original_length: int = positive(4096)
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = above(0, None)
    truncate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.beta_fast > self.beta_slow > 0, "beta_fast", "above beta_slow, and both above 0"
        )

    @property
    def magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0

    def scaled(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        half = len(frequencies)

        def pair_with(rotations: float) -> float:
            wavelength = self.original_length / (rotations * 2 * math.pi)
            return half * math.log(wavelength) / math.log(theta)

        first, last = pair_with(self.beta_fast), pair_with(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * half - 1)
        width = last - first if last > first else 0.001
        slow = np.clip((np.arange(half) - first) / width, 0.0, 1.0)
        return frequencies * (1 - slow) + frequencies / self.factor * slow


@dataclasses.dataclass(frozen=True)
class RotarySpec(Spec):
    """Rotation of each pair of a head's features by `position * theta**(-2i / size)`.

    Args:
      theta: the slowest pair rotates by about one radian in `theta` positions.
      fraction: of a head's features, counted from the first, that are rotated, in (0, 1]; a quarter
        in GPT-NeoX.
      scaling: of the frequencies, for longer texts; None for none.
    Source: Su et al. 2021, arXiv:2104.09864, §3.2.2.
    """

    theta: float = above(1, 10_000.0)
    fraction: float = 1.0
    scaling: RotaryScalingSpec | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < self.fraction <= 1, "fraction", "above 0 and at most 1")

    def size(self, head_dim: int) -> int:
        """Returns the number of rotated features of a head."""
        return int(head_dim * self.fraction)

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Returns `[size / 2]` float64: radians a position, of each pair."""
        half = self.size(head_dim) // 2
        plain = self.theta ** (-np.arange(half, dtype=np.float64) / half)
        return plain if self.scaling is None else self.scaling.scaled(plain, self.theta)


def rotate(
    x: Float[Array, "batch length heads head_dim"],
    positions: Int32[Array, "#batch length"],
    spec: RotarySpec,
) -> Float[Array, "batch length heads head_dim"]:
    """Rotates queries or keys, angles in float32; dot products then depend on distances alone.

    Feature i is paired with feature i + size / 2, as in LLaMA's published weights; the rotated part
    of each head has an even width. `positions` are those of tokens in their texts.
    """
    size = spec.size(x.shape[-1])
    frequencies = jnp.asarray(spec.frequencies(x.shape[-1]).astype(np.float32))
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None]
    magnitude = 1.0 if spec.scaling is None else spec.scaling.magnitude
    shape = (*x.shape[:-1], size // 2)
    sin, cos = (
        jnp.broadcast_to(fn(angles) * jnp.float32(magnitude), shape) for fn in (jnp.sin, jnp.cos)
    )
    rotary, rest = x[..., :size], x[..., size:]
    first, second = jnp.split(rotary.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*(part.astype(x.dtype) for part in rotated), rest], axis=-1)
