"""A trained model with its parameters and vocabulary, as `load` returns it: text in, text out."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from t5lite.data import Vocabulary
from t5lite.data.input_format import InputFormat
from t5lite.data.labels import Labels
from t5lite.decoding import Stops
from t5lite.errors import InputError
from t5lite.inference.batching import check_count, each, settled
from t5lite.inference.compiled import Functions, compile_functions
from t5lite.inference.context import stops_of, token_texts
from t5lite.inference.embedding import Embedder, embed
from t5lite.inference.generation import Answer, Generator
from t5lite.inference.options import options_of
from t5lite.inference.predict import Predictor, predict
from t5lite.inference.scoring import Score, Scorer, score
from t5lite.interop import Opened, open_model
from t5lite.interop.embedding_defaults import EmbeddingDefaults
from t5lite.interop.finite import check_compute, check_dtype
from t5lite.interop.generation_defaults import GenerationDefaults
from t5lite.models import ComputeSpec, Model, ModelSpec
from t5lite.objectives import Prompts
from t5lite.parallel import Layout, make_mesh, shardings, with_layout


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
      labels: names of what a head's outputs mean, by label feature: `labels["labels"][2]` is class
        or tag 2. {} where none were saved.
      trained_prompts: how it was prompted in training; None where that is unknown.
      generation: how it writes unless options say otherwise; None where its files do not say.
      embedding: how it embeds texts unless options say otherwise; likewise.
      inputs: how rows became texts in training, as far as that is known.
    """

    model: Model
    params: Any
    vocabulary: Vocabulary | None
    step: int | None
    folder: epath.Path
    layout: Layout
    mesh: Mesh
    labels: Labels = dataclasses.field(default_factory=dict)
    trained_prompts: Prompts | None = None
    generation: GenerationDefaults | None = None
    embedding: EmbeddingDefaults | None = None
    inputs: InputFormat = InputFormat()

    @functools.cached_property
    def prompts(self) -> Prompts:
        """How the model is prompted: as in training, where that is known."""
        return self.trained_prompts or Prompts.by_default(
            self.vocabulary, topology=self.model.topology, start_id=self.spec.start_id
        )

    @property
    def spec(self) -> ModelSpec:
        """The architecture."""
        return self.model.spec

    def generate(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 32,
        fill: bool = False,
        prompt: str | None = None,
        truncate: bool = False,
        draft: "Loaded | str | None" = None,
        draft_length: int = 4,
        **options: Any,
    ) -> list:
        """Answers texts, continues them if the model is a decoder, or fills an encoder's gaps.

        Compiles once for each kind of options, for texts and `max_new_tokens` of up to 16, 32, 64,
        … tokens, and for batches of 1, 2, 4, … texts: others of such sizes then run at once, as do
        other numbers among the options. The first call keeps the parameters a second time, layer by
        layer; see `Model.unstack`.

        Args:
          texts: `<extra_id_0>`, `<extra_id_1>`, … in them are T5's sentinels: gaps to be filled in
            by a model trained on span corruption. An encoder's gaps are its mask tokens.
          batch_size: most texts answered together.
          fill: whether to return the texts with their gaps filled in, rather than the answers. A
            gap that the answer does not mention stays as it is.
          prompt: what a text is to the model. `inputs`: a whole text, framed as in training on
            inputs and targets. `continue`: a beginning. `prefix`: a beginning that is seen in both
            directions, for models trained on prefixes. None: as the run was trained, or else
            `inputs` for an encoder-decoder and `continue` for a decoder.
          truncate: whether texts that are too long are cut: whole texts lose their end, as in
            training, and those to be continued their beginning. Otherwise they are refused.
          draft: for speculative decoding: a smaller model of the same vocabulary, or "prompt",
            which looks tokens up in the text and the answer. Greedy answers stay the same, drawn
            ones keep their distribution.
          draft_length: tokens that the draft proposes at a time.
          **options: `max_new_tokens`, `temperature`, … of `Options`. A list has one for each text;
            of `stop`, `banned` and `choices` a list of lists.

        Returns:
          A text for each, in order; with `num_samples` above 1 a list of texts for each.

        Raises:
          InputError: the model cannot write, no vocabulary, no text, one that is empty or too long,
            or an option that is unknown, out of range or contradicts another.
        """
        answers = self.answers(
            texts,
            batch_size=batch_size,
            fill=fill,
            prompt=prompt,
            truncate=truncate,
            draft=draft,
            draft_length=draft_length,
            **options,
        )
        several = max((len(each) for each in answers), default=1) > 1
        return [[one.text for one in each] if several else each[0].text for each in answers]

    def answers(
        self, texts: Sequence[str], *, batch_size: int = 32, **options: Any
    ) -> list[list[Answer]]:
        """Does as `generate`, and returns each text's answers with their tokens and probability."""
        if isinstance(texts, str):
            raise InputError("texts is one string; put it in a list: [text]")
        if not texts:
            raise InputError("texts is empty; give at least one text")
        check_count("batch_size", batch_size)
        generator, rest = self._generator(options)
        rows = options_of(rest, len(texts), generator.options)
        questions = each(
            "texts",
            lambda number, text, options: generator.read(text, options, number=number),
            range(len(texts)),
            texts,
            rows,
        )
        return settled("texts", generator.outcomes(questions, batch_size=batch_size))

    def stream(self, text: str, **options: Any) -> Iterator[str]:
        """Returns what `generate` does for one text in pieces, as they are written.

        What cannot be streamed or answered is refused at the call.

        Args:
          text: to answer or to continue.
          **options: of `generate`, without `fill`, beams and several samples.
        """
        generator, rest = self._generator(options)
        return generator.stream(generator.read(text, options_of(rest, 1, generator.options)[0]))

    def _generator(self, options: Mapping[str, Any]) -> tuple[Generator, dict[str, Any]]:
        """Returns what answers, and the options that are not its own but a text's."""
        own = {field.name for field in dataclasses.fields(Generator)}
        return (
            Generator(self, **{name: options[name] for name in options if name in own}),
            {name: value for name, value in options.items() if name not in own},
        )

    def embed(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        truncate: bool = False,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> np.ndarray:
        """Returns a vector for each text.

        They are what the model's embedding head says; without one, the mean of the last hidden
        states over the text's tokens, special ones included, at length 1.

        Args:
          texts: to embed.
          batch_size: most texts at once.
          max_length: most tokens of a text, special ones included; None for as many as the model
            has positions for, or sentence-transformers' files say.
          truncate: whether longer texts lose their end; otherwise they are refused.
          prompt: a text to put in front of each.
          prompt_name: the name of one that the model's files have; None for their default one.

        Returns:
          `[len(texts), size]` float32.

        Raises:
          InputError: an encoder-decoder, no vocabulary, no text, one that is too long, an option
            out of range, or files that ask for pooling or layers that are not known.
        """
        embedder = Embedder(
            self,
            max_length=max_length,
            truncate=truncate,
            prompt=prompt,
            prompt_name=prompt_name,
        )
        if isinstance(texts, str) or not texts:
            raise InputError("texts must be a list of at least one text")
        requests = each("texts", embedder.read, texts)
        outcomes = embed(self, self.params, requests, batch_size=batch_size)
        return np.stack(settled("texts", outcomes))

    def predict(
        self,
        texts: Sequence[str | Mapping[str, Any]],
        *,
        batch_size: int = 32,
        head: str | None = None,
        top_k: int = 5,
        max_length: int | None = None,
        template: str | None = None,
        aggregation: str = "first",
        max_answer_length: int = 30,
        no_answer: bool | None = None,
    ) -> list[Any]:
        """Returns what a head says of each text.

        A head of classes gives `Classes`, one of numbers `Numbers` in the unit of the training
        labels, one of token labels `Tagged`, whose spans are characters of the text, and one of
        spans `Answers`; see `predictions`. Texts that are too long lose their end, as in training:
        `num_cut` says how many tokens.

        Args:
          texts: texts, which are read as they are, or rows of columns. A row that has the columns
            of the training template is made a text by it; another has `inputs` or `text`. For
            answers also `question` and `context`, for classes and numbers `text` and `text_pair`,
            where the vocabulary joins pairs.
          batch_size: most texts at once.
          head: `classification`, `regression`, `token_labels` or `spans`; None: the only one.
          top_k: most classes, or answers, of a text.
          max_length: most tokens of a text, special ones included; None: as in training, or as many
            as the model has positions for.
          template: makes texts of rows, instead of the one in training; its last slot holds the
            answers. A text is the column `text`.
          aggregation: of tags: "first", the first token of a word says its tag, as in training;
            "simple", every token its own, as in transformers.
          max_answer_length: most tokens of an answer.
          no_answer: whether an answer may be missing; None: if it may be in training.

        Returns:
          A prediction for each, in order.

        Raises:
          InputError: no or several such heads, no vocabulary, no text, a row without the columns,
            or an argument out of range.
        """
        if isinstance(texts, str) or not texts:
            raise InputError("texts must be a list of at least one text")
        predictor = Predictor(
            self,
            head=head,
            top_k=top_k,
            max_length=max_length,
            template=template,
            aggregation=aggregation,
            max_answer_length=max_answer_length,
            no_answer=no_answer,
        )
        requests = each("texts", predictor.read, texts)
        outcomes = predict(self, self.params, predictor, requests, batch_size=batch_size)
        return settled("texts", outcomes)

    def score(
        self,
        texts: Sequence[str],
        *,
        targets: Sequence[str] | None = None,
        batch_size: int = 32,
        prompt: str | None = None,
        eos: bool | None = None,
        truncate: bool = False,
    ) -> list[Score]:
        """Returns how likely the model finds each text, token by token.

        A decoder scores every token of a text given those before it, or of a target given the text;
        an encoder-decoder a target given the text; an encoder every token of a text given all the
        others, each masked in turn, whose sum is the pseudo-log-likelihood. A target that
        continues a text is scored in the tokens that it has behind it, as in
        lm-evaluation-harness: encode(text + target), split at len(encode(text)); see
        `context.split_pair`. A target that answers a text is tokenised alone, as in training.
        Compiles once for texts and targets of up to 16, 32, 64, … tokens
        and batches of 1, 2, 4, … rows.

        Args:
          texts: to score, or to score targets after; none is empty.
          targets: one for each text; an encoder-decoder needs them, an encoder has none.
          batch_size: most rows at once; an encoder needs one for every token.
          prompt: what a text with a target is to the model; see `generate`.
          eos: whether the EOS after what is scored is scored too; None: after a target that
            answers a text, as in training, and not after one that continues it, or a text alone.
          truncate: whether what does not fit is cut: of a text its end, or its beginning where it
            is continued. Targets are never cut.

        Returns:
          A score for each text, in order; log-probabilities are in nats, of softmax(logits) over
          all that the model has embeddings for, as in training.

        Raises:
          InputError: no vocabulary, no head for tokens, targets that are missing or not for this
            model, or no, an empty or too long a text.

        Source: Salazar et al. 2020, arXiv:1910.14659, §2.1 (encoders).
        """
        scorer = Scorer(self, prompt=prompt, eos=eos, truncate=truncate)
        for name, column in (("texts", texts), ("targets", targets or texts)):
            if isinstance(column, str) or not column:
                raise InputError(f"{name} must be a list of at least one text")
        if targets is not None and len(targets) != len(texts):
            raise InputError(f"{len(texts)} texts and {len(targets)} targets: give each text one")
        requests = each("texts", scorer.read, *((texts,) if targets is None else (texts, targets)))
        outcomes = score(
            self, self.params, requests, vocabulary=self.vocabulary, batch_size=batch_size
        )
        return settled("texts", outcomes)

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        step = "" if self.step is None else f", step {self.step:,}"
        return (
            f"Loaded({self.spec.family}, {count:,} parameters{step},\n       {str(self.folder)!r})"
        )

    @functools.cached_property
    def decoding_params(self) -> Any:
        """The parameters of `Model.unstack`, which `generate` reads; placed on `mesh` as well."""
        model, layout, mesh = self.model.unstacked, self.layout, self.mesh
        if model.spec.decoder is None:
            return self.params
        placed = shardings(model.axes(), layout.parameters, mesh)
        return with_layout(self.model.unstack, layout, mesh, out_shardings=placed)(self.params)

    @functools.cached_property
    def functions(self) -> Functions:
        """What `generate` computes with, compiled: see `compiled.compile_functions`."""
        return compile_functions(self.model, self.layout, self.mesh)

    @functools.cached_property
    def _kept(self) -> dict[Any, Any]:
        """What was made once for this model: what has been said, what finds stops."""
        return {}

    def say_once(self, topic: str, what: Sequence[str]) -> Sequence[str]:
        """Returns `what` the first time that a topic is asked for, then nothing."""
        return () if self._kept.setdefault(("said", topic), what) is not what else what

    def stops_of(self, stops: tuple[str, ...], *, continued: bool) -> Stops:
        """Returns what finds stops in answers, made once for each set of them.

        Args:
          stops: none of them empty.
          continued: whether answers go on where a text ends, or begin a text of their own.
        """
        assert self.vocabulary is not None
        key = (stops, continued)
        if key not in self._kept:
            for alone in (False, True):
                if alone not in self._kept:
                    self._kept[alone] = token_texts(self.vocabulary, alone=alone)
            first = None if continued else self._kept[True]
            self._kept[key] = stops_of(stops, self._kept[False], first)
        return self._kept[key]


def place(
    opened: Opened,
    *,
    compute: ComputeSpec = ComputeSpec(),
    layout: Layout | None = None,
    devices: Sequence[jax.Device] | None = None,
    dtype: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> Loaded:
    """Reads the parameters of an opened checkpoint onto devices.

    Args:
      opened: the checkpoint.
      compute, layout, devices, dtype, progress: see `load`.
    """
    check_dtype(dtype)
    check_compute(opened.spec.family, compute.dtype)
    layout = Layout() if layout is None else layout
    mesh = make_mesh(layout, devices)
    model, vocabulary = Model(opened.spec, compute), opened.vocabulary
    if vocabulary is not None and vocabulary.size > model.spec.vocab:
        raise InputError(
            f"the vocabulary has {vocabulary.size} ids but the model of {opened.where} only "
            f"{model.spec.vocab} embeddings: it is another model's"
        )
    params = opened.params(model, layout=layout, mesh=mesh, dtype=dtype, progress=progress)
    return Loaded(
        model,
        params,
        vocabulary,
        opened.step,
        epath.Path(opened.where),
        layout,
        mesh,
        labels=opened.description.labels,
        trained_prompts=opened.description.prompts,
        generation=opened.description.generation,
        embedding=opened.description.embedding,
        inputs=opened.description.inputs,
    )


def load(
    folder: epath.PathLike,
    *,
    compute: ComputeSpec = ComputeSpec(),
    layout: Layout | None = None,
    devices: Sequence[jax.Device] | None = None,
    dtype: Any = None,
    vocabulary: Vocabulary | None = None,
    spec: ModelSpec | None = None,
    revision: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Loaded:
    """Opens a trained model: `t5lite.load("runs/quickstart").generate(["..."])`.

    Args:
      folder: of t5lite a model_dir or its checkpoints folder (the newest step is read), or one step
        folder, local, `gs://` or `s3://`; `model.json`, `vocabulary/`, `labels.json` and
        `prompts.json` lie in it or in a folder above. Or a Hugging Face folder: `config.json`,
        safetensors, tokenizer files; local or remote. Or a T5X checkpoint, `checkpoint_N`, or the
        folder that holds some (the newest is read). Or the name of a model on the Hugging Face hub,
        `ORGANISATION/NAME` or `ORGANISATION/NAME@REVISION`, where huggingface_hub is installed and
        there is no such folder.
      compute: dtype of activations and so on, which need not be those of training; float16 is
        refused for T5, whose activations exceed it.
      layout: how parameters and batches are spread over the devices; by default a whole copy of
        the parameters on each. Parameters of other libraries stream straight into their shards.
      devices: to use; None for all.
      dtype: of the parameters; None for each as it is stored.
      vocabulary: instead of the saved one.
      spec: of a T5X checkpoint, which does not say all of it; see `t5x.open_model`.
      revision: of a model on the hub: a branch, a tag or a commit; None for the default branch.
      progress: called with bytes read and bytes in all, for other libraries' folders.

    Returns:
      The model with its parameters: the averaged ones if a run of t5lite kept an average.

    Raises:
      InputError: no such folder, none of the above in it, a description that does not fit the
        arrays, pickles, which are not opened, or parameters that are NaN, infinite, or too large
        for `dtype`.
      CheckpointError: if a checkpoint of t5lite is damaged.
    """
    return place(
        open_model(folder, vocabulary=vocabulary, spec=spec, revision=revision),
        compute=compute,
        layout=layout,
        devices=devices,
        dtype=dtype,
        progress=progress,
    )
