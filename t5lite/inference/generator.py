"""A model and the way in which it reads and answers texts: what commands call for every line."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from t5lite.errors import InputError
from t5lite.inference.answer import Answer
from t5lite.inference.generation import Draft
from t5lite.inference.loaded import Loaded, draft_of
from t5lite.inference.options import Options
from t5lite.inference.request import Reader, Request


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """Answers texts one by one or in batches, with the arguments of `Loaded.generate`.

    Args:
      loaded: the model, with a vocabulary.
      prompt, fill, truncate, draft, draft_length: see `Loaded.generate`.

    Raises:
      InputError: a model that cannot generate, no vocabulary, or a draft that does not fit.
    """

    loaded: Loaded
    prompt: str | None = None
    fill: bool = False
    truncate: bool = False
    draft: Loaded | str | None = None
    draft_length: int = 4

    def __post_init__(self) -> None:
        _ = self.reader

    @functools.cached_property
    def reader(self) -> Reader:
        """How texts are read."""
        return self.loaded.reader(
            prompt=self.prompt,
            fill=self.fill,
            truncate=self.truncate,
            draft=self.draft,
            draft_length=self.draft_length,
        )

    @property
    def _draft(self) -> Draft | str | None:
        return draft_of(self.draft)

    def options(self, chosen: Mapping[str, Any]) -> Options:
        """Returns options by name; see `Reader.options`."""
        return self.reader.options(chosen)

    def check(self, options: Options) -> None:
        """Raises the InputError that any text with such options raises, if it does."""
        self.reader.check(options)

    def read(self, text: str, options: Options | None = None, *, number: int = 0) -> Request:
        """Returns the request of a text; see `Request.from_text`."""
        return Request.from_text(text, self.reader, options, number=number)

    def read_ids(
        self, ids: Sequence[int], options: Options | None = None, *, number: int = 0, text: str = ""
    ) -> Request:
        """Returns the request of ids; see `Request.from_ids`."""
        return Request.from_ids(ids, self.reader, options, number=number, text=text)

    def streams(self, options: Options) -> bool:
        """Whether an answer can come in pieces."""
        several = options.num_beams > 1 or options.num_samples > 1
        return not (self.fill or several or self.loaded.model.topology == "encoder")

    def answers(self, requests: Sequence[Request], *, batch_size: int = 32) -> list[list[Answer]]:
        """Returns the answers to requests; see `Engine.generate`."""
        return self.loaded.engine.generate(
            self.loaded.decoding_params,
            requests,
            batch_size=batch_size,
            draft=self._draft,
            draft_length=self.draft_length,
        )

    def outcomes(
        self, requests: Sequence[Request], *, batch_size: int = 32
    ) -> list[list[Answer] | InputError]:
        """Does as `answers`, with an error in place of answers where there is one."""
        return self.loaded.engine.outcomes(
            self.loaded.decoding_params,
            requests,
            batch_size=batch_size,
            draft=self._draft,
            draft_length=self.draft_length,
        )

    def stream(self, request: Request) -> Iterator[str]:
        """Returns the answer to one request in pieces; see `Engine.stream`."""
        return self.loaded.engine.stream(
            self.loaded.decoding_params,
            request,
            draft=self._draft,
            draft_length=self.draft_length,
        )
