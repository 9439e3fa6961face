"""`t5lite embed`: texts to vectors, and a search for the texts nearest to a query."""

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5lite.commands.flags import MODEL, add_shared, placed
from t5lite.commands.lines import check_output, input_lines, is_table, output
from t5lite.commands.prompts import with_trained_template
from t5lite.data.files.readers import Line
from t5lite.data.files.templates import Template
from t5lite.errors import InputError
from t5lite.inference.batch_job import Failures, answered, write_line

if TYPE_CHECKING:
    from t5lite.configuration import Configuration
    from t5lite.inference import Loaded
    from t5lite.inference.embedding import Embedder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples: t5lite embed --model_dir=DIR --input_file=docs.txt --output_file=docs.npz; "
        't5lite embed --model_dir=DIR --query "a text" --among=docs.npz'
    )
    add_shared(parser, "texts")
    add_shared(parser, "--model_dir", required=True)
    add_shared(parser, *MODEL[1:])
    parser.add_argument(
        "--input_file",
        metavar="FILE",
        help=".jsonl, .tsv, .csv or .parquet with the columns of training, or `text` or `inputs`; "
        "or .txt, one text a line",
    )
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help='text of a row by its columns: "{title}. {body}" (as in training; else `text`)',
    )
    parser.add_argument(
        "--output_file",
        metavar="FILE",
        help=".npz (embeddings and texts), .npy or .jsonl, which appears when complete; NaN for "
        "lines that failed (JSON lines to stdout)",
    )
    parser.add_argument("--query", metavar="TEXT", help="print the texts nearest to TEXT")
    parser.add_argument("--among", metavar="FILE", help="an earlier --output_file to search")
    parser.add_argument("--neighbours", type=int, default=5, metavar="N", help="texts printed (5)")
    parser.add_argument(
        "--max_length",
        type=int,
        metavar="N",
        help="maximum tokens of a text (the model's positions, or sentence-transformers' limit)",
    )
    add_shared(parser, "--batch_size", "--truncate")
    parser.add_argument("--prompt", metavar="TEXT", help="prefix of each text")
    parser.add_argument(
        "--prompt_name", metavar="NAME", help="a prompt of the model's files (their default one)"
    )


def run(arguments: argparse.Namespace, configuration: "Configuration") -> int:
    del configuration
    if arguments.query is not None or arguments.among is not None:
        return search(arguments)

    from t5lite.data.files.line_texts import LineTexts
    from t5lite.inference.vectors import ENDINGS, write_vectors

    check_output(arguments.output_file, ENDINGS)
    template = None if arguments.template is None else Template(arguments.template)
    texts = LineTexts(template, columns=("text", "inputs"))
    rows = [{"text": text} for text in arguments.texts]
    lines, num_bytes = input_lines(rows, arguments.input_file)
    ending = ".jsonl" if arguments.output_file is None else Path(arguments.output_file).suffix

    from t5lite.inference.batching import check_count
    from t5lite.reporting.bars import Bar

    batch_size = arguments.batch_size
    check_count("--batch_size", batch_size)
    failures, vectors, embedded = Failures(), list[Any](), list[str]()
    with output(arguments.output_file) as file, Bar("embedded") as bar:
        loaded = placed(arguments)
        embedder = _embedder(loaded, arguments)
        texts = with_trained_template(texts, loaded.inputs, rows=is_table(arguments.input_file))

        def read(line: Line) -> Any:
            return embedder.read(texts.text(line))

        embed = functools.partial(loaded.engine.embed, loaded.params, batch_size=batch_size)
        for line, outcome in answered(lines, read, embed, at_once=16 * batch_size):
            failed = isinstance(outcome, InputError)
            record = failures.add(line, outcome) if failed else {"line": line.number}
            text = "" if failed else texts.text(line)
            if ending != ".jsonl":
                vectors.append(None if failed else outcome)
                embedded.append(text)
            elif failed:
                write_line(file, record)
            else:
                write_line(file, record | {"text": text, "embedding": outcome.tolist()})
            if num_bytes:
                bar(line.end, num_bytes)
        if ending != ".jsonl":
            if all(vector is None for vector in vectors):
                raise InputError(f"no line could be embedded; {failures.first}")
            write_vectors(file, ending, vectors, embedded)
    return failures.exit_code()


def _embedder(loaded: "Loaded", arguments: argparse.Namespace) -> "Embedder":
    from t5lite.inference.embedding import Embedder

    names = ("max_length", "truncate", "prompt", "prompt_name")
    return Embedder(loaded, **{name: getattr(arguments, name) for name in names})


def search(arguments: argparse.Namespace) -> int:
    """Prints the texts nearest to the query: rank, cosine similarity, text."""
    if arguments.query is None or arguments.among is None:
        raise InputError(
            "--query and --among go together: --query TEXT --among=vectors.npz", field="among"
        )
    if arguments.texts or arguments.input_file or arguments.output_file:
        raise InputError("--query searches --among, and embeds no other text", field="query")
    from t5lite.inference.batching import check_count, settled
    from t5lite.inference.embedding import nearest
    from t5lite.inference.vectors import read_vectors

    vectors, texts = read_vectors(arguments.among)
    check_count("--neighbours", arguments.neighbours)
    loaded = placed(arguments)
    request = _embedder(loaded, arguments).read(arguments.query)
    (query,) = settled("query", loaded.engine.embed(loaded.params, [request]))
    if query.size != vectors.shape[1]:
        raise InputError(
            f"--among={arguments.among}: vectors of size {vectors.shape[1]}, and the model's have "
            f"{query.size}: it is another model's file",
            field="among",
        )
    pairs = zip(*nearest(vectors, query, arguments.neighbours), strict=True)
    for rank, (index, similarity) in enumerate(pairs, 1):
        print(f"{rank}\t{similarity:.4f}\t{' '.join(texts[index].split())}")
    return 0
