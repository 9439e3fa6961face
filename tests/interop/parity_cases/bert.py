"""BERT, RoBERTa, XLM-RoBERTa, DistilBERT and ModernBERT."""

_TINY = {
    "vocab_size": 97,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
}


def _bert(architecture, model_type="bert", **changes):
    return {"model_type": model_type, "architectures": [architecture], **_TINY, **changes}


_DISTILBERT = {
    "model_type": "distilbert",
    "vocab_size": 97,
    "dim": 24,
    "n_layers": 3,
    "n_heads": 3,
    "hidden_dim": 40,
    "max_position_embeddings": 20,
}
_MODERN = {
    "model_type": "modernbert",
    "vocab_size": 97,
    "hidden_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "local_attention": 6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}

CASES = {
    "bert": _bert("BertForMaskedLM"),
    "bert_base_model": _bert("BertModel", hidden_act="gelu_new"),
    "bert_classes": _bert("BertForSequenceClassification", num_labels=5),
    "bert_regression": _bert("BertForSequenceClassification", num_labels=1),
    "bert_tokens": _bert("BertForTokenClassification", num_labels=7),
    "bert_spans": _bert("BertForQuestionAnswering"),
    "roberta": _bert("RobertaForMaskedLM", "roberta", type_vocab_size=1, layer_norm_eps=1e-5),
    "roberta_classes": _bert("RobertaForSequenceClassification", "roberta", num_labels=4),
    "xlm_roberta": _bert("XLMRobertaForMaskedLM", "xlm-roberta", type_vocab_size=1),
    "distilbert": {**_DISTILBERT, "architectures": ["DistilBertForMaskedLM"]},
    "distilbert_base_model": {**_DISTILBERT, "architectures": ["DistilBertModel"]},
    "distilbert_tokens": {
        **_DISTILBERT,
        "architectures": ["DistilBertForTokenClassification"],
        "num_labels": 6,
    },
    "distilbert_classes": {
        **_DISTILBERT,
        "architectures": ["DistilBertForSequenceClassification"],
        "num_labels": 4,
    },
    "modernbert": {**_MODERN, "architectures": ["ModernBertForMaskedLM"]},
    "modernbert_biases": {
        **_MODERN,
        "architectures": ["ModernBertForMaskedLM"],
        "num_hidden_layers": 7,
        "norm_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "classifier_bias": True,
    },
    "modernbert_base_model": {**_MODERN, "architectures": ["ModernBertModel"]},
}
_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}


def _size(architecture, model_type, **changes):
    return {"model_type": model_type, "architectures": [architecture], **changes}


_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1}
COUNTS = {
    "bert_base": (_size("BertForMaskedLM", "bert"), 109514298),
    "bert_large": (_size("BertForMaskedLM", "bert", **_LARGE), 335174458),
    "bert_base_cased": (_size("BertForMaskedLM", "bert", vocab_size=28996), 108340804),
    "bert_large_cased": (_size("BertForMaskedLM", "bert", vocab_size=28996, **_LARGE), 333610308),
    "bert_base_multilingual_cased": (
        _size("BertForMaskedLM", "bert", vocab_size=119547),
        177974523,
    ),
    "roberta_base": (_size("RobertaForMaskedLM", "roberta", **_ROBERTA), 124697433),
    "roberta_large": (_size("RobertaForMaskedLM", "roberta", **_ROBERTA, **_LARGE), 355412057),
    "xlm_roberta_base": (
        _size("XLMRobertaForMaskedLM", "xlm-roberta", vocab_size=250002, **_ROBERTA),
        278295186,
    ),
    "xlm_roberta_large": (
        _size("XLMRobertaForMaskedLM", "xlm-roberta", vocab_size=250002, **_ROBERTA, **_LARGE),
        560142482,
    ),
    "distilbert_base": (_size("DistilBertForMaskedLM", "distilbert"), 66985530),
    "distilbert_base_cased": (
        _size("DistilBertForMaskedLM", "distilbert", vocab_size=28996),
        65812036,
    ),
    "distilbert_base_multilingual_cased": (
        _size("DistilBertForMaskedLM", "distilbert", vocab_size=119547),
        135445755,
    ),
    "modernbert_base": (_size("ModernBertForMaskedLM", "modernbert"), 149655232),
    "modernbert_large": (
        _size(
            "ModernBertForMaskedLM",
            "modernbert",
            hidden_size=1024,
            num_hidden_layers=28,
            num_attention_heads=16,
            intermediate_size=2624,
        ),
        395881664,
    ),
}
