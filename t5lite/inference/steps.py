"""One batch, step by step: prefill, decode, and requests that enter between two steps."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from t5lite.data import Vocabulary
from t5lite.decoding import Settings, State
from t5lite.errors import InputError
from t5lite.inference.answer import Answer, answer_of
from t5lite.inference.batching import bucket, num_rows
from t5lite.inference.functions import Functions, functions_of, prepare_of
from t5lite.inference.request import Request
from t5lite.inference.settings import settings_of
from t5lite.inference.sizes import longest_output, prompt_limit, prompts_of
from t5lite.models import Model
from t5lite.parallel import Layout

TO_THE_END = np.int32(np.iinfo(np.int32).max)


@dataclasses.dataclass(frozen=True)
class Steps:
    """The compiled steps of generation: what an engine and a server call for one batch.

    Args:
      vocabulary: of the token ids; None for a model that reads no text.
      layout: how parameters and batches are sharded over `mesh`.
    """

    model: Model
    vocabulary: Vocabulary | None = dataclasses.field(compare=False)
    layout: Layout
    mesh: Mesh

    @property
    def functions(self) -> Functions:
        """The compiled functions."""
        return functions_of(self.model, self.layout, self.mesh)

    def prepare(self, params: Any, *, dtype: Any = None) -> Any:
        """Returns parameters as decoding reads them: an array per layer, sharded by `layout`.

        Decode steps would otherwise slice the stacked layers at every token. The result is a second
        copy of the layers, freed when the caller drops it: scoring, embedding and training read the
        stacked ones, which cannot be donated. Only `prefill`, `decode` and `generate` need it;
        `generate` prepares other parameters at each call, and frees the copy at its end.

        Args:
          params: of `model`, on any mesh of these devices.
          dtype: to cast to; None for that of each array.
        """
        if dtype is not None:
            params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        if self.model.spec.decoder is None or self._is_prepared(params):
            return params
        return prepare_of(self.model, self.layout, self.mesh)(params)

    def _is_prepared(self, params: Any) -> bool:
        for side in ("encoder", "decoder"):
            stack = getattr(self.model.spec, side)
            if stack is not None and stack.num_periods and not stack.shared_layers:
                return "layers" not in params[side]
        return True

    def prefill(
        self,
        params: Any,
        requests: Sequence[Request],
        *,
        cache_length: int,
        capacity: int | None = None,
        rows: int | None = None,
        num_top: int = 0,
    ) -> State:
        """Reads the prompts of requests, one row each.

        Args:
          params: prepared.
          requests: at least one.
          cache_length: decoder tokens of a row in the cache: a prompt with its start token, and the
            output. Rows of equal cache length can be inserted into each other's batches.
          capacity: most tokens generated a row; None for the longest request's.
          rows: of the batch, at least as many as requests; None for the next of few sizes.
          num_top: most probable tokens recorded at each step.
        Raises: InputError if a request does not fit the cache.
        """
        limit = prompt_limit(self.model, requests, cache_length)
        batch = prompts_of(self, requests, limit=limit, rows=rows)
        width = batch["decoder_input_tokens"].shape[1] if "decoder_lengths" in batch else 1
        if capacity is None:
            capacity = bucket(longest_output(requests), cache_length - width + 1)
        return self.functions.prefill(
            params, batch, cache_length=cache_length, capacity=capacity, num_top=num_top
        )

    def settings(
        self, requests: Sequence[Request], *, rows: int | None = None, repeat: int = 1
    ) -> Settings:
        """Returns the settings of requests of equal `rules` and `logits_fn`: `repeat` rows of each,
        side by side, padded to `rows` requests; None for the next of few sizes."""
        return settings_of(
            requests,
            rows=num_rows(len(requests), self.layout, self.mesh) if rows is None else rows,
            vocab=self.model.spec.vocab,
            vocabulary=self.vocabulary,
            repeat=repeat,
        )

    def decode(
        self, params: Any, state: State, settings: Settings, *, steps: int | None = None
    ) -> State:
        """Appends at most `steps` tokens to each row; None: generates to the end.

        Args:
          params: prepared.
          state: as `prefill`, `insert` or `decode` returned it; donated.
          steps: traced, so that other numbers compile nothing.
        """
        count = TO_THE_END if steps is None else np.int32(steps)
        return self.functions.decode(params, state, settings, count)[0]

    def insert(self, running: Any, rows: Sequence[int], new: Any) -> Any:
        """Replaces whole rows of a running batch, so that requests enter it between two steps.

        Args:
          running: a `State`, donated, or its `Settings`.
          rows: the replaced rows; those out of range are dropped.
          new: a state or settings of `len(rows)` rows.
        Raises: InputError if cache lengths differ, or prompts, outputs or rules exceed the room.
        """
        functions, indices = self.functions, np.asarray(rows, np.int32)
        if isinstance(running, Settings):
            return functions.insert_settings(running, indices, new)
        return functions.insert(running, indices, new)

    def answers(self, requests: Sequence[Request], state: State) -> list[Answer]:
        """Returns the answers to requests in the first rows of a state, one row each."""
        generated = jax.device_get(state.generated)
        return [
            answer_of(request, generated, row, self.vocabulary)
            for row, request in enumerate(requests)
        ]

    @property
    def words(self) -> Vocabulary:
        """The vocabulary; an InputError if there is none."""
        if self.vocabulary is None:
            raise InputError("the engine has no vocabulary, which text needs")
        return self.vocabulary
