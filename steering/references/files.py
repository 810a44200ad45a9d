"""References that lie in a file: a table of losses, a fitted estimator, the weights of a module."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from steering.errors import UserError
from steering.references.table import LossTable

SKLEARN = "sklearn:"  # how the name of a file may begin that holds a fitted estimator
PICKLES = (".pkl", ".pickle", ".joblib", ".sav", ".dill", ".cloudpickle")
PREFIXES = (
    "_orig_mod.",
    "module.",
    "model.",
    "network.",
    "net.",
)  # of torch.compile, DistributedDataParallel, Lightning
Module = TypeVar("Module", bound=nn.Module)


def read_reference(path: str | Path) -> Any:
    """A fitted estimator from ``sklearn:model.skops`` or ``model.skops``, losses by id from any other file.

    Raises:
        UserError: the file cannot be read without running code, or not at all.
    """
    text = str(path)
    name = Path(text.removeprefix(SKLEARN))
    if name.suffix.lower() in PICKLES:
        raise UserError(
            f"{name} is a pickle, which runs code when it is read: where it was made, write skops.io.dump(model, "
            f"'{name.stem}.skops') and give that file"
        )
    if text.startswith(SKLEARN) or name.suffix == ".skops":
        return read_estimator(name)
    return LossTable.load(name)


def read_estimator(path: Path) -> Any:
    """A fitted estimator from a file of skops, of which nothing but types that skops trusts is made.

    Raises:
        UserError: the file is missing or damaged, names other types, or holds no estimator; or skops is not installed.
    """
    try:
        from skops import io  # optional
    except ImportError:
        raise UserError(f"{path} needs skops: pip install 'model-steering[tabular]'") from None
    try:
        untrusted = io.get_untrusted_types(file=path)
        model = None if untrusted else io.load(path, trusted=[])
    except Exception as error:  # what reading a damaged file raises has no common type
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:200] or type(error).__name__
        raise UserError(f"{path} cannot be read as an estimator of skops: {reason}") from None
    if untrusted:
        raise UserError(
            f"{path} names types that skops does not trust ({', '.join(untrusted[:3])}), whose code would run: score "
            f"the data where the model is trusted, and give the losses (docs/references.md)"
        )
    if not hasattr(model, "predict"):
        raise UserError(f"{path} holds a {type(model).__name__}: a reference has predict_proba or predict")
    return model


def load_weights(module: Module, path: str | Path) -> Module:
    """Loads weights, saved in any of the usual ways, into a module; gives the module, in evaluation mode.

    Args:
        module: of the same architecture.
        path: a Lightning checkpoint, a ``torch.save`` of a state dict (alone, or under ``state_dict``, ``model`` or
            ``model_state_dict``), or a safetensors file. Prefixes such as ``model.`` and ``_orig_mod.`` are taken off.
            Nothing that is read runs code.

    Raises:
        UserError: the file cannot be read so, or its weights are of another module.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:150]
        hint = "; save state_dict() alone where it was trained" if "weights_only" in str(error).lower() else ""
        raise UserError(f"{path} cannot be read as weights: {reason}{hint}") from None
    wanted, state = module.state_dict(), _state_of(content)
    weights = _matched(state, set(wanted))
    if weights is None:
        missing, others = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
        raise UserError(
            f"the weights in {path} are of another module: they lack {missing[:2]} of {type(module).__name__} and "
            f"have {others[:2]}"
        )
    unlike = [n for n, x in wanted.items() if x.shape != weights[n].shape]
    if unlike:
        shapes = f"{list(weights[unlike[0]].shape)} for {list(wanted[unlike[0]].shape)}"
        raise UserError(f"the weights in {path} are of another size: {unlike[0]} is {shapes}")
    module.load_state_dict(weights)
    return module.eval()


def _state_of(content: Any) -> dict[str, Tensor]:
    """The tensors by name of what a file holds."""
    while isinstance(content, Mapping) and not any(isinstance(x, Tensor) for x in content.values()):
        name = next((n for n in ("state_dict", "model_state_dict", "model") if n in content), None)
        if name is None:
            break
        content = content[name]
    tensors = content.items() if isinstance(content, Mapping) else ()
    return {str(name): x for name, x in tensors if isinstance(x, Tensor)}


def _matched(state: dict[str, Tensor], names: set[str]) -> dict[str, Tensor] | None:
    """The tensors under the names of a module: those that share a prefix, which is taken off; None if some are missing.

    A Lightning checkpoint may hold more, the weights of a loss say: what bears another prefix is left out.
    """
    if state.keys() == names:
        return state
    for prefix in PREFIXES:
        inner = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
        if inner and (matched := _matched(inner, names)) is not None:
            return matched
    return None
