"""Requests: texts or ids as a model reads them, and how they are answered."""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.data import Vocabulary
from t5lite.errors import InputError, option, unknown
from t5lite.framing import Frame
from t5lite.inference.defaults import Rules, options_with, rules_of
from t5lite.inference.expression import Expression, expressed
from t5lite.inference.gaps import encode
from t5lite.inference.options import Options
from t5lite.interop.generation_defaults import GenerationDefaults
from t5lite.models import ModelSpec
from t5lite.objectives import PROMPTS, Prompt, Prompts, start_of
from t5lite.objectives.masked_lm import mask_of


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """How a model reads texts.

    Args:
      defaults: of its `generation_config.json`.
      folder: of the model, for messages.
      prompt, fill, truncate: see `Loaded.generate`.
      draft_length: tokens that a draft reads beyond an answer; 0 without a draft.
      draft: spec of a draft model, whose positions count as well.
    """

    spec: ModelSpec
    vocabulary: Vocabulary
    prompts: Prompts
    defaults: GenerationDefaults | None = None
    folder: Any = "the model"
    prompt: str | None = None
    fill: bool = False
    truncate: bool = False
    draft_length: int = 0
    draft: ModelSpec | None = None

    def __post_init__(self) -> None:
        if self.prompt is not None and self.prompt not in PROMPTS:
            raise unknown("prompt", self.prompt, PROMPTS)
        if self.spec.topology == "encoder":
            _ = self.mask_id
            for name in ("prompt", "fill", "draft_length"):
                if getattr(self, name):
                    raise InputError(
                        f"{name.removesuffix('_length')} is not supported by encoders, which only "
                        "fill mask tokens"
                    )
        if self.fill and not self.vocabulary.num_sentinels:
            raise InputError("fill needs sentinels, and the model's vocabulary has none")

    @property
    def rules(self) -> Rules:
        """The tokens that end, begin and restrict answers, by the model's files."""
        return rules_of(self.defaults, self.vocabulary, topology=self.spec.topology)

    @property
    def prompting(self) -> Prompt:
        """How a text is read."""
        return self.prompts.of(self.prompt or ("inputs" if self.fill else None))

    @property
    def continues(self) -> bool:
        """Whether an answer continues the text, rather than being a new one."""
        return self.spec.topology != "encoder" and self.prompting.kind != "inputs"

    @property
    def frame(self) -> Frame:
        """The special tokens around a text."""
        encoder = self.spec.topology == "encoder"
        return self.vocabulary.frame if encoder else self.prompting.inputs

    @property
    def mask_id(self) -> int:
        """The mask token of an encoder."""
        try:
            return mask_of(self.vocabulary)  # type: ignore[arg-type]
        except InputError as error:
            raise InputError(
                f"{self.folder} holds an encoder, which fills gaps; {error}"
            ) from error

    def options(self, chosen: Mapping[str, Any]) -> Options:
        """Returns options by name; the rest are those of the model's files, else of `Options`."""
        draft = self.draft_length > 0
        return options_with(self.defaults, chosen, spec=self.spec, draft=draft)

    def streams(self, options: Options) -> bool:
        """Whether a response can come in pieces."""
        several = options.num_beams > 1 or options.num_samples > 1
        return not (self.fill or several or self.spec.topology == "encoder")

    def check(self, options: Options) -> None:
        """Raises the InputError that every text with these options would raise, if any."""
        self.expressed(options)

    def expressed(self, options: Options, text: str = "") -> Expression:
        """Returns options as ids after a text."""
        encoder = self.spec.topology == "encoder"
        if options.num_beams > self.spec.vocab:
            raise InputError(
                f"num_beams = {options.num_beams}, more than the vocabulary's {self.spec.vocab} "
                "tokens",
                field="Options.num_beams",
            )
        if options.num_beams > 1 and self.draft_length:
            raise InputError("num_beams and draft: beam search takes no draft; leave one out")
        return expressed(
            options,
            self.vocabulary,
            rules=self.rules,
            mask_id=self.mask_id if encoder else None,
            before=text if self.continues else "",
            begins=() if encoder else self.prompting.targets.before,
        )

    def positions(self, side: str) -> int | None:
        """Returns the positions of a side of the model, and of its draft; None for any number."""
        specs = [self.spec, *([] if self.draft is None else [self.draft])]
        lengths = [getattr(spec, side).max_length for spec in specs]
        return min((length for length in lengths if length is not None), default=None)

    def framed(self, ids: list[int], options: Options, frame: Frame) -> list[int]:
        """Returns the ids of a text with special tokens, truncated to the model's positions; an
        InputError for too many without `truncate`, or none left."""
        topology = self.spec.topology
        decoder = topology == "decoder"
        if decoder:  # which reads the start token anyway
            ids = start_of(self.vocabulary, self.spec.start_id).without(ids)
        most = self.positions("decoder" if decoder else "encoder")
        new = options.max_new_tokens + self.draft_length
        beyond = new if decoder else 0
        if beyond and most is not None and most - beyond - frame.size < 1:
            names = "max_new_tokens" + (" and draft_length" if self.draft_length else "")
            raise InputError(
                f"{names}: {beyond} new tokens and a text of at least {frame.size + 1}; the model "
                f"takes {most}: choose at most {most - frame.size - 1} new ones"
            )
        ids = frame.fit(
            ids,
            most,
            beside=beyond,
            end=not self.continues,
            truncate=self.truncate,
            note=f", and {beyond} new ones" if beyond else "",
            fix=f"it or {option('max_new_tokens')}" if beyond else "it",
        )
        most = self.positions("decoder") if topology == "encoder_decoder" else None
        if most is not None and new > most:
            raise InputError(
                f"max_new_tokens = {options.max_new_tokens}: the model generates at most "
                f"{most - self.draft_length}",
                field="Options.max_new_tokens",
            )
        return frame(ids)


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A prompt as ids, and how it is answered.

    Args:
      ids: as the model reads them, special tokens included; without a decoder's start token.
      options: how it is answered.
      number: of the request among others, on which its draws depend.
      rules: the tokens that end, begin and restrict answers.
      bias, forced, choices: of the options, as ids; see `expression.Expression`.
      continues: whether the answer continues the prompt, in one text with it.
      bidirectional: whether a decoder's attention over the prompt is bidirectional.
      fill: whether the answer's text is that of the prompt with its sentinels replaced.
    """

    ids: Sequence[int]
    options: Options = Options()
    number: int = 0
    _: dataclasses.KW_ONLY
    rules: Rules
    bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    forced: Sequence[int] = ()
    choices: Sequence[Sequence[int]] = ()
    continues: bool = False
    bidirectional: bool = False
    fill: bool = False

    @classmethod
    def from_text(
        cls, text: str, reader: Reader, options: Options | None = None, *, number: int = 0
    ) -> "Request":
        """Returns the request of a text, by default with the options of the model's files.

        Args:
          text: `<extra_id_N>` in it are T5's sentinels.
          number: see `Request`.
        Raises: InputError if the text is empty or too long for the model, a sentinel is unknown, or
        the vocabulary cannot express an option, or options contradict each other.
        """
        if not isinstance(text, str):
            raise InputError(f"{text!r} is not a text")
        ids = encode(text, reader.vocabulary)
        if not ids:
            raise InputError("the text is empty: give at least one token")
        return cls._of(ids, reader, options, frame=reader.frame, number=number, text=text)

    @classmethod
    def from_ids(
        cls,
        ids: Sequence[int],
        reader: Reader,
        options: Options | None = None,
        *,
        number: int = 0,
        text: str = "",
    ) -> "Request":
        """Returns the request of ids with their special tokens; see `from_text`.

        Args:
          ids: `[n]`, at least one, each an embedding's; of a text, `reader.frame(encode(text))`.
          text: of the ids, as far as `forced` and `choices` depend on it.
        """
        if not len(ids):
            raise InputError("the example is empty: it has no token that the model reads")
        frame, body = reader.frame, _tokens(ids, reader.spec.vocab)
        inner = body[len(frame.before) : len(body) - len(frame.after)]
        if frame(inner) != body:
            inner, frame = body, Frame()
        return cls._of(inner, reader, options, frame=frame, number=number, text=text)

    @classmethod
    def _of(
        cls,
        ids: list[int],
        reader: Reader,
        options: Options | None,
        *,
        frame: Frame,
        number: int,
        text: str,
    ) -> "Request":
        decoder, encoder = (reader.spec.topology == name for name in ("decoder", "encoder"))
        if encoder and reader.mask_id not in ids:
            piece = reader.vocabulary.piece(reader.mask_id)
            raise InputError(
                f"the text has no mask token; put {piece} where the model should predict"
            )
        options = reader.options({}) if options is None else options
        return cls(
            reader.framed(ids, options, frame),
            options,
            number,
            rules=reader.rules,
            continues=reader.continues,
            bidirectional=decoder and reader.prompting.bidirectional,
            fill=reader.fill,
            **reader.expressed(options, text)._asdict(),
        )


def _tokens(ids: Sequence[int], vocab: int) -> list[int]:
    """Returns ids as a list; an InputError unless all are in 0 .. vocab - 1."""
    try:
        tokens = [operator.index(token) for token in ids]
    except TypeError as error:
        raise InputError(f"ids = {ids!r}: must be whole numbers", field="ids") from error
    if wrong := [token for token in tokens if not 0 <= token < vocab]:
        raise InputError(
            f"ids has {wrong[0]}: the model's tokens are 0 .. {vocab - 1}", field="ids"
        )
    return tokens
