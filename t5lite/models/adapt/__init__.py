"""Adapting a trained model into another one: pure functions from a spec and its parameters."""

from t5lite.models.adapt.joining import join, to_encoder_decoder
from t5lite.models.adapt.parameters import repattern
from t5lite.models.adapt.upcycling import upcycle
from t5lite.models.adapt.vectors import vectors_from_text, with_vectors
from t5lite.models.adapt.vocabulary import extend_vocabulary, replace_vocabulary

__all__ = [
    "extend_vocabulary",
    "join",
    "repattern",
    "replace_vocabulary",
    "to_encoder_decoder",
    "upcycle",
    "vectors_from_text",
    "with_vectors",
]
