"""Callbacks that look at a run's model on held-out data, in numbers and in text."""

from t5lite.evaluation.held_out import HeldOut
from t5lite.evaluation.metrics import Means, collect
from t5lite.evaluation.samples import Samples
from t5lite.evaluation.seqio_metrics import SeqioMetrics
from t5lite.evaluation.span_filling import SpanFilling

__all__ = ["HeldOut", "Means", "Samples", "SeqioMetrics", "SpanFilling", "collect"]
