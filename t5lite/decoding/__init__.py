"""Generation from a step function and an explicit cache; no model class is known here."""

from t5lite.decoding.beam import Beams, beam_search
from t5lite.decoding.constraints import Constraints, pack_sequences
from t5lite.decoding.drafts import Draft, DraftMemory, ModelDraft, PromptLookup, Proposals
from t5lite.decoding.generate import Generated, State, StepFn, TopTokens, decode, generate, start
from t5lite.decoding.infilling import Infilled, infill
from t5lite.decoding.output import Output
from t5lite.decoding.sampling import Sampling, choose, filtered, token_log_probabilities
from t5lite.decoding.settings import LogitsFn, Settings
from t5lite.decoding.speculative import Speculation, speculate
from t5lite.decoding.stops import Stops, can_occur, stops_of, token_table

__all__ = [
    "Beams",
    "Constraints",
    "Draft",
    "DraftMemory",
    "Generated",
    "Infilled",
    "LogitsFn",
    "ModelDraft",
    "Output",
    "PromptLookup",
    "Proposals",
    "Sampling",
    "Settings",
    "Speculation",
    "State",
    "StepFn",
    "Stops",
    "TopTokens",
    "beam_search",
    "can_occur",
    "choose",
    "decode",
    "filtered",
    "generate",
    "infill",
    "pack_sequences",
    "speculate",
    "start",
    "stops_of",
    "token_log_probabilities",
    "token_table",
]
