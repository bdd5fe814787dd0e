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

MAX_DEPTH = 100  # of expressions, over the references to other sets
MAX_CACHED_ANSWERS = 512  # of a program: each decision asks a question for every waiting request


class MatrixError(LlamaswapError):
    """A matrix cannot be used, because of the expression of `set_name` ("" if no single set is wrong)."""

    def __init__(self, message: str, set_name: str) -> None:
        self.message = message
        self.set_name = set_name
        super().__init__(f"matrix set {set_name!r}: {message}" if set_name else f"matrix: {message}")


# -- expressions -------------------------------------------------------------------------------------------


@frozen(eq=False)
class _Expression:
    """A leaf, with one model, or `parts` joined by an operator. `models` are those of all its leaves.

    `|` is one of the parts, the left ones preferred; `&` is all of them at once. `depth` bounds the recursion over it.
    """

    models: frozenset[str]
    operator: str = ""
    parts: tuple[_Expression, ...] = ()
    depth: int = 1


# Letters and digits of any script, but no other numbers such as a superscript.
_TOKEN = re.compile(r"\s+|(?P<symbol>[|&()])|(?P<plus>\+?)(?P<name>[\w.-]+)")


def _is_name_character(char: str) -> bool:
    return char in "_-." or char.isalpha() or char.isdecimal()


def _tokens(text: str, set_name: str) -> Iterator[re.Match[str]]:
    """The symbols and names of an expression, as matches of `_TOKEN`."""
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None or not all(map(_is_name_character, found["name"] or "")):
            raise _unexpected(text, at, set_name)
        if not found[0].isspace():
            yield found
        at = found.end()


def _unexpected(text: str, at: int, set_name: str) -> MatrixError:
    """The error for the first character from `at` on that begins no token."""
    if text[at] == "+":
        return MatrixError(f"+ must be followed immediately by the name of a set (position {at + 1})", set_name)
    while _is_name_character(text[at]):
        at += 1
    return MatrixError(f"unexpected character {text[at]!r} at position {at + 1}", set_name)


# -- compiling ---------------------------------------------------------------------------------------------


@frozen
class CompiledSet:
    """One set: its name, its text and its expression."""

    name: str
    text: str
    expression: _Expression = field(repr=False)


def compile_sets(
    sets: Sequence[tuple[str, str]], vars: Mapping[str, str], models: Collection[str], costs: Mapping[str, int]
) -> Program:
    """Compile named expressions, in order.

    `vars` are short names of models (which hide models of the same name), `models` the IDs of all models, `costs` the
    costs of evictions by model ID (1 if absent). Raises MatrixError.
    """
    if not sets:
        raise MatrixError("at least one set is needed", "")
    compiler = _Compiler(dict(sets), {**dict.fromkeys(models), **vars})
    for set_name, _ in sets:
        compiler.compile(set_name)
    return Program(tuple(compiler.done.values()), {model: cost for model, cost in costs.items() if cost != 1})


@define
class _Compiler:
    """Compiles sets, each after those that it refers to. `meanings` are the models of variables; a model has None."""

    texts: Mapping[str, str]
    meanings: Mapping[str, str | None]
    done: dict[str, CompiledSet] = Factory(dict)
    _path: list[str] = Factory(list)

    def compile(self, set_name: str) -> _Expression:
        """The expression of a set."""
        if set_name not in self.done:
            if len(self._path) >= MAX_DEPTH:
                raise MatrixError(f"references are nested more than {MAX_DEPTH} deep", set_name)
            self._path.append(set_name)
            text = self.texts[set_name] or ""
            self.done[set_name] = CompiledSet(set_name, text, self._parse(text, set_name))
            self._path.pop()
        return self.done[set_name].expression

    def _parse(self, text: str, set_name: str) -> _Expression:
        """Parse one expression, with an explicit stack, so that any number of parentheses can be parsed.

        The stack has the open parentheses, each with its terms so far; a term is a list of factors.
        """
        stack: list[list[list[_Expression]]] = [[[]]]
        operand_wanted = True
        tokens = list(_tokens(text, set_name))  # all of them, because characters are checked before names
        for token in tokens:
            symbol = token["symbol"]
            if symbol == "(" and operand_wanted:
                stack.append([[]])
            elif symbol == ")" and not operand_wanted and len(stack) > 1:
                terms = stack.pop()
                stack[-1][-1].append(_alternatives(terms, set_name))
            elif symbol in ("&", "|") and not operand_wanted:
                if symbol == "|":
                    stack[-1].append([])
                operand_wanted = True
            elif not symbol and operand_wanted:
                stack[-1][-1].append(self._operand(token, set_name))
                operand_wanted = False
            else:
                raise MatrixError(f"unexpected token {token[0]!r}", set_name)
        if not tokens:
            raise MatrixError("the expression is empty", set_name)
        if operand_wanted:
            raise MatrixError("unexpected token: the expression ends where a name or ( is expected", set_name)
        if len(stack) > 1:
            raise MatrixError("missing closing parenthesis", set_name)
        return _alternatives(stack[0], set_name)

    def _operand(self, token: re.Match[str], set_name: str) -> _Expression:
        """What a name stands for: a model, or with + the expression of another set."""
        name = token["name"]
        if token["plus"]:
            if name not in self.texts:
                raise MatrixError(f"undefined set {name!r} (in +{name})", set_name)
            if name in self._path:
                raise MatrixError(f"circular reference: +{name} leads back to itself", set_name)
            return self.compile(name)
        if name not in self.meanings:
            raise MatrixError(f"unknown var or model {name!r}", set_name)
        return _Expression(frozenset((self.meanings[name] or name,)))


def _alternatives(terms: Sequence[Sequence[_Expression]], set_name: str) -> _Expression:
    return _joined("|", [_joined("&", factors, set_name) for factors in terms], set_name)


def _joined(operator: str, parts: Sequence[_Expression], set_name: str) -> _Expression:
    if len(parts) == 1:
        return parts[0]
    depth = 1 + max(part.depth for part in parts)
    if depth > MAX_DEPTH:
        raise MatrixError(f"expressions are nested more than {MAX_DEPTH} deep", set_name)
    return _Expression(frozenset().union(*(part.models for part in parts)), operator, tuple(parts), depth)


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
            if models <= compiled.expression.models:
                question = _MatrixQuestion.about(models, dict.fromkeys(models, 1))
                if question.best(compiled.expression).bit_count() == len(models):
                    return compiled
        return None

    def _solve(self, target: str, running: tuple[str, ...]) -> Solution:
        if target in running:
            holder = self._holder(frozenset(running))
            name, text = (holder.name, holder.text) if holder else (None, "")
            return Solution((), name, text, tuple(sorted(set(running))), 0)
        costs = {model: self.costs.get(model, 1) for model in running}
        # More than all others together, so that a combination without the target is never the best one.
        costs[target] = sum(costs.values()) + 1
        question = _MatrixQuestion.about(costs, costs)
        best: Solution | None = None
        for compiled in self.sets:
            if target not in compiled.expression.models:
                continue
            members = question.named(question.best(compiled.expression))
            evict = tuple(model for model in running if model not in members)
            cost = sum(costs[model] for model in evict)
            if best is None or cost < best.cost:
                best = Solution(evict, compiled.name, compiled.text, tuple(sorted(members)), cost)
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

    def best(self, node: _Expression) -> int:
        """The first of the heaviest combinations."""
        return self._family(node, 0)[0]

    def _weight(self, combination: int) -> int:
        total = 0
        while combination:
            lowest = combination & -combination
            total += self.weights[lowest]
            combination ^= lowest
        return total

    def _support(self, node: _Expression) -> int:
        found = self._supports.get(id(node))
        if found is None:
            found = 0
            for model, bit in self.bits.items():
                if model in node.models:
                    found |= bit
            self._supports[id(node)] = found
        return found

    def _family(self, node: _Expression, shared: int) -> list[int]:
        """The combinations of `node`, without those that no question can need.

        `shared` has the bits of the models that also occur outside of `node`.
        """
        shared &= self._support(node)
        key = id(node), shared
        if (family := self._families.get(key)) is None:
            family = self._families[key] = self._reduced(self._combinations(node, shared), shared)
        return family

    def _combinations(self, node: _Expression, shared: int) -> list[int]:
        if not node.operator:
            return [self._support(node)]
        if node.operator == "|":
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
