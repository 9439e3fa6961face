"""ALBERT."""

import functools
from typing import Any

from t5lite.models.presets.bert import bert
from t5lite.models.spec import ModelSpec


def albert(*, embedding_size: int = 128, vocab: int = 30000, **sizes: Any) -> ModelSpec:
    """Returns an ALBERT: a BERT whose layers are one, and whose token embedding is narrow.

    Args:
      embedding_size: of the token embedding.
      vocab: rows of it.
      sizes: arguments of `bert`.

    Source: Lan et al. 2019, arXiv:1909.11942, §3.1 and table 1, and the authors' `modeling.py`,
      whose GELU is the tanh-approximated one.
    """
    spec = bert(**sizes, vocab=vocab, activation="gelu_tanh")
    assert spec.encoder is not None
    encoder = spec.encoder.replace(shared_layers=True)
    return spec.replace(family="albert", embedding_size=embedding_size, encoder=encoder)


_base = functools.partial(albert, embed=768, num_layers=12, num_heads=12, hidden=3072)
_large = functools.partial(albert, embed=1024, num_layers=24, num_heads=16, hidden=4096)
_xlarge = functools.partial(albert, embed=2048, num_layers=24, num_heads=16, hidden=8192)
_xxlarge = functools.partial(albert, embed=4096, num_layers=12, num_heads=64, hidden=16384)

# v2 (the authors' README) was trained longer, on more data, and without dropout, as v1's xxlarge
# had been.
PRESETS: dict[str, ModelSpec] = {
    "albert_base_v1": _base(dropout_rate=0.1),
    "albert_large_v1": _large(dropout_rate=0.1),
    "albert_xlarge_v1": _xlarge(dropout_rate=0.1),
    "albert_xxlarge_v1": _xxlarge(dropout_rate=0.0),
    "albert_base_v2": _base(dropout_rate=0.0),
    "albert_large_v2": _large(dropout_rate=0.0),
    "albert_xlarge_v2": _xlarge(dropout_rate=0.0),
    "albert_xxlarge_v2": _xxlarge(dropout_rate=0.0),
}
