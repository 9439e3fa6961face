"""The flags of each verb, apart from the verbs themselves: `--help` must not wait for JAX."""

import argparse
import contextlib
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from t5lite.errors import InputError
from t5lite.inference.options import FLAGS


def train(parser: argparse.ArgumentParser) -> None:
    """Declares only the processes: all of training is gin bindings."""
    _add_processes(parser)


def _add_processes(parser: argparse.ArgumentParser) -> None:
    """Declares what several processes need to find each other."""
    processes = parser.add_argument_group(
        "several processes",
        "the same command on every host; on TPU virtual machines, Kubernetes and SLURM without "
        "any of these",
    )
    processes.add_argument(
        "--coordinator_address", metavar="HOST:PORT", help="of process 0, the port a free one"
    )
    processes.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
    processes.add_argument("--process_id", type=int, metavar="I", help="which this is, from 0")
    processes.add_argument(
        "--coordinator_timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="to wait for the others (300)",
    )


def evaluate(parser: argparse.ArgumentParser) -> None:
    """Declares which checkpoint."""
    parser.add_argument(
        "--checkpoint",
        default="latest",
        metavar="WHICH",
        help="latest, best (by train.checkpoints.best), a step, or any checkpoint's folder",
    )
    parser.add_argument(
        "--sample",
        action="store_true",
        help="measure on the samples of training, HeldOut.max_batches say (on everything)",
    )
    _add_processes(parser)


def generate(parser: argparse.ArgumentParser) -> None:
    """Declares what to load, what to answer, and how."""
    parser.description = (
        f"{parser.description}; a line of output for each answer. In a terminal, without a text: "
        "a session"
    )
    parser.epilog = (
        "gaps of a span-corruption model are written <extra_id_0>, <extra_id_1>, ...: "
        't5lite generate --model_dir=DIR --fill "The <extra_id_0> is sorted."'
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="one text each, in quotes")
    _add_model(parser)
    parser.add_argument(
        "--input_file",
        metavar="FILE",
        help="UTF-8, one text a line; or .jsonl, .tsv, .csv or .parquet with `inputs` or `text`, "
        "or what --template names. Without it and without TEXT, standard input is read",
    )
    _add_answering(parser)


def infer(parser: argparse.ArgumentParser) -> None:
    """Declares what to load, what to answer, how, and where the answers go."""
    parser.description = (
        f"{parser.description}. Each line has `line`, `input` (its row) and `output`, or `error`; "
        "a row's own `options` go before the flags'"
    )
    parser.epilog = (
        "stopped or killed, the same command goes on where it was. Examples: t5lite infer "
        "--model_dir=DIR --input_file=in.jsonl --output_file=out.jsonl; t5lite infer "
        "--gin_file=run.gin --split=validation --output_file=out.jsonl"
    )
    _add_model(parser, required=False)
    parser.add_argument(
        "--input_file",
        metavar="FILE",
        help=".jsonl, .tsv, .csv or .parquet with the columns of training, `inputs` or `text`, or "
        "what --template names; or .txt, one text a line",
    )
    parser.add_argument(
        "--output_file", required=True, metavar="FILE", help="FILE.jsonl; FILE.jsonl.part meanwhile"
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="instead of a file, of the data of --gin_file's run (validation)",
    )
    _add_shard(parser)
    _add_answering(parser)
    _add_processes(parser)


def _add_answering(parser: argparse.ArgumentParser) -> None:
    """Declares what texts are made of, and how they are answered."""
    for name, rule in FLAGS.items():
        parser.add_argument(
            f"--{name}",
            type=rule.parse,
            metavar=None if rule.names else rule.metavar,
            choices=tuple(rule.names) or None,
            action="append" if rule.repeatable or rule.weighted else "store",
            default=argparse.SUPPRESS,
            help=rule.help,
        )
    parser.add_argument(
        "--batch_size", type=int, default=32, metavar="N", help="most texts at once (32)"
    )
    parser.add_argument(
        "--fill", action="store_true", help="answer with the texts, their gaps filled in"
    )
    parser.add_argument(
        "--prompt",
        choices=("inputs", "continue", "prefix"),
        help="what a text is to the model: inputs to answer, a beginning to continue, or one that "
        "is seen in both directions (as it was trained; else inputs, of decoders continue)",
    )
    parser.add_argument(
        "--truncate", action="store_true", help="cut texts that are too long for the model"
    )
    parser.add_argument(
        "--draft",
        metavar="DIR",
        help="a smaller model of the same vocabulary that proposes tokens; or `prompt`: they are "
        "looked up in the text and the answer",
    )
    parser.add_argument(
        "--draft_length", type=int, metavar="N", help="tokens proposed at a time (4)"
    )
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help='makes texts of columns: "question: {question}"; {text} is a plain line or a TEXT (of '
        "rows, as in training; else of `inputs` or `text`)",
    )
    parser.add_argument(
        "--examples",
        metavar="FILE",
        help="rows with `targets` or `answer` too, for the template's slot {shots}: told as what "
        "stands behind it, each with its answer, an empty line between them",
    )
    parser.add_argument(
        "--shots", type=int, metavar="N", help="how many of --examples a text gets; not itself"
    )


def predict(parser: argparse.ArgumentParser) -> None:
    """Declares what to load, what to ask its head, and where the predictions go."""
    parser.description = (
        f"{parser.description}. A JSON line for each text has `line`, `input` and what the head "
        "says: `label` and `classes` with probabilities; `value` or `values`; `text` and `spans` "
        "with `tag`, `start` and `end` in characters; `answer`, `start`, `end` and `answers`; or "
        "`error`. Longer texts than those of training lose their end: `num_cut` tokens"
    )
    parser.epilog = (
        "with --output_file, stopped or killed, the same command goes on where it was. Examples: "
        't5lite predict --model_dir=runs/classify_csv "Return a random float."; t5lite predict '
        "--model_dir=DIR --input_file=in.csv --output_file=out.jsonl"
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="one text each, in quotes")
    _add_model(parser)
    parser.add_argument(
        "--input_file",
        metavar="FILE",
        help=".jsonl, .tsv, .csv or .parquet with the columns of training, or `inputs` or `text` "
        "(`question` and `context`, `text` and `text_pair` for pairs); or .txt, one text a line",
    )
    parser.add_argument(
        "--output_file", metavar="FILE", help="FILE.jsonl; FILE.jsonl.part meanwhile (stdout)"
    )
    _add_shard(parser)
    parser.add_argument(
        "--head",
        choices=("classification", "regression", "token_labels", "spans"),
        help="of a model with several",
    )
    parser.add_argument(
        "--top_k", type=int, default=5, metavar="K", help="most classes, or answers (5)"
    )
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help='makes texts of columns: "{title}. {body}"; {text} is a plain line or a TEXT (of '
        "rows, as in training; else of `inputs` or `text`). Its last slot holds answers",
    )
    parser.add_argument(
        "--max_length",
        type=int,
        metavar="N",
        help="most tokens of a text (as in training; else the model's positions)",
    )
    parser.add_argument(
        "--aggregation",
        choices=("first", "simple"),
        default="first",
        help="tags are those of a word's first token, or of every token by itself (first)",
    )
    parser.add_argument(
        "--max_answer_length", type=int, default=30, metavar="N", help="most tokens of one (30)"
    )
    parser.add_argument(
        "--no_answer",
        action=argparse.BooleanOptionalAction,
        help="whether an answer may be missing (if it may in training)",
    )
    parser.add_argument(
        "--batch_size", type=int, default=32, metavar="N", help="most texts at once (32)"
    )
    _add_processes(parser)


def _add_shard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="answer the I-th, from 0, of N parts of the lines, into FILE-0000I-of-0000N.jsonl, "
        "which `cat` puts together in order (of several processes of JAX, each one's)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="start anew, whatever an earlier command wrote"
    )


def score(parser: argparse.ArgumentParser) -> None:
    """Declares what to load, what to score, and how."""
    parser.description = f"{parser.description}; a JSON line for each"
    parser.epilog = 'example: t5lite score --model_dir=DIR "2 + 2 =" --targets " 4" --targets " 5"'
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="one text each, in quotes")
    _add_model(parser)
    parser.add_argument(
        "--input_file",
        metavar="FILE",
        help=".jsonl, .tsv, .csv or .parquet with `text`, or `inputs` and `targets`; or .txt, one "
        "text a line",
    )
    parser.add_argument(
        "--targets",
        action="append",
        metavar="TEXT",
        help="what is scored, given TEXT; repeatable. Encoder-decoders need it",
    )
    parser.add_argument(
        "--per_token", action="store_true", help="write each piece and its log-probability too"
    )
    parser.add_argument(
        "--output_file", metavar="FILE", help="FILE.jsonl, written whole or not at all (stdout)"
    )
    parser.add_argument(
        "--prompt",
        choices=("inputs", "continue", "prefix"),
        help="what a text with a target is to the model: inputs that it answers, a beginning that "
        "it continues, or one that is seen in both directions (as it was trained; else inputs, of "
        "decoders continue)",
    )
    parser.add_argument(
        "--eos",
        action=argparse.BooleanOptionalAction,
        help="whether the end behind a target or a text is scored too (of answers to inputs)",
    )
    parser.add_argument(
        "--batch_size", type=int, default=32, metavar="N", help="most rows at once (32)"
    )
    parser.add_argument(
        "--truncate", action="store_true", help="cut texts that are too long for the model"
    )


def embed(parser: argparse.ArgumentParser) -> None:
    """Declares what to load, and what to embed or to look for."""
    parser.epilog = (
        "examples: t5lite embed --model_dir=DIR --input_file=docs.txt --output_file=docs.npz; "
        't5lite embed --model_dir=DIR --query "a text" --among=docs.npz'
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="one text each, in quotes")
    _add_model(parser)
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


def _add_model(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--model_dir",
        required=required,
        metavar="DIR",
        help="where the model was trained, or any folder that t5lite.load opens",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the parameters (as they are stored)",
    )
    parser.add_argument(
        "--compute_dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the activations (float32)",
    )
    parser.add_argument(
        "--layout",
        metavar="NAME",
        help="how parameters are sharded: a fragment of gin/partitioning, such as fsdp, or the "
        "path of a gin file (a whole copy on each device)",
    )


def convert(parser: argparse.ArgumentParser) -> None:
    """Declares from where to where, and how."""
    parser.epilog = (
        "what SOURCE is, is found out; example: t5lite convert runs/quickstart quickstart-hf"
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a MODEL_DIR, a Hugging Face folder, its ORGANISATION/NAME[@REVISION] on the hub, or "
        "a T5X checkpoint",
    )
    parser.add_argument("target", metavar="TARGET", help="a folder that is new or empty")
    parser.add_argument(
        "--to",
        choices=("t5lite", "huggingface", "t5x"),
        help="the layout of TARGET (t5lite; of a MODEL_DIR, huggingface)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the parameters (as they are stored)",
    )
    parser.add_argument(
        "--scanned", action="store_true", help="write T5X's layout for scanned layers"
    )
    parser.add_argument(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="list which tensor is which parameter, and write nothing",
    )


def adapt(parser: argparse.ArgumentParser) -> None:
    """Declares what is to become of what."""
    parser.epilog = (
        "example: t5lite adapt gemma-2-2b t5gemma --encoder_decoder; what is not asked for stays"
    )
    parser.add_argument("source", metavar="SOURCE", help="any folder that t5lite.load opens")
    parser.add_argument("target", metavar="TARGET", help="a folder that is new or empty")
    parser.add_argument(
        "--encoder_decoder",
        action="store_true",
        help="make encoder and decoder of the one stack (T5Gemma; of an encoder BERT2BERT)",
    )
    parser.add_argument(
        "--decoder", metavar="DIR", help="SOURCE's encoder (or decoder) reads, DIR's decoder writes"
    )
    parser.add_argument(
        "--cross_attention",
        choices=("copied", "fresh"),
        help="from self-attention, or drawn (copied of a decoder; otherwise fresh)",
    )
    parser.add_argument(
        "--experts", type=int, metavar="N", help="a mixture of N copies of each MLP that changes"
    )
    parser.add_argument(
        "--top_k", type=int, metavar="K", help="experts that a token is sent to (2)"
    )
    parser.add_argument(
        "--expert_layers",
        choices=("alternate", "all"),
        help="which layers change (alternate)",
    )
    parser.add_argument(
        "--vocabulary",
        metavar="PATH",
        help="replace the vocabulary: a tokenizer.json, vocab.txt, SentencePiece model or folder",
    )
    parser.add_argument(
        "--start_id",
        type=int,
        metavar="ID",
        help="what a decoder reads first of the new vocabulary (what is to it as the old one was)",
    )
    parser.add_argument("--new_tokens", type=int, metavar="N", help="make room for N tokens more")
    parser.add_argument(
        "--vectors", metavar="FILE", help="embeddings from a text file of word2vec or GloVe"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of what is drawn (0)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the parameters (as stored)"
    )
    parser.add_argument(
        "--to",
        choices=("t5lite", "huggingface"),
        default="t5lite",
        help="the layout of TARGET (t5lite)",
    )


def cache(parser: argparse.ArgumentParser) -> None:
    """Declares where to, and how much of what."""
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="a folder that is new or empty"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=1,
        metavar="N",
        help="passes over the training data to keep, each with other masks (1)",
    )
    parser.add_argument(
        "--format",
        choices=("packed", "seqio"),
        default="packed",
        help="packed: rows ready to train on, for PackedData; seqio: SeqIO's own cache of the "
        "task's tokens, which any program that uses SeqIO reads (packed)",
    )


def inspect(parser: argparse.ArgumentParser) -> None:
    """Declares how much of a run's data to show, or what to look at inside a model."""
    parser.epilog = (
        'inside a trained model: t5lite inspect --model_dir=DIR --attention "The cat sat."'
    )
    parser.add_argument("--examples", type=int, default=5, help="how many to show (5)")
    parser.add_argument("--split", default="train", help="where the examples are from (train)")
    parser.add_argument(
        "--attention",
        metavar="TEXT",
        help="instead, draw what goes on in a model as it reads this: attention of every head, "
        "each token's loss, and what it is due to",
    )
    parser.add_argument(
        "--model_dir", metavar="DIR", help="the model, in any folder of a checkpoint"
    )
    parser.add_argument(
        "--targets", metavar="TEXT", help="what an encoder-decoder writes (its own answer)"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="where the page goes (attention-NAME.html, here)"
    )


def plan(parser: argparse.ArgumentParser) -> None:
    """Declares which slices, what to search, and what an hour costs."""
    parser.epilog = (
        "example: t5lite plan --gin_file=configs/t5_1_1_base_c4.gin --topology=v5e:4x4. Nothing "
        "but libtpu is needed, no TPU and no data; a compilation takes one to five minutes"
    )
    parser.add_argument(
        "--topology", required=True, metavar="KIND:SHAPE", help="a slice in chips, such as v5e:4x4"
    )
    parser.add_argument(
        "--num_slices", type=int, default=1, metavar="N", help="so many of them, joined (1)"
    )
    parser.add_argument(
        "--price", type=float, metavar="PRICE", help="of a chip for an hour, in any currency"
    )
    parser.add_argument(
        "--power", type=float, metavar="WATTS", help="of a chip with its share of everything else"
    )
    parser.add_argument(
        "--output", default="plan.json", metavar="FILE", help="of it all, as JSON (plan.json, here)"
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="try meshes (data, FSDP, tensor), remat and microbatches, and rank what fits",
    )
    parser.add_argument(
        "--budget", type=float, metavar="MINUTES", help="of a search (30); one under way is ended"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # the process that compiles


def bench(parser: argparse.ArgumentParser) -> None:
    """Declares how many steps, and where the numbers go."""
    parser.epilog = (
        "example: t5lite bench --gin_file=configs/quickstart.gin --steps=20. Steps are of the "
        "run's own data and train a model that is thrown away; MODEL_DIR is not touched"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=10,
        metavar="N",
        help="timed one by one, then as many again (10)",
    )
    parser.add_argument("--warmup", type=int, default=3, metavar="N", help="steps before those (3)")
    parser.add_argument(
        "--json", metavar="FILE", help="also write the numbers as JSON; - prints them alone"
    )
    _add_processes(parser)


def report(parser: argparse.ArgumentParser) -> None:
    """Declares which runs, and where the page goes."""
    parser.epilog = "example: t5lite report runs/small runs/large --output=compared.html"
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder (its MODEL_DIR)")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="where the page goes (RUN/report.html; of several runs, report.html here)",
    )


_advice_typed: ContextVar[Callable[[str], str]] = ContextVar("_advice_typed", default=str)


def as_typed(error: Exception) -> str:
    """Returns a line's error with its advice as flags, inside `naming_options`.

    Other names may be the line's own columns, as in `infer`.
    """
    return _advice_typed.get()(str(error))


@contextlib.contextmanager
def naming_options(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Has errors name options as a command line takes them: `truncate=True` is `--truncate`.

    Names of several words are always options; others where a value follows.
    """
    flags = {each.dest: each.nargs == 0 for each in parser._actions if each.option_strings}
    names = "|".join(sorted(map(re.escape, flags), key=len, reverse=True))
    named = re.compile(rf"(?<![\w.'/-])({names})\b(?:( ?= ?)(True\b)?(?=\S| |$))?")

    def flag(found: re.Match) -> str:
        name, equals, true = found.groups()
        if flags[name] and true:
            return f"--{name}"
        return f"--{found[0]}" if equals or "_" in name else found[0]

    def typed(message: str) -> str:
        return "\n".join(
            line if "gin" in line.partition(": ")[0] else named.sub(flag, line)
            for line in message.splitlines()
        )

    switches = "|".join(re.escape(name) for name, is_switch in flags.items() if is_switch)
    advised = re.compile(rf"\bset ({switches})=True\b")
    before = _advice_typed.set(lambda message: advised.sub(r"set --\1", message))
    try:
        yield
    except InputError as error:
        if (message := typed(str(error))) == str(error):
            raise
        raise InputError(message, field=error.field) from error
    finally:
        _advice_typed.reset(before)
