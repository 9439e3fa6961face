"""Layers: thin Linen shells over plain functions, each beside the spec that describes it."""

from t5lite.layers.attention import Attention, AttentionSpec
from t5lite.layers.cache import KeyValues, Slots
from t5lite.layers.dropout import Dropout, drop_residual
from t5lite.layers.embeddings import TokenEmbedding
from t5lite.layers.gradients import broadcast
from t5lite.layers.heads import (
    ClassificationHeadSpec,
    DenseSpec,
    EmbeddingHeadSpec,
    HeadSpec,
    LMHeadSpec,
    MaskedLMHeadSpec,
    PoolerHeadSpec,
    RegressionHeadSpec,
    ReplacedTokensHeadSpec,
    SpansHeadSpec,
    TokenLabelsHeadSpec,
)
from t5lite.layers.initializers import (
    FanInInitSpec,
    InitSpec,
    NormalInitSpec,
    SmallInitSpec,
    TruncatedNormalInitSpec,
)
from t5lite.layers.kernels import KERNELS, attended_saveable, attention
from t5lite.layers.kernels.request import Request
from t5lite.layers.masks import AttentionMask
from t5lite.layers.mlp import ACTIVATIONS, Mlp, MlpSpec
from t5lite.layers.moe import MoeSpec
from t5lite.layers.norms import (
    LayerNormSpec,
    NormSpec,
    RMSNorm,
    RMSNormSpec,
    layer_norm,
    rms_norm,
)
from t5lite.layers.pooling import POOLINGS, pool, unit_length
from t5lite.layers.position_biases import (
    AlibiSpec,
    PositionBiasSpec,
    RelativeBias,
    RelativeBiasSpec,
    alibi_slopes,
    relative_buckets,
    toeplitz,
)
from t5lite.layers.position_embeddings import (
    LearnedPositionsSpec,
    PositionEmbeddingSpec,
    SinusoidalPositionsSpec,
)
from t5lite.layers.projection import Projection, product
from t5lite.layers.rotary import (
    LinearScalingSpec,
    Llama3ScalingSpec,
    RotaryScalingSpec,
    RotarySpec,
    YarnScalingSpec,
    rotate,
)
from t5lite.layers.spec import Spec
from t5lite.layers.weights import (
    AdapterSpec,
    Affine,
    Leaf,
    Matrix,
    StorageSpec,
    Weights,
    parameter_path,
)

__all__ = [
    "ACTIVATIONS",
    "KERNELS",
    "POOLINGS",
    "AdapterSpec",
    "Affine",
    "AlibiSpec",
    "Attention",
    "AttentionMask",
    "AttentionSpec",
    "ClassificationHeadSpec",
    "DenseSpec",
    "Dropout",
    "EmbeddingHeadSpec",
    "FanInInitSpec",
    "HeadSpec",
    "InitSpec",
    "KeyValues",
    "LMHeadSpec",
    "LayerNormSpec",
    "Leaf",
    "LearnedPositionsSpec",
    "LinearScalingSpec",
    "Llama3ScalingSpec",
    "MaskedLMHeadSpec",
    "Matrix",
    "Mlp",
    "MlpSpec",
    "MoeSpec",
    "NormSpec",
    "NormalInitSpec",
    "PoolerHeadSpec",
    "PositionBiasSpec",
    "PositionEmbeddingSpec",
    "Projection",
    "RMSNorm",
    "RMSNormSpec",
    "RegressionHeadSpec",
    "RelativeBias",
    "RelativeBiasSpec",
    "ReplacedTokensHeadSpec",
    "Request",
    "RotaryScalingSpec",
    "RotarySpec",
    "SinusoidalPositionsSpec",
    "Slots",
    "SmallInitSpec",
    "SpansHeadSpec",
    "Spec",
    "StorageSpec",
    "TokenEmbedding",
    "TokenLabelsHeadSpec",
    "TruncatedNormalInitSpec",
    "Weights",
    "YarnScalingSpec",
    "alibi_slopes",
    "attended_saveable",
    "attention",
    "broadcast",
    "drop_residual",
    "layer_norm",
    "parameter_path",
    "pool",
    "product",
    "relative_buckets",
    "rms_norm",
    "rotate",
    "toeplitz",
    "unit_length",
]
