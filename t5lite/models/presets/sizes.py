"""The sizes of a published architecture, as its paper's table has them."""

import dataclasses
from typing import Any

from t5lite.layers import AttentionSpec, MlpSpec


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Numbers and widths of all stacks; a hidden width of None is 4 × `embed`."""

    embed: int
    num_layers: int
    num_heads: int
    hidden: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None  # None: `embed / num_heads`

    def attention(self, **options: Any) -> AttentionSpec:
        head_dim = self.head_dim or self.embed // self.num_heads
        return AttentionSpec(self.num_heads, head_dim, self.num_kv_heads, **options)

    def mlp(self, activation: str, **options: Any) -> MlpSpec:
        return MlpSpec(self.hidden or 4 * self.embed, activation, **options)


BASE, LARGE = Sizes(768, 12, 12), Sizes(1024, 24, 16)
