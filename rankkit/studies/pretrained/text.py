"""Text as a model's own tokenizer and a stated token policy give it: sequences, padding, and what was done to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import torch

from rankkit.data.sources import find_sources, read_source
from rankkit.data.tokenizers import load_tokenizer
from rankkit.errors import ConfigurationError, DataError
from rankkit.studies.pretrained.files import FoundModel, transformers
from rankkit.studies.pretrained.inputs import ModelInputs
from rankkit.studies.pretrained.loading import quietly

__all__ = ["ModelText", "TokenPolicy"]

Bos = Literal["auto", "yes", "no"]
Packing = Literal["packed", "documents"]
Truncation = Literal["right", "left", "drop"]
Side = Literal["auto", "left", "right"]

_FEWEST: Final = 2  # tokens: a matrix of one entry has no spectrum worth a name
_NO_LIMIT: Final = 10**9  # above it a tokenizer's padding token is nobody's


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPolicy:
    """How text becomes sequences; sinks, and so every rank, depend on it."""

    bos: Bos = "auto"
    """`auto`: the special tokens that the tokenizer puts around a text (<s>; [CLS] and [SEP]) stand around every sequence;
    `yes`: the same, and the first must be a beginning-of-text token, added where the tokenizer adds none; `no`: none."""
    packing: Packing = "packed"
    """`packed`: windows of the documents one after another, each ended by the tokenizer's end-of-text token where it has
    one; `documents`: one document a sequence, with padding."""
    truncation: Truncation = "right"
    """Of documents that are too long for a sequence: `right` keeps their beginning, `left` their end, `drop` leaves them
    out."""
    padding_side: Side = "auto"
    """Of documents that are too short; `auto` is the tokenizer's own side."""
    text_key: str = "text"
    """Key or column of the text in .jsonl and tables."""

    def __post_init__(self) -> None:
        for name, known in (("bos", Bos), ("packing", Packing), ("truncation", Truncation), ("padding_side", Side)):
            if getattr(self, name) not in get_args(known):
                raise ConfigurationError(
                    f"{name} must be among {', '.join(get_args(known))}, got {getattr(self, name)!r}. Choose one."
                )
        for name, default in (("truncation", "right"), ("padding_side", "auto")):
            if self.packing == "packed" and getattr(self, name) != default:
                raise ConfigurationError(
                    f"{name} must be {default} for packed windows, which need neither cut nor padding, got "
                    f"{getattr(self, name)!r}. Add --packing documents."
                )


class ModelText:
    """The documents of some files in the tokens of a model.

    Args:
        found: the model, with its tokenizer.
        entries: files, folders or globs of text.
        policy: how text becomes sequences.

    Raises:
        ConfigurationError: the model has no tokenizer, or not the token that the policy asks for.
        DataError: text or tokenizer cannot be read.
    """

    def __init__(self, found: FoundModel, entries: Sequence[str], policy: TokenPolicy) -> None:
        self._policy, self._tokenizer = policy, _tokenizer(found)
        self._before, self._after = self._frame()
        texts = [document.text for entry in entries for source in find_sources(entry)
                 for document in read_source(source, text_key=policy.text_key)]  # fmt: skip
        self._documents = [self._ids(text) for text in texts]

    def sequences(self, length: int, *, target_length: int | None = None, start: int | None = None) -> ModelInputs:
        """All sequences of that length.

        Args:
            length: tokens, special ones among them; of documents at most.
            target_length: tokens that a decoder reads; None for models without a second stack. Of a window or document the
                first part is the encoder's, what follows the decoder's.
            start: token that a decoder starts with.

        Raises:
            DataError: the text is too short for one.
        """
        room = length - len(self._before) - len(self._after)
        if room < 1:
            raise ConfigurationError(
                f"sequence_length must be above {length - room} (special tokens of each), got {length}. Raise it."
            )
        second = 0 if target_length is None else target_length - 1
        if self._policy.packing == "packed":
            parts, documents = self._windows(room, second)
        else:
            parts, documents = self._whole(room, second, paired=target_length is not None)
        if not parts:
            total = sum(map(len, self._documents))
            raise DataError(
                f"text must give at least one sequence of {length} tokens, got {total} tokens in {len(self._documents)} "
                "documents. Give more text or shorten --sequence-length."
            )
        first = [[*self._before, *own, *self._after] for own, _ in parts]
        arguments = self._stacked(first, "")
        if target_length is not None:
            assert start is not None, "the caller knows with which token a decoder starts"
            arguments |= self._stacked([[start, *other] for _, other in parts], "decoder_")
        return ModelInputs(arguments=arguments, documents=np.array(documents, dtype=np.int64), policy=self._described)

    def _windows(self, room: int, second: int) -> tuple[list[tuple[list[int], list[int]]], list[int]]:
        """Windows of `room` and then `second` tokens that do not overlap; what is left at the end is not used."""
        end = self._tokenizer.eos_token_id
        ended = [ids if end is None else [*ids, end] for ids in self._documents]
        stream = np.array([token for ids in ended for token in ids], dtype=np.int64)
        starts = np.cumsum([0, *map(len, ended)])[:-1]
        size = room + second
        count = len(stream) // size
        windows = stream[: count * size].reshape(count, size)  # consecutive: no axes to name
        documents = np.searchsorted(starts, np.arange(count) * size, side="right") - 1
        return [(window[:room].tolist(), window[room:].tolist()) for window in windows], documents.tolist()

    def _whole(self, room: int, second: int, *, paired: bool) -> tuple[list[tuple[list[int], list[int]]], list[int]]:
        """One document each, cut where it is too long; for two stacks cut in its middle."""
        parts, documents = [], []
        for number, ids in enumerate(self._documents):
            middle = len(ids) // 2 if paired else len(ids)
            own, other = self._cut(ids[:middle], room), self._cut(ids[middle:], second)
            frame = len(self._before) + len(self._after)
            if own is None or other is None or len(own) + frame < _FEWEST or (paired and len(other) + 1 < _FEWEST):
                continue
            parts.append((own, other))
            documents.append(number)
        return parts, documents

    def _cut(self, ids: list[int], room: int) -> list[int] | None:
        """At most that many; None where the document is to be left out."""
        if len(ids) <= room:
            return ids
        kept = {"right": ids[:room], "left": ids[len(ids) - room :]}
        return kept.get(self._policy.truncation)

    def _stacked(self, sequences: Sequence[Sequence[int]], stack: str) -> dict[str, torch.Tensor]:
        """Token ids and, where there is padding, its mask."""
        longest = max(map(len, sequences))
        padding = self._padding_token if any(len(ids) < longest for ids in sequences) else 0
        tokens = np.full((len(sequences), longest), padding, dtype=np.int64)
        mask = np.zeros_like(tokens)
        for row, ids in enumerate(sequences):
            place = slice(longest - len(ids), longest) if self._side == "left" else slice(len(ids))
            tokens[row, place], mask[row, place] = ids, 1
        found = {f"{stack}input_ids": torch.from_numpy(tokens)}
        return found if mask.all() else found | {f"{stack}attention_mask": torch.from_numpy(mask)}

    @property
    def _side(self) -> str:
        own = str(self._tokenizer.padding_side)
        return own if self._policy.padding_side == "auto" else self._policy.padding_side

    @property
    def _padding_token(self) -> int:
        """The tokenizer's, or any: padding is masked."""
        known = (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id, 0)
        return next(int(token) for token in known if token is not None)

    def _ids(self, text: str, *, special: bool = False) -> list[int]:
        found: list[int] = self._tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)[
            "input_ids"
        ]
        return found

    def _frame(self) -> tuple[list[int], list[int]]:
        """Special tokens before and after every sequence."""
        if self._policy.bos == "no":
            return [], []
        plain, whole = self._ids("a"), self._ids("a", special=True)
        at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), None)
        if at is None or not plain:
            raise DataError(
                "tokenizer must leave a text as it is between special tokens, got other tokens. Use --bos no."
            )
        before, after = whole[:at], whole[at + len(plain) :]
        first = [token for token in (self._tokenizer.bos_token_id, self._tokenizer.cls_token_id) if token is not None]
        if self._policy.bos == "yes" and not set(before) & set(first):
            if not first:
                raise ConfigurationError("bos must be auto or no for a tokenizer without such a token, got 'yes'.")
            before = [first[0], *before]
        return before, after

    @property
    def _described(self) -> dict[str, str]:
        """The policy in words."""
        policy, named = self._policy, self._tokenizer.convert_ids_to_tokens
        around = (
            f"{' '.join(named(self._before)) or 'nothing'} before and {' '.join(named(self._after)) or 'nothing'} after"
        )
        end = "as they come" if self._tokenizer.eos_token_id is None else f"each ended by {self._tokenizer.eos_token}"
        packed = f"packed: windows of the documents one after another, {end}; they do not overlap"
        whole = f"documents: one a sequence, padding on the {self._side}"
        cut = {"right": "right: beginnings of documents", "left": "left: ends of documents"}
        return {
            "bos": f"{policy.bos}: {around} every sequence",
            "packing": packed if policy.packing == "packed" else whole,
            "truncation": "none: windows do not end with documents"
            if policy.packing == "packed"
            else cut.get(policy.truncation, "drop: documents that are too long are left out"),
        }


def _tokenizer(found: FoundModel) -> Any:
    """The model's own fast tokenizer."""
    path = found.tokenizer
    if path is None:
        raise ConfigurationError(
            f"{found.checkpoints[0].folder} must hold tokenizer.json to read text, got none. Give token ids with --tokens "
            "FILE.npy, or images with --pixels FILE.npy."
        )
    library = transformers()
    load_tokenizer(path)
    try:
        with quietly(library):
            tokenizer = library.AutoTokenizer.from_pretrained(
                path.parent, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError) as error:
        raise DataError(f"{path} must be a tokenizer, got: {error!s:.100}. Restore a copy, or use --tokens.") from error
    return tokenizer
