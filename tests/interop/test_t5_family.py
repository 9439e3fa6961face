"""T5's, Switch's, ALBERT's and ELECTRA's configs: what is told from them, and what is refused."""

import jax
import numpy as np
import pytest

from t5lite.errors import InputError
from t5lite.interop.huggingface.families import family_of
from t5lite.interop.tensors import tensors_from
from t5lite.layers import ClassificationHeadSpec, LMHeadSpec, MaskedLMHeadSpec, MoeSpec
from t5lite.models import Model

SMALL = {
    "vocab_size": 11,
    "d_model": 4,
    "d_kv": 2,
    "d_ff": 6,
    "num_layers": 3,
    "num_heads": 2,
    "hidden_size": 4,
    "embedding_size": 3,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 6,
}
OURS = np.arange(44, dtype=np.float32).reshape(11, 4)


class Weights:
    """A file that has these tensors."""

    def __init__(self, **arrays):
        self.arrays = {name.replace("__", "."): array for name, array in arrays.items()}

    def tensors(self):
        return {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in self.arrays.items()}

    def read(self, name):
        return self.arrays[name]


TIED = Weights(shared__weight=OURS)
COPIED = Weights(shared__weight=OURS, lm_head__weight=OURS.copy())
APART = Weights(shared__weight=OURS, lm_head__weight=OURS + 1)


def spec(model_type, config=None, weights=TIED, **changes):
    content = {"model_type": model_type, **SMALL, **(config or {}), **changes}
    return family_of(model_type).spec(content, weights)


@pytest.mark.parametrize(
    ("model_type", "weights", "config", "tied", "scaled"),
    [
        ("t5", TIED, {}, True, True),
        ("t5", COPIED, {"tie_word_embeddings": True}, True, True),
        # v1.1 as transformers 4 wrote it, then as 5 writes it.
        ("t5", APART, {"tie_word_embeddings": False}, False, False),
        ("t5", APART, {"tie_word_embeddings": True, "scale_decoder_outputs": False}, False, False),
        ("t5", TIED, {"tie_word_embeddings": True, "scale_decoder_outputs": False}, True, False),
        ("mt5", TIED, {"tie_word_embeddings": True}, True, False),
        ("umt5", TIED, {"tie_word_embeddings": True}, True, True),
        ("umt5", APART, {"tie_word_embeddings": False}, False, False),
        # As 5.23 wrote it, overwriting what the config said.
        ("umt5", APART, {"tie_word_embeddings": True}, False, False),
        ("switch_transformers", APART, {}, False, True),
    ],
)
def test_logits_are_tied_and_scaled_as_in_training(model_type, weights, config, tied, scaled):
    head = LMHeadSpec(tied=tied, logits_scale=None if scaled else 1.0)
    assert spec(model_type, config, weights).heads == (head,)


def test_an_umt5_by_the_name_of_t5():
    assert spec("umt5", architectures=["T5EncoderModel"]).topology == "encoder"


@pytest.mark.parametrize(
    ("config", "sparse"),
    [
        ({"num_sparse_encoder_layers": 3}, (1, 1, 1)),
        ({"num_sparse_encoder_layers": 1}, (0, 1, 0)),
        ({"num_layers": 5, "num_sparse_encoder_layers": 2}, (0, 1, 0, 1, 0)),
        ({"num_sparse_encoder_layers": 1, "encoder_sparse_step": 1}, (1, 1, 1)),
        ({"num_sparse_encoder_layers": 4}, (0, 0, 0)),
        # transformers has one all the same
        ({"num_sparse_encoder_layers": 0}, (0, 1, 0)),
    ],
)
def test_which_layers_of_switch_have_experts(config, sparse):
    encoder = spec("switch_transformers", config).encoder
    assert tuple(isinstance(block.mlp, MoeSpec) for block in encoder.every_block) == sparse


def test_albert_for_pretraining_has_both_heads():
    """transformers' model says two things at once, which the parity cases do not compare."""
    family = family_of("albert")
    model = Model(spec("albert", architectures=["AlbertForPreTraining"]))
    assert [type(head) for head in model.spec.heads] == [MaskedLMHeadSpec, ClassificationHeadSpec]
    config = family.config(model.spec)
    assert config["architectures"] == ["AlbertForPreTraining"]
    assert family.spec(config, TIED) == model.spec
    names = [name for name, *_ in tensors_from(model.shapes(), family.tensors(model.spec))]
    assert {"albert.pooler.weight", "sop_classifier.classifier.weight"} <= set(names)


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("generator_predictions", "lm"),
        ("discriminator_predictions", "replaced_tokens"),
        ("other", None),
    ],
)
def test_an_electra_that_names_no_architecture(part, kind):
    weights = Weights(**{f"{part}__dense__weight": OURS})
    kinds = [head.kind for head in spec("electra", weights=weights).heads]
    assert kinds == ([] if kind is None else [kind])


@pytest.mark.parametrize(
    ("model_type", "config", "message"),
    [
        (
            "t5",
            {"feed_forward_proj": "gated-mish"},
            "feed_forward_proj's activation = 'mish' is not",
        ),
        ("t5", {"dense_act_fn": "mish"}, "dense_act_fn = 'mish' is not"),
        (
            "t5",
            {"architectures": ["T5ForSequenceClassification"]},
            "T5ForSequenceClassification.* not supported; .*T5ForConditionalGeneration",
        ),
        ("switch_transformers", {"router_bias": True}, "router_bias = True is not"),
        ("switch_transformers", {"router_dtype": "bfloat16"}, "router_dtype = 'bfloat16' is not"),
        ("switch_transformers", {"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        (
            "albert",
            {"num_hidden_layers": 4, "num_hidden_groups": 2},
            "num_hidden_groups = 2 is not supported",
        ),
        ("albert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("albert", {"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        (
            "albert",
            {
                "architectures": ["AlbertForSequenceClassification"],
                "problem_type": "multi_label_classification",
            },
            "problem_type = 'multi_label_classification' is not supported",
        ),
        (
            "albert",
            {"architectures": ["AlbertForQuestionAnswering"], "num_labels": 3},
            "3 labels; a span has 2",
        ),
        ("electra", {"is_decoder": True}, "is_decoder = True is not supported"),
        (
            "electra",
            {"architectures": ["ElectraForMultipleChoice"]},
            "ElectraForMultipleChoice.* not supported; .*ElectraForTokenClassification",
        ),
    ],
)
def test_an_unsupported_config_is_refused(model_type, config, message):
    with pytest.raises(InputError, match=message):
        spec(model_type, config)
