"""Every family's cases: tiny odd configs for parity, and published sizes for counts."""

import importlib
import pkgutil

CASES: dict[str, dict] = {}
COUNTS: dict[str, tuple[dict, int]] = {}
ELSEWHERE: dict[str, int] = {}  # published sizes that transformers has no class for
for _module in pkgutil.iter_modules(__path__):
    _cases = importlib.import_module(f"{__name__}.{_module.name}")
    CASES |= getattr(_cases, "CASES", {})
    COUNTS |= getattr(_cases, "COUNTS", {})
    ELSEWHERE |= getattr(_cases, "ELSEWHERE", {})

# Those of which references are committed: each family, and what differs most in it.
REFERENCED = [
    "albert",
    "albert_unshared",
    "bart",
    "bart_untied",
    "bert",
    "bert_base_model",
    "bert_classes",
    "bert_spans",
    "bert_tokens",
    "distilbert",
    "electra_discriminator",
    "electra_generator",
    "gemma",
    "gemma2",
    "gpt2",
    "gpt2_by_layer",
    "gpt_neox",
    "gpt_neox_sequential",
    "llama",
    "llama_llama3",
    "llama_yarn",
    "marian",
    "marian_two_tables",
    "mbart",
    "mistral",
    "modernbert",
    "modernbert_biases",
    "mt5",
    "pegasus",
    "roberta",
    "switch",
    "switch_steps",
    "t5_1_0",
    "t5_1_1",
    "t5_shallow_decoder",
    "t5_encoder",
    "t5gemma",
    "t5gemma_widths",
    "umt5",
    "umt5_tied",
    "xlm_roberta",
]
