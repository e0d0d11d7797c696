"""Text on disk to token ids, and the held-out sequences and references that models are evaluated against."""

from __future__ import annotations

from rankkit.data.config import DataConfig
from rankkit.data.corpora import Corpus, Document, builtin, read_documents, synthetic
from rankkit.data.evaluation import EvaluationSequences, evaluation_sequences, ngram_cross_entropy
from rankkit.data.neighbours import neighbour_cross_entropy
from rankkit.data.tokenizers import BytePairTokenizer, ByteTokenizer, Tokenizer, load_tokenizer, train_tokenizer
from rankkit.data.tokens import TokenFiles, open_tokens, prepare_tokens, verify_tokens

__all__ = [
    "BytePairTokenizer",
    "ByteTokenizer",
    "Corpus",
    "DataConfig",
    "Document",
    "EvaluationSequences",
    "TokenFiles",
    "Tokenizer",
    "builtin",
    "evaluation_sequences",
    "load_tokenizer",
    "neighbour_cross_entropy",
    "ngram_cross_entropy",
    "open_tokens",
    "prepare_tokens",
    "read_documents",
    "synthetic",
    "train_tokenizer",
    "verify_tokens",
]
