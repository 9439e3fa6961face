"""A trained model with its parameters, as `load` returns it: text in, text out."""

import dataclasses
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
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
from t5lite.inference.batching import by_row, check_count, check_texts, settled
from t5lite.inference.defaults import check_defaults, ignored
from t5lite.inference.embedding import Embedder
from t5lite.inference.engine import Engine
from t5lite.inference.generation import Draft
from t5lite.inference.options import options_of, with_options
from t5lite.inference.predict import Predictor
from t5lite.inference.request import Reader, Request
from t5lite.inference.requirements import check_draft, require
from t5lite.inference.scoring import Score, Scorer
from t5lite.interop import Description
from t5lite.interop.embedding_defaults import EmbeddingDefaults
from t5lite.interop.generation_defaults import GenerationDefaults
from t5lite.models import Model, ModelSpec
from t5lite.objectives import Prompts
from t5lite.parallel import Layout


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Loaded:
    """A trained model, as `load` returns it: an engine with parameters.
    `dataclasses.replace(loaded, params=...)` compiles nothing.

    Args:
      engine: the compiled functions of the model.
      params: of the model, averaged ones if the run kept an average; sharded over the mesh.
      description: the folder's content apart from arrays.
      step: updates done; None if unknown.
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
        """The vocabulary; None if none was saved."""
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
        """Names of the classes of a head, by label feature; {} if none were saved."""
        return self.description.labels

    @functools.cached_property
    def generation(self) -> GenerationDefaults | None:
        """Default generation options of the folder, checked; None for none."""
        defaults = self.description.generation
        check_defaults(defaults, spec=self.spec, folder=self.folder)
        if unused := ignored(defaults, self.spec):
            warnings.warn(
                f"{self.folder}: generation defaults that are ignored: {', '.join(unused)}",
                stacklevel=2,
            )
        return defaults

    @property
    def embedding(self) -> EmbeddingDefaults | None:
        """Default embedding options of the folder; None for none."""
        return self.description.embedding

    @property
    def inputs(self) -> InputFormat:
        """How rows became texts in training."""
        return self.description.inputs

    @functools.cached_property
    def prompts(self) -> Prompts:
        """How the model is prompted: as in training, if known."""
        return self.description.prompts or Prompts.by_default(
            self.vocabulary, topology=self.model.topology, start_id=self.spec.start_id
        )

    @functools.cached_property
    def decoding_params(self) -> Any:
        """The parameters as `Engine.prepare` returns them."""
        return self.engine.prepare(self.params)

    @with_options
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
        """Answers texts: a decoder continues them, an encoder fills their mask tokens.

        Compiles as `Engine` says, whatever the options. The first call makes an unstacked copy of
        the parameters; see `Engine.prepare`.

        Args:
          texts: `<extra_id_0>`, `<extra_id_1>`, … in them are T5's sentinels: gaps that a model
            trained on span corruption fills. An encoder's gaps are its mask tokens.
          batch_size: most texts at once.
          fill: whether to return the texts with their gaps filled, rather than the answers. Gaps
            that the answer does not mention stay.
          prompt: the role of a text. `inputs`: a whole text, framed as in training on inputs and
            targets. `continue`: a beginning. `prefix`: a beginning with bidirectional attention,
            for models trained on prefixes. None: as in training, or else `inputs` for an
            encoder-decoder and `continue` for a decoder.
          truncate: whether texts that are too long are truncated: whole texts at their end, as in
            training, and beginnings at their beginning. Otherwise they are refused.
          draft: for speculative decoding: a smaller model of the same vocabulary, or "prompt",
            which copies n-grams of the text and the answer. Greedy answers stay the same, sampled
            ones keep their distribution.
          draft_length: tokens proposed at a time.
          **options: of `Options`, defaults being those of the model's `generation_config.json`, if
            any. A list has a value for each text; for `stop`, `banned` and `choices` a list of
            lists.
        Returns: a text for each, in order; with `num_samples` above 1 a list of texts for each.
        Raises: InputError if the model cannot generate or has no vocabulary, a text is missing,
        empty or too long, or an option is unknown, out of range or contradicts another.
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
        several = max((len(row) for row in answers), default=1) > 1
        return [[one.text for one in row] if several else row[0].text for row in answers]

    @with_options
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
        """Returns `generate`'s answers, with tokens, log-probabilities and the finish reason."""
        check_texts("texts", texts)
        check_count("batch_size", batch_size)
        reader = self.reader(
            fill=fill, prompt=prompt, truncate=truncate, draft=draft, draft_length=draft_length
        )
        requests = by_row(
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
            draft=Draft.of(draft),
            draft_length=draft_length,
        )
        return settled("texts", outcomes)

    @with_options
    def stream(
        self,
        text: str,
        *,
        fill: bool = False,
        prompt: str | None = None,
        truncate: bool = False,
        draft: "Loaded | str | None" = None,
        draft_length: int = 4,
        **options: Any,
    ) -> Iterator[str]:
        """Returns the answer of `generate` to one text in pieces, as they are generated.

        Raises: InputError, at the call, for beam search or several samples, or as `generate`.
        """
        reader = self.reader(
            fill=fill, prompt=prompt, truncate=truncate, draft=draft, draft_length=draft_length
        )
        request = Request.from_text(text, reader, options_of(options, 1, reader.options)[0])
        return self.engine.stream(
            self.decoding_params, request, draft=Draft.of(draft), draft_length=draft_length
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
        """Returns how the model reads texts; see `generate`."""
        vocabulary = require(self, head="lm", to="generate text")
        check_count("draft_length", draft_length)
        check_draft(draft, self)
        return Reader(
            spec=self.spec,
            vocabulary=vocabulary,
            prompts=self.prompts,
            defaults=self.generation,
            folder=self.folder,
            prompt=prompt,
            fill=fill,
            truncate=truncate,
            draft_length=0 if draft is None else draft_length,
            draft=getattr(draft, "spec", None),
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
        """Returns `[len(texts), size]` float32: from the model's embedding head, or else the mean
        of the last hidden states over the text's tokens, special ones included, at length 1.

        Args:
          texts: to embed.
          batch_size: most texts at once.
          max_length: most tokens of a text, special ones included; None for the model's positions,
            or the length in sentence-transformers' files.
          truncate: whether longer texts lose their end; otherwise they are refused.
          prompt: a text to put in front of each.
          prompt_name: the name of a prompt in the model's files; None for their default one.
        Raises: InputError for an encoder-decoder, no vocabulary, no text or one that is too long,
        an option out of range, or files with unknown pooling or layers.
        """
        embedder = Embedder(
            self, max_length=max_length, truncate=truncate, prompt=prompt, prompt_name=prompt_name
        )
        check_texts("texts", texts)
        requests = by_row("texts", embedder.read, texts)
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
        """Returns the prediction of a head for each text.

        A head of classes gives `Classes`, one of numbers `Numbers` in the unit of the training
        labels, one of token labels `Tagged`, and one of spans `Answers`; see `predictions`. Texts
        that are too long lose their end, as in training: `num_cut` counts the tokens.

        Args:
          texts: texts, or rows of columns. Rows with the columns of the training template are
            rendered by it; others have `inputs` or `text`, or, if the vocabulary joins pairs,
            `question` and `context` for answers and `text` and `text_pair` for classes and numbers.
          batch_size: most texts at once.
          head: `classification`, `regression`, `token_labels` or `spans`; None: the only one.
          top_k: most classes, or answers, of a text.
          max_length: most tokens of a text, special ones included; None: as in training, or the
            model's positions.
          template: renders rows, instead of the one in training; its last slot holds the answers. A
            text is the column `text`.
          aggregation: of tags: "first", a word has the tag of its first token, as in training;
            "simple", every token has its own, as in transformers.
          max_answer_length: most tokens of an answer.
          no_answer: whether an answer may be missing; None: as in training.
        Raises: InputError for no or several such heads, no vocabulary, no text, a row without the
        columns, or an argument out of range.
        """
        check_texts("texts", texts)
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
        requests = by_row("texts", predictor.read, texts)
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
        """Returns the log-likelihood of each text, in order, token by token: log-probabilities in
        nats, under softmax(logits) over all embeddings, as in training.

        A decoder scores every token of a text given those before it, or of a target given the text;
        an encoder-decoder a target given the text; an encoder every token of a text given all
        others, each masked in turn: the pseudo-log-likelihood. A target that continues a text is
        tokenised with it, as in lm-evaluation-harness: see `context.split_pair`. A target that
        answers a text is tokenised alone, as in training.

        Args:
          texts: to score, or to score targets after; none is empty.
          targets: one for each text; required for an encoder-decoder, refused for an encoder.
          batch_size: most rows at once; an encoder needs a row for every token.
          prompt: the role of a text with a target; see `generate`.
          eos: whether the EOS after the scored tokens is scored too; None: after a target that
            answers a text, as in training.
          truncate: whether texts that are too long lose their end, or their beginning if they are
            continued. Targets are never truncated.
        Raises: InputError for no vocabulary, no head for tokens, targets that are missing or not
        for this model, or no text, or one that is empty or too long.
        Source: Salazar et al. 2020, arXiv:1910.14659, §2.1 (encoders).
        """
        scorer = Scorer(self, prompt=prompt, eos=eos, truncate=truncate)
        check_texts("texts", texts)
        columns = [texts]
        if targets is not None:
            check_texts("targets", targets or texts)
            columns.append(targets)
            if len(targets) != len(texts):
                raise InputError(
                    f"{len(texts)} texts and {len(targets)} targets: give each text one"
                )
        requests = by_row("texts", scorer.read, *columns)
        outcomes = self.engine.score(self.params, requests, batch_size=batch_size)
        return settled("texts", outcomes)

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        step = "" if self.step is None else f", step {self.step:,}"
        return (
            f"Loaded({self.spec.family}, {count:,} parameters{step},\n       {str(self.folder)!r})"
        )
