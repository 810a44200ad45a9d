"""Curvature units in place of every ReLU of a model, however it is called, and back again."""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from steering.curvature.unit import CurvatureUnit, channel_axis, units
from steering.errors import UserError
from steering.training.seeds import untouched

FUNCTIONS = (torch.relu, torch.relu_, functional.relu, functional.relu_)
IN_PLACE = (torch.relu_, functional.relu_)
METHODS = ("relu", "relu_")
CLAMPS = (torch.clamp, torch.clamp_min, torch.maximum, functional.threshold)  # ReLU is one of many things they can be
OTHERS = (
    nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.CELU, nn.SELU, nn.Hardswish,
    nn.Softplus, nn.Tanh,
)  # fmt: skip
OTHER_FUNCTIONS = {
    "relu6", "leaky_relu", "prelu", "rrelu", "gelu", "silu", "mish", "elu", "celu", "selu", "hardswish", "softplus",
    "tanh",
}  # fmt: skip


@dataclass(frozen=True)
class Site:
    """A place in a model.

    Attributes:
        name: of the module, as in ``named_modules``.
        what: what is there, in words.
        channels: of the unit that is there now; None where it is shared.
    """

    name: str
    what: str
    channels: int | None = None


@dataclass
class Replacement:
    """A model with curvature units, and what was done to it.

    Attributes:
        model: the copy, or the model itself if that was asked for.
        replaced: one place for every unit.
        missed: what is no ReLU, or could not be seen or replaced, and why.
    """

    model: nn.Module
    replaced: list[Site] = field(default_factory=list)
    missed: list[Site] = field(default_factory=list)
    _places: list[tuple[nn.Module, str]] = field(default_factory=list, repr=False)  # of the units, as replaced
    _done: set[tuple[int, str]] = field(default_factory=set, repr=False)  # ReLUs that nobody calls any more
    _undoing: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def undo(self) -> nn.Module:
        """Puts every ReLU back, and gives the model; what was trained beside the units stays trained."""
        for step in reversed(self._undoing):
            step()
        self._undoing.clear()
        return self.model


def replace_relus(
    model: nn.Module,
    beta: float = 1.0,
    coefficient: float = 0.5,
    *,
    trainable: bool = False,
    per_channel: bool = False,
    example: tuple | None = None,
    axis: int | None = None,
    in_place: bool = False,
) -> Replacement:
    """Replaces every ReLU: modules, also those that are called several times or have several names, and functions.

    The forward pass of every module that has one of its own is traced by torch.fx, its children left whole, so that
    a module that cannot be traced hides its own functions and nothing else. Where a ReLU is called as a function, or
    one module for several calls, the traced forward pass takes the place of the module's own; decisions in it that do
    not depend on its input (``self.training``) stay as they are in evaluation mode. Everything else about a module,
    the names of its parameters too, is as before.

    Args:
        model: stays as it is, unless ``in_place``.
        beta: of every unit, or where it begins.
        coefficient: likewise.
        trainable: whether the units are learned.
        per_channel: whether each channel has its own values; needs an ``example``.
        example: arguments of the forward pass. With it, the model is run once with ReLUs in the new places, and has
            to give what it gave before.
        axis: of the channels, where they are neither the second axis of images nor the last of anything else.
        in_place: whether to change the model itself.

    Raises:
        UserError: there is no ReLU, an example is missing, or the copy would give something else than the model.
    """
    if per_channel and example is None:
        raise UserError("units with values for each channel need an example input, to see how many channels there are")
    if units(model):
        raise UserError("the model has curvature units already: set_beta changes them, undo() takes them out")
    result = Replacement(model if in_place else copy.deepcopy(model))
    modes = {part: part.training for part in result.model.modules()}
    result.model.eval()
    try:
        expected = [] if example is None else _outputs(result.model, example)
        for name, module in list(result.model.named_modules()):
            _forward_pass(name, module, result)
        for name, module in list(result.model.named_modules(remove_duplicate=False)):
            _children(name, module, result)
        if not result.replaced:
            raise UserError(f"there is no ReLU to replace. {_seen(result.missed)}")
        channels = {} if example is None else _try(result, example, expected, axis)
        settings = {"beta": beta, "coefficient": coefficient, "trainable": trainable}
        _settle(result, channels if per_channel else None, axis, settings)
    except UserError:
        result.undo()
        raise
    finally:
        for part, mode in modes.items():
            part.training = mode
    return result


def _forward_pass(name: str, module: nn.Module, result: Replacement) -> None:
    """ReLUs that a module's own forward pass calls as functions, or one module of several times."""
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        result.missed.append(Site(name, f"{kind}: compiled by TorchScript, cannot be seen into"))
        return
    if type(module).__module__.startswith("torch.nn."):  # calls no ReLU but by an attribute
        _of_torch(name, module, result)
        return
    try:
        graph = _OneLevel().trace(module)
    except Exception as error:  # whatever the model's own code raises on being handed proxies
        reason = " ".join((str(error) or type(error).__name__).split())[:100]
        what = f"functions in the forward pass of {kind}: torch.fx cannot trace it ({reason})"
        result.missed.append(Site(name, what))
        return
    result.missed.extend(_others(name, graph))
    found = _sites(graph, module)
    if found:
        for node in graph.nodes:
            if node.op == "call_function" and "training" in node.kwargs:
                what = f"{node.name} in {kind} now does the same in training as in evaluation"
                result.missed.append(Site(name, what))
        _rewire(name, module, graph, found, result)


class _OneLevel(fx.Tracer):
    """Follows one forward pass and leaves all modules in it whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _of_torch(name: str, module: nn.Module, result: Replacement) -> None:
    """The activation function of PyTorch's transformer layers, and what there is no way to replace."""
    if isinstance(module, nn.RNNBase) and "RELU" in module.mode:
        result.missed.append(Site(name, "RNN with ReLU: its kernel cannot be changed"))
    elif isinstance(module, OTHERS):
        result.missed.append(Site(name, f"{type(module).__name__} is no ReLU and stays"))
    function = vars(module).get("activation")
    if function not in FUNCTIONS:
        return
    fast = vars(module).get("activation_relu_or_gelu")
    if fast is not None:  # the fused kernel would go past the unit
        setattr(module, "activation_relu_or_gelu", 0)  # noqa: B010
        result._undoing.append(lambda: setattr(module, "activation_relu_or_gelu", fast))
    del module.activation
    result._undoing.append(lambda: setattr(module, "activation", function))
    _put(module, "activation", result, Site(f"{name}.activation".lstrip("."), "function of a transformer layer"))
    result._undoing.append(lambda: delattr(module, "activation"))


def _others(name: str, graph: fx.Graph) -> list[Site]:
    """Functions that are no ReLU, or may be one."""
    found = []
    for node in graph.nodes:
        called = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        if node.op in ("call_function", "call_method") and called in OTHER_FUNCTIONS:
            found.append(Site(name, f"function {called} is no ReLU and stays"))
        elif node.target in CLAMPS or (node.op == "call_method" and called in ("clamp", "clamp_min", "maximum")):
            found.append(Site(name, f"function {called} may act as a ReLU; it stays"))
    return found


def _sites(graph: fx.Graph, module: nn.Module) -> list[tuple[fx.Node, str, bool]]:
    """Nodes to replace that no change of a child could, what they are, and whether they write into their input."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    relus = {n: module.get_submodule(n.target) for n in graph.nodes if n.op == "call_module"}
    relus = {node: relu for node, relu in relus.items() if isinstance(relu, nn.ReLU)}
    times = Counter(map(id, relus.values()))
    found = []
    for node in graph.nodes:
        if node.op == "call_function" and node.target in FUNCTIONS:
            found.append((node, "function", node.target in IN_PLACE or bool(_argument(node, 1, "inplace"))))
        elif node.op == "call_method" and node.target in METHODS:
            found.append((node, "method of a tensor", node.target == "relu_"))
        elif node in relus:
            relu, source = relus[node], _argument(node, 0, "input")
            read_later = relu.inplace and any(order[user] > order[node] for user in source.users)
            if times[id(relu)] > 1 or read_later:
                found.append((node, f"{node.target}, called {times[id(relu)]} times", relu.inplace))
    return found


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _rewire(name: str, module: nn.Module, graph: fx.Graph, found, result: Replacement) -> None:
    """Gives a module the traced forward pass, with a unit at every site."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    for number, (node, what, writes) in enumerate(found):
        attribute, source = f"curvature_{number}", _argument(node, 0, "input")
        _put(module, attribute, result, Site(f"{name}.{attribute}".lstrip("."), what))
        result._undoing.append(lambda attribute=attribute: delattr(module, attribute))
        if node.op == "call_module":
            path, _, child = node.target.rpartition(".")
            owner = module.get_submodule(path)
            if owner is module or isinstance(owner, nn.ModuleList | nn.ModuleDict):  # which call nothing themselves
                result._done.add((id(owner), child))
        with graph.inserting_before(node):
            unit = graph.call_module(attribute, (source,))
        if writes:  # whoever reads the input afterwards sees what ReLU made of it
            here = order[node]
            source.replace_all_uses_with(unit, lambda user, here=here: order.get(user, -1) > here)
        node.replace_all_uses_with(unit)
        graph.erase_node(node)
        order[unit] = order[node]
    own = vars(module).get("forward")
    module.forward = MethodType(type(fx.GraphModule(module, graph)).forward, module)

    def restore() -> None:
        del module.forward
        if own is not None:
            module.forward = own

    result._undoing.append(restore)


def _children(name: str, module: nn.Module, result: Replacement) -> None:
    """ReLU modules, each name one of its own."""
    for child, relu in list(module._modules.items()):
        if isinstance(relu, nn.ReLU) and (id(module), child) not in result._done:
            _put(module, child, result, Site(f"{name}.{child}".lstrip("."), "module"))
            result._undoing.append(lambda child=child, relu=relu: module._modules.update({child: relu}))


def _put(module: nn.Module, attribute: str, result: Replacement, site: Site) -> None:
    """A ReLU at the place of a unit; its settings come when its input is known."""
    if attribute in module._modules:
        module._modules[attribute] = CurvatureUnit(1.0)  # keeps its place in a Sequential
    else:
        module.add_module(attribute, CurvatureUnit(1.0))
    result.replaced.append(site)
    result._places.append((module, attribute))


def _try(result: Replacement, example: tuple, expected: list[Tensor], axis: int | None) -> dict[int, int]:
    """Runs the model with ReLUs in the new places; how many channels each unit saw, by its place in the list."""
    seen: dict[int, set[int]] = {}

    def note(place: int, _: nn.Module, inputs: tuple) -> None:
        seen.setdefault(place, set()).add(inputs[0].shape[channel_axis(inputs[0]) if axis is None else axis])

    hooks = [
        module.get_submodule(attribute).register_forward_pre_hook(partial(note, place))
        for place, (module, attribute) in enumerate(result._places)
    ]
    found = _outputs(result.model, example)
    for hook in hooks:
        hook.remove()
    if len(found) != len(expected) or not all(map(torch.allclose, found, expected)):
        raise UserError("the model gives another answer when its ReLUs are called one by one, so it was left alone")
    return {place: channels.pop() for place, channels in seen.items() if len(channels) == 1}


def _settle(result: Replacement, channels: dict[int, int] | None, axis: int | None, settings: dict) -> None:
    """Puts the units that were asked for in place of the ReLUs the model was tried with."""
    device = next((parameter.device for parameter in result.model.parameters()), None)
    for place, (module, attribute) in enumerate(result._places):
        number = None if channels is None else channels.get(place)
        module._modules[attribute] = CurvatureUnit(channels=number, axis=axis, **settings).to(device)
        site = result.replaced[place]
        unsure = channels is not None and number is None
        what = f"{site.what}; one value for all channels, as the example does not say how many" if unsure else site.what
        result.replaced[place] = Site(site.name, what, number)


def _outputs(model: nn.Module, example: tuple) -> list[Tensor]:
    """All tensors that a model gives, run once without a trace."""
    with torch.no_grad(), untouched():
        given = model(*(x.clone() if isinstance(x, Tensor) else x for x in example))
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]


def _seen(missed: list[Site]) -> str:
    """What a model has instead, for a message."""
    words = dict.fromkeys(f"{site.name or 'the model'}: {site.what}" for site in missed)
    return "; ".join(list(words)[:3]) if words else "Nor has it another activation that could be seen"
