"""ALBERT and ELECTRA: odd small models, and the published sizes with their parameters."""

from typing import Any

_LABELS = {
    "id2label": {"0": "O", "1": "B", "2": "I"},
    "label2id": {"O": 0, "B": 1, "I": 2},
}
_ALBERT: dict[str, Any] = {
    "architectures": ["AlbertForMaskedLM"],
    "model_type": "albert",
    "vocab_size": 97,
    "embedding_size": 10,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 19,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-5,
    "hidden_dropout_prob": 0.1,
}
_ELECTRA: dict[str, Any] = {
    "architectures": ["ElectraForPreTraining"],
    "model_type": "electra",
    "vocab_size": 97,
    "embedding_size": 10,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 19,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-5,
}


CASES: dict[str, dict[str, Any]] = {
    "albert": _ALBERT,
    "albert_exact_gelu": {**_ALBERT, "hidden_act": "gelu", "embedding_size": 24},
    "albert_inner_group": {**_ALBERT, "inner_group_num": 2},
    "albert_unshared": {**_ALBERT, "num_hidden_groups": 3, "inner_group_num": 2},
    "albert_base_model": {**_ALBERT, "architectures": ["AlbertModel"]},
    "albert_classification": {
        **_ALBERT,
        **_LABELS,
        "architectures": ["AlbertForSequenceClassification"],
        "classifier_dropout_prob": 0.2,
    },
    "albert_regression": {
        **_ALBERT,
        "architectures": ["AlbertForSequenceClassification"],
        "id2label": {"0": "similarity"},
        "label2id": {"similarity": 0},
    },
    "albert_token_labels": {
        **_ALBERT,
        **_LABELS,
        "architectures": ["AlbertForTokenClassification"],
    },
    "albert_spans": {**_ALBERT, "architectures": ["AlbertForQuestionAnswering"]},
    "electra_discriminator": _ELECTRA,
    "electra_discriminator_relu": {**_ELECTRA, "hidden_act": "relu", "embedding_size": 24},
    "electra_generator": {
        **_ELECTRA,
        "architectures": ["ElectraForMaskedLM"],
        "embedding_size": 48,
        "hidden_act": "relu",  # of the layers; the head keeps its GELU
    },
    "electra_base_model": {**_ELECTRA, "architectures": ["ElectraModel"]},
    "electra_token_labels": {
        **_ELECTRA,
        **_LABELS,
        "architectures": ["ElectraForTokenClassification"],
        "classifier_dropout": 0.3,
    },
    "electra_spans": {**_ELECTRA, "architectures": ["ElectraForQuestionAnswering"]},
}


def _albert(hidden_size: int, num_hidden_layers: int, num_attention_heads: int) -> dict[str, Any]:
    return {
        "architectures": ["AlbertForMaskedLM"],
        "model_type": "albert",
        "hidden_size": hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "intermediate_size": 4 * hidden_size,
    }


def _electra(architecture: str, **sizes: int) -> dict[str, Any]:
    return {"architectures": [architecture], "model_type": "electra", **sizes}


_BASE = {"num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
COUNTS: dict[str, tuple[dict[str, Any], int]] = {
    "albert_base_v1": (_albert(768, 12, 12), 11221680),
    "albert_large_v1": (_albert(1024, 24, 16), 16795824),
    "albert_xlarge_v1": (_albert(2048, 24, 16), 54821040),
    "albert_xxlarge_v1": (_albert(4096, 12, 64), 206368944),
    "albert_base_v2": (_albert(768, 12, 12), 11221680),
    "albert_large_v2": (_albert(1024, 24, 16), 16795824),
    "albert_xlarge_v2": (_albert(2048, 24, 16), 54821040),
    "albert_xxlarge_v2": (_albert(4096, 12, 64), 206368944),
    "electra_small_discriminator": (_electra("ElectraForPreTraining"), 13549057),
    "electra_base_discriminator": (
        _electra("ElectraForPreTraining", embedding_size=768, hidden_size=768, **_BASE),
        109483009,
    ),
    "electra_large_discriminator": (
        _electra("ElectraForPreTraining", embedding_size=1024, hidden_size=1024, **_LARGE),
        335142913,
    ),
    "electra_small_generator": (_electra("ElectraForMaskedLM"), 13546682),
    "electra_base_generator": (_electra("ElectraForMaskedLM", embedding_size=768), 33740602),
    "electra_large_generator": (
        _electra("ElectraForMaskedLM", embedding_size=1024, num_hidden_layers=24),
        51295290,
    ),
}
