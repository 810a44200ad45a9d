"""Model folders of others: what open_clip would hand to loaders is checked before open_clip sees it."""

import gzip
import io
import re
import stat
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

from open_clip.coca_model import MultimodalCfg
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg

from steering import atomic_files
from steering.clip.models import CONFIG, one_line
from steering.errors import UserError

WEIGHTS_ENDS = (".safetensors", ".bin", ".pth")
MOST_BYTES = 4 << 20  # of a configuration
MOST_MERGES = 64 << 20  # bytes of a tokenizer's merges when they are unpacked
MOST = {"layers": 512, "image_size": 8192, "size": 8192, "vocab_size": 4_000_000}  # of a number,
MOST_OTHERWISE = 65_536
NAME = re.compile(r"[\w.+-]{0,100}(/[\w.+-]{1,100})?", re.ASCII)  # of a hub's model, a timm model, a mode
A_NAME, A_NUMBER = "a plain name", "a number, a switch or a few numbers"

# Keys that may stand in open_clip_config.json, nested as there. Options of loaders are only those that say how text is
# cleaned: transformers would take trust_remote_code, and file names, from the same place.
_OPTIONS: dict[str, Any] = {
    "tokenizer_kwargs": {"clean": A_NAME, "strip_sep_token": A_NUMBER, "language": A_NAME},
    "act_kwargs": {"approximate": A_NAME},
    "norm_kwargs": {"eps": A_NUMBER},
}


def _fields(kind: Any) -> dict[str, Any]:
    return {
        field.name: _OPTIONS.get(field.name, A_NAME if "str" in str(field.type) else A_NUMBER) for field in fields(kind)
    }


_SCALARS = "embed_dim quick_gelu custom_text init_logit_scale init_logit_bias nonscalar_logit_scale output_dict"
_MODEL = dict.fromkeys(_SCALARS.split(), A_NUMBER) | {
    "vision_cfg": _fields(CLIPVisionCfg),
    "text_cfg": _fields(CLIPTextCfg),
    "multimodal_cfg": _fields(MultimodalCfg),
}
_PREPROCESSING = _fields(PreprocessCfg)


def read_config(path: Path) -> dict[str, Any]:
    """An open_clip_config.json, of which every key that a loader would see is known to be harmless.

    Returns:
        ``model_cfg``, ``preprocess_cfg`` and ``steer``, our own note.

    Raises:
        UserError: there is none, it is damaged, or it holds what no model needs.
    """
    try:
        content = atomic_files.read_json(path, MOST_BYTES)
        content = {name: content.get(name) or {} for name in ("model_cfg", "preprocess_cfg", "steer")}
        _ = content["model_cfg"]["text_cfg"].keys(), content["model_cfg"]["vision_cfg"].keys()
        _check(content["model_cfg"], _MODEL, "model_cfg")
        _check_preprocessing(content["preprocess_cfg"])
        _check({name: content["steer"].get(name) for name in ("merges",)}, {"merges": A_NAME}, "steer")
    except FileNotFoundError:
        raise UserError(f"{path.parent} cannot be read as a model: it has no {path.name}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} has no model_cfg as open_clip writes it ({one_line(error)})") from None
    return content


def check_files(folder: Path, model_cfg: dict[str, Any]) -> None:
    """Makes sure that a folder has weights, enough of them for its model, and nothing that a reader would wait for.

    Raises:
        UserError: otherwise.
    """
    size = 0
    for path in folder.iterdir():
        about = path.stat() if path.exists() else path.lstat()
        if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
            raise UserError(f"{path} is no ordinary file but a pipe, a device or a broken link: take it away")
        size = max(size, about.st_size * (path.suffix in WEIGHTS_ENDS))
    if not size:
        raise UserError(f"{folder} has an {CONFIG} but no weights: put its open_clip_model.safetensors there")
    least = sum(_least_weights(model_cfg[name]) for name in ("vision_cfg", "text_cfg"))
    if least > size:  # with strictly a byte a weight, or more
        raise UserError(f"{folder} describes a model of more than {least:,} weights, its files have {size:,} bytes")


def read_merges(path: Path, vocab_size: int) -> bytes:
    """The gzipped byte pairs of a tokenizer, all of them.

    Raises:
        UserError: they are damaged, or not as many as the model's vocabulary needs.
    """
    try:
        packed = path.read_bytes() if path.stat().st_size <= MOST_MERGES else b""
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            merges = file.read(MOST_MERGES).decode().split("\n")[1:]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): export the model again") from None
    if len({tuple(merge.split()) for merge in merges if len(merge.split()) == 2}) != vocab_size - 514:
        needed = f"{vocab_size - 514:,} different pairs, the vocabulary less 512 bytes and 2 marks"
        raise UserError(f"{path} has {len(merges):,} lines of merges, needed are {needed}: export the model again")
    return packed


def _check(value: Any, allowed: Any, where: str) -> None:
    """Raises ValueError where a configuration holds another key, or another kind of value, than is allowed."""
    if isinstance(allowed, dict) and isinstance(value, dict):
        for key, inner in value.items():
            if key not in allowed:
                raise ValueError(f"{where} has {key!r}, which is not passed on to anything")
            _check(inner, allowed[key], f"{where}.{key}")
    elif value is not None:
        most = MOST.get(where.rpartition(".")[2], MOST_OTHERWISE)
        items = value if isinstance(value, list) and len(value) <= 8 else [value]
        fits = allowed is A_NAME and isinstance(value, str) and NAME.fullmatch(value)
        fits = fits or (allowed is A_NUMBER and all(isinstance(x, int | float) and abs(x) <= most for x in items))
        if not fits:
            needed = "an object" if isinstance(allowed, dict) else allowed
            raise ValueError(f"{where} is {str(value)[:60]!r}, needed is {needed}")


def _check_preprocessing(config: dict[str, Any]) -> None:
    """Raises ValueError where pictures could not be prepared, or would be infinite; open_clip drops unknown keys."""
    _check({key: value for key, value in config.items() if key in _PREPROCESSING}, _PREPROCESSING, "preprocess_cfg")
    for name, least in (("mean", -MOST_OTHERWISE), ("std", 1e-6)):
        values = 1 if config.get(name) is None else config[name]
        values = values if isinstance(values, list) else [values] * 3
        if len(values) != 3 or not all(value >= least for value in values):
            raise ValueError(f"preprocess_cfg.{name} is {str(values)[:60]}, needed are three numbers from {least:g} on")


def _least_weights(tower: dict[str, Any]) -> int:
    """A number of weights that a tower of these sizes has at the least; 0 where its size is that of a named model."""
    if tower.get("timm_model_name") or tower.get("hf_model_name"):
        return 0
    sizes = [tower.get(name, usual) for name, usual in (("layers", 12), ("width", 512), ("vocab_size", 0))]
    layers, width, vocabulary = (size if isinstance(size, int) else 0 for size in sizes)
    return 4 * layers * width * width + vocabulary * width
