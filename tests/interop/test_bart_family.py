"""What configs and files of BART, mBART, PEGASUS and Marian say, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity_cases import bart as cases

from t5lite.errors import InputError
from t5lite.interop.huggingface.families import bart
from t5lite.interop.tensors import read_params
from t5lite.layers import LMHeadSpec, SinusoidalPositionsSpec
from t5lite.models import preset

E, D = bart.TABLES.values()


class Arrays(dict):
    """Tensors by name, opened."""

    def tensors(self):
        return {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in self.items()}

    def read(self, name):
        return self[name]


def spec(config, *names, **arrays):
    """Returns the spec of a config whose file has these names, no two tensors alike."""
    source = Arrays({name: np.full((2, 2), i, np.float32) for i, name in enumerate(names)})
    return bart.FAMILIES[config["model_type"]].spec(config, Arrays(source | arrays))


def test_a_bias_of_logits_is_there_if_the_file_has_one():
    assert spec(cases.BART, bart.SHARED).heads == (LMHeadSpec(tied=True),)
    assert spec(cases.BART, bart.SHARED, bart.BIAS).heads == (LMHeadSpec(tied=True, use_bias=True),)


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_shared_by_config_and_file(tied):
    config = {**cases.BART, "tie_word_embeddings": tied}
    alike = {name: np.ones((2, 2), np.float32) for name in (bart.SHARED, E, D, bart.LOGITS)}
    assert spec(config, **alike).shared_embedding
    assert spec(config, **alike).heads[0].tied == tied  # the one thing that they alone can say
    assert not spec(config, bart.SHARED, bart.LOGITS).heads[0].tied
    assert spec(config, bart.SHARED, bart.LOGITS).shared_embedding  # as transformers 4 writes them
    assert not spec(config, bart.SHARED, E, D, bart.LOGITS).shared_embedding
    assert spec(config, bart.SHARED).heads[0].tied == tied


def test_tables_are_read_under_any_of_their_names():
    found = spec(cases.BART, bart.LOGITS)
    (table,) = [t for t in bart.tensors(found) if t.name == bart.SHARED]
    embed = np.arange(97 * 24, dtype=np.float32).reshape(97, 24)
    for name in (bart.SHARED, E, D, bart.LOGITS):
        like = {"token_embedding": {"embedding": jax.ShapeDtypeStruct((97, 24), np.float32)}}
        params = read_params(like, Arrays({name: embed}), [table], checkpoint="here")
        np.testing.assert_array_equal(params["token_embedding"]["embedding"], embed)


def test_what_decoders_read_first():
    unsaid = {name: v for name, v in cases.MBART.items() if name != "decoder_start_token_id"}
    starts = [spec(each).start_id for each in (unsaid, cases.MBART, cases.BART, cases.MARIAN)]
    assert starts == [2, 5, 2, 96]
    assert spec({**cases.MBART, "decoder_start_token_id": None}).start_id == 2


def test_early_configs_that_name_bart():
    assert spec({**cases.MBART, "architectures": cases.BART["architectures"]}) == spec(cases.MBART)
    switches = bart.SWITCHES["mbart"]._asdict()
    assert spec({**cases.MBART, **switches}) == spec(cases.MBART)


def test_sinusoids_are_those_of_the_layer():
    module = SinusoidalPositionsSpec().make(24, jnp.dtype("float32"))
    ours = module.apply({}, jnp.arange(500, dtype=jnp.int32)[None])[0]
    np.testing.assert_allclose(ours, bart.sinusoids(500, 24), atol=1e-4)
    right = bart.sinusoids(19, 24)
    for config in (cases.PEGASUS, cases.MARIAN):
        # A file's are only looked at.
        found = spec(config, **{bart.POSITIONS["encoder"]: right.astype(np.float16)})
        assert found == spec(config)
        with pytest.raises(InputError, match=r"decoder\.embed_positions\.weight differs"):
            spec(config, **{bart.POSITIONS["decoder"]: right[::-1]})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**cases.BART, "architectures": ["BartForQuestionAnswering"]}, "BartModel"),
        ({**cases.MARIAN, "architectures": ["MarianForCausalLM"]}, "MarianMTModel"),
        ({**cases.BART, "normalize_before": True}, "normalize_before = True.*'bart' has False"),
        ({**cases.PEGASUS, "normalize_embedding": True}, "normalize_embedding = True"),
        ({**cases.BART, "activation_function": "mish"}, "activation_function = 'mish'"),
        ({**cases.BART, "decoder_attention_heads": 5}, "multiple of decoder_attention_heads = 5"),
        (
            {**cases.MARIAN, "d_model": 15, "decoder_attention_heads": 3},
            "d_model = 15: must be even",
        ),
        (
            {
                **cases.MARIAN,
                "share_encoder_decoder_embeddings": False,
                "decoder_vocab_size": 83,
            },
            "decoder_vocab_size = 83.* vocab_size = 97",
        ),
    ],
)
def test_an_unsupported_config_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        spec(config)


@pytest.mark.parametrize("name", cases.COUNTS)
def test_presets_are_what_their_configs_say(name):
    config = cases.COUNTS[name][0]
    bias = [bart.BIAS] if config["model_type"] == "marian" else []
    assert spec(config, bart.SHARED, *bias) == preset(name)
