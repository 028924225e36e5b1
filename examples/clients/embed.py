#!/usr/bin/env python3
"""Compares sentences by meaning.

Shows inputs of variable length: sentences are padded to the longest of the request, and the mask
says which tokens count. Prints the cosine similarity of every pair, the closest first.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from connection import Connection, argument_parser, connect, run

MODEL = "text_embedding"
TOKENS_MAX = 256


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("sentences", nargs="+", metavar="SENTENCE", help="at least two")
    arguments = parser.parse_args()
    if len(arguments.sentences) < 2:
        parser.error("two sentences or more are needed to compare")

    connection = connect(arguments.protocol, arguments.url)
    vectors = embed(connection, load_tokenizer(arguments.assets), arguments.sentences)
    similarities = vectors @ vectors.T
    pairs = combinations(range(len(vectors)), 2)
    for one, other in sorted(pairs, key=lambda pair: -similarities[pair]):
        print(f"{similarities[one, other]:6.3f}  {arguments.sentences[one]!r} ~ {arguments.sentences[other]!r}")


def load_tokenizer(assets: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_str((assets / "tokenizer.json").read_text("utf-8"))
    tokenizer.enable_truncation(TOKENS_MAX)
    tokenizer.enable_padding()
    return tokenizer


def embed(connection: Connection, tokenizer: Tokenizer, sentences: list[str]) -> np.ndarray:
    """One vector of length 1 for each sentence: the mean of its tokens' vectors."""
    inputs = tokenize(tokenizer, sentences)
    per_token = connection.infer(MODEL, inputs, "last_hidden_state")
    mask = inputs["attention_mask"][:, :, np.newaxis]
    means = (per_token * mask).sum(axis=1) / mask.sum(axis=1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def tokenize(tokenizer: Tokenizer, sentences: list[str]) -> dict[str, np.ndarray]:
    encodings = tokenizer.encode_batch(sentences)
    return {
        "input_ids": np.array([encoding.ids for encoding in encodings], np.int64),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings], np.int64),
        "token_type_ids": np.array([encoding.type_ids for encoding in encodings], np.int64),
    }


if __name__ == "__main__":
    run(main)
