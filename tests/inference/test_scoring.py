"""Scores: by hand from the model's logits, as in training, in any company, and on any mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_folders import add_tokenizer, copied

import t5lite
from t5lite.data.packing import pad
from t5lite.errors import InputError
from t5lite.inference import scoring
from t5lite.inference.batching import compiled
from t5lite.inference.scoring import perplexity
from t5lite.objectives import CausalLM, InputsToTargets, Seq2Seq, bind, chunked_cross_entropy
from t5lite.parallel import Layout

pytest.importorskip("tokenizers")

ONE = jax.devices()[:1]
TEXTS = ["a cat sat", "dogs", "the end of it all"]  # 7, 4 and 13 ids
TARGETS = ["on it", "", "so"]
ENDS = {"encoder": ("[CLS]", "[SEP]"), "decoder": ("[CLS]",), "encoder_decoder": ()}
PAIRS = list(zip(TEXTS, TARGETS, strict=True))
CASES = {"encoder": "bert", "decoder": "gpt2", "encoder_decoder": "t5_1_1"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        topology: add_tokenizer(copied(case, root / case), ends=ENDS[topology])
        for topology, case in CASES.items()
    }


@pytest.fixture(scope="module")
def models(folders):
    return {
        name: t5lite.load(folder, dtype="float32", devices=ONE) for name, folder in folders.items()
    }


@functools.partial(jax.jit, static_argnums=0)
def log_probabilities(model, params, batch):
    hidden, _ = model.hidden(params, batch)
    return jax.nn.log_softmax(model.logits(params, hidden))


def by_hand(loaded, targets, **batch):
    """What a model says of one row's targets, without padding."""
    batch = {name: jnp.asarray(ids, jnp.int32)[None] for name, ids in batch.items()}
    output = np.asarray(log_probabilities(loaded.model, loaded.params, batch))[0]
    return output[np.arange(len(targets)), targets]


def check(score, tokens, expected):
    assert score.tokens == tokens
    assert score.num_tokens == len(tokens) == len(score.pieces) == len(score.token_greedy)
    assert score.token_log_probabilities.dtype == np.float32
    np.testing.assert_allclose(score.token_log_probabilities, expected, atol=2e-5)
    assert score.log_probability == pytest.approx(np.sum(expected), abs=1e-4)
    assert score.perplexity == pytest.approx(np.exp(-np.mean(expected)), rel=1e-4)


# --- by hand ------------------------------------------------------------------------------------


def test_a_decoder_scores_texts(models):
    loaded = models["decoder"]
    for text, score in zip(TEXTS, loaded.score(TEXTS), strict=True):
        ids = loaded.vocabulary.encode(text)
        read = [loaded.spec.start_id, *ids[:-1]]
        check(score, ids, by_hand(loaded, ids, decoder_input_tokens=read))
    assert score.pieces[:3] == ["t", "##h", "##e"]


def test_a_decoder_scores_the_target_after_a_prompt(models):
    loaded = models["decoder"]
    encode, eos_id = loaded.vocabulary.encode, loaded.vocabulary.eos_id
    for eos in None, True:
        targets = TARGETS if eos else ["on it", "s", "so"]
        scores = loaded.score(TEXTS, targets=targets, eos=eos)
        for text, target, score in zip(TEXTS[:2], targets, scores, strict=False):
            prompt = encode(text)
            output = encode(text + target)[len(prompt) :] + [eos_id] * bool(eos)
            whole = [*prompt, *output]
            read = [loaded.spec.start_id, *whole[:-1]]
            expected = by_hand(loaded, whole, decoder_input_tokens=read)
            check(score, output, expected[len(prompt) :])


def test_the_chain_rule(models):
    """A text is as likely as its beginning, times its end given that."""
    loaded = models["decoder"]
    (whole,) = loaded.score(["abcd##ef ghi"])
    (begin,) = loaded.score(["abcd"])
    ids = loaded.vocabulary.encode("abcd##ef ghi")[4:]
    (end,) = loaded.score(["abcd"], targets=["##ef ghi"])
    assert end.tokens == ids
    assert whole.log_probability == pytest.approx(
        begin.log_probability + end.log_probability, abs=1e-4
    )


def test_an_encoder_decoder_scores_targets_with_their_end(models):
    loaded = models["encoder_decoder"]
    vocabulary = loaded.vocabulary
    scores = loaded.score(TEXTS, targets=TARGETS)[:2]
    for text, target, score in zip(TEXTS, TARGETS, scores, strict=False):
        output = [*vocabulary.encode(target), vocabulary.eos_id]
        expected = by_hand(
            loaded,
            output,
            encoder_input_tokens=vocabulary.frame(vocabulary.encode(text)),
            decoder_input_tokens=[loaded.spec.start_id, *output[:-1]],
        )
        check(score, output, expected)


def test_an_encoder_masks_each_token_in_turn(models):
    loaded = models["encoder"]
    vocabulary = loaded.vocabulary
    for text, score in zip(TEXTS[:2], loaded.score(TEXTS[:2], batch_size=4), strict=True):
        ids = vocabulary.encode(text)
        read, expected = np.array(vocabulary.frame(ids)), []
        for position in range(1, len(ids) + 1):
            masked = np.where(np.arange(len(read)) == position, vocabulary.mask_id, read)
            expected.append(by_hand(loaded, read, encoder_input_tokens=masked)[position])
        check(score, ids, expected)


def scored(loaded, request):
    (actual,) = scoring.score(loaded, loaded.params, [request], vocabulary=loaded.vocabulary)
    return actual


def test_ids_equal_text(models):
    """Ids are read as they are; those of a text have the text's score."""
    for name in ("decoder", "encoder_decoder"):
        loaded = models[name]
        scorer = scoring.Scorer(loaded)
        for text, target in zip(TEXTS, ["on it", "s", "so"], strict=True):
            request = scorer.read(text, target)
            context = request.inputs or request.targets[: request.scored.start]
            assert scorer.read_ids(context, request.tokens) == request
            (expected,) = loaded.score([text], targets=[target])
            check(scored(loaded, request), request.tokens, expected.token_log_probabilities)


def test_a_context_may_be_empty(models):
    loaded = models["decoder"]
    scorer, ids = scoring.Scorer(loaded), loaded.vocabulary.encode("a cat")
    (whole,) = loaded.score(["a cat"])
    for request in (scorer.read_ids([], ids), scorer.read("", "a cat")):
        check(scored(loaded, request), ids, whole.token_log_probabilities)
    model = dataclasses.replace(loaded.model, spec=loaded.spec.replace(start_id=None))
    startless = dataclasses.replace(loaded, engine=dataclasses.replace(loaded.engine, model=model))
    for source, name in ((startless, "decoder"), (models["encoder_decoder"], "encoder_decoder")):
        with pytest.raises(InputError, match="context_ids are empty"):
            scoring.Scorer(source).read_ids([], ids)
        with pytest.raises(InputError, match="the text is empty"):
            scoring.Scorer(source).read("", "a cat"), name


@pytest.mark.parametrize(
    ("context", "target", "expected"),
    [
        ([5], [], "the target is empty"),
        ([5], [97], r"target_ids: ids must be in 0..96"),
        ([-1], [5], r"context_ids: ids must be in 0..96"),
        ([5] * 20, [5] * 20, "40 tokens for the decoder, which takes 29; leave out"),
    ],
)
def test_ids_that_are_refused(models, context, target, expected):
    scorer = scoring.Scorer(models["decoder"], truncate=True)  # ids are never cut
    with pytest.raises(InputError, match=expected):
        scorer.read_ids(context, target)


def test_greedy_targets_are_marked(models):
    """The most probable tokens, one after the other, are a greedy target; no other one is."""
    loaded, context, target = models["decoder"], [5, 6], []
    scorer = scoring.Scorer(loaded)
    for _ in range(4):
        read = [loaded.spec.start_id, *context, *target]
        batch = {"decoder_input_tokens": jnp.asarray([read], jnp.int32)}
        target.append(int(log_probabilities(loaded.model, loaded.params, batch)[0, -1].argmax()))
    score = scored(loaded, scorer.read_ids(context, target))
    assert score.greedy
    assert score.token_greedy.tolist() == [True] * 4
    other = scored(loaded, scorer.read_ids(context, [*target[:3], (target[3] + 1) % 97]))
    assert not other.greedy
    assert other.token_greedy.tolist() == [True, True, True, False]


# --- as in training -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(InputsToTargets):
    """Takes pairs as they are, as those that PrefixLM cuts: EOS behind the targets alone."""

    def pairs(self, examples, **_):
        return examples


@pytest.mark.parametrize(
    ("topology", "objective", "prompt"),
    [
        ("decoder", CausalLM(), None),
        ("decoder", Seq2Seq(), "inputs"),
        ("decoder", Given(), "prefix"),
        ("encoder_decoder", Seq2Seq(), None),
        ("encoder_decoder", Given(), "prefix"),
    ],
)
def test_the_sum_is_the_training_loss(models, topology, objective, prompt):
    loaded = models[topology]
    vocabulary, objective = loaded.vocabulary, bind(objective, loaded.model)
    if isinstance(objective, CausalLM):
        lengths, options = {"targets": 29}, {"eos": True}
        examples = [{"targets": vocabulary.encode(text)} for text in TEXTS]
    else:
        lengths, options = {"inputs": 18, "targets": 11}, {"targets": TARGETS, "prompt": prompt}
        pairs = [(vocabulary.encode(text), vocabulary.encode(target)) for text, target in PAIRS]
        if prompt == "prefix":  # one text, cut
            pairs = [
                (text, vocabulary.encode("".join(pair))[len(text) :])
                for pair, (text, _) in zip(PAIRS, pairs, strict=True)
            ]
        examples = [
            {
                "inputs": np.array(text, np.int32),
                "targets": np.array([*target, vocabulary.eos_id], np.int32),
            }
            for text, target in pairs
        ]
    rows = list(objective.prepare(examples, lengths=lengths, vocabulary=vocabulary, rng=None))
    batch = objective.batch(pad(rows, objective.rows(lengths)))
    _, metrics = jax.jit(objective.loss, static_argnums=0)(loaded.model, loaded.params, batch)
    scores = loaded.score(TEXTS, **options)
    total, count = metrics["loss"]
    assert sum(score.num_tokens for score in scores) == int(count)
    assert -sum(score.log_probability for score in scores) == pytest.approx(float(total), abs=1e-3)


# --- in any company -----------------------------------------------------------------------------


@pytest.mark.parametrize("topology", CASES)
def test_the_others_in_a_batch_do_not_matter(models, topology):
    targets = ["on it", "s", "so"] if topology != "encoder" else None
    together = models[topology].score(TEXTS, targets=targets)
    for batch_size in 1, 2:
        again = models[topology].score(TEXTS, targets=targets, batch_size=batch_size)
        for one, other in zip(together, again, strict=True):
            check(one, other.tokens, other.token_log_probabilities)


@pytest.mark.parametrize("topology", CASES)
def test_any_number_of_devices(folders, models, topology):
    targets = ["on it", "s", "so"] if topology != "encoder" else None
    layout = Layout(mesh={"data": 2, "fsdp": 4})
    spread = t5lite.load(folders[topology], dtype="float32", layout=layout)
    for one, other in zip(
        spread.score(TEXTS, targets=targets),
        models[topology].score(TEXTS, targets=targets),
        strict=True,
    ):
        check(one, other.tokens, other.token_log_probabilities)


@pytest.fixture
def uncompiled():
    """Compiles anew, and leaves nothing compiled to others."""
    compiled.cache_clear()
    yield
    compiled.cache_clear()


def test_logits_a_few_at_a_time(models, monkeypatch, uncompiled):
    expected = models["decoder"].score(TEXTS)
    compiled.cache_clear()
    monkeypatch.setattr(scoring, "_MOST_LOGITS", 4 * 97 * 3)
    for one, other in zip(models["decoder"].score(TEXTS), expected, strict=True):
        check(one, other.tokens, other.token_log_probabilities)


def test_sizes_and_parameters_share_their_compilation(models, monkeypatch, uncompiled):
    traced = []

    def spy(logits_fn, hidden, targets, **options):
        traced.append(targets.shape)
        return chunked_cross_entropy(logits_fn, hidden, targets, **options)

    monkeypatch.setattr(scoring, "chunked_cross_entropy", spy)
    loaded = models["decoder"]
    (before,) = loaded.score(["abc"])
    other = dataclasses.replace(loaded, params=jax.tree.map(lambda x: x * 0.5, loaded.params))
    assert other.score(["abc"])[0].log_probability != before.log_probability
    assert traced == [(1, 16)]
    traced.clear()
    loaded.score(["abc", "de"])
    loaded.score(["abcdefghijklmnop", "q"])
    loaded.score(["one", "two"], targets=["three", "four"])
    assert traced == [(2, 16)]
    loaded.score(["abcdefghijklmnopq", "r", "stu"])  # 29 positions are less than 32
    assert traced == [(2, 16), (4, 32)]


# --- bad requests -------------------------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def test_a_long_text_is_refused_or_cut(models):
    loaded = models["decoder"]  # of 29 positions
    with pytest.raises(InputError, match=r"^texts\[1\]: a text of 52 tokens: the model takes 29"):
        loaded.score(["a", LETTERS * 2])
    (cut,), (short,) = loaded.score([LETTERS * 2], truncate=True), loaded.score([LETTERS + "abc"])
    check(cut, short.tokens, short.token_log_probabilities)
    # A prompt loses its beginning, a question its end.
    options = {"targets": ["xyz"], "truncate": True}
    (cut,) = loaded.score([LETTERS * 2], **options)
    (short,) = loaded.score(["a" + LETTERS], **options)
    np.testing.assert_allclose(
        cut.token_log_probabilities, short.token_log_probabilities, atol=2e-5
    )
    with pytest.raises(InputError, match="a target of 52 tokens: the model takes 28; shorten it"):
        loaded.score(["a"], targets=[LETTERS * 2], truncate=True)
    encoder = models["encoder"]  # of 20
    with pytest.raises(InputError, match="a text of 28 tokens: the model takes 20; shorten it"):
        encoder.score([LETTERS])
    (cut,), (short,) = encoder.score([LETTERS], truncate=True), encoder.score([LETTERS[:18]])
    check(cut, short.tokens, short.token_log_probabilities)


@pytest.mark.parametrize(
    ("topology", "texts", "options", "expected"),
    [
        ("decoder", [], {}, "texts is empty; give a list of at least one text"),
        ("decoder", "a text", {}, r"texts is one string; put it in a list: \[text\]"),
        ("decoder", ["a"], {"targets": "b"}, "targets is one string"),
        ("decoder", ["a"], {"targets": ["b", "c"]}, "1 texts and 2 targets: give each text one"),
        ("decoder", ["a", 3], {}, r"texts\[1\]: 3 is not a text"),
        ("decoder", ["a", ""], {}, r"texts\[1\]: the text is empty: it has no token"),
        ("decoder", ["a"], {"targets": [""]}, r"texts\[0\]: the target is empty"),
        ("decoder", ["a"], {"targets": [3]}, r"texts\[0\]: 3 is not a text"),
        ("decoder", ["a"], {"batch_size": 0}, "batch_size = 0: must be a whole number"),
        ("decoder", ["a"], {"prompt": "prefixed"}, "unknown prompt 'prefixed'; did you mean pref"),
        ("encoder_decoder", ["a"], {}, "no targets: an encoder-decoder scores targets"),
        ("encoder", ["a"], {"targets": ["b"]}, "targets are for models with a decoder"),
        ("encoder", ["a"], {"eos": True}, "prompt and eos are not supported"),
    ],
)
def test_bad_requests(models, topology, texts, options, expected):
    with pytest.raises(InputError, match=expected):
        models[topology].score(texts, **options)


def test_models_that_cannot_score(models, folders, tmp_path):
    alone = dataclasses.replace(
        models["decoder"], engine=dataclasses.replace(models["decoder"].engine, vocabulary=None)
    )
    with pytest.raises(InputError, match=r"no tokenizer in .*load\(folder, vocabulary=...\)"):
        alone.score(["a"])
    bare = t5lite.load(add_tokenizer(copied("bert_base_model", tmp_path / "bare")), devices=ONE)
    with pytest.raises(InputError, match="without a head for tokens, which cannot score text"):
        bare.score(["a"])


def test_perplexity_of_the_impossible():
    assert perplexity(-2.0, 2) == pytest.approx(np.e)
    assert perplexity(-1e6, 2) == np.inf


# --- as transformers ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gpt2", "t5_1_1"])
def test_transformers_has_the_same_loss(case, tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    pytest.importorskip("transformers", reason="needs the extra `parity`")
    from parity import build
    from parity_cases import CASES as CONFIGS

    theirs = build(CONFIGS[case], seed=7)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = t5lite.load(add_tokenizer(tmp_path / "theirs", ends=()), devices=ONE)
    vocabulary = loaded.vocabulary
    targets = TARGETS if case == "t5_1_1" else None
    for index, score in enumerate(loaded.score(TEXTS, targets=targets)):
        ids = vocabulary.encode(TEXTS[index])
        if targets is None:
            assert loaded.spec.start_id is None  # its tokenizer adds none: the first is not scored
            labels = ids
        else:
            ids = vocabulary.frame(ids)
            labels = [*vocabulary.encode(targets[index]), vocabulary.eos_id]
        with torch.no_grad():
            loss = theirs(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        assert -score.log_probability / score.num_tokens == pytest.approx(loss.item(), abs=1e-5)
