"""Generation from a step function and an explicit cache; no model class is known here."""

from t5lite.decoding.beam import Beams, beam_search
from t5lite.decoding.constraints import Constraints, pack_sequences
from t5lite.decoding.generate import Generated, State, StepFn, advance, begin, generate
from t5lite.decoding.infilling import Infilled, infill
from t5lite.decoding.sampling import Sampling, choose, filtered, token_log_probabilities
from t5lite.decoding.settings import LogitsFn, Settings
from t5lite.decoding.speculative import (
    Draft,
    DraftMemory,
    ModelDraft,
    PromptLookup,
    Proposals,
    Speculation,
    speculate,
)
from t5lite.decoding.stops import Stops, stop_table
from t5lite.decoding.written import Written

__all__ = [
    "Beams",
    "Constraints",
    "Draft",
    "DraftMemory",
    "Generated",
    "Infilled",
    "LogitsFn",
    "ModelDraft",
    "PromptLookup",
    "Proposals",
    "Sampling",
    "Settings",
    "Speculation",
    "State",
    "StepFn",
    "Stops",
    "Written",
    "advance",
    "beam_search",
    "begin",
    "choose",
    "filtered",
    "generate",
    "infill",
    "pack_sequences",
    "speculate",
    "stop_table",
    "token_log_probabilities",
]
