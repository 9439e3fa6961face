"""Generation from a step function and an explicit cache; no model class is known here."""

from t5lite.decoding.generate import Generated, StepFn, generate
from t5lite.decoding.sampling import choose, token_log_probabilities

__all__ = ["Generated", "StepFn", "choose", "generate", "token_log_probabilities"]
