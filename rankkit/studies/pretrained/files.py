"""Files of Hugging Face models, in a folder or on the hub: found and hashed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from rankkit.errors import ConfigurationError
from rankkit.files import sha256_of_file

__all__ = [
    "CONFIG",
    "FoundModel",
    "ModelCheckpoint",
    "find_model",
    "first_line",
    "group_name",
    "some_of",
    "transformers",
]

SAFE: Final = ("model.safetensors", "model.safetensors.index.json")
PICKLED: Final = ("pytorch_model.bin", "pytorch_model.bin.index.json")
CONFIG: Final = "config.json"
TOKENIZER: Final = "tokenizer.json"

_SMALL_FILES: Final = (CONFIG, TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", SAFE[0], SAFE[1])
_STEP: Final = re.compile(r"(?:step|checkpoint|iter(?:ation)?)[-_]?(\d+)|(\d+)", re.IGNORECASE)
_OF_THE_WRITER: Final = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache")
_SHOWN: Final = 3  # keys named in a message: enough to recognise a part of a model
_TAKEN: Final = (
    "baselines",
    "certificate",
    "command",
    "comparison",
    "configuration",
    "functional",
)  # in a spectrum file


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCheckpoint:
    """One set of weights."""

    step: int
    """Label on the axis `step`."""
    label: str
    """Revision, or name of the folder."""
    folder: Path
    """Where its files are."""
    weights: tuple[Path, ...]
    """The files that hold the weights."""
    sha256: str
    """Of the one weight file, or of the lines "name sha256" of several."""

    @property
    def pickled(self) -> bool:
        """Whether loading unpickles."""
        return self.weights[0].suffix == ".bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """A model and its checkpoints, steps rising."""

    name: str
    """What groups in a file are called."""
    checkpoints: tuple[ModelCheckpoint, ...]
    """At least one; all with one configuration and one tokenizer."""
    settings: Mapping[str, Any]
    """config.json, but for what says who wrote it."""

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer's file, or None."""
        path = self.checkpoints[0].folder / TOKENIZER
        return path if path.is_file() else None


def transformers() -> ModuleType:
    """The library, which is optional.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        import transformers as library
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ConfigurationError(
            "transformers must be installed to load Hugging Face models, got none. Run: pip install 'rankkit[hf]'."
        ) from None
    found: ModuleType = library
    return found


def find_model(path: str, revisions: Sequence[str] = (), *, allow_pickle: bool = False) -> FoundModel:
    """Find a model's files and hash its weights, without loading them.

    Args:
        path: a folder with config.json, or a name on the hub.
        revisions: of a model on the hub; of a folder, its sub-folders; none for the one that is there.
        allow_pickle: also take pickled weights, where there are no others.

    Returns:
        Checkpoints whose steps are the numbers in the revisions' names (step1000, checkpoint-500), or 0, 1, ... in the
        order given where not every name has a number of its own.

    Raises:
        ConfigurationError: nothing is there, the hub cannot be reached, there are no weights that may be loaded, or the
            revisions are not of one model.
    """
    if len(set(revisions)) < len(revisions):
        raise ConfigurationError(f"revision must name none twice, got {', '.join(revisions)}. Name each once.")
    path = str(Path(path).expanduser()) if path.startswith("~") else path
    labels = tuple(revisions) or (_own_label(path),)
    folders = [_folder(path, revision, allow_pickle) for revision in revisions or (None,)]
    steps = _steps(revisions) if revisions else [0]
    settings = [_settings(folder) for folder in folders]
    _check_alike(labels, settings, folders)
    found = []
    for step, label, folder in sorted(zip(steps, labels, folders, strict=True), key=lambda entry: entry[0]):
        weights = _weight_files(folder, allow_pickle=allow_pickle)
        found.append(
            ModelCheckpoint(step=step, label=label, folder=folder, weights=weights, sha256=_sha256_of(weights))
        )
    return FoundModel(name=group_name(path), checkpoints=tuple(found), settings=settings[0])


def group_name(path: str) -> str:
    """The last part of a path or hub name as the name of a group in a file: lower-case letters, digits, '-', '_' and '.'."""
    last = Path(path).resolve().name if Path(path).is_dir() else path.rsplit("/", maxsplit=1)[-1]
    name = re.sub(r"[^a-z0-9_.-]+", "-", last.lower()).lstrip("-_.")
    return f"model-{name}".rstrip("-") if not name or name in _TAKEN else name


def _own_label(path: str) -> str:
    return Path(path).resolve().name if Path(path).is_dir() else "main"


def _steps(labels: Sequence[str]) -> list[int]:
    """Numbers in the names, where each has one of its own; else places."""
    found = [_STEP.search(label) for label in labels]
    numbers = [int(match[1] or match[2]) for match in found if match]
    return numbers if len(set(numbers)) == len(labels) else list(range(len(labels)))


def _folder(path: str, revision: str | None, allow_pickle: bool) -> Path:
    """Where the files of one revision are; those of the hub are fetched, or taken from its cache."""
    if Path(path).is_dir():
        folder = Path(path) / revision if revision else Path(path)
        if not (folder / CONFIG).is_file():
            raise ConfigurationError(
                f"{folder} must hold {CONFIG} of a model, got none. Name the folder that save_pretrained wrote, or "
                "such folders inside it with --revision."
            )
        return folder
    if path.startswith(("/", ".")) or path.count("/") > 1 or not path:
        raise ConfigurationError(f"model folder must exist, got {path!r}. Check the path after hf:.")
    return _from_hub(path, revision, allow_pickle)


def _from_hub(name: str, revision: str | None, allow_pickle: bool) -> Path:
    transformers()  # huggingface_hub comes with it
    from huggingface_hub import snapshot_download

    def fetched(files: Collection[str]) -> Path:
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=sorted(files)))
        except (OSError, ValueError) as error:  # what the hub raises derives from OSError, a wrong name from ValueError
            at = "" if revision is None else f", revision {revision}"
            raise ConfigurationError(
                f"hf:{name}{at} must be on the hub or in its cache, got: {first_line(error)} Check the name and the "
                "network, or download the model elsewhere and name its folder: hf:/path/to/folder."
            ) from error

    folder = fetched(_SMALL_FILES)
    if not any((folder / file).is_file() for file in SAFE) and allow_pickle:
        folder = fetched(PICKLED)
    for index in (folder / SAFE[1], folder / PICKLED[1]):
        if index.is_file() and not (folder / SAFE[0]).is_file():
            fetched(_indexed(index))
    return folder


def _settings(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{folder / CONFIG} must be readable JSON, got: {first_line(error)} Restore a copy."
        ) from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{folder / CONFIG} must hold an object, got {found!r:.40}. Restore a copy.")
    return {name: value for name, value in found.items() if name not in _OF_THE_WRITER}


def _check_alike(labels: Sequence[str], settings: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> None:
    """Refuse revisions that are not checkpoints of one model."""
    for label, own, folder in zip(labels, settings, folders, strict=True):
        others = sorted(name for name in {**own, **settings[0]} if own.get(name) != settings[0].get(name))
        if others:
            raise ConfigurationError(
                f"revisions must be of one model, but {label} has another {others[0]} than {labels[0]}. Measure them in "
                "files of their own, and compare those."
            )
        one, other = (
            path.read_bytes() if path.is_file() else b"" for path in (folder / TOKENIZER, folders[0] / TOKENIZER)
        )
        if one != other:
            raise ConfigurationError(
                f"revisions must have one tokenizer, but {label} has another than {labels[0]}. Measure them in files of "
                "their own."
            )


def _weight_files(folder: Path, *, allow_pickle: bool) -> tuple[Path, ...]:
    """What transformers will read, in the order of its choice."""
    for single, index in (SAFE, PICKLED) if allow_pickle else (SAFE,):
        if (folder / single).is_file():
            return (folder / single,)
        if (folder / index).is_file():
            files = tuple(folder / name for name in sorted(_indexed(folder / index)))
            missing = [file.name for file in files if not file.is_file()]
            if not files or missing:
                raise ConfigurationError(
                    f"{folder / index} must name weight files that are there, got none of {some_of(missing)}. "
                    "Copy the whole folder."
                )
            return files
    if any((folder / name).is_file() for name in PICKLED):
        raise ConfigurationError(
            f"{folder} must hold its weights as {SAFE[0]}, got {PICKLED[0]}, which is pickled and can hold code. Convert "
            "it, or load it with --allow-pickle."
        )
    raise ConfigurationError(
        f"{folder} must hold a checkpoint ({SAFE[0]}), got none. Without one the weights would be random."
    )


def _indexed(index: Path) -> set[str]:
    """Names of the files that an index spreads the weights over."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigurationError(f"{index} must map weights to files, got: {error!r:.80}. Restore a copy.") from error
    strange = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if strange:
        raise ConfigurationError(f"{index} must name files beside it, got {strange[0]!r:.80}. Restore a copy.")
    return names


def _sha256_of(files: Sequence[Path]) -> str:
    if len(files) == 1:
        return sha256_of_file(files[0])
    lines = "".join(f"{file.name} {sha256_of_file(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def first_line(error: BaseException) -> str:
    """Of a message, as a sentence."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if line.endswith(".") else f"{line}."


def some_of(keys: Sequence[str]) -> str:
    """The first few, in words."""
    return ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
