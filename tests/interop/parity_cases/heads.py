"""Heads with labels of every family whose classes have them: classes, numbers, tags, spans."""

from typing import Any

from parity_cases import albert_electra, bert, decoders, gemma

_SUFFIXES = {
    "classes": "ForSequenceClassification",
    "numbers": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "spans": "ForQuestionAnswering",
}
_LABELS = {"classes": 4, "numbers": 2, "tokens": 6, "spans": 2}
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", bert.CASES["bert"]),
    "roberta": ("Roberta", bert.CASES["roberta"]),
    "distilbert": ("DistilBert", bert.CASES["distilbert"]),
    "albert": ("Albert", albert_electra.CASES["albert"]),
    "electra": ("Electra", albert_electra.CASES["electra_generator"]),
    "gpt2": ("GPT2", decoders.GPT2),
    "gpt_neox": ("GPTNeoX", decoders.GPT_NEOX),
    "llama": ("Llama", decoders.LLAMA),
    "mistral": ("Mistral", decoders.MISTRAL),
    "gemma": ("Gemma", gemma.CASES["gemma"]),
    "gemma2": ("Gemma2", gemma.CASES["gemma2"]),
}


def _case(family: str, kind: str) -> dict[str, Any]:
    classes, config = _FAMILIES[family]
    found = {**config, "architectures": [classes + _SUFFIXES[kind]], "num_labels": _LABELS[kind]}
    if kind == "numbers":
        found["problem_type"] = "regression"
    if "roberta" not in family:  # whose positions begin after padding's id
        found["pad_token_id"] = 0
    return found


HEADED = {
    f"{family}_head_{kind}": _case(family, kind)
    for family in _FAMILIES
    for kind in _SUFFIXES
    if not (family.startswith("gemma") and kind == "spans")
}
CASES = HEADED
