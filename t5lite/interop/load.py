"""Opens a checkpoint folder: text in, text out, without a configuration and without TensorFlow."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5lite.data import Vocabulary, load_vocabulary
from t5lite.errors import InputError, unknown
from t5lite.interop.answers import answer, prompt_batch
from t5lite.interop.gaps import encode, fill_in
from t5lite.models import ComputeSpec, Model, ModelSpec, load_spec
from t5lite.parallel import Layout, batch_sharding, make_mesh, shardings, with_layout
from t5lite.training.restore import (
    absolute,
    find_step_folder,
    load_params,
    read_arrays,
    saved_arrays,
)

PROMPTS = ("inputs", "continue", "prefix")  # what a text is to a model: see `generate`
_SHORTEST = 16  # inputs are padded to a power of two from here on


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Loaded:
    """A trained model, as `load` returns it.

    Args:
      model: pure functions.
      params: for them: averaged ones where the run kept an average; placed on `mesh`.
      vocabulary: of the token ids; None where none was saved.
      step: updates done.
      folder: the step folder it came from.
      layout: how arrays are sharded over `mesh`.
      mesh: the devices.
    """

    model: Model
    params: Any
    vocabulary: Vocabulary | None
    step: int
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
        for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} = {value!r}: must be a whole number of at least 1")
        if not (math.isfinite(temperature) and temperature >= 0):
            raise InputError(f"temperature = {temperature!r}: must be 0 (greedy) or above")
        if fill and not self.vocabulary.num_sentinels:
            raise InputError("fill needs sentinels, and the model's vocabulary has none")
        inputs = [encode(text, self.vocabulary) for text in texts]
        if prompt != "inputs":
            inputs = [ids[:-1] for ids in inputs]  # what ends with EOS has no continuation
        both_ways = prompt != "continue"
        answers = self._answers(inputs, max_new_tokens, temperature, seed, batch_size, both_ways)
        return (
            self.vocabulary.decode(fill_in(ids, answer, self.vocabulary) if fill else answer)
            for ids, answer in zip(inputs, answers, strict=True)
        )

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return (
            f"Loaded({self.spec.family}, {count:,} parameters, step {self.step:,},\n"
            f"       {str(self.folder)!r})"
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
        size = self.mesh.size
        shares = size // batch_sharding(self.layout, self.mesh).shard_shape((size, size))[0]
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
            num_rows=-(-_power_of_two(len(rows)) // shares) * shares,
            length=length,
            prefix=both_ways,
        )

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


def load(
    folder: epath.PathLike,
    *,
    compute: ComputeSpec = ComputeSpec(),
    layout: Layout = Layout(),
    vocabulary: Vocabulary | None = None,
) -> Loaded:
    """Opens a trained model: `t5lite.load("runs/quickstart").generate(["..."])`.

    Args:
      folder: a model_dir or its checkpoints folder (the newest step is read), or one step folder;
        local, `gs://` or `s3://`. `model.json` and `vocabulary/` lie in it or in a folder above.
      compute: dtype and so on, which need not be those of training.
      layout: how parameters and batches are spread over all devices; by default a whole copy of
        the parameters on each.
      vocabulary: instead of the saved one.

    Returns:
      The model with its parameters: the averaged ones if the run kept an average.

    Raises:
      InputError: no such folder, no checkpoint, no model.json, or one that does not describe the
        checkpoint.
      CheckpointError: if the checkpoint is damaged.
    """
    found = locate(folder)
    model = Model(load_spec(found.home / "model.json"), compute)
    if vocabulary is None and (found.home / "vocabulary").exists():
        vocabulary = load_vocabulary(found.home / "vocabulary")
    if vocabulary is not None and vocabulary.size > model.spec.vocab:
        raise InputError(
            f"the vocabulary has {vocabulary.size} ids but the model of {found.home} only "
            f"{model.spec.vocab} embeddings: it is another model's"
        )
    mesh = make_mesh(layout)
    like = jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        model.shapes(),
        shardings(model.axes(), layout.parameters, mesh),
    )
    params, step = _read(found, like)
    return Loaded(model, params, vocabulary, step, found.step_folder, layout, mesh)


class Located(NamedTuple):
    """Where a checkpoint lies.

    Args:
      step_folder: its arrays.
      home: what they are: `model.json`, and `vocabulary/` unless the data has no text.
    """

    step_folder: epath.Path
    home: epath.Path


def locate(folder: epath.PathLike) -> Located:
    """Finds a checkpoint and its description, reading neither.

    Args:
      folder: as `load` takes it.

    Raises:
      InputError: no such folder, no checkpoint, or no model.json.
    """
    if not absolute(folder).exists():
        raise InputError(f"there is no folder {str(folder)!r}; give a model_dir")
    step_folder = find_step_folder(folder)
    for home in (step_folder, *step_folder.parents[:2]):
        if (home / "model.json").exists():
            return Located(step_folder, home)
    raise InputError(
        f"no model.json in {step_folder} or the two folders above; "
        "copy the one of the model_dir it came from there"
    )


def _read(found: Located, like: Any) -> tuple[Any, int]:
    """Returns the parameters, averaged ones where there are some, and the step."""
    averaged = any(name.startswith("extra/ema/") for name in saved_arrays(found.step_folder))
    part = "extra/ema" if averaged else "params"
    try:
        params = load_params(found.step_folder, like, part=part).params
    except InputError as error:
        problem = "\n".join(str(error).splitlines()[1:3])
        raise InputError(
            f"{found.home / 'model.json'} does not describe the parameters in "
            f"{found.step_folder}:\n{problem}"
        ) from error
    step = read_arrays(found.step_folder, {"step": jax.ShapeDtypeStruct((), jnp.int32)})["step"]
    return params, int(step)


def _power_of_two(size: int) -> int:
    """Returns the least power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()
