"""Image and text towers of open_clip, with the preprocessing and the tokenizer that belong to them; and exports."""

import hashlib
import io
import json
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from unittest.mock import patch

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from steering.clip.emoji_data import BUNDLE, TOKENIZER
from steering.contrastive.pairs import Pairs
from steering.errors import RunError, UserError, did_you_mean
from steering.task import Batch

EMOJI = "emoji-rn32"  # 1.3 M parameters for 32-pixel pictures, small enough to be trained on one core
open_clip.add_model_config(BUNDLE / f"{EMOJI}.json")

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
MERGES = "merges.txt.gz"
FLOAT16_LIMIT = torch.finfo(torch.float16).max
_SAFE_FORMS = "save the model's state_dict alone, or as .safetensors"
LARGEST_SCALE = math.log(100)  # of a learned temperature, as in open_clip
MOST_LETTERS = 10_000  # of a text: enough for a context of 77 words a hundred times over
PROBE = "2 cats; Caf\u00e9 \u732b \U0001f408, un-tokenizable!"  # tells apart tokenizers without a word list

Tokenizer = Callable[[Sequence[str]], Tensor]
Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class AnyText:
    """A tokenizer for captions of others: what is no Unicode, and what no context has room for, is replaced and cut."""

    inner: Tokenizer

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return self.inner([text[:MOST_LETTERS].encode("utf-8", "replace").decode() for text in texts])


class Towers(nn.Module):
    """An image and a text tower that map into one space.

    Args:
        clip: an open_clip model.
        config: the ``model_cfg`` that makes it, as open_clip_config.json holds it.
        tokenizer: texts to ``[n, context]`` int64.
        arch, source: name of the architecture, and where the weights come from, for records and messages.
        merges: the gzipped byte pairs of its tokenizer, where open_clip does not know them.

    Attributes:
        preprocessing: image size, mean and standard deviation per channel, and how to resize.
        preprocess: takes a picture to what the image tower is given in evaluation, ``[3, h, w]``, in any process.
    """

    def __init__(
        self,
        clip: nn.Module,
        config: Mapping[str, Any],
        tokenizer: Tokenizer,
        *,
        arch: str,
        source: str,
        merges: bytes | None = None,
    ):
        super().__init__()
        self.clip: Any = clip
        self.config, self.tokenizer, self.merges = dict(config), AnyText(tokenizer), merges
        self.arch, self.source = arch, source
        preprocessing: Any = open_clip.get_model_preprocess_cfg(clip)
        tuples: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in preprocessing.items()}
        self.preprocessing = PreprocessCfg(**tuples)  # two of them can be compared
        self.preprocess: Any = image_transform_v2(self.preprocessing, is_train=False)
        self.initial_log_scale = 0.0
        size, largest = getattr(tokenizer, "vocab_size", 0), config["text_cfg"].get("vocab_size", math.inf)
        if size > largest:
            raise UserError(
                f"{source} has a vocabulary of {largest}, the tokenizer found for it one of {size}: that is "
                f"another model's. Export the model again, together with its own"
            )

    def forward(self, batch: Batch) -> Pairs:
        """Features of a batch with the fields ``image`` and ``text``, see ``encode``."""
        return self.encode(batch["image"], batch["text"])

    def encode(self, images: Tensor, tokens: Tensor) -> Pairs:
        """Features of images ``[n, 3, h, w]`` and of their captions ``[n, context]``, with the scale."""
        if self.training and self.clip.logit_scale.requires_grad:
            with torch.no_grad():  # as open_clip does after a step, but never against a temperature that was set
                start = self.initial_log_scale
                self.clip.logit_scale.clamp_(min(start, 0), max(start, LARGEST_SCALE))
        scale = self.clip.logit_scale.exp().reshape(())
        return Pairs(self.encode_images(images), self.encode_texts(tokens), scale)

    def encode_images(self, images: Tensor) -> Tensor:
        """``[n, 3, h, w]`` -> ``[n, width]``, each row of length one, in at least float32."""
        return _unit(self.clip.encode_image(images, normalize=False))

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """``[n, context]`` -> ``[n, width]``, each row of length one, in at least float32."""
        return _unit(self.clip.encode_text(tokens, normalize=False))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Tokens of n texts, ``[n, context]`` int64; longer ones are cut."""
        return self.tokenizer(texts)

    @property
    def temperature(self) -> float:
        """What similarities are divided by."""
        return math.exp(-float(self.clip.logit_scale.detach()))

    def set_temperature(self, temperature: float, *, learn: bool = False) -> "Towers":
        """Sets the temperature, whatever the loaded weights say, and whether it is trained."""
        if not 0 < temperature < math.inf:
            raise UserError(f"temperature must be a number above 0, got {temperature}")
        self.initial_log_scale = -math.log(temperature)
        with torch.no_grad():
            self.clip.logit_scale.fill_(self.initial_log_scale)
        self.clip.logit_scale.requires_grad_(learn)
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether activations of the towers' blocks are computed again on the way back."""
        try:
            self.clip.set_grad_checkpointing(enable)
        except (AssertionError, NotImplementedError) as error:
            remedy = "use recipe.grad_checkpointing=false, or a smaller recipe.micro_batch"
            raise UserError(f"{self.arch} cannot compute activations again ({one_line(error)}): {remedy}") from None

    def describe(self) -> dict[str, Any]:
        """What a run records of its models; equal in all but ``source`` means equal features."""
        return {
            "arch": self.arch,
            "source": self.source,
            "quick_gelu": bool(self.config.get("quick_gelu", False)),
            "preprocessing": asdict(self.preprocessing),
            "tokenizer": self.describe_tokenizer(),
            "weights": _digest(self.clip.state_dict()),
        }

    def describe_tokenizer(self) -> dict[str, Any]:
        """Class, context length and a hash; equal means equal tokens."""
        tokenizer = self.tokenizer.inner
        vocabulary = getattr(tokenizer, "encoder", None)
        content = "\n".join(vocabulary) if vocabulary else str(self.tokenize([PROBE]).tolist())
        return {
            "class": type(tokenizer).__name__,
            "context": getattr(tokenizer, "context_length", None),
            "sha256": hashlib.sha256(content.encode()).hexdigest()[:16],
        }


def architecture(name: str) -> str:
    """The name of an architecture as open_clip spells it, ``ViT-B/16`` being ViT-B-16.

    Raises:
        UserError: there is none. (open_clip's get_tokenizer would go on with one that may not fit.)
    """
    arch, names = name.replace("/", "-"), open_clip.list_models()
    if arch not in names:
        every = "python -c \"import open_clip; print(*open_clip.list_models(), sep='\\n')\""
        hint = did_you_mean(arch, names) or "."
        raise UserError(f"no architecture is named {name!r}{hint} Known: {EMOJI} and all of {every}")
    return arch


def build(name: str, *, temperature: float | None = None) -> Towers:
    """Makes a target with random weights; torch's global generator decides them.

    Args:
        name: ``emoji-rn32`` or any open_clip architecture, ``ViT-B-16`` or ``ViT-B/16``.
        temperature: fixed; without it open_clip's 0.07, which is trained.

    Raises:
        UserError: no such architecture, or it needs a package that is not installed.
    """
    towers = make(arch := architecture(name), source=f"{arch} with random weights")
    return towers if temperature is None else towers.set_temperature(temperature)


def make(
    arch: str, weights: Path | None = None, *, source: str, quick_gelu: bool = False, preprocessing: Any = None
) -> Towers:
    """Makes the towers of a known architecture.

    Args:
        arch: as ``architecture`` returns it.
        weights: a checkpoint, which must fill the whole model; without one they are random.
        source: where the weights come from, for records and messages.
        quick_gelu: forces QuickGELU; otherwise the architecture decides.
        preprocessing: mean, std, interpolation, resize_mode where they are not OpenAI's.
    """
    config: dict[str, Any] = open_clip.get_model_config(arch) or {}
    config["quick_gelu"] = quick_gelu or config.get("quick_gelu", False)
    options: dict[str, Any] = {"force_quick_gelu": quick_gelu, "force_preprocess_cfg": preprocessing}
    if weights is not None:
        options |= {"pretrained": str(weights), "require_pretrained": True}
    merges = Path(TOKENIZER).read_bytes() if arch == EMOJI else None
    return assemble(arch, config, arch=arch, source=source, merges=merges, **options)


def assemble(
    name: str, config: Mapping[str, Any], *, arch: str, source: str, merges: bytes | None = None, **options: Any
) -> Towers:
    """Lets open_clip make a model and its tokenizer.

    Args:
        name: for open_clip: an architecture, ``hf-hub:...`` or ``local-dir:...``.
        config: the ``model_cfg`` that open_clip will find under that name.
        arch, source, merges: as of Towers.
        options: more arguments of ``open_clip.create_model``.

    Raises:
        UserError: weights that do not fit or that hold code, or a package that is missing.
    """
    with loading(source):
        # Towers are pretrained together or not at all: nothing is fetched for one alone.
        options |= {"pretrained_image": False, "pretrained_text": False}
        if any(config["text_cfg"].get(key) for key in ("hf_tokenizer_name", "hf_model_name")):
            from transformers import dynamic_module_utils

            dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # else it asks whether to run code that comes with a model
        with patch.multiple(open_clip.factory, resize_pos_embed=_as_it_is, resize_text_pos_embed=_as_it_is):
            clip = open_clip.create_model(model_name=name, weights_only=True, **options)
        if merges is None:
            tokenizer: Any = open_clip.get_tokenizer(model_name=name)
        else:  # open_clip's own tokenizer over another vocabulary: a header line, then one merge a line
            file: Any = io.BytesIO(merges)
            tokenizer = open_clip.SimpleTokenizer(file, context_length=config["text_cfg"]["context_length"])
        return Towers(clip, config, tokenizer, arch=arch, source=source, merges=merges)


def export(towers: Towers, folder: Path, *, half: bool = False) -> Path:
    """Writes towers in open_clip's local-dir form, the only one that keeps QuickGELU and preprocessing.

    The entry ``steer`` is for our own reader. The folder is either whole or as it was before.

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
    elif save_tokenizer := getattr(towers.tokenizer.inner, "save_pretrained", None):
        save_tokenizer(str(folder))


def _as_it_is(state: dict[str, Tensor], model: nn.Module) -> None:
    """Instead of what open_clip does to positions of another size: such weights are another model's, and do not fit."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silences open_clip and the hub, which log a lot while they load; what matters is checked or raised."""
    handler, before = logging.NullHandler(), logging.root.manager.disable
    logging.root.addHandler(handler)  # with none there, logging.info() would install one for good
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        logging.root.removeHandler(handler)


def one_line(content: object, most: int = 240) -> str:
    """What an error or any text says, in one line of bearable length that a terminal and a font can show."""
    text = str(content)[: 4 * most] or (type(content).__name__ if isinstance(content, BaseException) else "")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:most]


@contextmanager
def loading(source: str) -> Iterator[None]:
    """One line for each of the many ways in which open_clip fails to make a model."""
    try:
        with quiet():
            yield
    except UserError:
        raise
    except Exception as error:
        message = f"cannot load {source}: {one_line(error)}"
        if isinstance(error, UnpicklingError):
            message = f"{source} is damaged or holds Python objects besides tensors, which may run code: {_SAFE_FORMS}"
        elif "TorchScript archive" in str(error):
            message = f"{source} is a TorchScript archive, which may run code: {_SAFE_FORMS}"
        elif isinstance(error, ModuleNotFoundError):
            message = f"{source} needs the package {error.name}: pip install {error.name}"
        raise UserError(message) from error


def _unit(features: Tensor) -> Tensor:
    # In half precision the length of a row would be off by up to 0.4 %.
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def _digest(state: Mapping[str, Tensor]) -> str:
    """Hash of all weights, 16 hexadecimal digits, whatever file they came in."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
