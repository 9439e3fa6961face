"""What configs and files of decoder-only families have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.errors import InputError
from t5lite.interop.huggingface.families import labels
from t5lite.interop.huggingface.families.family import Config, Unsupported
from t5lite.interop.tensors import Part, Tensor, transposed
from t5lite.layers import HeadSpec, LMHeadSpec, MlpSpec, NormSpec, TokenLabelsHeadSpec
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec


def heads(config: Config, model: str, base: str) -> tuple[HeadSpec, ...]:
    """Returns the heads of a config's architecture.

    Args:
      config: with `tie_word_embeddings`; without `architectures` it is taken for `model`.
      model: the architecture with logits over the vocabulary.
      base: the architecture without a head.

    Raises:
      InputError: for another architecture.
    """
    names = config.get("architectures") or [model]
    if names == [base]:
        return ()
    if names == [model]:
        return (LMHeadSpec(tied=bool(config["tie_word_embeddings"])),)
    classes = base.removesuffix("Model")
    labelled = {classes + suffix: suffix for suffix in sorted(set(labels.SUFFIXES.values()))}
    if classes.startswith("Gemma"):
        del labelled[f"{classes}ForQuestionAnswering"]
    suffix = labelled.get(names[0]) if len(names) == 1 else None
    if suffix == "ForSequenceClassification":
        # Of the last token that is no padding.
        shape = {"pooling": "last", "pooler": False, "use_bias": False}
        return (labels.text_head(config, dropout_rate=0.0, **shape),)
    if suffix == "ForTokenClassification":
        rates = (config.get(name) for name in ("classifier_dropout", "hidden_dropout"))
        dropout_rate = next((rate for rate in rates if rate is not None), 0.1)
        return (labels.token_head(config, dropout_rate=dropout_rate),)
    if suffix == "ForQuestionAnswering":
        return (labels.spans_head(config),)
    known = ", ".join([model, base, *labelled])
    raise InputError(f"architectures = {names!r} is not modelled; those that are: {known}")


def head_fields(spec: ModelSpec, model: str, base: str) -> dict[str, Any]:
    """Returns the fields of a config that `heads` reads."""
    if not spec.heads:
        return {"architectures": [base]}  # if a head is added, the family's default is best
    head = spec.heads[0]
    if type(head) in labels.SUFFIXES:
        name = base.removesuffix("Model") + labels.SUFFIXES[type(head)]
        found = {"architectures": [name], **labels.fields(head)}
        if isinstance(head, TokenLabelsHeadSpec):
            found["classifier_dropout"] = head.dropout_rate
        return found
    tied = isinstance(head, LMHeadSpec) and head.tied
    return {"architectures": [model], "tie_word_embeddings": tied}


def labelled_tensors(spec: ModelSpec, *, tagger: str) -> list[Tensor]:
    """Returns the tensors of heads that have labels; `tagger` is the name of that for tokens."""
    found: list[Tensor] = []
    for head in spec.heads:
        found += labels.tensors(head, spec.embed, classifier="score", tagger=tagger)
    return found


def start_id(config: Config) -> int:
    """Returns the first token of a text: `bos_token_id`, else the end's, else 0.

    Args:
      config: with `vocab_size`; ids beyond it, which only models cut down for tests have, are
        passed over.
    """
    for name in ("bos_token_id", "eos_token_id"):
        ids = config.get(name)
        ids = ids[:1] if isinstance(ids, Sequence) else [ids]
        if ids and ids[0] is not None and 0 <= ids[0] < config["vocab_size"]:
            return int(ids[0])
    return 0


def lm_head(spec: ModelSpec, name: str, *, aliases: tuple[str, ...] = ()) -> list[Tensor]:
    """Returns the tensor of logits that have a table of their own, `[vocab, embed]`; else none."""
    if not any(isinstance(head, LMHeadSpec) and not head.tied for head in spec.heads):
        return []
    kernel = Part("lm_head/projection/kernel", None, transposed)
    return [Tensor(name, (spec.vocab, spec.embed), (kernel,), aliases)]


def tied_names(spec: ModelSpec, *names: str) -> tuple[str, ...]:
    """Returns the names under which a file may have tied logits' table; none if they are not."""
    tied = any(isinstance(head, LMHeadSpec) and head.tied for head in spec.heads)
    return names if tied else ()


def decoder_of(spec: ModelSpec) -> StackSpec:
    """Returns the decoder of a family that has nothing else."""
    if spec.decoder is None or spec.encoder is not None:
        raise InputError(f"family = {spec.family!r} is of decoders alone, not {spec.topology}")
    return spec.decoder


def dense(block: TransformerBlockSpec) -> MlpSpec:
    """Returns the MLP of a block that has no experts."""
    if not isinstance(block.mlp, MlpSpec):
        raise Unsupported("mlp", block.mlp)
    return block.mlp


def epsilon(norm: NormSpec) -> float:
    """Returns a norm's epsilon; 0 for one of the user's own, which no config can express."""
    return getattr(norm, "epsilon", 0.0)


def refuse(config: Mapping[str, Any], name: str, modelled: Any, why: str) -> None:
    """Raises an InputError if a field has another value than the one that is modelled."""
    if config.get(name, modelled) != modelled:
        raise InputError(f"{name} = {config[name]!r} is not modelled ({why}); {modelled!r} is")
