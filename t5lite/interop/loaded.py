"""A trained model with its parameters and vocabulary, as `load` returns it: text in, text out."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5lite.data import Vocabulary
from t5lite.errors import InputError, unknown
from t5lite.interop.answers import answer, prompt_batch
from t5lite.interop.foreign import check_dtype
from t5lite.interop.gaps import encode, fill_in
from t5lite.layers import pool, unit_length
from t5lite.models import ComputeSpec, Model, ModelSpec
from t5lite.parallel import Layout, batch_sharding, make_mesh, with_layout

PROMPTS = ("inputs", "continue", "prefix")  # what a text is to a model: see `generate`
_SHORTEST = 16  # inputs are padded to a power of two from here on


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Loaded:
    """A trained model, as `load` returns it.

    Args:
      model: pure functions.
      params: for them: averaged ones where the run kept an average; placed on `mesh`.
      vocabulary: of the token ids; None where none was saved.
      step: updates done; None where the folder does not say.
      folder: where it came from; of t5lite the step folder.
      layout: how arrays are sharded over `mesh`.
      mesh: the devices.
    """

    model: Model
    params: Any
    vocabulary: Vocabulary | None
    step: int | None
    folder: epath.Path
    layout: Layout
    mesh: Mesh

    @property
    def spec(self) -> ModelSpec:
        """The architecture."""
        return self.model.spec

    def generate(
        self,
        texts: Sequence[str],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 32,
        fill: bool = False,
        prompt: str | None = None,
    ) -> list[str]:
        """Answers texts, or continues them if the model is a decoder.

        Compiles once for each `max_new_tokens`, for inputs of up to 16, 32, 64, … tokens, and for
        batches of 1, 2, 4, … texts: others of such sizes then run at once.

        Args:
          texts: `<extra_id_0>`, `<extra_id_1>`, … in them are T5's sentinels: gaps to be filled in
            by a model trained on span corruption.
          max_new_tokens: most tokens of an answer, its EOS included.
          temperature: 0 is greedy; above, tokens are drawn from softmax(logits / temperature).
          seed: of the draws; the same texts, `batch_size` and seed give the same answers.
          batch_size: most texts decoded together.
          fill: whether to return the texts with their gaps filled in, rather than the answers. A
            gap that the answer does not mention stays as it is.
          prompt: what a text is to the model. `inputs`: a whole text, ended with EOS, as in
            training on inputs and targets (an encoder-decoder's default). `continue`: a beginning
            (a decoder's default). `prefix`: a beginning that is seen in both directions, for models
            trained on prefixes.

        Returns:
          One text for each, in order.

        Raises:
          InputError: the model is an encoder, no vocabulary, no text, an unknown sentinel, or an
            option out of range.
        """
        return list(
            self.stream(
                texts,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
                batch_size=batch_size,
                fill=fill,
                prompt=prompt,
            )
        )

    def stream(
        self,
        texts: Sequence[str],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 32,
        fill: bool = False,
        prompt: str | None = None,
    ) -> Iterator[str]:
        """Yields what `generate` returns, each text as soon as its batch is decoded."""
        topology = self.model.topology
        if topology == "encoder":
            raise InputError(f"{self.folder} holds an encoder, which cannot write text")
        if "lm" not in self.model.heads:
            raise InputError(
                f"{self.folder} holds a model without a head for tokens, which cannot write text; "
                f"it has {', '.join(self.model.heads) or 'none'}"
            )
        if prompt is None:
            prompt = "inputs" if topology == "encoder_decoder" or fill else "continue"
        if prompt not in PROMPTS:
            raise unknown("prompt", prompt, PROMPTS)
        if self.vocabulary is None:
            raise InputError(
                f"no vocabulary/ beside {self.folder}; give one: load(folder, vocabulary=...)"
            )
        if isinstance(texts, str):
            raise InputError("texts is one string; put it in a list: [text]")
        if not texts:
            raise InputError("texts is empty; give at least one text")
        _check_count("max_new_tokens", max_new_tokens)
        _check_count("batch_size", batch_size)
        if not (math.isfinite(temperature) and temperature >= 0):
            raise InputError(f"temperature = {temperature!r}: must be 0 (greedy) or above")
        if fill and not self.vocabulary.num_sentinels:
            raise InputError("fill needs sentinels, and the model's vocabulary has none")
        inputs = [encode(text, self.vocabulary) for text in texts]
        if prompt == "inputs":  # what ends with EOS has no continuation
            decoder = topology == "decoder"
            eos_id, frame = self.vocabulary.eos_id, self.vocabulary.frame
            inputs = [[*ids, eos_id] if decoder else frame(ids) for ids in inputs]
        both_ways = prompt != "continue"
        answers = self._answers(inputs, max_new_tokens, temperature, seed, batch_size, both_ways)
        return (
            self.vocabulary.decode(fill_in(ids, answer, self.vocabulary) if fill else answer)
            for ids, answer in zip(inputs, answers, strict=True)
        )

    def embed(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        truncate: bool = False,
    ) -> np.ndarray:
        """Returns a vector for each text.

        They are what the model's embedding head says; without one, the mean of the last hidden
        states over the text's tokens, special ones included, at length 1.

        Args:
          texts: to embed.
          batch_size: most texts at once.
          max_length: most tokens of a text, special ones included; None for as many as the model
            has positions for. sentence-transformers has its own in sentence_bert_config.json.
          truncate: whether longer texts lose their end; otherwise they are refused.

        Returns:
          `[len(texts), size]` float32.

        Raises:
          InputError: an encoder-decoder, no vocabulary, no text, one that is too long, or an
            option out of range.
        """
        if self.model.topology == "encoder_decoder":
            raise InputError(f"{self.folder} holds an encoder-decoder: embed is for single stacks")
        if self.vocabulary is None:
            raise InputError(
                f"no vocabulary beside {self.folder}; give one: load(folder, vocabulary=...)"
            )
        if isinstance(texts, str) or not texts:
            raise InputError("texts must be a list of at least one text")
        _check_count("batch_size", batch_size)
        ids = self._framed(texts, max_length, truncate)
        vectors = []
        for start in range(0, len(ids), batch_size):
            rows = ids[start : start + batch_size]
            vectors.append(np.asarray(self._embed(self.params, self._rows(rows)))[: len(rows)])
        return np.concatenate(vectors)

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        step = "" if self.step is None else f", step {self.step:,}"
        return (
            f"Loaded({self.spec.family}, {count:,} parameters{step},\n       {str(self.folder)!r})"
        )

    def _answers(
        self,
        inputs: Sequence[list[int]],
        max_new_tokens: int,
        temperature: float,
        seed: int,
        batch_size: int,
        both_ways: bool,
    ) -> Iterator[np.ndarray]:
        """Yields `[max_new_tokens]` int32 for each of the inputs."""
        for start in range(0, len(inputs), batch_size):
            rows = inputs[start : start + batch_size]
            key = jax.random.fold_in(jax.random.key(seed), start)
            heat = np.float32(temperature) if temperature else None
            batch = self._batch(rows, max_new_tokens, both_ways)
            answers = self._answer(self.params, batch, key, heat, max_new_tokens)
            yield from jax.device_get(answers)[: len(rows)]

    def _batch(
        self, rows: Sequence[list[int]], max_new_tokens: int, both_ways: bool
    ) -> dict[str, np.ndarray]:
        """Returns prompts in few sizes, so that there are few compilations."""
        longest = max(map(len, rows))
        length = max(_SHORTEST, _power_of_two(longest))
        # Padding up to a power of two must not ask for more positions than there are.
        stack = self.spec.encoder or self.spec.decoder
        room = stack.max_length if stack is not None else None
        if room is not None:
            beyond = max_new_tokens if self.spec.encoder is None else 0
            length = max(longest, min(length, room - beyond))
        return prompt_batch(
            self.model.topology,
            rows,
            num_rows=self._num_rows(len(rows)),
            length=length,
            prefix=both_ways,
            start_id=self.spec.start_id,
        )

    def _num_rows(self, count: int) -> int:
        """Returns a number of rows, of few, that the layout can share out."""
        size = self.mesh.size
        shares = size // batch_sharding(self.layout, self.mesh).shard_shape((size, size))[0]
        return -(-_power_of_two(count) // shares) * shares

    def _framed(
        self, texts: Sequence[str], max_length: int | None, truncate: bool
    ) -> list[list[int]]:
        """Returns the ids of texts with what the vocabulary puts around them."""
        assert self.vocabulary is not None
        stack = self.spec.encoder or self.spec.decoder
        assert stack is not None
        around = len(self.vocabulary.frame([]))
        room = stack.max_length
        if max_length is not None:
            _check_count("max_length", max_length)
            if max_length <= around or (room is not None and max_length > room):
                most = "" if room is None else f" and at most {room}, the model's positions"
                raise InputError(f"max_length = {max_length}: must be at least {around + 1}{most}")
            room = max_length
        ids = []
        for text in texts:
            tokens = self.vocabulary.encode(text)
            if room is not None and len(tokens) > room - around:
                if not truncate:
                    raise InputError(
                        f"a text of {len(tokens) + around} tokens: there is room for {room}; "
                        "shorten it, or set truncate=True"
                    )
                tokens = tokens[: room - around]
            ids.append(self.vocabulary.frame(tokens))
        return ids

    def _rows(self, rows: Sequence[list[int]]) -> dict[str, np.ndarray]:
        """Returns texts for a single stack, in few sizes."""
        stack = self.spec.encoder or self.spec.decoder
        assert stack is not None
        longest = max(map(len, rows))
        length = max(_SHORTEST, _power_of_two(longest))
        if stack.max_length is not None:
            length = max(longest, min(length, stack.max_length))
        tokens = np.zeros((self._num_rows(len(rows)), length), np.int32)
        segments = np.zeros_like(tokens)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
        side = self.model.topology
        return {f"{side}_input_tokens": tokens, f"{side}_segment_ids": segments}

    @functools.cached_property
    def _embed(self) -> Callable:
        """The compiled function: `(params, batch) -> [batch, size]`."""
        model = self.model
        head = model.heads.get("embedding")

        def embed(params: Any, batch: Any) -> jax.Array:
            hidden, _ = model.hidden(params, batch)
            valid = batch[f"{model.topology}_segment_ids"] > 0
            if head is not None:
                return model.output(params, "embedding", hidden, valid)
            return unit_length(pool(hidden, valid, "mean"))

        whole = NamedSharding(self.mesh, PartitionSpec())
        return with_layout(embed, self.layout, self.mesh, out_shardings=whole)

    @functools.cached_property
    def _answer(self) -> Callable:
        """The compiled function: `(params, batch, key, temperature or None, max_new_tokens)`."""
        model, vocabulary = self.model, self.vocabulary
        assert vocabulary is not None
        known = np.arange(model.spec.vocab) < vocabulary.size  # the embedding may be padded

        def answers(
            params: Any,
            batch: Any,
            key: jax.Array,
            temperature: jax.Array | None,
            max_new_tokens: int,
        ) -> jax.Array:
            return answer(
                model,
                params,
                batch,
                max_new_tokens=max_new_tokens,
                eos_id=vocabulary.eos_id,
                temperature=0.0 if temperature is None else temperature,
                rng=key,
                logits_fn=lambda logits, *_: jnp.where(known[None], logits, -jnp.inf),
            ).tokens

        whole = NamedSharding(self.mesh, PartitionSpec())  # so that any process can read it
        return with_layout(answers, self.layout, self.mesh, static_argnums=4, out_shardings=whole)


def place(
    found: Any,
    *,
    compute: ComputeSpec = ComputeSpec(),
    layout: Layout | None = None,
    devices: Sequence[jax.Device] | None = None,
    dtype: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> Loaded:
    """Reads the parameters of an opened checkpoint onto devices.

    Args:
      found: a `Foreign`, or anything with its `spec`, `vocabulary`, `step`, `where` and `params`.
      compute, layout, devices, dtype, progress: see `load`.
    """
    check_dtype(dtype)
    layout = Layout() if layout is None else layout
    mesh = make_mesh(layout, devices)
    model, vocabulary = Model(found.spec, compute), found.vocabulary
    if vocabulary is not None and vocabulary.size > model.spec.vocab:
        raise InputError(
            f"the vocabulary has {vocabulary.size} ids but the model of {found.where} only "
            f"{model.spec.vocab} embeddings: it is another model's"
        )
    params = found.params(model, layout=layout, mesh=mesh, dtype=dtype, progress=progress)
    return Loaded(model, params, vocabulary, found.step, epath.Path(found.where), layout, mesh)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} = {value!r}: must be a whole number of at least 1")


def _power_of_two(size: int) -> int:
    """Returns the least power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()
