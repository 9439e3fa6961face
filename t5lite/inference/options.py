"""The generation options: one table of checks, command-line flags, signatures and docs.

Imports no JAX, so that `--help` answers at once.
"""

import dataclasses
import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from t5lite.errors import InputError, unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """One option's meaning, its values, and how it is presented.

    Args:
      help: meaning, with the default in parentheses.
      metavar: placeholder of its value; None if it is not a flag.
      kind: of a value: int, float, str or bool.
      allowed: whether a number is in range; None for other kinds.
      words: the range, for the error: "must be …".
      names: the values by their words on a command line; {} for other kinds.
      repeatable: whether the value is a list.
      weighted: whether the value maps texts to numbers; on a command line `TOKEN=NUMBER`.
      static: whether requests of one batch must agree on it, as it shapes the compiled function.
      neutral: the value that switches the option off, in a batch with requests that set it.
      needs: another option without which this one has no effect.
      encoder: whether it applies to filling an encoder's mask tokens as well.
    """

    help: str
    metavar: str | None = None
    kind: type = float
    allowed: Callable[[Any], bool] | None = None
    words: str = "a number"
    names: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    repeatable: bool = False
    weighted: bool = False
    static: bool = False
    neutral: Any = None
    needs: str | None = None
    encoder: bool = False

    @property
    def parse(self) -> Callable[[str], Any]:
        """The function from a command line's word to the value; its ValueError refuses the word,
        which argparse reports by the function's name."""
        return token_and_number if self.weighted else str if self.names else self.kind


def token_and_number(text: str) -> tuple[str, float]:
    """Returns the parts of `TOKEN=NUMBER`."""
    token, equals, number = text.rpartition("=")
    if not (equals and token):
        raise ValueError(text)
    return token, float(number)


token_and_number.__name__ = "TOKEN=NUMBER"


def _option(default: Any, help: str, metavar: str | None = None, **rule: Any) -> Any:
    rule = {"rule": Rule(help=help, metavar=metavar, **rule)}
    return dataclasses.field(default=default, metadata=rule)


def _integer(default: int | None, least: int, help: str, metavar: str = "N", **rule: Any) -> Any:
    def allowed(value: Any) -> bool:
        return isinstance(value, numbers.Integral) and least <= int(value) < 2**31

    words = f"a whole number of at least {least}, and below 2**31"
    return _option(default, help, metavar, kind=int, allowed=allowed, words=words, **rule)


def _number(default: float | None, help: str, metavar: str = "X", **rule: Any) -> Any:
    return _option(default, help, metavar, **{"allowed": lambda value: True, **rule})


def _probability(help: str, **rule: Any) -> Any:
    range_ = {"allowed": lambda value: 0 < value <= 1, "words": "in (0, 1]"}
    return _option(None, help, "P", needs="temperature", encoder=True, **{**range_, **rule})


def _texts(help: str, **rule: Any) -> Any:
    return _option((), help, "TEXT", kind=str, repeatable=True, **rule)


@dataclasses.dataclass(frozen=True)
class Options:
    """How one request is answered; each field's metadata holds its `Rule`.
    `docs/reference/generation_options.md` lists them, from the same table.

    Raises: InputError if a value is out of range, or two options contradict each other.
    """

    max_new_tokens: int = _integer(
        64,
        1,
        "most tokens of a response, EOS included (the model's generation_config.json, else 64)",
        encoder=True,
    )
    min_new_tokens: int | None = _integer(
        None, 0, "tokens before which a response cannot end", neutral=0
    )
    temperature: float = _number(
        0.0,
        "0 is greedy; above, tokens are drawn from softmax(logits / T) (0)",
        "T",
        allowed=lambda value: value >= 0,
        words="0 (greedy) or above",
        neutral=0.0,
        encoder=True,
    )
    top_k: int | None = _integer(
        None,
        1,
        "draw from the K most probable tokens",
        "K",
        neutral=0,
        needs="temperature",
        encoder=True,
    )
    top_p: float | None = _probability(
        "draw from the most probable tokens whose probabilities sum to P", neutral=1.0
    )
    min_p: float | None = _probability(
        "draw from tokens at least P times as probable as the most probable one",
        allowed=lambda value: 0 <= value <= 1,
        words="in [0, 1]",
        neutral=0.0,
    )
    typical_p: float | None = _probability(
        "draw from the most typical tokens whose probabilities sum to P", neutral=1.0
    )
    repetition_penalty: float | None = _number(
        None,
        "above 1, divides the logits of tokens of the prompt and the response",
        allowed=lambda value: value > 0,
        words="above 0; 1 is none",
        neutral=1.0,
    )
    no_repeat_ngram_size: int | None = _integer(
        None, 1, "no N-gram of the prompt and the response occurs twice", neutral=0
    )
    presence_penalty: float | None = _number(
        None, "subtracted from the logits of tokens that the response has", neutral=0.0
    )
    frequency_penalty: float | None = _number(
        None, "as presence_penalty, times the token's count in the response", neutral=0.0
    )
    logit_bias: Mapping[str | int, float] | None = _option(
        None,
        "nats added to the logit of a token, as text (in Python also an id); -inf bans it; "
        "repeatable",
        "TOKEN=NUMBER",
        kind=dict,
        weighted=True,
    )
    num_samples: int = _integer(
        1,
        1,
        "responses to each text: samples, or the best of a beam search (1)",
        static=True,
        encoder=True,
    )
    num_beams: int = _integer(
        1, 1, "above 1, beam search (the model's generation_config.json, else 1)", static=True
    )
    length_penalty: float = _number(
        1.0,
        "beam search: sums are divided by length**X; above 0 favours longer responses (1)",
        needs="num_beams",
    )
    early_stopping: bool | None = _option(
        False,
        "beam search: stop at num_beams finished responses (yes), when no better one is likely "
        "(no), or possible (never) (no)",
        "WHEN",
        kind=bool,
        names={"yes": True, "no": False, "never": None},
        words="True, False or None",
        static=True,
        needs="num_beams",
    )
    stop: tuple[str, ...] = _texts(
        "ends a response, and is left out of its text; repeatable. A newline in bash: $'\\n'"
    )
    banned: tuple[str | int, ...] = _texts(
        "a token that is never written, as text (in Python also an id); repeatable", encoder=True
    )
    forced: str | None = _option(None, "text that a response begins with", "TEXT", kind=str)
    choices: tuple[str, ...] = _texts("a whole response, one of which is written; repeatable")
    refinement_steps: int = _integer(
        1, 1, "encoders: mask-predict iterations, most confident tokens first (1)", encoder=True
    )
    num_log_probabilities: int = _integer(
        0, 0, "most probable tokens reported with each token of a response (0)", "K"
    )
    logits_fn: Callable[..., Any] | None = _option(
        None,
        "Python only: `(logits [rows, vocab], output) -> logits`, after all constraints",
        static=True,
    )
    seed: int = _integer(0, 0, "of the samples (0)", "S", encoder=True)

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            value = getattr(self, name)
            if value is None and DEFAULTS[name] is None:
                continue
            object.__setattr__(self, name, _checked(name, value, rule))
        self._check_together()

    def _check_together(self) -> None:
        def error(name: str, message: str) -> InputError:
            return InputError(message, field=f"Options.{name}")

        least = self.min_new_tokens
        if least is not None and least > self.max_new_tokens:
            raise error(
                "min_new_tokens",
                f"min_new_tokens = {least} is more than max_new_tokens = {self.max_new_tokens}",
            )
        if self.temperature > 0 and self.num_beams > 1:
            raise error(
                "temperature",
                f"temperature = {self.temperature} and num_beams = {self.num_beams}: beam search "
                "draws no samples; leave one out",
            )
        unset = {"temperature": self.temperature == 0, "num_beams": self.num_beams == 1}
        fixes = {"temperature": "temperature, such as 1.0", "num_beams": "num_beams above 1"}
        for name in sorted(self.changed(), key=[*RULES].index):
            needed = RULES[name].needs
            if needed is not None and unset[needed]:
                raise error(
                    name,
                    f"{name} = {getattr(self, name)!r}: has no effect without {needed}; set "
                    f"{fixes[needed]}, or leave {name} out",
                )
        if self.temperature == 0 and self.num_samples > self.num_beams:
            raise error(
                "num_samples",
                f"num_samples = {self.num_samples}: greedy samples are equal; set temperature, or "
                "num_beams to at least as many",
            )
        if self.choices and self.forced is not None:
            raise error("choices", "choices and forced: both determine the response; leave one out")

    def changed(self) -> frozenset[str]:
        """Returns the names of the options that differ from their defaults."""
        return frozenset(
            name for name, default in DEFAULTS.items() if getattr(self, name) != default
        )


RULES: dict[str, Rule] = {f.name: f.metadata["rule"] for f in dataclasses.fields(Options)}
FLAGS = {name: rule for name, rule in RULES.items() if rule.metavar is not None}
"""The options of a command line, or of a row of a file."""
STATIC = tuple(name for name, rule in RULES.items() if rule.static)
DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(Options)}


def _checked(name: str, value: Any, rule: Rule) -> Any:
    """Returns an option's value, lists as tuples; an InputError if it is not allowed."""
    words = rule.words
    if rule.repeatable:
        value = (value,) if isinstance(value, str) else value
        items, words = (
            (str, int) if name == "banned" else str,
            "a list of texts, none of them empty",
        )
        valid = isinstance(value, list | tuple) and all(_is_token(item, items) for item in value)
        value = tuple(value) if valid else value
    elif rule.weighted:
        words = "a mapping from tokens to numbers below infinity"
        valid = isinstance(value, Mapping) and all(
            _is_token(token, str | int) and isinstance(bias, numbers.Real) and bias < math.inf
            for token, bias in value.items()
        )
    elif rule.allowed is not None:
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        valid = number and math.isfinite(value) and rule.allowed(value)
    elif rule.names:
        valid = any(value is one for one in rule.names.values())
    elif rule.kind is str:
        valid, words = _is_token(value, str), "a text, and not empty"
    else:
        valid, words = callable(value), "a function of logits and the output"
    if not valid:
        raise InputError(f"{name} = {value!r}: must be {words}", field=f"Options.{name}")
    return value


def _is_token(value: Any, kinds: Any) -> bool:
    return isinstance(value, kinds) and value != ""


def options_of(
    values: Mapping[str, Any],
    count: int,
    make: Callable[[Mapping[str, Any]], Options] = lambda chosen: Options(**chosen),
) -> list[Options]:
    """Returns the options of each of `count` texts, made by `make` from the text's values.

    Args:
      values: by name; a list has a value for each text, except that a list of texts is of all.
    Raises: InputError for an unknown name, a list of another length, or a value out of range.
    """
    common: dict[str, Any] = {}
    by_text: dict[str, Sequence[Any]] = {}
    for name, value in values.items():
        if name not in RULES:
            raise unknown("option", name, RULES)
        listed = isinstance(value, list | tuple)
        if RULES[name].repeatable:  # a list of lists has one for each text
            inner = list | tuple
            listed = listed and len(value) > 0 and all(isinstance(item, inner) for item in value)
        if listed and len(value) != count:
            raise InputError(f"{name} has {len(value)} values for {count} texts")
        (by_text if listed else common)[name] = value
    if not by_text:
        return [make(common)] * count
    return [
        make({**common, **{name: value[row] for name, value in by_text.items()}})
        for row in range(count)
    ]


Method = TypeVar("Method", bound=Callable[..., Any])


def with_options(method: Method) -> Method:
    """Lists the options in a method's signature instead of its `**options`, for `help()`."""
    signature = inspect.signature(method)
    *named, _ = signature.parameters.values()
    kind = inspect.Parameter.KEYWORD_ONLY
    listed = [
        inspect.Parameter(field.name, kind, default=field.default, annotation=field.type)
        for field in dataclasses.fields(Options)
    ]
    method.__signature__ = signature.replace(parameters=[*named, *listed])  # type: ignore
    return method


def from_words(words: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options by name from a command line's values, as `Rule.parse` returned them."""
    chosen: dict[str, Any] = {}
    for name, value in words.items():
        rule = FLAGS[name]
        chosen[name] = rule.names[value] if rule.names else dict(value) if rule.weighted else value
    return chosen


def table() -> str:
    """Returns the options as a Markdown table, for the documentation."""
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for name, rule in RULES.items():
        default = "" if DEFAULTS[name] in (None, ()) else f"`{DEFAULTS[name]!r}`"
        lines.append(f"| `{name}` | {default} | {rule.help.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"
