"""${NAME}: declared macros, and the insertion of their values.

A macro may use those declared before it. Each text is expanded from the last macro to the first, so that a reference
forwards or in a circle is left over and reported, and no expansion can loop.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from attrs import Factory, define, evolve

from llamaswap.config.diagnostics import Diagnostics, fail, nearest
from llamaswap.config.nodes import MappingNode, Node, ScalarNode, SequenceNode, is_null, kind_of
from llamaswap.config.scalars import text_of

PLACEHOLDER = re.compile(r"\$\{([A-Za-z0-9_-]+)\}")
LEFTOVER = re.compile(r"\$\{([A-Za-z0-9_-]+|env\.[A-Za-z_][A-Za-z0-9_]*)\}")
NAME = re.compile(r"[A-Za-z0-9_-]+")
MAX_NAME = 63
RESERVED = ("PORT", "MODEL_ID", "PID")
MAX_EXPANSION_WORK = 64 * 1024 * 1024
"""Characters that all expansions of one load may read and write: macros may double each other."""

Macros = Mapping[str, ScalarNode]


def declared(node: Node | None, path: str, owner: str, report: Diagnostics) -> dict[str, ScalarNode]:
    """The macros of a `macros:` block in order; `owner` begins messages ("" or "model owl: ")."""
    if node is None or is_null(node):
        return {}
    if not isinstance(node, MappingNode):
        report.error(f"{owner}macros must be a mapping of names to values, not {kind_of(node)}", path, node)
        return {}
    found: dict[str, ScalarNode] = {}
    for name, value in node.entries.items():
        problem = _fault(name, value)
        if problem:
            report.error(f"{owner}macro {name[:80]!r}: {problem}", path, node.where(name))
        elif isinstance(value, ScalarNode):
            found[name] = value
    return found


def _fault(name: str, value: Node) -> str:
    if len(name.encode(errors="replace")) > MAX_NAME:
        return f"the name exceeds the maximum length of {MAX_NAME} characters"
    if not NAME.fullmatch(name):
        return "the name contains invalid characters, only letters, digits, _ and - may be used"
    if not isinstance(value, ScalarNode) or value.kind in ("null", "timestamp"):
        return f"the value must be scalar (text, number or true/false), not {kind_of(value)}"
    if isinstance(value.value, str) and f"${{{name}}}" in value.value:
        return "self-reference: a macro cannot use itself"
    if name in RESERVED:
        return "the name is reserved"
    return ""


def value_of(macro: ScalarNode) -> str | int | float | bool:
    """The value of a declared macro, which is never null."""
    return macro.text if macro.value is None else macro.value


def number(value: int) -> ScalarNode:
    return ScalarNode("int", value, str(value))


def text(value: str) -> ScalarNode:
    return ScalarNode("str", value, value)


def effective(model_id: str, globals_: Macros, own: Macros) -> dict[str, ScalarNode]:
    """The macros of a model: its ID, the globals, replaced by its own of the same name, then its other ones."""
    return {"MODEL_ID": text(model_id), **{name: own.get(name, value) for name, value in globals_.items()}, **own}


@define
class ExpansionBudget:
    """The rest of MAX_EXPANSION_WORK."""

    left: int = MAX_EXPANSION_WORK

    def spend(self, characters: int, node: ScalarNode) -> None:
        self.left -= characters
        if self.left < 0:
            raise fail("macros expand to too much text", at=node, hint="look for macros that use others repeatedly")


@define
class Expander:
    """Inserts the values of `macros` (their order counts) into trees."""

    macros: Macros
    budget: ExpansionBudget = Factory(ExpansionBudget)
    _rank: dict[str, int] = Factory(lambda self: {name: rank for rank, name in enumerate(self.macros)}, takes_self=True)

    def node(self, node: Node) -> Node:
        """The tree with every string expanded, but not keys. Unchanged parts are shared."""
        if isinstance(node, ScalarNode):
            return self.scalar(node)
        if isinstance(node, SequenceNode):
            items = tuple([self.node(item) for item in node.items])
            unchanged = all(new is old for new, old in zip(items, node.items, strict=True))
            return node if unchanged else evolve(node, items=items)
        entries = {name: self.node(child) for name, child in node.entries.items()}
        unchanged = all(entries[name] is child for name, child in node.entries.items())
        return node if unchanged else evolve(node, entries=entries)

    def scalar(self, node: ScalarNode) -> ScalarNode:
        """A string that is one placeholder becomes the macro's value with its type; any other stays text."""
        if node.kind != "str" or not isinstance(node.value, str) or "${" not in node.value:
            return node
        current = node.value
        bound = len(self._rank)
        while True:
            self.budget.spend(len(current), node)
            ranks = {self._rank[name]: name for name in PLACEHOLDER.findall(current) if name in self._rank}
            below = [rank for rank in ranks if rank < bound]
            if not below:
                break
            bound = max(below)
            name = ranks[bound]
            macro, placeholder = self.macros[name], f"${{{name}}}"
            value = value_of(macro)
            if current == placeholder and not isinstance(value, str):
                return ScalarNode(macro.kind, value, text_of(value), node.place)
            inserted = text_of(value)
            self.budget.spend(current.count(placeholder) * len(inserted), node)
            current = current.replace(placeholder, inserted)
        return node if current == node.value else ScalarNode("str", current, current, node.place)


def uses(node: Node | None, name: str) -> bool:
    """Whether the node is a string with this placeholder."""
    return isinstance(node, ScalarNode) and isinstance(node.value, str) and f"${{{name}}}" in node.value


def check_leftovers(node: Node, path: str, report: Diagnostics, known: Collection[str], later: str = "") -> None:
    """Report every placeholder that is left in the strings of the tree.

    `known` are the macros declared for the tree; the placeholder of the name `later` may stay.
    """
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.items):
            check_leftovers(item, f"{path}[{index}]", report, known, later)
    elif isinstance(node, MappingNode):
        for name, child in node.entries.items():
            check_leftovers(child, f"{path}.{name}" if path else name, report, known, later)
    elif isinstance(node.value, str) and "${" in node.value:
        for name in LEFTOVER.findall(node.value):
            if name != later:
                report.error(leftover(name, path, known), path, node)
                break


def leftover(name: str, path: str, known: Collection[str]) -> str:
    """The message for a placeholder that nothing filled."""
    if name.startswith("env."):
        return f"{path}: environment placeholder ${{{name}}} is left over, values may hold others only once"
    if name == "PORT":
        return f"{path}: ${{PORT}} should have been substituted, but only a model whose cmd uses it has a port"
    if name == "MODEL_ID":
        return f"{path}: ${{MODEL_ID}} should have been substituted, but it is known only inside a model"
    if name == "PID":
        return f"{path}: unknown macro ${{PID}}, it is known only in cmdStop"
    if name == "GPUS":
        return f"{path}: unknown macro ${{GPUS}}, it is known only in cmd and env of a model"
    if name in known:
        return f"{path}: unknown macro ${{{name}}} here, a macro can use only those declared before it"
    near = nearest(name, known)
    return f"{path}: unknown macro ${{{name}}}" + (f", did you mean ${{{near}}}?" if near else "")
