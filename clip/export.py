"""Towers in a folder, as open_clip and other software read them."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from steering.clip.models import Towers, one_line
from steering.errors import RunError

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
MERGES = "merges.txt.gz"
FLOAT16_LIMIT = torch.finfo(torch.float16).max


def export(towers: Towers, folder: Path, *, half: bool = False) -> Path:
    """Writes towers in open_clip's local-dir form, the only one that keeps QuickGELU and preprocessing.

    ``open_clip.create_model(model_name=f"local-dir:{folder}")`` reads it; the entry ``steer`` is for our own reader,
    where open_clip does not look. The folder is either whole or as it was before.

    Args:
        towers: the model.
        folder: is replaced if it exists.
        half: stores matrices as float16, in half the space; features then differ by about 0.001.

    Raises:
        RunError: the disk is full or read-only.
    """
    folder = Path(folder)
    new, old = (folder.with_name(f".{folder.name}.{end}") for end in ("new", "old"))
    try:
        shutil.rmtree(new, ignore_errors=True)  # of an export that was killed
        new.mkdir(parents=True)
        _write(towers, new, half)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise RunError(f"cannot write {folder}: {reason}. Free some space or choose another folder") from None
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _write(towers: Towers, folder: Path, half: bool) -> None:
    origin = {"arch": towers.arch, "source": towers.source} | ({"merges": MERGES} if towers.merges else {})
    content = {"model_cfg": towers.config, "preprocess_cfg": asdict(towers.preprocessing), "steer": origin}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n")
    # On the CPU and each with memory of its own, as safetensors wants them.
    state = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in towers.clip.state_dict().items()}
    for name, value in state.items():
        # Vectors and scalars stay exact: they are few, and a running variance may be large.
        if half and value.is_floating_point() and value.ndim > 1 and value.abs().max() < FLOAT16_LIMIT:
            state[name] = value.half()
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)
    if towers.merges:
        (folder / MERGES).write_bytes(towers.merges)
    elif save_tokenizer := getattr(towers.tokenizer, "save_pretrained", None):
        save_tokenizer(str(folder))
