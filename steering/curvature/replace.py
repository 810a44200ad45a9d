"""Curvature units in place of every ReLU of a model, however it is called."""

import copy
from collections import Counter, defaultdict
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
CLAMPS = ("clamp", "clamp_min", "maximum", "threshold", "_threshold")  # ReLU is one of many things they can be
OTHERS = {  # classes and functions, in lower case and without underscores
    "relu6", "leakyrelu", "prelu", "rrelu", "gelu", "silu", "mish", "elu", "celu", "selu", "hardswish", "softplus",
    "tanh",
}  # fmt: skip


@dataclass(frozen=True)
class Site:
    """One activation of a model."""

    name: str  # of the module, as in ``named_modules``
    what: str  # its kind
    channels: int | None = None  # of the unit that is there now; None where it is shared


@dataclass
class Replacement:
    """A copy of a model with curvature units, and what was done to it."""

    model: nn.Module  # the copy; ``set_beta(model, 1)`` makes its units ReLUs again
    replaced: list[Site] = field(default_factory=list)  # one for every unit
    missed: list[Site] = field(default_factory=list)  # what is no ReLU, or could not be seen or replaced, and why
    _owners: list[tuple[nn.Module, str]] = field(default_factory=list, repr=False)  # module and attribute of each unit
    _uncalled: set[tuple[int, str]] = field(default_factory=set, repr=False)  # ReLUs that nobody calls any more

    def _miss(self, name: str, what: str) -> None:
        self.missed.append(Site(name, what))

    def _put(self, module: nn.Module, name: str, attribute: str, what: str) -> None:
        """A ReLU at the site of a unit, which keeps its position in a Sequential; settings come with its input."""
        setattr(module, attribute, CurvatureUnit(1.0))
        self.replaced.append(Site(f"{name}.{attribute}".lstrip("."), what))
        self._owners.append((module, attribute))


def replace_relus(
    model: nn.Module,
    beta: float = 1.0,
    coefficient: float = 0.5,
    *,
    trainable: bool = False,
    per_channel: bool = False,
    example: tuple | None = None,
    axis: int | None = None,
) -> Replacement:
    """Replaces every ReLU: modules, also those that are called several times or have several names, and functions.

    The forward pass of every module is traced by torch.fx, its children left as they are, so that a module that cannot
    be traced hides its own functions and nothing else. Where a ReLU is called as a function, or one module for several
    calls, the traced forward pass takes the place of the module's own; decisions in it that do not depend on its input
    (``self.training``) stay as they are in evaluation mode. All else, the names of parameters too, is as before.

    Args:
        model: stays as it is.
        beta: of every unit, or where it begins.
        coefficient: likewise.
        trainable: whether the units are learned.
        per_channel: whether each channel has its own values; needs an ``example``.
        example: arguments of the forward pass. With it, the model is run once with ReLUs at the new sites, and has
            to give what it gave before.
        axis: of the channels, where they are neither the second axis of images nor the last of anything else.

    Raises:
        UserError: there is no ReLU, an example is missing, or the copy would give something else than the model.

    Example:
        >>> tuned = replace_relus(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), beta=0.9)
        >>> tuned.replaced, tuned.model[1]
        ([Site(name='1', what='module', channels=None)], CurvatureUnit(beta=0.9, coefficient=0.5))
    """
    if per_channel and example is None:
        raise UserError("units with values for each channel need an example input, to see how many channels there are")
    if units(model):
        raise UserError("the model has curvature units already: set_beta changes them")
    result = Replacement(copy.deepcopy(model).eval())
    expected = [] if example is None else _outputs(result.model, example)
    for name, module in list(result.model.named_modules()):
        _forward_pass(name, module, result)
    for name, module in list(result.model.named_modules(remove_duplicate=False)):  # one unit for each name
        for child, relu in list(module._modules.items()):
            if isinstance(relu, nn.ReLU) and (id(module), child) not in result._uncalled:
                result._put(module, name, child, "module")
    if not result.replaced:
        sites = dict.fromkeys(f"{site.name or 'the model'}: {site.what}" for site in result.missed)
        instead = "; ".join(list(sites)[:3]) or "Nor has it another activation that could be seen"
        raise UserError(f"there is no ReLU to replace. {instead}")
    channels = {} if example is None else _count_channels(result, example, expected, axis)
    device = next((parameter.device for parameter in result.model.parameters()), None)
    for index, (module, attribute) in enumerate(result._owners):
        number = channels.get(index) if per_channel else None
        unit = CurvatureUnit(beta, coefficient, channels=number, axis=axis, trainable=trainable)
        module._modules[attribute] = unit.to(device)
        site, shared = result.replaced[index], per_channel and number is None
        unsure = "; one value for all channels, as the example does not say how many" if shared else ""
        result.replaced[index] = Site(site.name, site.what + unsure, number)
    copies = dict(result.model.named_modules())
    for name, part in model.named_modules():
        if name in copies:
            copies[name].training = part.training
    return result


def _forward_pass(name: str, module: nn.Module, result: Replacement) -> None:
    """ReLUs that a module's own forward pass calls as functions, or one module of several times."""
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        return result._miss(name, f"{kind}: compiled by TorchScript, cannot be seen into")
    if type(module).__module__.startswith("torch.nn."):  # calls no ReLU but by an attribute
        return _of_torch(name, module, result)
    tracer = fx.Tracer()
    setattr(tracer, "is_leaf_module", lambda *_: True)  # noqa: B010  it enters no module of this one's
    try:
        graph = tracer.trace(module)
    except Exception as error:  # whatever the model's own code raises on being handed proxies
        reason = " ".join((str(error) or type(error).__name__).split())[:100]
        return result._miss(name, f"functions in the forward pass of {kind}: torch.fx cannot trace it ({reason})")
    _others(name, graph, result)
    if calls := _calls(graph, module):
        for node in graph.nodes:
            if node.op == "call_function" and "training" in node.kwargs:
                result._miss(name, f"{node.name} in {kind} now does the same in training as in evaluation")
        _rewire(name, module, graph, calls, result)


def _of_torch(name: str, module: nn.Module, result: Replacement) -> None:
    """The activation function of PyTorch's transformer layers, and what there is no way to replace."""
    kind = type(module).__name__
    if isinstance(module, nn.RNNBase) and "RELU" in module.mode:
        result._miss(name, "RNN with ReLU: its kernel cannot be changed")
    elif kind.lower() in OTHERS:
        result._miss(name, f"{kind} is no ReLU and stays")
    function = vars(module).get("activation")
    if function not in FUNCTIONS:
        return
    if hasattr(module, "activation_relu_or_gelu"):  # the fused kernel would go past the unit
        setattr(module, "activation_relu_or_gelu", 0)  # noqa: B010
    del module.activation
    result._put(module, name, "activation", "function of a transformer layer")


def _others(name: str, graph: fx.Graph, result: Replacement) -> None:
    """Functions that are no ReLU, or may be one."""
    for node in graph.nodes:
        if node.op in ("call_function", "call_method"):
            called = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
            if called.replace("_", "") in OTHERS:
                result._miss(name, f"function {called} is no ReLU and stays")
            elif called in CLAMPS:
                result._miss(name, f"function {called} may act as a ReLU; it stays")


def _calls(graph: fx.Graph, module: nn.Module) -> list[tuple[fx.Node, str, bool]]:
    """Nodes to replace that no change of a child could, what they are, and whether they write into their input."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    modules = {node: module.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"}
    relus = {node: relu for node, relu in modules.items() if isinstance(relu, nn.ReLU)}
    times = Counter(map(id, relus.values()))
    calls = []
    for node in graph.nodes:
        if node.op == "call_function" and node.target in FUNCTIONS:
            calls.append((node, "function", node.target in IN_PLACE or bool(_argument(node, 1, "inplace"))))
        elif node.op == "call_method" and node.target in METHODS:
            calls.append((node, "method of a tensor", node.target == "relu_"))
        elif node in relus:
            relu, source = relus[node], _argument(node, 0, "input")
            read_later = relu.inplace and any(order[user] > order[node] for user in source.users)
            if times[id(relu)] > 1 or read_later:
                calls.append((node, f"{node.target}, called {times[id(relu)]} times", relu.inplace))
    return calls


def _argument(node: fx.Node, position: int, name: str) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def _rewire(name: str, module: nn.Module, graph: fx.Graph, calls, result: Replacement) -> None:
    """Gives a module the traced forward pass, with a unit at every call."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for number, (node, what, writes) in enumerate(calls):
        attribute, source = f"curvature_{number}", _argument(node, 0, "input")
        result._put(module, name, attribute, what)
        if node.op == "call_module":
            path, _, child = node.target.rpartition(".")
            owner = module.get_submodule(path)
            if owner is module or isinstance(owner, nn.ModuleList | nn.ModuleDict):  # which call nothing themselves
                result._uncalled.add((id(owner), child))
        with graph.inserting_before(node):
            unit = graph.call_module(attribute, (source,))
        if writes:  # whoever reads the input afterwards sees what ReLU made of it
            here = order[node]
            source.replace_all_uses_with(unit, lambda user, here=here: order.get(user, -1) > here)
        node.replace_all_uses_with(unit)
        graph.erase_node(node)
        order[unit] = order[node]
    module.forward = MethodType(type(fx.GraphModule(module, graph)).forward, module)


def _count_channels(result: Replacement, example: tuple, expected: list[Tensor], axis: int | None) -> dict[int, int]:
    """Runs the model with ReLUs at the new sites; how many channels each unit saw, by its index in the list."""
    seen = defaultdict[int, set[int]](set)

    def record(index: int, _: nn.Module, inputs: tuple) -> None:
        seen[index].add(inputs[0].shape[channel_axis(inputs[0]) if axis is None else axis])

    hooks = [
        module.get_submodule(attribute).register_forward_pre_hook(partial(record, index))
        for index, (module, attribute) in enumerate(result._owners)
    ]
    outputs = _outputs(result.model, example)
    for hook in hooks:
        hook.remove()
    if len(outputs) != len(expected) or not all(map(torch.allclose, outputs, expected)):
        raise UserError("the model gives another answer when its ReLUs are called one by one, so it was left alone")
    return {index: channels.pop() for index, channels in seen.items() if len(channels) == 1}


def _outputs(model: nn.Module, example: tuple) -> list[Tensor]:
    """All tensors that a model gives, run once without a trace."""
    with torch.no_grad(), untouched():
        outputs = model(*(x.clone() if isinstance(x, Tensor) else x for x in example))
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
