"""The matrix: expressions that say which models may be loaded together, and which to evict for another.

An expression denotes a family of sets of models: a name is the family of that one model, `|` joins families, `&` pairs
every member of one with every member of the other, `+other` is the family of another set. Every subset of a member is
allowed too. Families are not enumerated: a question is answered for the few models in it, and only the part that
matters to the rest of the expression is kept.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from attrs import Factory, define, field, frozen

from llamaswap.errors import LlamaswapError

MAX_CACHED_ANSWERS = 512  # of a program: each decision asks a question for every waiting request


class MatrixError(LlamaswapError):
    """A matrix cannot be used, because of the expression of `set_name` ("" if no single set is wrong)."""

    def __init__(self, message: str, set_name: str) -> None:
        self.message = message
        self.set_name = set_name
        super().__init__(f"matrix set {set_name!r}: {message}" if set_name else f"matrix: {message}")


# -- expressions -------------------------------------------------------------------------------------------


@frozen(eq=False)
class _Leaf:
    model: str
    models: frozenset[str]


@frozen(eq=False)
class _Either:
    """`|`: one of the parts, the left ones preferred."""

    parts: tuple[_Node, ...]
    models: frozenset[str]


@frozen(eq=False)
class _Both:
    """`&`: all parts at once."""

    parts: tuple[_Node, ...]
    models: frozenset[str]


_Node = _Leaf | _Either | _Both


_SYMBOL, _NAME, _REFERENCE = "symbol", "name", "reference"


@frozen
class _Token:
    """A symbol, the name of a model or a variable, or a reference to a set."""

    kind: str
    text: str


# Letters and digits of any script, but no other numbers such as a superscript.
_TOKEN = re.compile(r"\s+|(?P<symbol>[|&()])|(?P<plus>\+?)(?P<name>[\w.-]+)")


def _tokens(text: str, set_name: str) -> Iterator[_Token]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        name = found["name"] if found else None
        if found is None or (name and not all(char in "_-." or char.isalpha() or char.isdecimal() for char in name)):
            raise _unexpected(text, at, set_name)
        if found["symbol"]:
            yield _Token(_SYMBOL, found["symbol"])
        elif name:
            yield _Token(_REFERENCE if found["plus"] else _NAME, name)
        at = found.end()


def _unexpected(text: str, at: int, set_name: str) -> MatrixError:
    """The error for the first character from `at` on that begins no token."""
    if text[at] == "+":
        return MatrixError(f"+ must be followed immediately by the name of a set (position {at + 1})", set_name)
    while text[at] in "_-." or text[at].isalpha() or text[at].isdecimal():
        at += 1
    return MatrixError(f"unexpected character {text[at]!r} at position {at + 1}", set_name)


_Tree = _Token | tuple[str, tuple["_Tree", ...]]


@define
class _Level:
    """The part between one pair of parentheses that is parsed already: terms of factors."""

    terms: list[list[_Tree]] = Factory(lambda: [[]])

    def closed(self) -> _Tree:
        return _joined("|", [_joined("&", factors) for factors in self.terms])


def _joined(operator: str, parts: Sequence[_Tree]) -> _Tree:
    return parts[0] if len(parts) == 1 else (operator, tuple(parts))


def _parse(text: str, set_name: str) -> _Tree:
    """Parse one expression, with an explicit stack, so that any depth can be parsed."""
    stack = [_Level()]
    operand_wanted = True
    token: _Token | None = None
    for token in _tokens(text, set_name):
        level = stack[-1]
        if token.kind == _SYMBOL:
            if token.text == "(" and operand_wanted:
                stack.append(_Level())
            elif token.text == ")" and not operand_wanted and len(stack) > 1:
                stack.pop()
                stack[-1].terms[-1].append(level.closed())
            elif token.text == "&" and not operand_wanted:
                operand_wanted = True
            elif token.text == "|" and not operand_wanted:
                level.terms.append([])
                operand_wanted = True
            else:
                raise MatrixError(f"unexpected token {token.text!r}", set_name)
        elif operand_wanted:
            level.terms[-1].append(token)
            operand_wanted = False
        else:
            raise MatrixError(f"unexpected token {token.text!r}", set_name)
    if token is None:
        raise MatrixError("the expression is empty", set_name)
    if operand_wanted:
        raise MatrixError("unexpected token: the expression ends where a name or ( is expected", set_name)
    if len(stack) > 1:
        raise MatrixError("missing closing parenthesis", set_name)
    return stack[0].closed()


def _leaves(tree: _Tree) -> Iterator[_Token]:
    pending: list[_Tree] = [tree]
    while pending:
        at = pending.pop()
        if isinstance(at, tuple):
            pending.extend(reversed(at[1]))
        else:
            yield at


# -- compiling ---------------------------------------------------------------------------------------------


@frozen
class CompiledSet:
    """One set: its name, its expression and its models."""

    name: str
    expression: str
    _node: _Node = field(repr=False)

    @property
    def models(self) -> frozenset[str]:
        """Every model named in the set or in one it refers to."""
        return self._node.models


def compile_sets(
    sets: Sequence[tuple[str, str]], vars: Mapping[str, str], models: Collection[str], costs: Mapping[str, int]
) -> Program:
    """Compile named expressions, in order.

    `vars` are short names of models (which hide models of the same name), `models` the IDs of all models, `costs` the
    costs of evictions by model ID (1 if absent). Raises MatrixError.
    """
    if not sets:
        raise MatrixError("at least one set is needed", "")
    known = frozenset(models)
    trees: dict[str, _Tree] = {}
    names = {name for name, _ in sets}
    for set_name, text in sets:
        tree = _parse(text or "", set_name)
        for leaf in _leaves(tree):
            if leaf.kind == _REFERENCE:
                if leaf.text not in names:
                    raise MatrixError(f"undefined set {leaf.text!r} (in +{leaf.text})", set_name)
            elif leaf.text not in vars and leaf.text not in known:
                raise MatrixError(f"unknown var or model {leaf.text!r}", set_name)
        trees[set_name] = tree
    texts = dict(sets)
    nodes: dict[str, _Node] = {}
    for set_name in _referenced_first(trees):
        nodes[set_name] = _node(trees[set_name], vars, nodes)
    ordered = tuple(CompiledSet(name, texts[name], node) for name, node in nodes.items())
    return Program(ordered, {model: cost for model, cost in costs.items() if cost != 1})


def _referenced_first(trees: Mapping[str, _Tree]) -> list[str]:
    """The sets in the order of definition, but a referenced set comes directly before the first one that needs it."""
    done: dict[str, None] = {}
    for first in trees:
        path: dict[str, Iterator[_Token]] = {}
        if first not in done:
            path[first] = _leaves(trees[first])
        while path:
            at, leaves = next(reversed(path.items()))
            for leaf in leaves:
                if leaf.kind == _REFERENCE and leaf.text not in done:
                    if leaf.text in path:
                        raise MatrixError(f"circular reference: +{leaf.text} leads back to itself", at)
                    path[leaf.text] = _leaves(trees[leaf.text])
                    break
            else:
                del path[at]
                done[at] = None
    return list(done)


def _node(tree: _Tree, vars: Mapping[str, str], nodes: Mapping[str, _Node]) -> _Node:
    if isinstance(tree, _Token):
        if tree.kind == _REFERENCE:
            return nodes[tree.text]
        model = vars.get(tree.text, tree.text)
        return _Leaf(model, frozenset((model,)))
    operator, subtrees = tree
    parts = tuple(_node(subtree, vars, nodes) for subtree in subtrees)
    models = frozenset[str]().union(*(part.models for part in parts))
    return _Either(parts, models) if operator == "|" else _Both(parts, models)


# -- questions ---------------------------------------------------------------------------------------------


@frozen
class Solution:
    """The consequence of loading a model: the models to evict, and the set (if any) by which the others may stay.

    `members` are the models that are loaded afterwards, in ascending order; `cost` is that of the evictions.
    """

    evict: tuple[str, ...]
    set_name: str | None
    expression: str
    members: tuple[str, ...]
    cost: int


@frozen(eq=False)
class Program:
    """A compiled matrix: `sets` in the order in which ties are decided, `costs` that differ from 1."""

    sets: tuple[CompiledSet, ...]
    costs: Mapping[str, int]
    _answers: dict[tuple[str, tuple[str, ...]], Solution] = field(factory=dict, init=False, repr=False)

    def can_coexist(self, models: Collection[str]) -> bool:
        """Whether one combination contains all of these; always True for no models."""
        return not models or self._holder(frozenset(models)) is not None

    def solve(self, target: str, running: Iterable[str]) -> Solution:
        """The cheapest way to load `target` beside `running`; the evicted models are in the order of `running`."""
        key = target, tuple(running)
        if (answer := self._answers.get(key)) is None:
            if len(self._answers) >= MAX_CACHED_ANSWERS:
                self._answers.clear()
            answer = self._answers[key] = self._solve(*key)
        return answer

    def _holder(self, models: frozenset[str]) -> CompiledSet | None:
        """The first set with a combination that contains all of `models`."""
        for compiled in self.sets:
            if models <= compiled.models:
                question = _MatrixQuestion.about(models, dict.fromkeys(models, 1))
                if question.best(compiled._node).bit_count() == len(models):
                    return compiled
        return None

    def _solve(self, target: str, running: tuple[str, ...]) -> Solution:
        if target in running:
            holder = self._holder(frozenset(running))
            name, text = (holder.name, holder.expression) if holder else (None, "")
            return Solution((), name, text, tuple(sorted(set(running))), 0)
        costs = {model: self.costs.get(model, 1) for model in running}
        # More than all others together, so that a combination without the target is never the best one.
        costs[target] = sum(costs.values()) + 1
        question = _MatrixQuestion.about(costs, costs)
        best: Solution | None = None
        for compiled in self.sets:
            if target not in compiled.models:
                continue
            members = question.named(question.best(compiled._node))
            evict = tuple(model for model in running if model not in members)
            cost = sum(costs[model] for model in evict)
            if best is None or cost < best.cost:
                best = Solution(evict, compiled.name, compiled.expression, tuple(sorted(members)), cost)
        return best or Solution(running, None, "", (target,), 0)


@frozen(eq=False)
class _MatrixQuestion:
    """One question about a few models, each of which has a bit; a combination is an int.

    Families are lists of combinations, limited to those models, in order of preference.
    """

    bits: Mapping[str, int]
    weights: Mapping[int, int]
    _families: dict[tuple[int, int], list[int]] = field(factory=dict, init=False)
    _supports: dict[int, int] = field(factory=dict, init=False)

    @classmethod
    def about(cls, models: Iterable[str], weights: Mapping[str, int]) -> _MatrixQuestion:
        bits = {model: 1 << at for at, model in enumerate(models)}
        return cls(bits, {bit: weights[model] for model, bit in bits.items()})

    def named(self, combination: int) -> frozenset[str]:
        return frozenset(model for model, bit in self.bits.items() if bit & combination)

    def best(self, node: _Node) -> int:
        """The first of the heaviest combinations."""
        return self._family(node, 0)[0]

    def _weight(self, combination: int) -> int:
        total = 0
        while combination:
            lowest = combination & -combination
            total += self.weights[lowest]
            combination ^= lowest
        return total

    def _support(self, node: _Node) -> int:
        found = self._supports.get(id(node))
        if found is None:
            found = 0
            for model, bit in self.bits.items():
                if model in node.models:
                    found |= bit
            self._supports[id(node)] = found
        return found

    def _family(self, node: _Node, shared: int) -> list[int]:
        """The combinations of `node` that may matter if only the bits in `shared` occur elsewhere too."""
        shared &= self._support(node)
        key = id(node), shared
        if (family := self._families.get(key)) is None:
            family = self._families[key] = self._reduced(self._combinations(node, shared), shared)
        return family

    def _combinations(self, node: _Node, shared: int) -> list[int]:
        if isinstance(node, _Leaf):
            return [self.bits.get(node.model, 0)]
        if isinstance(node, _Either):
            return [combination for part in node.parts for combination in self._family(part, shared)]
        supports = [self._support(part) for part in node.parts]
        later = [0] * (len(supports) + 1)
        for at in range(len(supports) - 1, -1, -1):
            later[at] = later[at + 1] | supports[at]
        joined, earlier = [0], 0
        for at, part in enumerate(node.parts):
            family = self._family(part, shared | earlier | later[at + 1])
            earlier |= supports[at]
            joined = self._reduced([left | right for left in joined for right in family], shared | later[at + 1])
        return joined

    def _reduced(self, family: list[int], shared: int) -> list[int]:
        """Drop combinations that cannot be part of the answer.

        A combination offers its shared bits to the rest of the expression; of those that offer the same, the first
        heaviest is kept. One that offers less and weighs less is dropped as well.
        """
        if len(family) == 1:
            return family
        heaviest: dict[int, tuple[int, int]] = {}
        for combination in family:
            given = combination & shared
            weight = self._weight(combination & ~shared)
            if given not in heaviest or weight > heaviest[given][0]:
                heaviest.pop(given, None)  # keep the dict in order of preference
                heaviest[given] = weight, combination
        kept = [(given, *rest) for given, rest in heaviest.items()]
        if len(kept) > 1:
            kept = [one for one in kept if not any(self._is_dominated(one, other) for other in kept)]
        return [combination for _, _, combination in kept]

    @staticmethod
    def _is_dominated(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
        given, weight, combination = one
        other_given, other_weight, other_combination = other
        if given == other_given or given & ~other_given:
            return False
        # At equal weight the order decides: the lesser one is only dropped if the greater one contains it.
        return other_weight > weight or (other_weight == weight and not combination & ~other_combination)
