"""The engine: a model's compiled functions, which take parameters as an argument."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from t5lite.errors import InputError
from t5lite.inference.answer import Answer
from t5lite.inference.embedding import EmbedRequest, embed
from t5lite.inference.generation import Draft, Generation
from t5lite.inference.predict import Predictor, PredictRequest, predict
from t5lite.inference.predictions import Prediction
from t5lite.inference.request import Request
from t5lite.inference.scoring import Score, ScoreRequest, score
from t5lite.inference.steps import Steps


@dataclasses.dataclass(frozen=True)
class Engine(Steps):
    """Compiled functions of a model, without parameters: others of the same shapes compile nothing.

    Functions compile at the first call of each size: prompts and outputs of up to 16, 32, 64, …
    tokens, batches of 1, 2, 4, … rows. Engines of an equal model, layout and mesh share them.
    `Steps` has the arguments, and the functions for one batch.
    """

    def generate(
        self,
        params: Any,
        requests: Sequence[Request],
        *,
        batch_size: int = 32,
        draft: Draft | str | None = None,
        draft_length: int = 4,
    ) -> list[list[Answer]]:
        """Answers requests: `num_samples` answers to each, in order, best or first drawn first.

        Args:
          params: prepared; others are prepared at each call.
          requests: of any options; those of like length and equal compiled function share a batch.
          batch_size, draft, draft_length: see `Loaded.generate`.
        Raises: InputError for numbers that are NaN or infinite, or rules that allow no token.
        """
        outcomes = self.outcomes(
            params, requests, batch_size=batch_size, draft=draft, draft_length=draft_length
        )
        for outcome in outcomes:
            if isinstance(outcome, InputError):
                raise outcome
        return outcomes  # type: ignore[return-value]

    def outcomes(
        self,
        params: Any,
        requests: Sequence[Request],
        *,
        batch_size: int = 32,
        draft: Draft | str | None = None,
        draft_length: int = 4,
    ) -> list[list[Answer] | InputError]:
        """Returns the answers of `generate` to each request, or its error."""
        generation = Generation(self, self.prepare(params), draft, draft_length)
        return generation.outcomes(requests, batch_size=batch_size)

    def stream(
        self,
        params: Any,
        request: Request,
        *,
        draft: Draft | str | None = None,
        draft_length: int = 4,
    ) -> Iterator[str]:
        """Returns the answer to a request in pieces, as they are generated; see `generate`.

        Raises: InputError, at the call, for an encoder, beam search or several samples.
        """
        options = request.options
        if self.model.topology == "encoder":
            raise InputError("an encoder fills gaps all at once: it cannot be streamed")
        for name, value, single in (
            ("fill", request.fill, False),
            ("num_beams", options.num_beams, 1),
            ("num_samples", options.num_samples, 1),
        ):
            if value != single:
                raise InputError(
                    f"{name} = {value}: an answer that is only complete at the end cannot be "
                    f"streamed; set {name} to {single}, or use generate",
                    field=name,
                )
        return Generation(self, self.prepare(params), draft, draft_length).pieces(request)

    # Other tasks, with parameters of `model`, not prepared.

    def score(
        self, params: Any, requests: Sequence[ScoreRequest], *, batch_size: int = 32
    ) -> list[Score | InputError]:
        """Returns the log-likelihood of each text; see `scoring.score`."""
        return score(self, params, requests, vocabulary=self.vocabulary, batch_size=batch_size)

    def embed(
        self, params: Any, requests: Sequence[EmbedRequest], *, batch_size: int = 32
    ) -> list[np.ndarray | InputError]:
        """Returns the vector `[size]` float32 of each text; see `embedding.embed`."""
        return embed(self, params, requests, batch_size=batch_size)

    def predict(
        self,
        params: Any,
        predictor: Predictor,
        requests: Sequence[PredictRequest],
        *,
        batch_size: int = 32,
    ) -> list[Prediction | InputError]:
        """Returns the prediction of a head for each text; see `predict.predict`."""
        return predict(self, params, predictor, requests, batch_size=batch_size)
