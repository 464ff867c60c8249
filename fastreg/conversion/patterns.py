"""Which nodes of a graph are computed by one fused function: the sites.

    batch_norm_act   [activation] -> batch norm -> [+ residual] -> [activation] -> [dropout]
    act_dropout      [activation] -> dropout or drop path -> [+ residual]

A site's inner values have one user each. Its nodes are computed where its last one was; what lies between must not be
able to tell.
"""

import operator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, Node

from fastreg import _activation
from fastreg._activation import Activation
from fastreg.conversion import layers
from fastreg.conversion.sites import run_act_dropout, run_batch_norm_act

_ADDITIONS = {operator.add, operator.iadd, torch.add}
# Functions that drop or normalise by themselves: calls of them stay torch's.
_FUNCTIONS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, F.batch_norm}
_FUNCTIONS |= {torch.dropout, torch.batch_norm, F.scaled_dot_product_attention, F.multi_head_attention_forward}
_MAKERS = {torch.add, torch.mul, torch.matmul, torch.cat, operator.add, operator.mul, operator.matmul}
_MAKERS |= {F.linear, F.conv1d, F.conv2d, F.conv3d}
_MAKING_MODULES = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass
class Act:
    """An activation in a graph: a module's path, or an activation that a function computes, with its slope's node."""

    name: str
    path: str | None = None
    activation: Activation | None = None
    weight: Node | None = None
    inplace: bool = False


@dataclass
class Site:
    """Nodes that one fused function computes.

    norm, drop: paths of the modules. parts: the names of what is fused, in order. modules: paths of all modules that
    are not called where the site is fused.
    """

    norm: str | None = None
    drop: str | None = None
    nodes: list[Node] = field(default_factory=list)
    input: Node | None = None
    residual: Node | None = None
    pre_act: Act | None = None
    act: Act | None = None
    parts: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        """The module that the site is named by."""
        return self.norm or self.drop


class Matcher:
    """The sites of one graph of root's forward."""

    def __init__(self, root: nn.Module, graph: Graph):
        self.root, self.nodes = root, list(graph.nodes)
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.claimed: set[Node] = set()
        # What is not fused or not replaced, by path or function, and why.
        self.left: dict[str, str] = {}

    def sites(self) -> list[Site]:
        # The last of two norms that are added takes the addition; an activation belongs to the norm before it.
        norms = [self._after_norm(node) for node in reversed(self.nodes) if self._is(node, layers.is_norm)]
        for site in norms:
            self._before(site, "pre_act")
        drops = [node for node in self.nodes if self._is(node, _drops) and node not in self.claimed]
        drops = [self._around_drop(node) for node in drops]
        found = [site for site in (*norms, *drops) if len(site.parts) > 1]
        for node in self.nodes:
            if node.op == "call_function" and node.target in _FUNCTIONS and _drops_or_normalises(node):
                self.left[node.target.__name__] = "a call of the function, not of a module, is not replaced"
        return sorted(found, key=lambda site: self.position[site.nodes[-1]])

    def module(self, node: Node) -> nn.Module | None:
        """The module that a node calls, where nothing but its class's forward is called."""
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], Node):
            return None
        module = self.root.get_submodule(node.target)
        return None if layers.is_hooked(module) else module

    def _is(self, node, predicate):
        module = self.module(node)
        return module is not None and predicate(module)

    def _after_norm(self, norm: Node) -> Site:
        site = Site(norm=norm.target, nodes=[norm], input=norm.args[0], parts=["batch norm"], modules=[norm.target])
        module = self.module(norm)
        if isinstance(module, layers.NormWithAct):
            site.modules += [f"{norm.target}.drop", f"{norm.target}.act"]
        self._add(site)
        self._act(site)
        if (node := self._next(site)) is not None and self._is(node, layers.is_dropout):
            self._extend(site, node, "dropout")
            site.drop = node.target
        self.claimed.update(site.nodes)
        return site

    def _around_drop(self, drop: Node) -> Site:
        name = "drop path" if self._is(drop, layers.is_drop_path) else "dropout"
        site = Site(drop=drop.target, nodes=[drop], input=drop.args[0], parts=[name], modules=[drop.target])
        if getattr(self.module(drop), "inplace", False) and not self._is_ours_alone(site.input):
            site.parts.clear()  # others see what it writes
            return site
        self._before(site, "act")
        self._add(site)
        self.claimed.update(site.nodes)
        return site

    def _next(self, site: Site) -> Node | None:
        """The only user of what the site computes, after modules that do nothing, which join it."""
        identities, last = [], site.nodes[-1]
        while len(last.users) == 1:
            user = next(iter(last.users))
            if user in self.claimed or user.op == "output":
                return None
            if not self._is(user, layers.is_identity):
                site.nodes += identities
                site.modules += [node.target for node in identities]
                return user
            identities.append(last := user)
        return None

    def _extend(self, site, node, part):
        site.nodes.append(node)
        site.parts.append(part)
        if node.op == "call_module":
            site.modules.append(node.target)

    def _add(self, site: Site) -> None:
        node = self._next(site)
        if node is None or node.kwargs or len(node.args) != 2:
            return
        inplace = node.target in (operator.iadd, "add_")
        if not (inplace or node.target in _ADDITIONS and node.op == "call_function" or node.target == "add"):
            return
        one, other = node.args
        if not isinstance(one, Node) or not isinstance(other, Node) or one is other:
            return
        if other is site.nodes[-1]:
            if inplace:  # the residual is written to
                return
            one, other = other, one
        if not self._can_wait(site, node):
            return
        site.residual = other
        self._extend(site, node, "add")

    def _can_wait(self, site, node) -> bool:
        """Whether nothing between the site and node can notice that the site is computed at node."""
        between = self.nodes[self.position[site.nodes[0]] + 1 : self.position[node]]
        between = [n for n in between if n not in site.nodes and n.op not in ("placeholder", "get_attr")]
        between = [n for n in between if not self._is(n, layers.is_identity)]
        if not between:
            return True
        if site.norm is None or any(n.target == site.norm for n in between):
            return False  # random numbers would be drawn, statistics updated, in another order
        return self._is_ours_alone(site.input)

    def _is_ours_alone(self, node: Node) -> bool:
        """Whether nobody but a node's one user can see or change its value: not another tensor's memory."""
        if len(node.users) != 1:
            return False
        if node.op == "call_module":
            return isinstance(self.root.get_submodule(node.target), _MAKING_MODULES)
        return node.op == "call_function" and node.target in _MAKERS

    def _act(self, site: Site) -> None:
        node = self._next(site)
        if node is not None and (act := self.activation(node)) is not None:
            site.act = act
            self._extend(site, node, act.name)
        elif node is not None:
            self._note_unknown(node)

    def _note_unknown(self, node):
        module = self.module(node)
        if module is not None and "activation" in type(module).__module__ and self.activation(node) is None:
            known = ", ".join(_activation.TABLE)
            self.left[node.target] = f"{type(module).__name__} is not among the activations that are fused: {known}"

    def _before(self, site: Site, which: str) -> None:
        """Take the activation of the site's input into it."""
        node = site.input
        self._note_unknown(node)
        if node in self.claimed or len(node.users) != 1 or (act := self.activation(node)) is None:
            return
        input = node.args[0]
        adjacent = self.position[site.nodes[-1]] - self.position[node] == len(site.nodes)
        if (act.inplace or not adjacent) and not self._is_ours_alone(input):
            return
        setattr(site, which, act)
        site.input = input
        site.nodes.insert(0, node)
        site.parts.insert(0, act.name)
        if node.op == "call_module":
            site.modules.append(node.target)
        self.claimed.add(node)

    def activation(self, node: Node) -> Act | None:
        """The activation that a node computes, if it is one that fastreg knows."""
        if node.op == "call_module":
            module = self.module(node)
            found = None if module is None or layers.is_identity(module) else layers.activation_of(module)
            if found is None:
                return None
            return Act(found[0].name, path=node.target, inplace=getattr(module, "inplace", False))
        if node.op == "call_function":
            names = _activation.OF_FUNCTION.get(node.target)
        elif node.op == "call_method":
            names = _activation.OF_METHOD.get(node.target)
        else:
            return None
        if names is None or not node.args or not isinstance(node.args[0], Node):
            return None
        return _function_activation(node, names)


def _drops_or_normalises(node):
    p = node.kwargs.get("dropout_p", node.kwargs.get("p", 1.0))
    return isinstance(p, Node) or p != 0.0


def _drops(module):
    return layers.is_dropout(module) or layers.is_drop_path(module)


def _function_activation(node: Node, names: list[str]) -> Act | None:
    name = _activation.name_among(names, node.kwargs.get("approximate", "none"))
    if name is None:
        return None
    entry = _activation.TABLE[name]
    order = ["weight"] if entry.weighted else [entry.parameter] if entry.parameter else []
    given = dict(zip([*order, "inplace"], node.args[1:], strict=False)) | node.kwargs
    written = node.target in entry.inplace or str(node.target).endswith("_")
    weight = given.get("weight")
    parameter = given.get(entry.parameter, entry.default)
    if isinstance(parameter, Node) or (entry.weighted and not isinstance(weight, Node)):
        return None
    return Act(
        name, activation=Activation(name, parameter), weight=weight, inplace=written or bool(given.get("inplace"))
    )


def rewrite(graph: Graph, sites: list[Site]) -> None:
    """Compute each site's nodes by one call. sites: in the graph's order."""
    fused: dict[Node, Node] = {}
    for site in sites:
        fused[site.nodes[-1]] = _rewrite(graph, site, fused)


def _rewrite(graph, site, fused):
    input, residual = fused.get(site.input, site.input), fused.get(site.residual, site.residual)
    last = site.nodes[-1]
    with graph.inserting_before(last):
        keywords = {}
        for which, act in (("pre_act", site.pre_act), ("act", site.act)):
            if act is not None:
                keywords[which] = act.activation if act.path is None else graph.get_attr(act.path)
                if act.weight is not None:
                    keywords[f"{which}_weight"] = act.weight
        if residual is not None:
            keywords["residual"] = residual
        drop = None if site.drop is None else graph.get_attr(site.drop)
        if site.norm is None:
            node = graph.call_function(run_act_dropout, (drop, input), keywords)
        else:
            if drop is not None:
                keywords["drop"] = drop
            node = graph.call_function(run_batch_norm_act, (graph.get_attr(site.norm), input), keywords)
    last.replace_all_uses_with(node)
    for old in reversed(site.nodes):
        graph.erase_node(old)
    return node
