"""Reference-model data steering: a trained model decides which data another one learns from.

The names below are loaded when first used, so that ``steer --help`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steering.contrastive.pairs import Pairs as Pairs
    from steering.distillation import distil as distil
    from steering.dual_memory import DualMemory as DualMemory
    from steering.engine import Steerer as Steerer
    from steering.errors import RunError as RunError
    from steering.errors import UserError as UserError
    from steering.groups import GroupWeights as GroupWeights
    from steering.rules import KL as KL
    from steering.rules import ChiSquare as ChiSquare
    from steering.rules import CVaR as CVaR
    from steering.rules import GlobalContrastive as GlobalContrastive
    from steering.rules import Individual as Individual
    from steering.rules import InfoNCE as InfoNCE
    from steering.rules import Rule as Rule
    from steering.rules import Uniform as Uniform
    from steering.selectors import Selector as Selector
    from steering.steered import Steered as Steered
    from steering.task import Batch as Batch
    from steering.task import Losses as Losses
    from steering.task import Task as Task

_NAMES = {
    "contrastive.pairs": "Pairs",
    "distillation": "distil",
    "dual_memory": "DualMemory",
    "engine": "Steerer",
    "errors": "RunError UserError",
    "groups": "GroupWeights",
    "rules": "KL ChiSquare CVaR GlobalContrastive Individual InfoNCE Rule Uniform",
    "selectors": "Selector",
    "steered": "Steered",
    "task": "Batch Losses Task",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'steering' has no attribute {name!r}")
    return getattr(import_module(f"steering.{_HOME[name]}"), name)
