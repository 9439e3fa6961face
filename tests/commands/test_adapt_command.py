"""`t5lite adapt`: each flag, on models of a few thousand parameters."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_folders import NAMES, REFERENCES, add_tokenizer, copied, leaves

import t5lite
from t5lite import interop
from t5lite.data import open_vocabulary
from t5lite.errors import InputError
from t5lite.interop import huggingface
from t5lite.interop.adaptation import read_new_vocabulary
from t5lite.interop.huggingface.files import open_tensors
from t5lite.layers import MlpSpec, MoeSpec
from t5lite.main import main
from t5lite.parallel import make_mesh

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """What is tested here has nothing to do with devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "t5lite.interop.conversion.make_mesh",
            lambda layout, devices=None: make_mesh(layout, devices or jax.devices()[:1]),
        )
        yield


@functools.cache
def reference(name):
    return t5lite.load(REFERENCES / name, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A decoder with a tokenizer, which reads [CLS] first."""
    folder = copied("llama", tmp_path_factory.mktemp("llama") / "old", bos_token_id=2)
    add_tokenizer(folder, ends=("[CLS]",))
    (folder / "tokenizer_config.json").write_text(json.dumps(NAMES | {"bos_token": "[CLS]"}))
    return folder


def run(capsys, *arguments):
    code = main(["adapt", *map(str, arguments)])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    return printed.out.splitlines()


def refused(capsys, *arguments):
    """Runs what must fail, and returns what is said in at most five lines."""
    code = main(["adapt", *map(str, arguments)])
    printed = capsys.readouterr()
    assert code == 2, printed
    assert printed.err.startswith("t5lite: ")
    assert len(printed.err.splitlines()) <= 5
    return printed.err


def below(tree, prefix):
    return {
        path.removeprefix(prefix): leaf
        for path, leaf in leaves(tree).items()
        if path.startswith(prefix)
    }


def logits(model, params, side, ids):
    batch = {f"{side}_input_tokens": np.array([ids], np.int32)}
    batch[f"{side}_segment_ids"] = np.ones((1, len(ids)), np.int32)

    @jax.jit
    def said(params):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        return model.logits(wide, model.hidden(wide, batch)[0])[0]

    return np.asarray(said(params))


# --- encoder-decoders ---------------------------------------------------------------------------


def test_a_decoder_becomes_an_encoder_decoder(tmp_path, capsys):
    lines = run(capsys, REFERENCES / "llama", tmp_path / "new", "--encoder_decoder")
    assert lines[0] == f"{REFERENCES / 'llama'}: llama, decoder, 21,240 parameters"
    assert lines[1].startswith("an encoder-decoder of it: encoder_decoder, encoder_decoder, 46,5")
    assert lines[2] == f"written to {tmp_path}/new"
    old, new = reference("llama"), t5lite.load(tmp_path / "new")
    assert new.model.topology == "encoder_decoder"
    decoder = below(old.params, "decoder/")
    assert below(new.params, "encoder/") == decoder
    assert decoder.items() <= below(new.params, "decoder/").items()
    block = "decoder/layers/block_0/"
    attention = below(new.params, f"{block}attention/")
    assert below(new.params, f"{block}cross_attention/") == attention


def test_cross_attention_may_be_fresh(tmp_path, capsys):
    flags = ("--encoder_decoder", "--cross_attention=fresh")
    drawn = []
    for seed in 0, 1:
        run(capsys, REFERENCES / "llama", tmp_path / str(seed), *flags, f"--seed={seed}")
        params = t5lite.load(tmp_path / str(seed)).params
        cross = below(params, "decoder/layers/block_0/cross_attention/")
        assert cross != below(params, "decoder/layers/block_0/attention/")
        drawn.append(cross)
    assert drawn[0] != drawn[1]


def test_an_encoder_becomes_an_encoder_decoder(tmp_path, capsys):
    run(capsys, REFERENCES / "bert", tmp_path / "new", "--encoder_decoder", "--dtype=float32")
    new = t5lite.load(tmp_path / "new")
    assert (new.model.topology, new.spec.decoder.causal) == ("encoder_decoder", True)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(new.params)} == {"float32"}
    old = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), reference("bert").params)
    assert below(new.params, "encoder/") == below(old, "encoder/")


def test_gemma_becomes_t5gemma_as_transformers_has_it(tmp_path, capsys):
    target = tmp_path / "new"
    run(capsys, REFERENCES / "gemma2", target, "--encoder_decoder", "--to=huggingface")

    def names(folder):
        found = open_tensors(folder).tensors()
        return {re.sub(r"\.\d+\.", ".N.", name) for name in found}

    assert names(target) == names(REFERENCES / "t5gemma")
    config = json.loads((target / "config.json").read_text())
    theirs = json.loads((REFERENCES / "t5gemma/config.json").read_text())
    assert config["architectures"] == theirs["architectures"]
    assert config["encoder"]["num_hidden_layers"] == 5
    new = t5lite.load(target)
    assert new.spec.family == "t5gemma"
    assert below(new.params, "encoder/") == below(reference("gemma2").params, "decoder/")


def test_two_models_become_one(tmp_path, capsys):
    run(capsys, REFERENCES / "bert", tmp_path / "new", f"--decoder={REFERENCES / 'llama'}")
    new = t5lite.load(tmp_path / "new")
    decoder = below(reference("llama").params, "decoder/")
    assert decoder.items() <= below(new.params, "decoder/").items()
    layers = below(reference("bert").params, "encoder/layers/")
    assert below(new.params, "encoder/layers/") == layers
    cross = "decoder/layers/block_0/cross_attention/"
    assert below(new.params, cross) != below(new.params, "decoder/layers/block_0/attention/")


def test_the_vocabulary_of_the_decoder_is_taken_where_there_is_no_other(llama, tmp_path, capsys):
    run(capsys, REFERENCES / "bert", tmp_path / "new", f"--decoder={llama}")
    assert interop.open_model(tmp_path / "new").vocabulary.size == 57


# --- experts ------------------------------------------------------------------------------------


def test_experts(tmp_path, capsys):
    lines = run(capsys, REFERENCES / "llama", tmp_path / "new", "--experts=4")
    assert lines[1].startswith("4 experts: llama, decoder, ")
    new = t5lite.load(tmp_path / "new")
    kinds = [type(block.mlp) for block in new.spec.decoder.every_block]
    assert kinds == [MlpSpec, MoeSpec, MlpSpec]
    assert new.spec.decoder.every_block[1].mlp.top_k == 2
    old, ids = reference("llama"), [3, 14, 15, 92, 65]
    # The weights of the experts of a token add up to 1, and all are the MLP that there was.
    np.testing.assert_allclose(
        logits(new.model, new.params, "decoder", ids),
        logits(old.model, old.params, "decoder", ids),
        atol=1e-5,
    )


def test_how_many_experts_and_where(tmp_path, capsys):
    flags = ("--experts=2", "--top_k=1", "--expert_layers=all")
    run(capsys, REFERENCES / "llama", tmp_path / "new", *flags)
    blocks = interop.open_model(tmp_path / "new").spec.decoder.every_block
    assert [(block.mlp.num_experts, block.mlp.top_k) for block in blocks] == [(2, 1)] * 3


# --- vocabularies -------------------------------------------------------------------------------


def test_room_for_new_tokens(llama, tmp_path, capsys):
    # 57 of the 97 rows are those of pieces: 40 more take their places.
    run(capsys, llama, tmp_path / "few", "--new_tokens=40")
    assert interop.open_model(tmp_path / "few").spec.vocab == 128
    run(capsys, llama, tmp_path / "many", "--new_tokens=100")
    new = t5lite.load(tmp_path / "many")
    assert new.spec.vocab == 256
    table = np.asarray(new.params["token_embedding"]["embedding"], np.float32)
    old = np.asarray(reference("llama").params["token_embedding"]["embedding"], np.float32)
    np.testing.assert_array_equal(table[:57], old[:57])
    mean = np.broadcast_to(old[:57].mean(axis=0), (100, 24))
    np.testing.assert_allclose(table[57:157], mean, atol=4e-3)  # as bfloat16


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A byte-level BPE tokenizer, trained on a few sentences."""
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=70, special_tokens=special, show_progress=False
    )
    made.train_from_iterator(["a cat sat on the mat"] * 9 + ["the dog and the cat"] * 9, trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(str(folder / "tokenizer.json"))
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def test_a_new_vocabulary(llama, trained, tmp_path, capsys):
    lines = run(capsys, llama, tmp_path / "new", f"--vocabulary={trained}")
    match = re.match(
        r"vocabulary of (\d+) ids \((\d+) kept, (\d+) composed, (\d+) drawn\)", lines[1]
    )
    size, kept, composed, drawn = map(int, match.groups())
    new = t5lite.load(tmp_path / "new")
    assert size == new.vocabulary.size == kept + composed + drawn
    assert new.spec.vocab == 128
    assert new.spec.start_id == new.vocabulary.bos_id == 1  # as [CLS] was to the old one
    old = huggingface.open_model(llama).vocabulary
    table = np.asarray(new.params["token_embedding"]["embedding"], np.float32)
    before = np.asarray(reference("llama").params["token_embedding"]["embedding"], np.float32)
    pieces = [new.vocabulary.piece(index) for index in range(size)]
    # Letters are letters; a word is the mean of its letters as the old tokenizer cuts it.
    row = table[pieces.index("a")]
    np.testing.assert_array_equal(row, before[old.encode("a")[0]])
    parts = before[old.encode("the")]
    assert len(parts) == 3
    np.testing.assert_allclose(table[pieces.index("Ġthe")], parts.mean(axis=0), atol=4e-3)


def test_where_a_vocabulary_is_read_from(llama, trained, tmp_path, capsys):
    run(capsys, llama, tmp_path / "one", f"--vocabulary={trained}", "--start_id=2")
    assert interop.open_model(tmp_path / "one").spec.start_id == 2
    expected = interop.open_model(tmp_path / "one").vocabulary.fingerprint
    for place in tmp_path / "one", tmp_path / "one/vocabulary", trained:
        assert read_new_vocabulary(place).fingerprint == expected
    assert read_new_vocabulary(trained / "tokenizer.json").encode("the cat") == read_new_vocabulary(
        trained
    ).encode("the cat")


def test_word_vectors(llama, tmp_path, capsys):
    rng = np.random.default_rng(0)
    lines = [
        f"{word} {' '.join(map(str, rng.standard_normal(24).round(3)))}"
        for word in ("a", "b", "nowhere")
    ]
    (tmp_path / "vectors.txt").write_text("\n".join(lines) + "\n")
    said = run(capsys, llama, tmp_path / "new", f"--vectors={tmp_path}/vectors.txt")
    assert said[1].startswith("4 of 57 embeddings from vectors: ")  # a, ##a, b, ##b
    old, new = reference("llama").params, t5lite.load(tmp_path / "new").params
    name = "token_embedding/embedding"
    changed = {path for path, leaf in leaves(new).items() if leaf != leaves(old)[path]}
    assert changed == {name}
    table = [np.asarray(each["token_embedding"]["embedding"], np.float32) for each in (old, new)]
    assert list(np.flatnonzero((table[0] != table[1]).any(axis=1))) == [5, 6, 31, 32]
    np.testing.assert_array_equal(table[1][5], table[1][31])


def test_all_at_once_and_to_hugging_face(llama, trained, tmp_path, capsys):
    flags = (f"--vocabulary={trained}", "--experts=2", "--encoder_decoder")
    lines = run(capsys, llama, tmp_path / "new", *flags)
    order = [line.split(" ")[0] for line in lines[1:-1]]
    assert order == ["vocabulary", "2", "an"]
    new = interop.open_model(tmp_path / "new")
    assert new.vocabulary.fingerprint == read_new_vocabulary(trained).fingerprint
    run(capsys, llama, tmp_path / "hub", f"--vocabulary={trained}", "--to=huggingface")
    again = huggingface.open_model(tmp_path / "hub")
    assert again.vocabulary.encode("a cat") == open_vocabulary(
        tmp_path / "hub/tokenizer.json"
    ).encode("a cat")
    assert again.spec.start_id == 1


def test_adapting_is_a_function(llama, tmp_path, capsys):
    lines = []
    changes = interop.Adaptation(experts=2)
    interop.adapt(str(llama), str(tmp_path / "ours"), changes, say=lines.append)
    assert run(capsys, llama, tmp_path / "theirs", "--experts=2")[:-1] == lines[:-1]
    ours, theirs = (t5lite.load(tmp_path / name) for name in ("ours", "theirs"))
    assert ours.spec == theirs.spec
    assert leaves(ours.params) == leaves(theirs.params)
    with pytest.raises(InputError, match=r"^experts = 0: must be a whole number") as error:
        interop.Adaptation(experts=0)
    assert error.value.field == "experts"


# --- what people get wrong ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "nothing to adapt: give at least one of --vocabulary, --new_tokens, --vectors"),
        (["--seed=3", "--dtype=float32"], "nothing to adapt"),
        (
            ["--encoder_decoder", "--decoder=x"],
            "--decoder is not for --encoder_decoder; leave one out",
        ),
        (["--cross_attention=fresh", "--experts=2"], "--cross_attention is for --encoder_decoder"),
        (["--encoder_decoder", "--cross_attention=some"], "--cross_attention: invalid choice"),
        (["--vocabulary=x", "--new_tokens=3"], "--vocabulary replaces: leave one out"),
        (["--new_tokens=3", "--top_k=1"], "--top_k is for --experts"),
        (["--new_tokens=3", "--expert_layers=all"], "--expert_layers is for --experts"),
        (["--new_tokens=3", "--start_id=1"], "--start_id is for --vocabulary"),
        (["--new_tokens=0"], "--new_tokens = 0: must be a whole number of at least 1"),
        (["--new_tokens=many"], "--new_tokens: invalid int value"),
        (["--experts=0"], "--experts = 0: must be"),
        (["--experts=2", "--top_k=0"], "--top_k = 0: must be"),
        (["--experts=2", "--top_k=3"], "top_k = 3: must be at most num_experts"),
        (["--encoder_decoder", "--to=t5x"], "--to: invalid choice"),
        (["--gin.train.seed=1", "--experts=2"], "adapt reads no gin configuration"),
        (["--expert=2"], "did you mean --experts"),
        (["--vectors=nowhere.txt"], "nowhere.txt does not exist"),
        (["--vocabulary=nowhere"], "nowhere"),
        (["--vocabulary=/"], "--vocabulary=/: no tokenizer files in this folder"),
        (["--decoder=nowhere"], "there is no folder 'nowhere'"),
    ],
)
def test_flags(llama, tmp_path, capsys, flags, expected):
    assert expected in refused(capsys, llama, tmp_path / "new", *flags)
    assert not (tmp_path / "new").exists()


def test_sources(llama, trained, tmp_path, capsys):
    new = tmp_path / "new"
    t5, bert = REFERENCES / "t5_1_1", REFERENCES / "bert"
    said = refused(capsys, t5, new, "--encoder_decoder")
    assert f"--encoder_decoder: {t5} holds an encoder-decoder already" in said
    assert "it has an encoder already" in refused(capsys, bert, new, f"--decoder={t5}")
    for flag in f"--vocabulary={trained}", "--vectors=x":
        assert f"{bert} has no vocabulary, whose pieces" in refused(capsys, bert, new, flag)
    other = add_tokenizer(copied("bert", tmp_path / "bert"), words=["cat"])
    said = refused(capsys, other, new, f"--decoder={llama}")
    assert f"the vocabularies of {other} and {llama} differ, and a model has one" in said
    assert f"t5lite adapt {llama} NEW --vocabulary={other}" in said
    assert not new.exists()


def test_targets(llama, tmp_path, capsys, monkeypatch):
    said = refused(capsys, llama, tmp_path / "new", "--encoder_decoder", "--to=huggingface")
    assert "family = 'encoder_decoder': no class of transformers of that name" in said
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine.txt").touch()
    monkeypatch.setattr(
        "t5lite.interop.adaptation.read_params", lambda *_, **__: pytest.fail("was read")
    )
    assert "holds something already" in refused(capsys, llama, tmp_path, "--encoder_decoder")
