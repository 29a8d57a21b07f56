"""Masks of an earlier prediction as prompts: ``--mask-input logits.npz``."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from edgesam_jax.config import UsageError


def read_mask_input(path: Path, prompts: int, side: int) -> np.ndarray:
    """Read the low-resolution logits that ``--save-logits`` wrote, one mask (p s s) for each prompt.

    Where the file has several masks per prompt, the one with the highest score is taken.

    Args:
      path: the file.
      prompts: number of prompts, p.
      side: side of the model's low-resolution masks, s.

    Raises:
      UsageError: the file can't be read, has no logits, or logits of another number of prompts or another size.
    """
    flag, remedy = f"--mask-input {path}", "pass the logits.npz that --save-logits writes"
    try:
        with path.open("rb") as file:  # np.load leaves damaged files open
            saved = np.load(file, allow_pickle=False)
            names = saved.files if isinstance(saved, np.lib.npyio.NpzFile) else []
            if "low_res_logits" not in names:
                raise UsageError(f"{flag}: has no array low_res_logits; {remedy}")
            logits = np.asarray(saved["low_res_logits"])
            scores = np.asarray(saved["scores"]) if "scores" in names else None
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"{flag}: no such file; {remedy}") from None
    except OSError as error:
        raise UsageError(f"{flag}: cannot be read ({error.strerror or error}); check the file") from None
    except (ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error):
        raise UsageError(f"{flag}: damaged, or not a file of arrays; {remedy}") from None
    if logits.ndim != 4 or logits.dtype.kind != "f" or not logits.shape[1]:
        raise UsageError(f"{flag}: low_res_logits must be (prompts masks side side), got {logits.shape} {logits.dtype}")
    if logits.shape[2:] != (side, side):
        got = f"{logits.shape[2]} x {logits.shape[3]}"
        raise UsageError(f"{flag}: logits of {got}, but this model's are {side} x {side}; use the same model")
    if len(logits) != prompts:
        raise UsageError(f"{flag}: has logits of {len(logits)} prompts, but {prompts} are given; pass as many")
    if not np.isfinite(logits).all():
        raise UsageError(f"{flag}: low_res_logits has values that are not finite")
    if logits.shape[1] == 1:
        return np.asarray(logits[:, 0])
    if scores is None or scores.shape != logits.shape[:2]:
        raise UsageError(f"{flag}: {logits.shape[1]} masks per prompt, and no scores to choose one by")
    return np.asarray(logits[np.arange(prompts), np.argmax(scores, axis=1)])
