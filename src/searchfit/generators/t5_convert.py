"""Models in CTranslate2's format, converted once and kept."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from searchfit.encoders import model_digest
from searchfit.errors import ModelError
from searchfit.generators.batching import is_out_of_memory


def converted(folder: Path, precision: str) -> Path:
    """The folder that holds a model in CTranslate2's format, its weights in `precision` ("int8", "float32").

    It is made once and kept beside the model, or in the user's cache where nothing can be written there. Its
    name tells the hash of the model's files: a model that has changed is converted anew.

    Raises ModelError for a model that CTranslate2 does not know, or where there is no place to write.
    """
    name = f"ctranslate2-{precision}-{model_digest(str(folder))[:16]}"
    beside = folder.with_name(f"{folder.name}.{name}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "searchfit" / name
    for path in (beside, cache):
        with contextlib.suppress(OSError):
            if path.is_dir():
                return path
    for path in (beside, cache):
        lock = FileLock(path.with_name(f"{path.name}.lock"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held = lock.acquire()
        except OSError:  # read-only, or a name too long for the disk: the next place
            continue
        with held:
            if not path.is_dir():
                _convert(folder, precision, path)
            # Nobody needs the lock once the folder is there; who waits for it finds the folder.
            Path(lock.lock_file).unlink(missing_ok=True)
        return path
    raise ModelError(
        f"model {folder} cannot be converted: neither {beside.parent} nor {cache.parent} can be written.",
        "Set XDG_CACHE_HOME to a folder that can, or say t5.engine=transformers.",
    )


def _convert(folder: Path, precision: str, path: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    from searchfit.encoders.device import quiet

    class SafeConverter(TransformersConverter):  # type: ignore[misc, unused-ignore]
        """Reads safetensors only, also where pickled weights lie beside them."""

        def load_model(self, model_class: Any, model_name_or_path: str, **kwargs: Any) -> Any:
            return super().load_model(model_class, model_name_or_path, use_safetensors=True, **kwargs)

    quiet()
    scratch = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    converter = SafeConverter(str(folder), trust_remote_code=False)
    with model_errors(folder):
        try:
            converter.convert(str(scratch), quantization=precision)
        except ValueError as error:
            raise ModelError(
                f"CTranslate2 cannot convert the model {folder}: {error}", "Say t5.engine=transformers."
            ) from error
    scratch.rename(path)


@contextlib.contextmanager
def model_errors(folder: Path) -> Iterator[None]:
    """What the libraries raise for a damaged folder, as one error for the user."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # of any class: damaged weights and tokenizers have errors of their own
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{folder} cannot be loaded as an encoder-decoder model: {error}",
            "A folder with config.json, a tokenizer and safetensors weights is expected; "
            "models that need code of their own are refused.",
        ) from error
