"""Layers: thin Linen shells over plain functions, each beside the spec that describes it."""

from t5lite.layers.attention import Attention, AttentionSpec, dot_product_attention
from t5lite.layers.cache import KeyValues
from t5lite.layers.embeddings import TokenEmbedding
from t5lite.layers.masks import causal_mask, padding_mask, segment_mask
from t5lite.layers.mlp import ACTIVATIONS, Mlp, MlpSpec
from t5lite.layers.norms import NormSpec, RMSNorm, RMSNormSpec, rms_norm
from t5lite.layers.positions import RelativeBias, RelativeBiasSpec, relative_buckets, toeplitz
from t5lite.layers.projection import projection
from t5lite.layers.spec import Spec

__all__ = [
    "ACTIVATIONS",
    "Attention",
    "AttentionSpec",
    "KeyValues",
    "Mlp",
    "MlpSpec",
    "NormSpec",
    "RMSNorm",
    "RMSNormSpec",
    "RelativeBias",
    "RelativeBiasSpec",
    "Spec",
    "TokenEmbedding",
    "causal_mask",
    "dot_product_attention",
    "padding_mask",
    "projection",
    "relative_buckets",
    "rms_norm",
    "segment_mask",
    "toeplitz",
]
