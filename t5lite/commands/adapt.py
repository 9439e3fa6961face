"""`t5lite adapt`: initialises one model from another: topology, experts, vocabulary."""

import argparse
import dataclasses
from typing import TYPE_CHECKING

from t5lite.commands.flags import add_shared

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: t5lite adapt gemma-2-2b t5gemma --encoder_decoder"
    parser.add_argument("source", metavar="SOURCE", help="any folder t5lite.load opens")
    add_shared(parser, "target")
    parser.add_argument(
        "--encoder_decoder",
        action="store_true",
        help="use the one stack as encoder and decoder (T5Gemma; for an encoder, BERT2BERT)",
    )
    parser.add_argument(
        "--decoder", metavar="DIR", help="join SOURCE's encoder (or decoder) with DIR's decoder"
    )
    parser.add_argument(
        "--cross_attention",
        choices=("copied", "fresh"),
        help="copied from self-attention, or drawn (copied for a decoder; otherwise fresh)",
    )
    parser.add_argument(
        "--experts",
        type=int,
        metavar="N",
        help="turn each selected MLP into N experts (sparse upcycling)",
    )
    parser.add_argument("--top_k", type=int, metavar="K", help="experts per token (2)")
    parser.add_argument(
        "--expert_layers",
        choices=("alternate", "all"),
        help="layers whose MLPs become experts (alternate)",
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
        help="decoder start token id (default: the token with the same role in the new vocabulary)",
    )
    parser.add_argument(
        "--new_tokens", type=int, metavar="N", help="add N tokens to the vocabulary and embeddings"
    )
    parser.add_argument(
        "--vectors", metavar="FILE", help="embeddings from a word2vec or GloVe text file"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="seed of drawn parameters (0)"
    )
    add_shared(parser, "--dtype")
    parser.add_argument(
        "--to",
        choices=("t5lite", "huggingface"),
        default="t5lite",
        help="layout of TARGET (t5lite)",
    )


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    del configuration

    from t5lite.interop import Adaptation, adapt
    from t5lite.reporting.bars import Bar

    names = [field.name for field in dataclasses.fields(Adaptation)]
    changes = Adaptation(**{name: getattr(arguments, name) for name in names})
    with Bar() as bar:
        adapt(
            arguments.source,
            arguments.target,
            changes,
            dtype=arguments.dtype,
            to=arguments.to,
            progress=bar.stage,
        )
