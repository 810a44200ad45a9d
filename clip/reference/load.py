"""The reference: a trained open_clip model by whatever name, with its own preprocessing and tokenizer.

load_reference("openai/ViT-B-32")          weights that open_clip lists, also as ViT-B-32/openai
load_reference("hf-hub:org/repo")          a repository of the hub with an open_clip_config.json
load_reference("runs/emoji")               a run of ours, one arm or one seed of it, or its export
load_reference("local-dir:my/model")       a folder with an open_clip_config.json
load_reference("ViT-B-16=my/epoch_32.pt")  a checkpoint of that architecture
load_reference("ViT-B-32/openai=my/file")  weights that open_clip lists, fetched by hand
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf

from steering.clip.models import CONFIG, WEIGHTS, Towers, architecture, assemble, loading, make, one_line, quiet
from steering.clip.reference.model_files import check_files, read_config, read_merges
from steering.distributed import rank
from steering.errors import UserError, did_you_mean

MOST_NAMED, MOST_LETTERS = 8, 4096  # models in a message; of a name
LIST = "python -c \"import open_clip; print(*open_clip.list_pretrained(as_str=True), sep='\\n')\""


def load_reference(ref: str) -> Towers:
    """Loads a reference: frozen, in evaluation mode, never with random weights.

    Args:
        ref: one of the forms above. What open_clip lists comes before a folder of the same name.

    Raises:
        UserError: there is no such model, it cannot be fetched, or the weights are not that model's.
    """
    return load(ref).eval().requires_grad_(False)


def load(ref: str) -> Towers:
    """Loads a trained model to train it further; otherwise as ``load_reference``."""
    return _verified(_load(ref))


def _load(ref: str) -> Towers:
    if len(ref) > MOST_LETTERS:
        raise UserError(f"no reference has a name of {len(ref):,} letters: {ref[:40]!r}...")
    schema, _, rest = ref.partition(":")
    if schema == "hf-hub":
        return _from_hub(rest)
    if schema == "local-dir":
        return read(Path(os.path.expanduser(rest)))
    if release := _release(ref):
        return _from_release(*release)
    path = Path(os.path.expanduser(ref))
    if os.path.isdir(path):
        return read(path if os.path.isfile(path / CONFIG) else _only_export(path))
    if os.path.isfile(path):
        raise UserError(f"{ref} does not say what its architecture is: write ARCH={ref}, ViT-B-32={ref} say")
    return _from_file(ref)


def read(folder: Path) -> Towers:
    """Reads a folder that ``towers.export`` or open_clip wrote, with its own preprocessing and tokenizer.

    Raises:
        UserError: not such a folder, no weights in it, or weights that do not fit.
    """
    content = read_config(folder / CONFIG)
    model_cfg, origin, merges = content["model_cfg"], content["steer"], None
    check_files(folder, model_cfg)
    if origin.get("merges"):
        path = folder / Path(origin["merges"]).name  # a configuration must not reach outside its folder
        if not path.is_file():
            raise UserError(f"{folder} has lost its tokenizer, {path.name}: export the model again")
        merges = read_merges(path, model_cfg["text_cfg"].get("vocab_size") or 49_408)
    options = {"arch": one_line(origin.get("arch") or folder.resolve().name), "source": str(folder), "merges": merges}
    return assemble(f"local-dir:{folder}", model_cfg, require_pretrained=True, **options)


@torch.no_grad()
def _verified(towers: Towers) -> Towers:
    """A trained model that answers a picture and a text with numbers; its weights may be damaged, or another's.

    Raises:
        UserError: it does not.
    """
    training, (_, height, width) = towers.training, towers.preprocessing.input_size
    odd = [name for name, value in towers.clip.state_dict().items() if not value.isfinite().all()]
    if odd:
        raise UserError(f"{towers.source} has weights that are infinite or no numbers ({odd[0]} say): export it again")
    picture = torch.linspace(-1, 1, 3 * height * width).reshape(1, 3, height, width)
    with loading(towers.source):
        pairs = towers.eval().encode(picture, towers.tokenize(["a picture"]))
    answer = torch.cat([pairs.left, pairs.right, torch.as_tensor(pairs.scale).reshape(1, 1)], 1)
    if not answer.isfinite().all() or not pairs.left.any() or not pairs.right.any():
        raise UserError(f"{towers.source} answers with zeros or what is no number: these are no trained weights")
    return towers.train(training)


def _from_hub(repo: str) -> Towers:
    """A repository of the hub; its own configuration decides on QuickGELU and preprocessing."""
    name = f"hf-hub:{repo}"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"{name!r} is no repository of the hub: write hf-hub:ORG/REPO")
    with _fetching(name, repo, CONFIG, f"{WEIGHTS} beside it, then say --ref local-dir:FOLDER"):
        config = download_pretrained_from_hf(repo, filename=CONFIG)
        download_pretrained_from_hf(repo)
    return assemble(name, read_config(Path(config))["model_cfg"], arch=repo, source=name, require_pretrained=True)


def _from_release(arch: str, tag: str, file: Path | None = None) -> Towers:
    """Weights that open_clip lists, fetched unless their file is given.

    Made by name alone, 27 of its models would compute GELU where they were trained with QuickGELU.
    """
    release, source = open_clip.get_pretrained_cfg(arch, tag), f"{arch}/{tag}"
    repo, _, name = release.get("hf_hub", "").rpartition("/")
    quick = bool(release.get("quick_gelu"))
    if not quick and _quick(open_clip.get_model_config(arch)):
        raise UserError(
            f"open_clip contradicts itself on {source}: QuickGELU says the architecture, GELU the weights. "
            f"Name the repository, whose own configuration decides: --ref hf-hub:{repo}"
        )
    if file is None:
        with _fetching(source, repo, name or WEIGHTS, f"say --ref {source}=FILE"):
            file = Path(open_clip.download_pretrained(release))
    else:
        source = f"{source}={file}"
    kept = {key: release[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in release}
    return make(arch, file, source=source, quick_gelu=quick, preprocessing=kept)


def _from_file(ref: str) -> Towers:
    """``ARCH=FILE``, ``ARCH,FILE`` or ``ARCH/TAG=FILE``."""
    name, *rest = re.split("[=,]", ref, maxsplit=1)
    if not rest:
        raise _unknown(ref)
    file, release = Path(os.path.expanduser(rest[0])), _release(name)
    if not os.path.isfile(file):
        raise UserError(f"{ref}: there is no file {rest[0]}") if "=" in ref else _unknown(ref)
    if release:
        return _from_release(*release, file)
    arch, beside = architecture(name), file.parent / CONFIG
    if beside.is_file() and _quick(read_config(beside)["model_cfg"]) != _quick(open_clip.get_model_config(arch)):
        raise UserError(f"{beside} and {arch} disagree on QuickGELU: name the folder, --ref {file.parent}")
    return make(arch, file, source=f"{arch}={file}")


def _only_export(folder: Path) -> Path:
    """The exported model of a run, of one of its arms or of one seed, if there is just one."""
    above = ("", "seed*/", "arms/*/seed*/")
    exports = sorted(path.parent for prefix in above for path in folder.glob(f"{prefix}export/{CONFIG}"))
    if len(exports) > 1:
        several = ", ".join(map(str, exports[:MOST_NAMED])) + ", ..." * (len(exports) > MOST_NAMED)
        raise UserError(f"{folder} holds {len(exports)} models, name one of: {several}")
    if not exports:
        raise UserError(f"{folder} holds no model: neither an {CONFIG} nor a run's arms/ARM/seed0/export")
    return exports[0]


def _release(ref: str) -> tuple[str, str] | None:
    """Architecture and tag, if open_clip lists weights for them."""
    for arch, tag in _splits(ref):
        if open_clip.is_pretrained_cfg(arch, tag):
            return arch, tag.lower().replace("-", "_")
    return None


def _splits(ref: str) -> list[tuple[str, str]]:
    """Every way to read a name as architecture and tag; either comes first, and ViT-B/32 has a slash."""
    parts = re.split("[/,:]", ref)
    cuts = [("-".join(parts[:i]), "-".join(parts[i:])) for i in range(1, len(parts))]
    return cuts + [(tag, arch) for arch, tag in cuts]


def _unknown(ref: str) -> UserError:
    if ref.startswith((".", "/", "~")) or ref.endswith((".pt", ".pth", ".bin", ".safetensors")):
        return UserError(f"no reference is at {ref}: there is no such file or folder")
    archs = open_clip.list_models()
    for arch, tag in [(ref.replace("/", "-"), ""), *_splits(ref)]:
        tags = open_clip.list_pretrained_tags_by_model(arch)
        if arch in archs and not tag:
            ways = f"{arch}/TAG, TAG being {_first(tags)}" if tags else "a folder"
            return UserError(f"{ref} alone has random weights, no reference: write {arch}=FILE or {ways}")
        if arch in archs and tags:
            hint = did_you_mean(tag, tags) or "."
            return UserError(f"open_clip lists no weights {tag!r} of {arch}{hint} Known: {_first(tags)}")
    names = [name for arch, tag in open_clip.list_pretrained() for name in (f"{arch}/{tag}", f"{tag}/{arch}")]
    return UserError(
        f"no reference is named {ref!r}{did_you_mean(ref, names) or '.'} Known: hf-hub:ORG/REPO, ARCH=FILE, "
        f"a run, a folder with an {CONFIG}, and ARCH/TAG for all of {LIST}"
    )


def _first(tags: list[str]) -> str:
    return ", ".join(tags) if len(tags) < 10 else f"{', '.join(tags[:8])} and {len(tags) - 8} more in {LIST}"


@contextmanager
def _fetching(source: str, repo: str, name: str, then: str) -> Iterator[None]:
    """Says what is being fetched and, in one line, what to do where the hub cannot be reached."""
    url = name
    try:
        url = huggingface_hub.hf_hub_url(repo, name)
        cached = huggingface_hub.try_to_load_from_cache(repo, name)
        if rank() == 0 and not isinstance(cached, str) and not huggingface_hub.constants.HF_HUB_OFFLINE:
            # It says so because the hub's library may take a minute to find out that there is no network.
            print(f"fetching {source} (HF_HUB_OFFLINE=1 would look in the cache alone)", file=sys.stderr)
        with quiet():
            yield
    except Exception as error:
        root: BaseException = error
        while inner := root.__cause__ or root.__context__:  # the hub's library wraps what began it five times
            root = inner
        offline = huggingface_hub.constants.HF_HUB_OFFLINE
        reason = "not in the cache, and HF_HUB_OFFLINE is set" if offline else one_line(root)
        raise UserError(f"cannot fetch {source} ({reason}). Download {url} elsewhere and {then}") from error


def _quick(config: dict[str, Any] | None) -> bool:
    return bool((config or {}).get("quick_gelu"))
