"""Objectives: what a model is trained to do. Each turns text into batches, and a batch into sums.

`base` says what an objective is and how to write one; the other files are one objective each.
"""

from t5lite.objectives.base import (
    Model,
    Objective,
    TokenCrossEntropy,
    Vocabulary,
    encoder_decoder_batch,
    end_with_eos,
)
from t5lite.objectives.losses import (
    TokenLosses,
    chunked_cross_entropy,
    cross_entropy,
    normalized_weights,
)
from t5lite.objectives.seq2seq import Seq2Seq
from t5lite.objectives.span_corruption import SpanCorruption, marked_text, merge, spans

__all__ = [
    "Model",
    "Objective",
    "Seq2Seq",
    "SpanCorruption",
    "TokenCrossEntropy",
    "TokenLosses",
    "Vocabulary",
    "chunked_cross_entropy",
    "cross_entropy",
    "encoder_decoder_batch",
    "end_with_eos",
    "marked_text",
    "merge",
    "normalized_weights",
    "spans",
]
