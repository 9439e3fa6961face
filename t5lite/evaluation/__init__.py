"""Callbacks that evaluate a run on held-out data: losses, metrics, generated text.

They evaluate `run.params(state)`, the averaged parameters where a run keeps an average.
"""

from t5lite.evaluation.held_out import HeldOut
from t5lite.evaluation.metrics import Means, collect
from t5lite.evaluation.samples import Samples
from t5lite.evaluation.seqio_metrics import SeqioMetrics
from t5lite.evaluation.span_filling import SpanFilling

__all__ = ["HeldOut", "Means", "Samples", "SeqioMetrics", "SpanFilling", "collect"]
