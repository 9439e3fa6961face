"""`t5lite embed`: texts to vectors, and the nearest of them to a query."""

import argparse
import itertools
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from t5lite.commands.examples import check_output, given, is_table, output
from t5lite.commands.placement import add_model, placed
from t5lite.commands.prompts import with_trained_template
from t5lite.data.files.readers import DataFile, Line
from t5lite.data.files.templates import Template
from t5lite.errors import InputError
from t5lite.inference.batch_job import Failures, answered, write_line

if TYPE_CHECKING:
    import numpy as np

    from t5lite.configuration import Configuration

ENDINGS = (".npz", ".npy", ".jsonl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what to load, and what to embed or to look for."""
    parser.epilog = (
        "examples: t5lite embed --model_dir=DIR --input_file=docs.txt --output_file=docs.npz; "
        't5lite embed --model_dir=DIR --query "a text" --among=docs.npz'
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="one text each, in quotes")
    add_model(parser)
    parser.add_argument(
        "--input_file",
        metavar="FILE",
        help=".jsonl, .tsv, .csv or .parquet with the columns of training, or `text` or `inputs`; "
        "or .txt, one text a line",
    )
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help='makes texts of columns: "{title}. {body}" (as in training; else of `text`)',
    )
    parser.add_argument(
        "--output_file",
        metavar="FILE",
        help=".npz (embeddings and texts), .npy or .jsonl, written whole or not at all; NaN where "
        "a line failed (JSON lines to stdout)",
    )
    parser.add_argument("--query", metavar="TEXT", help="print the texts that are nearest to it")
    parser.add_argument("--among", metavar="FILE", help="an earlier --output_file, to look in")
    parser.add_argument(
        "--neighbours", type=int, default=5, metavar="N", help="most texts printed (5)"
    )
    parser.add_argument(
        "--batch_size", type=int, default=32, metavar="N", help="most texts at once (32)"
    )
    parser.add_argument(
        "--max_length",
        type=int,
        metavar="N",
        help="most tokens of a text (the model's positions, or sentence-transformers' limit)",
    )
    parser.add_argument(
        "--truncate", action="store_true", help="cut texts that are too long for the model"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="put it in front of each text")
    parser.add_argument(
        "--prompt_name", metavar="NAME", help="a prompt of the model's files (their default one)"
    )


def run(arguments: argparse.Namespace, configuration: "Configuration") -> int:
    """Writes a vector for each text; or, of a query, prints the nearest of such vectors."""
    if configuration.source.bindings or configuration.source.macros:
        raise InputError("embed reads no gin configuration; the model is --model_dir=DIR")
    if arguments.query is not None or arguments.among is not None:
        return search(arguments)

    from t5lite.data.files.line_texts import LineTexts

    check_output(arguments.output_file, ENDINGS)
    template = None if arguments.template is None else Template(arguments.template)
    prompts = LineTexts(template, columns=("text", "inputs"))
    rows = [{"text": text} for text in arguments.texts]
    lines, num_bytes = given(rows, arguments.input_file)
    ending = ".jsonl" if arguments.output_file is None else Path(arguments.output_file).suffix

    from t5lite.inference.batching import check_count
    from t5lite.inference.embedding import Embedder
    from t5lite.reporting.bars import Bar

    check_count("--batch_size", arguments.batch_size)
    failures = Failures()
    vectors: list[Any] = []
    texts: list[str] = []
    with output(arguments.output_file) as file, Bar("embedded") as bar:
        loaded = placed(arguments)
        embedder = Embedder(
            loaded,
            max_length=arguments.max_length,
            truncate=arguments.truncate,
            prompt=arguments.prompt,
            prompt_name=arguments.prompt_name,
        )
        prompts = with_trained_template(prompts, loaded.inputs, rows=is_table(arguments.input_file))

        def read(line: Line) -> tuple[Any, str]:
            text = prompts.text(line)
            return embedder.read(text), text

        def embed(pairs: list[tuple[Any, str]]) -> Iterator[Any]:
            requests, texts = zip(*pairs, strict=True)
            outcomes = loaded.engine.embed(loaded.params, requests, batch_size=arguments.batch_size)
            for outcome, text in zip(outcomes, texts, strict=True):
                yield outcome if isinstance(outcome, InputError) else (outcome, text)

        for line, found in answered(lines, read, embed, at_once=16 * arguments.batch_size):
            if isinstance(found, InputError):
                vector, text, record = None, "", failures.add(line, found)
            else:
                vector, text = found
                record = {"line": line.number, "text": text, "embedding": vector.tolist()}
            if ending == ".jsonl":
                write_line(file, record)
            else:
                vectors.append(vector)
                texts.append(text)
            if num_bytes:
                bar(line.end, num_bytes)
        if ending != ".jsonl":
            if all(vector is None for vector in vectors):
                raise InputError(f"no line could be embedded; {failures.first}")
            save(file, ending, vectors, texts)
    return failures.exit_code()


def save(file: BinaryIO, ending: str, vectors: list[Any], texts: list[str]) -> None:
    """Writes `[n, size]` float32, NaN where there is no vector; into an `.npz` the texts too.

    An `.npz` has `embeddings`, `text_bytes` `[bytes]` uint8, the UTF-8 of all texts, and
    `text_offsets` `[n + 1]` int64: text i is `text_bytes[text_offsets[i]:text_offsets[i + 1]]`. An
    array of strings would give every text the size of the longest.
    """
    import numpy as np

    size = next(vector.size for vector in vectors if vector is not None)
    none = np.full(size, np.nan, np.float32)
    embeddings = np.stack([none if vector is None else vector for vector in vectors])
    if ending == ".npy":
        np.save(file, embeddings)
    else:
        encoded = [text.encode() for text in texts]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        content = np.frombuffer(b"".join(encoded), np.uint8)
        np.savez(file, embeddings=embeddings, text_bytes=content, text_offsets=offsets)


def search(arguments: argparse.Namespace) -> int:
    """Prints the texts nearest to the query: rank, cosine similarity, text."""
    if arguments.query is None or arguments.among is None:
        raise InputError("--query and --among go together: --query TEXT --among=vectors.npz")
    if arguments.texts or arguments.input_file or arguments.output_file:
        raise InputError("--query looks among vectors that are there; it embeds no other text")
    vectors, texts = read_vectors(arguments.among)

    from t5lite.inference.batching import check_count
    from t5lite.inference.embedding import nearest

    check_count("--neighbours", arguments.neighbours)
    (query,) = placed(arguments).embed(
        [arguments.query],
        max_length=arguments.max_length,
        truncate=arguments.truncate,
        prompt=arguments.prompt,
        prompt_name=arguments.prompt_name,
    )
    if query.size != vectors.shape[1]:
        raise InputError(
            f"--among={arguments.among} has vectors of {vectors.shape[1]} numbers, and this model "
            f"makes {query.size}: they are another model's"
        )
    found = zip(*nearest(vectors, query, arguments.neighbours), strict=True)
    for rank, (index, similarity) in enumerate(found, 1):
        print(f"{rank}\t{similarity:.4f}\t{' '.join(texts[index].split())}")
    return 0


def read_vectors(path: str | os.PathLike) -> tuple["np.ndarray", list[str]]:
    """Returns vectors `[n, size]` float32 and their texts, of an `.npy` their places from 0.

    Raises:
      InputError: if it is no such file.
    """
    import numpy as np

    place = Path(path).expanduser()
    if place.suffix not in ENDINGS:
        raise InputError(f"--among={path}: must end in {' or '.join(ENDINGS)}")
    try:
        if place.suffix == ".jsonl":
            rows = [line.row for line in DataFile(str(place), "jsonl").scan() if line.row]
            rows = [row for row in rows if "embedding" in row]
            vectors = np.array([row["embedding"] for row in rows])
            texts = [str(row.get("text", "")) for row in rows]
        else:
            with place.open("rb") as file:  # which np.load would leave open if it is damaged
                content = np.load(file)
                if place.suffix == ".npz":
                    vectors, texts = content["embeddings"], _texts_in(content)
                else:
                    vectors, texts = content, [f"row {row}" for row in range(len(content))]
        if vectors.ndim != 2 or not len(vectors) or len(texts) != len(vectors):
            raise ValueError(f"vectors of shape {list(vectors.shape)} and {len(texts)} texts")
        return vectors.astype(np.float32), texts
    except InputError:
        raise
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"--among={path}: not what t5lite embed writes: {error}") from error


def _texts_in(content: Any) -> list[str]:
    """Returns the texts of an `.npz`; those of older versions are an array of strings, `texts`."""
    if "texts" in content:
        return content["texts"].tolist()
    raw, offsets = content["text_bytes"].tobytes(), content["text_offsets"].tolist()
    return [raw[start:end].decode() for start, end in itertools.pairwise(offsets)]
