"""Metrics of a SeqIO task, in training and in `evaluate`, against what the saved run says."""

import numpy as np
import pytest
from tiny_runs import SPEC, train

import t5lite
from t5lite.commands.evaluate import evaluate
from t5lite.data import TaskData
from t5lite.evaluation import SeqioMetrics
from t5lite.models import override
from t5lite.objectives import Seq2Seq

SPECS = {
    "encoder_decoder": override(SPEC, {"vocab": 384}),
    "decoder": override(
        "gpt_nano", {"vocab": 384, "embed": 16, "decoder.num_layers": 1, "*.dropout_rate": 0.0}
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("topology", SPECS)
def test_metrics_are_of_what_the_run_says(topology, bidirectional, tmp_path):
    seqio = pytest.importorskip("seqio")
    tf = pytest.importorskip("tensorflow")
    texts = [f"{i} " + "ab" * (i % 4) for i in range(11)]
    seen = {}

    def read(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({"inputs": texts, "targets": texts[::-1]})

    def length(targets, predictions):
        seen["predictions"] = predictions
        return {"length": np.mean([len(each) for each in predictions])}

    def likelihood(targets, scores):
        seen["targets"], seen["scores"] = targets, scores
        return {"likelihood": float(np.mean(scores))}

    vocabulary = seqio.ByteVocabulary(extra_ids=125)  # as many ids as the models have
    task = seqio.Task(
        "of_texts",
        source=seqio.FunctionDataSource(read, splits=["train", "validation"]),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features=dict.fromkeys(["inputs", "targets"], seqio.Feature(vocabulary)),
        metric_fns=[length, likelihood],
    )
    data = TaskData(
        task, lengths={"inputs": 16, "targets": 12}, batch_size=8, num_shards=4, prefetch=1
    )
    spec, objective = SPECS[topology], Seq2Seq(bidirectional_inputs=bidirectional)
    callbacks = [SeqioMetrics(every=4)]
    options = {"model": spec, "objective": objective, "data": data, "callbacks": callbacks}
    trained = train(tmp_path, steps=4, **options)
    in_training = dict(seen)

    loaded = t5lite.load(tmp_path)
    found = evaluate(str(tmp_path), **options)
    names = {"seqio/of_texts/length", "seqio/of_texts/likelihood"}
    assert names == set(found)
    assert trained.metrics == pytest.approx(found, rel=1e-5)
    assert in_training["predictions"] == seen["predictions"]

    assert seen["targets"] == texts[::-1]
    answers = loaded.answers(texts, max_new_tokens=12)
    assert seen["predictions"] == [vocabulary.decode(list(each.tokens)) for (each,) in answers]
    said = loaded.score(texts, targets=texts[::-1])
    expected = [float(np.sum(each.token_log_probabilities)) for each in said]
    np.testing.assert_allclose(seen["scores"], expected, rtol=1e-4)
