"""A trained model with its parameters, as `load` returns it: text in, text out."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from t5lite.data import Vocabulary
from t5lite.data.input_format import InputFormat
from t5lite.data.labels import Labels
from t5lite.errors import InputError
from t5lite.inference.answer import Answer
from t5lite.inference.batching import check_count, each, settled
from t5lite.inference.defaults import check_defaults, ignored
from t5lite.inference.embedding import Embedder
from t5lite.inference.engine import Engine
from t5lite.inference.generation import Draft
from t5lite.inference.options import options_of
from t5lite.inference.predict import Predictor
from t5lite.inference.request import Reader, Request
from t5lite.inference.requirements import require
from t5lite.inference.scoring import Score, Scorer
from t5lite.interop import Description, Opened, open_model
from t5lite.interop.embedding_defaults import EmbeddingDefaults
from t5lite.interop.finite import check_compute, check_dtype
from t5lite.interop.generation_defaults import GenerationDefaults
from t5lite.models import ComputeSpec, Model, ModelSpec
from t5lite.objectives import Prompts
from t5lite.parallel import Layout, make_mesh


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Loaded:
    """A trained model, as `load` returns it: an engine with parameters.

    `dataclasses.replace(loaded, params=...)` compiles nothing.

    Args:
      engine: the compiled functions of the model.
      params: of the model, averaged ones where the run kept an average; placed on the mesh.
      description: what the folder says beside its arrays.
      step: updates done; None where the folder does not say.
      folder: of the checkpoint, for messages.
    """

    engine: Engine
    params: Any
    description: Description
    step: int | None = None
    folder: epath.PathLike = "the model"

    @property
    def model(self) -> Model:
        """The model as pure functions."""
        return self.engine.model

    @property
    def spec(self) -> ModelSpec:
        """The architecture."""
        return self.engine.model.spec

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The vocabulary; None where none was saved."""
        return self.engine.vocabulary

    @property
    def layout(self) -> Layout:
        """How arrays are sharded over `mesh`."""
        return self.engine.layout

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self.engine.mesh

    @property
    def labels(self) -> Labels:
        """Names of the classes of a head, by label feature; {} where none were saved."""
        return self.description.labels

    @property
    def generation(self) -> GenerationDefaults | None:
        """Default generation options; None where its files do not say."""
        return self.description.generation

    @property
    def embedding(self) -> EmbeddingDefaults | None:
        """Default embedding options; None where its files do not say."""
        return self.description.embedding

    @property
    def inputs(self) -> InputFormat:
        """How rows became texts in training."""
        return self.description.inputs

    @functools.cached_property
    def prompts(self) -> Prompts:
        """How the model is prompted: as in training, where that is known."""
        return self.description.prompts or Prompts.by_default(
            self.vocabulary, topology=self.model.topology, start_id=self.spec.start_id
        )

    @functools.cached_property
    def decoding_params(self) -> Any:
        """The parameters as `Engine.prepare` returns them."""
        return self.engine.prepare(self.params)

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
        """Answers texts; a decoder continues them, an encoder fills their mask tokens.

        Compiles once for texts and `max_new_tokens` of up to 16, 32, 64, … tokens, and for batches
        of 1, 2, 4, … texts: others of such sizes then run at once, with other options as well. The
        first call makes an unstacked copy of the parameters; see `Engine.prepare`.

        Args:
          texts: `<extra_id_0>`, `<extra_id_1>`, … in them are T5's sentinels: gaps that a model
            trained on span corruption fills. An encoder's gaps are its mask tokens.
          batch_size: most texts answered together.
          fill: whether to return the texts with their gaps filled, rather than the answers. A gap
            that the answer does not mention stays as it is.
          prompt: what a text is to the model. `inputs`: a whole text, framed as in training on
            inputs and targets. `continue`: a beginning. `prefix`: a beginning that is seen in both
            directions, for models trained on prefixes. None: as the run was trained, or else
            `inputs` for an encoder-decoder and `continue` for a decoder.
          truncate: whether texts that are too long are truncated: whole texts at their end, as in
            training, and those to be continued at their beginning. Otherwise they are refused.
          draft: for speculative decoding: a smaller model of the same vocabulary, or "prompt",
            which looks tokens up in the text and the answer. Greedy answers stay the same, drawn
            ones keep their distribution.
          draft_length: tokens that the draft proposes at a time.
          **options: `max_new_tokens`, `temperature`, … of `Options`. A list has one for each text;
            of `stop`, `banned` and `choices` a list of lists.

        Returns:
          A text for each, in order; with `num_samples` above 1 a list of texts for each.

        Raises:
          InputError: the model cannot generate, no vocabulary, no text, one that is empty or too
            long, or an option that is unknown, out of range or contradicts another.
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
    ) -> list[list[Answer]]:
        """Does as `generate`, and returns the answers to each text with tokens, log-probabilities
        and the reason to end."""
        if isinstance(texts, str):
            raise InputError("texts is one string; put it in a list: [text]")
        if not texts:
            raise InputError("texts is empty; give at least one text", field="texts")
        check_count("batch_size", batch_size)
        reader = self.reader(
            fill=fill, prompt=prompt, truncate=truncate, draft=draft, draft_length=draft_length
        )
        requests = each(
            "texts",
            lambda number, text, own: Request.from_text(text, reader, own, number=number),
            range(len(texts)),
            texts,
            options_of(options, len(texts), reader.options),
        )
        outcomes = self.engine.outcomes(
            self.decoding_params,
            requests,
            batch_size=batch_size,
            draft=draft_of(draft),
            draft_length=draft_length,
        )
        return settled("texts", outcomes)

    def stream(
        self,
        text: str,
        *,
        prompt: str | None = None,
        truncate: bool = False,
        draft: "Loaded | str | None" = None,
        draft_length: int = 4,
        **options: Any,
    ) -> Iterator[str]:
        """Returns what `generate` does for one text in pieces, as they are generated.

        What cannot be streamed or answered is refused at the call.

        Args:
          text: to answer or to continue.
          prompt, truncate, draft, draft_length: see `generate`.
          **options: of `generate`, without beams and several samples.
        """
        reader = self.reader(
            fill=options.pop("fill", False),
            prompt=prompt,
            truncate=truncate,
            draft=draft,
            draft_length=draft_length,
        )
        request = Request.from_text(text, reader, options_of(options, 1, reader.options)[0])
        return self.engine.stream(
            self.decoding_params, request, draft=draft_of(draft), draft_length=draft_length
        )

    def reader(
        self,
        *,
        prompt: str | None = None,
        fill: bool = False,
        truncate: bool = False,
        draft: "Loaded | str | None" = None,
        draft_length: int = 4,
    ) -> Reader:
        """Returns how the model reads texts; see `generate`.

        Raises:
          InputError: a model that cannot generate, no vocabulary, or a draft that does not fit.
        """
        vocabulary = require(self, head="lm", to="generate text")
        check_count("draft_length", draft_length)
        self._check_draft(draft)
        reader = Reader(
            spec=self.spec,
            vocabulary=vocabulary,
            prompts=self.prompts,
            defaults=self.generation,
            where=self.folder,
            prompt=prompt,
            fill=fill,
            truncate=truncate,
            draft_length=0 if draft is None else draft_length,
            draft=draft.spec if isinstance(draft, Loaded) else None,
        )
        check_defaults(self.generation, spec=self.spec, where=self.folder)
        unused = ignored(self.generation, self.spec)
        if unused and not self.__dict__.setdefault("_warned", False):
            self.__dict__["_warned"] = True
            warnings.warn(
                f"{self.folder} says of generation what is ignored: {', '.join(unused)}",
                stacklevel=3,
            )
        return reader

    def _check_draft(self, draft: Any) -> None:
        if draft is None or draft == "prompt":
            return
        if not isinstance(draft, Loaded):
            raise InputError(
                f"draft = {draft!r}: must be a loaded model, or 'prompt'", field="draft"
            )
        if draft.model.topology != self.model.topology:
            raise InputError(
                f"the draft is {draft.model.topology}, the model {self.model.topology}: both must "
                "be of one topology"
            )
        theirs, ours = draft.vocabulary, self.engine.words
        alike = theirs is not None and theirs.fingerprint == ours.fingerprint
        if not alike or draft.spec.vocab != self.spec.vocab:
            raise InputError("the draft has another vocabulary than the model")

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
            raise InputError("texts must be a list of at least one text", field="texts")
        requests = each("texts", embedder.read, texts)
        outcomes = self.engine.embed(self.params, requests, batch_size=batch_size)
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
            raise InputError("texts must be a list of at least one text", field="texts")
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
        outcomes = self.engine.predict(self.params, predictor, requests, batch_size=batch_size)
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
                raise InputError(f"{name} must be a list of at least one text", field=name)
        if targets is not None and len(targets) != len(texts):
            raise InputError(f"{len(texts)} texts and {len(targets)} targets: give each text one")
        requests = each("texts", scorer.read, *((texts,) if targets is None else (texts, targets)))
        outcomes = self.engine.score(self.params, requests, batch_size=batch_size)
        return settled("texts", outcomes)

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        step = "" if self.step is None else f", step {self.step:,}"
        return (
            f"Loaded({self.spec.family}, {count:,} parameters{step},\n       {str(self.folder)!r})"
        )


def draft_of(draft: Loaded | str | None) -> Draft | str | None:
    """Returns a draft as an engine takes it."""
    return Draft(draft.engine, draft.decoding_params) if isinstance(draft, Loaded) else draft


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
    params = opened.params(model, layout=layout, mesh=mesh, dtype=dtype, progress=progress)
    engine = Engine(model, vocabulary, layout, mesh)
    return Loaded(engine, params, opened.description, opened.step, epath.Path(opened.folder))


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
