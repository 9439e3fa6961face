"""Objectives: what a model is trained to do. Each turns text into batches, and a batch into sums.

`base` has the contract and how to write one.
"""

from t5lite.objectives.answer_spans import AnswerSpans
from t5lite.objectives.base import Model, Objective, Vocabulary, bind
from t5lite.objectives.causal_lm import CausalLM
from t5lite.objectives.classification import Classification
from t5lite.objectives.contrastive import Contrastive
from t5lite.objectives.head_objective import HeadObjective
from t5lite.objectives.inputs_to_targets import InputsToTargets
from t5lite.objectives.losses import (
    TokenLosses,
    chunked,
    chunked_cross_entropy,
    cross_entropy,
    normalized_weights,
)
from t5lite.objectives.masked_lm import MaskedLM
from t5lite.objectives.prefix_lm import PrefixLM
from t5lite.objectives.prompts import PROMPTS, Frames, Prompt, Prompts, frames_of, start_of
from t5lite.objectives.regression import Regression
from t5lite.objectives.rows import (
    decoder_batch,
    encoder_decoder_batch,
    join_pair,
    prefix_lm_batch,
    split_pair,
    with_segments,
)
from t5lite.objectives.seq2seq import Seq2Seq
from t5lite.objectives.span_corruption import SpanCorruption, marked_text, merge, spans
from t5lite.objectives.token_cross_entropy import TokenCrossEntropy
from t5lite.objectives.token_labels import TokenLabels
from t5lite.rows import RowSpec

__all__ = [
    "PROMPTS",
    "AnswerSpans",
    "CausalLM",
    "Classification",
    "Contrastive",
    "Frames",
    "HeadObjective",
    "InputsToTargets",
    "MaskedLM",
    "Model",
    "Objective",
    "PrefixLM",
    "Prompt",
    "Prompts",
    "Regression",
    "RowSpec",
    "Seq2Seq",
    "SpanCorruption",
    "TokenCrossEntropy",
    "TokenLabels",
    "TokenLosses",
    "Vocabulary",
    "bind",
    "chunked",
    "chunked_cross_entropy",
    "cross_entropy",
    "decoder_batch",
    "encoder_decoder_batch",
    "frames_of",
    "join_pair",
    "marked_text",
    "merge",
    "normalized_weights",
    "prefix_lm_batch",
    "spans",
    "split_pair",
    "start_of",
    "with_segments",
]
