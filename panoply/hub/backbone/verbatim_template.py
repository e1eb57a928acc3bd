"""Chat templates that copy contents: what they write for given roles is learned from one render.

A template is a program, and running it takes longer than tokenizing a short text. Most write each
content as it is, or stripped, between texts that depend on the roles alone. That is proved on the
template's syntax tree, where a content may be written, joined to another text or stripped, and
nothing else. The texts between the contents are then rendered once for each sequence of roles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from jinja2 import TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

Kind: TypeAlias = Literal["fixed", "messages", "content"]
"""What a value depends on: roles alone; it holds messages; or it is text with a content in it."""
Render: TypeAlias = Callable[[Sequence[Mapping[str, str]], bool], str]

SPACE = "\u2003"
SLOT = re.compile(f"({SPACE}?)\ue0f0(\\d+)\ue0f1{SPACE}?")
"""Stand-in of a content; its white space shows whether the template strips."""
MAX_KEPT = 100_000
"""Maximum texts that are kept, of all sequences of roles: a client may send ever another one."""
METHODS = frozenset((*dir(dict), *dir(list), *dir(str)))
"""Attributes that are no key of a message."""
TYPE_TESTS = ("defined", "string", "none", "iterable", "mapping", "sequence")
"""Tests whose result is the same for all texts."""


class _NotVerbatim(Exception):
    """Says that a template does more with a content than to write it."""


def copies_contents(template: str) -> bool:
    """Returns whether a template is proved to write contents as they are, or stripped."""
    try:
        tree = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
        proof = _Proof({"messages": "messages"})
        while True:  # until a pass learns no more of the variables
            before = dict(proof.kinds)
            proof.visit(tree)
            if proof.kinds == before:
                return True
    except (TemplateError, _NotVerbatim):
        return False


@dataclass(frozen=True, slots=True)
class _Proof:
    """Walk over a syntax tree that finds the kind of every value, in no order of execution."""

    kinds: dict[str, Kind]
    """Kinds of the variables that are not fixed."""

    def visit(self, node: nodes.Node) -> None:
        """Walks over a statement.

        Raises:
            _NotVerbatim: it does with a content what may depend on the content.
        """
        match node:
            case nodes.Template():
                self._visit_all(node.body)
            case nodes.Output():
                for part in node.nodes:
                    self._no_messages(self.kind(part))
            case nodes.If():
                self._fixed(node.test)
                self._visit_all([*node.body, *node.elif_, *node.else_])
            case nodes.For(target=nodes.Name() as target, test=None, recursive=False):
                self._learn(target.name, self._no_content(self.kind(node.iter)))
                self._visit_all([*node.body, *node.else_])
            case nodes.Assign(target=nodes.Name() as target):
                self._learn(target.name, self.kind(node.node))
            case nodes.Assign():
                self._fixed(node.node)
            case _:
                if any(name.name in self.kinds for name in node.find_all(nodes.Name)):
                    raise _NotVerbatim

    def _visit_all(self, statements: Sequence[nodes.Node]) -> None:
        for statement in statements:
            self.visit(statement)

    def _learn(self, name: str, kind: Kind) -> None:
        kinds = {kind, self.kinds.get(name, kind)}
        if len(kinds) > 1 and "messages" in kinds:
            raise _NotVerbatim
        if kinds != {"fixed"}:
            self.kinds[name] = "messages" if "messages" in kinds else "content"

    def kind(self, node: nodes.Node) -> Kind:
        """Returns the kind of an expression.

        Raises:
            _NotVerbatim: it does with a content what may depend on the content.
        """
        match node:
            case nodes.Name():
                return self.kinds.get(node.name, "fixed")
            case nodes.Getattr() | nodes.Getitem():
                return self._access(node)
            case nodes.Add() | nodes.Concat():
                sides = node.nodes if isinstance(node, nodes.Concat) else [node.left, node.right]
                kinds = [self._no_messages(self.kind(side)) for side in sides]
                return "content" if "content" in kinds else "fixed"
            case nodes.Filter(
                name="trim", args=[], kwargs=[], node=nodes.Getattr() | nodes.Getitem() as text
            ):
                return self._no_messages(self.kind(text))
            case nodes.Filter(name="length", node=nodes.Name() as holder):
                self._no_content(self.kind(holder))
                return "fixed"
            case nodes.Test(name=name, node=tested) if name in TYPE_TESTS:
                self.kind(tested)
                return "fixed"
            case _:
                pass
        for child in node.iter_child_nodes():
            self._fixed(child)
        return "fixed"

    def _access(self, node: nodes.Getattr | nodes.Getitem) -> Kind:
        holder = self.kind(node.node)
        match node:
            case (
                nodes.Getattr(attr=str() as key)
                | nodes.Getitem(arg=nodes.Const(value=str() as key))
            ):
                return self._part(holder, key)
            case nodes.Getitem(arg=nodes.Slice() | nodes.Const() | nodes.Neg() as at):
                self._fixed(at)
                return self._no_content(holder)
            case nodes.Getitem(arg=at):
                self._fixed(at)
            case _:
                pass
        if holder != "fixed":
            raise _NotVerbatim
        return "fixed"

    def _part(self, holder: Kind, key: str) -> Kind:
        if holder == "fixed":
            if key in ("previtem", "nextitem"):  # of a loop over messages
                raise _NotVerbatim
            return "fixed"
        if holder == "content" or key in METHODS:
            raise _NotVerbatim
        return "content" if key == "content" else "fixed"

    def _fixed(self, node: nodes.Node) -> None:
        if self.kind(node) != "fixed":
            raise _NotVerbatim

    @staticmethod
    def _no_content(kind: Kind) -> Kind:
        if kind == "content":
            raise _NotVerbatim
        return kind

    @staticmethod
    def _no_messages(kind: Kind) -> Kind:
        if kind == "messages":
            raise _NotVerbatim
        return kind


class VerbatimTemplate:
    """Writes conversations as a chat template does, which runs once for each sequence of roles.

    Args:
        template: the template's source; one that does more than to copy contents always runs.
        render: runs the template; the second argument asks for the assistant's header.
    """

    def __init__(self, template: str, render: Render) -> None:
        self._render = render
        self._copies = copies_contents(template)
        self._parts: dict[tuple[bool, tuple[str, ...]], list[str]] = {}
        self._num_kept = 0
        """Number of texts in them."""

    def write(self, turns: Sequence[Mapping[str, str]], opens: bool) -> str:
        """Returns the text of turns.

        Raises:
            Exception: whatever the template raises, which means that it refuses the turns.
        """
        if not self._copies or any(len(turn) > 2 for turn in turns):
            return self._render(turns, opens)
        roles = tuple(turn["role"] for turn in turns)
        parts = self._parts.get((opens, roles))
        if parts is None:
            slots = [
                {"role": r, "content": f"{SPACE}\ue0f0{i}\ue0f1{SPACE}"}
                for i, r in enumerate(roles)
            ]
            parts = SLOT.split(self._render(slots, opens))
            self._num_kept += len(parts)
            if self._num_kept > MAX_KEPT:
                self._parts.clear()
                self._num_kept = len(parts)
            self._parts[opens, roles] = parts
        written = [parts[0]]
        for space, i, behind in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            content = turns[int(i)]["content"]
            written += (content if space else content.strip(), behind)
        return "".join(written)
