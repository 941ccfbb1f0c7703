"""The processor that models run on: its threads, its arithmetic, and loading onto it quietly."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchfit.errors import ModelError

if TYPE_CHECKING:
    import torch


def on_device(value: Any, device: torch.device) -> Any:
    """A feature on a device; what is not a tensor stays as it is."""
    return value.to(device) if hasattr(value, "to") else value


@contextlib.contextmanager
def model_errors(folder: Path) -> Iterator[None]:
    """What the libraries raise for a damaged folder, as one error for the user."""
    try:
        yield
    except Exception as error:  # of any class: damaged weights and tokenizers have errors of their own
        raise ModelError(
            f"the model in {folder} cannot be loaded: {error}.",
            "A folder with config.json, a tokenizer and safetensors weights is expected; "
            "models that need code of their own are refused.",
        ) from error


@contextlib.contextmanager
def loading(folder: Path, device: str) -> Iterator[str | None]:
    """Load a model quietly; gives its device, None for the library's choice of a GPU. What a checkpoint lacks
    (a pooler that nothing reads, a new head) is filled at random: the same each time."""
    import torch

    quiet()
    tune_process()
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    with model_errors(folder), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield device if device != "auto" else None if gpu else "cpu"


def quiet() -> None:
    """Keep the libraries' progress bars and advice out of the user's terminal."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch")


@lru_cache(maxsize=1)
def tune_process() -> None:
    """Settings that pay on a CPU: glibc keeps freed memory (no page faults by batch: 15% faster), and torch
    uses the cores that this process may use, not those of the machine."""
    import torch

    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in ((-4, 0), (-2, 64 << 20), (-1, 512 << 20)):  # MMAP_MAX, TOP_PAD, TRIM_THRESHOLD
            mallopt(option, value)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cores())


def usable_cores() -> int:
    """Cores that this process may use, by affinity and container quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()[:2]
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def autocast(device: torch.device, bf16: bool) -> contextlib.AbstractContextManager[Any]:
    """A context of bf16 arithmetic, or of none."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()


def has_fast_bf16(device: Any) -> bool:
    """Whether bf16 arithmetic is faster than fp32 on a torch device."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
