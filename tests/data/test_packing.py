"""Packing loses nothing, mixes nothing up, and wastes little."""

import numpy as np
import pytest

from t5lite.data.packing import empty_rows, pack, pad
from t5lite.errors import InputError
from t5lite.rows import RowSpec

LENGTHS = {"inputs": 16, "targets": 9}


def specs(lengths):
    return {name: RowSpec(length) for name, length in lengths.items()}


SPECS = specs(LENGTHS)


def random_examples(rng, count, lengths=LENGTHS):
    """Examples whose tokens say where they are from: example * 100 + position, never 0."""
    return [
        {
            name: 100 * (i + 1) + np.arange(rng.integers(1, length + 1), dtype=np.int32)
            for name, length in lengths.items()
        }
        for i in range(count)
    ]


def unpacked(rows, name):
    """Reads `{(row, segment): tokens}` back, checking that segments are contiguous."""
    found = {}
    for row, (tokens, segments) in enumerate(
        zip(rows[name], rows[f"{name}_segment_ids"], strict=True)
    ):
        size = int(np.count_nonzero(segments))
        assert (segments[:size] > 0).all(), "padding before a segment"
        assert not tokens[size:].any()
        assert (np.diff(segments[:size]) >= 0).all(), "a segment is in two places"
        for segment in np.unique(segments[:size]):
            found[row, int(segment)] = tokens[segments == segment]
    return found


@pytest.mark.parametrize("seed", range(20))
def test_every_example_comes_back_whole_and_together(seed):
    rng = np.random.default_rng(seed)
    examples = random_examples(rng, int(rng.integers(1, 60)))
    rows = pack(examples, SPECS)
    inputs, targets = unpacked(rows, "inputs"), unpacked(rows, "targets")
    assert inputs.keys() == targets.keys()
    by_first = {int(tokens[0]): place for place, tokens in inputs.items()}
    assert len(by_first) == len(examples)
    for example in examples:
        place = by_first[int(example["inputs"][0])]
        np.testing.assert_array_equal(inputs[place], example["inputs"])
        np.testing.assert_array_equal(targets[place], example["targets"])


@pytest.mark.parametrize("seed", range(10))
def test_in_their_own_order_no_example_would_have_fitted_an_earlier_row(seed):
    rng = np.random.default_rng(seed)
    examples = random_examples(rng, 50)
    places = {
        int(tokens[0]) // 100: row
        for (row, _), tokens in unpacked(pack(examples, SPECS, decreasing=False), "inputs").items()
    }
    used = np.zeros((50, 2), int)
    for i, example in enumerate(examples):
        sizes = np.array([example["inputs"].size, example["targets"].size])
        fits = (used + sizes <= [16, 9]).all(axis=1)
        assert places[i + 1] == fits.argmax()
        used[fits.argmax()] += sizes


@pytest.mark.parametrize("lengths", [{"inputs": 64}, {"inputs": 64, "targets": 32}])
def test_first_fit_decreasing_takes_no_more_rows(lengths):
    fewer = 0
    for seed in range(20):
        examples = random_examples(np.random.default_rng(seed), 200, lengths)
        sizes = [
            len(pack(examples, specs(lengths), decreasing=decreasing)["inputs"])
            for decreasing in (False, True)
        ]
        fewer += sizes[1] < sizes[0]
        assert sizes[1] <= sizes[0]
    assert fewer >= 10


def test_large_examples_are_not_in_the_first_rows():
    """The order of rows is that in which examples come, whatever their sizes."""
    firsts = []
    for seed in range(50):
        examples = random_examples(np.random.default_rng(seed), 100, {"inputs": 64})
        rows = pack(examples, specs({"inputs": 64}))["inputs_segment_ids"]
        largest = (rows == 1).sum(axis=1).astype(float)
        firsts.append(np.corrcoef(largest, np.arange(len(largest)))[0, 1])
    assert abs(np.mean(firsts)) < 0.1


def test_segments_are_numbered_from_one_in_order():
    ones = [{"inputs": np.array([7, 8]), "targets": np.array([9])}] * 3
    rows = pack(ones, specs({"inputs": 7, "targets": 4}))
    assert rows["inputs_segment_ids"].tolist() == [[1, 1, 2, 2, 3, 3, 0]]
    assert rows["targets"].tolist() == [[9, 9, 9, 0]]
    assert rows["targets_segment_ids"].tolist() == [[1, 2, 3, 0]]


def test_an_empty_feature_keeps_its_segment_number():
    examples = [
        {"inputs": np.array([], np.int32), "targets": np.array([5])},
        {"inputs": np.array([6]), "targets": np.array([7])},
    ]
    rows = pack(examples, specs({"inputs": 2, "targets": 2}))
    assert rows["inputs_segment_ids"].tolist() == [[2, 0]]
    assert rows["targets_segment_ids"].tolist() == [[1, 2]]


def test_everything_is_int32_also_when_empty():
    for examples in ([], [{"inputs": np.arange(1, 4), "targets": np.arange(1, 3)}]):
        rows, padded = pack(examples, SPECS), pad(examples, SPECS)
        assert set(rows) == {name + suffix for name in LENGTHS for suffix in ("", "_segment_ids")}
        assert padded.keys() - rows.keys() == {"inputs_lengths", "targets_lengths"}
        for name, value in (rows | padded).items():
            assert value.dtype == np.int32
            length = () if name.endswith("_lengths") else (LENGTHS[name.split("_")[0]],)
            assert value.shape == (len(examples), *length)
        for packed in (True, False):
            empty = empty_rows(SPECS, 3, packed=packed)
            assert empty.keys() == (rows if packed else padded).keys()
            assert all(len(value) == 3 and not value.any() for value in empty.values())


VARIED = {  # frames of 2 numbers, a distribution at each, a label, and a score of each example
    "frames": RowSpec(12, (2,), "float16"),
    "logits": RowSpec(12, (2, 3), "float32", kind="aligned", along="frames"),
    "flags": RowSpec(12, dtype="bool", kind="aligned", along="frames"),
    "targets": RowSpec(9, dtype="uint8"),
    "score": RowSpec(3, dtype="float32", kind="per_example"),
    "pair": RowSpec(3, (2,), kind="per_example"),
}


def varied(count):
    rng = np.random.default_rng(0)
    for i in range(count):
        n, m = rng.integers(1, 7, 2)
        yield {
            "frames": rng.normal(size=(n, 2)).astype(np.float16),
            "logits": rng.normal(size=(n, 2, 3)).astype(np.float32),
            "flags": rng.random(n) < 0.5,
            "targets": rng.integers(0, 256, m).astype(np.uint8),
            "score": np.float32(i + 0.5),
            "pair": np.array([i, -i]),
        }


@pytest.mark.parametrize("to_rows", [pack, pad])
def test_inner_dimensions_dtypes_and_values_of_examples_are_kept(to_rows):
    examples = list(varied(25))
    rows = to_rows(examples, VARIED)
    seen = set()
    for name, spec in VARIED.items():
        assert rows[name].dtype == spec.dtype
        assert rows[name].shape[2:] == spec.inner
    assert rows["score"].shape[1] == (3 if to_rows is pack else 1)
    for row, segments in enumerate(rows["frames_segment_ids"]):
        assert segments.max() <= 3
        for segment in range(1, segments.max() + 1):
            i = int(rows["score"][row, segment - 1])
            seen.add(i)
            for name, spec in VARIED.items():
                if spec.kind == "per_example":
                    value = rows[name][row, segment - 1]
                else:
                    value = rows[name][
                        row, rows[f"{spec.along or name}_segment_ids"][row] == segment
                    ]
                np.testing.assert_array_equal(value, examples[i][name], err_msg=name)
    assert seen == set(range(25))
    assert (len(rows["frames"]) < 25) == (to_rows is pack)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": np.zeros((2, 3), np.float16)}, r"'frames' .* shape \[3\], not \[2\]"),
        ({"flags": np.ones(4, bool)}, "'flags' .* lacks a value for each token of 'frames'"),
        ({"targets": np.array([0.5])}, "'targets' .* floats and its rows uint8"),
    ],
)
def test_values_that_are_not_as_declared_are_named(change, message):
    (example,) = varied(1)
    example["logits"] = np.zeros((2, 2, 3), np.float32)
    example |= {"frames": np.zeros((2, 2)), "flags": np.ones(2, bool), **change}
    with pytest.raises(InputError, match=message):
        pack([example], VARIED)


def test_plain_numbers_and_lists_are_packed():
    specs = {"targets": RowSpec(4), "score": RowSpec(2, dtype="float32", kind="per_example")}
    rows = pack([{"targets": [5, 6], "score": 0.5}, {"targets": [7], "score": 2}], specs)
    assert rows["targets"].tolist() == [[5, 6, 7, 0]]
    assert rows["score"].tolist() == [[0.5, 2.0]]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("length", 0, "RowSpec.length is 0"),
        ("inner", 3, "RowSpec.inner is 3"),
        ("dtype", "flaot32", "RowSpec.dtype is 'flaot32'"),
        ("kind", "per_exmaple", "did you mean per_example"),
        ("along", "targets", "RowSpec.along is 'targets'"),
    ],
)
def test_a_declaration_that_does_not_exist_is_refused(field, value, message):
    with pytest.raises(InputError, match=message):
        RowSpec(**({"length": 3} | {field: value}))


def test_aligned_arrays_name_tokens_that_exist():
    specs = {"targets": RowSpec(4), "flags": RowSpec(4, kind="aligned", along="target")}
    with pytest.raises(InputError, match=r"along of 'flags' 'target'; did you mean targets\?"):
        pack([{"targets": np.ones(2, int), "flags": np.ones(2, int)}], specs)


def test_padding_gives_each_example_its_row():
    examples = random_examples(np.random.default_rng(0), 30)
    rows = pad(examples, SPECS)
    assert rows["inputs_lengths"].tolist() == [len(each["inputs"]) for each in examples]
    for i, example in enumerate(examples):
        for name, tokens in example.items():
            np.testing.assert_array_equal(rows[name][i, : tokens.size], tokens)
            assert not rows[name][i, tokens.size :].any()


@pytest.mark.parametrize("to_rows", [pack, pad])
def test_what_does_not_fit_is_named(to_rows):
    example = {"inputs": np.ones(17, int), "targets": np.ones(1, int)}
    with pytest.raises(InputError, match=r"'inputs' .* 17 tokens .* 16"):
        to_rows([example], SPECS)
    with pytest.raises(InputError, match=r"lacks the feature 'targets'"):
        to_rows([{"inputs": np.ones(3, int)}], SPECS)
