"""Trees of messages from a file that lists its messages one by one, as OASST publishes them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import cast

from panoply.data.data_file import Rows, Unreadable
from panoply.data.rows import Row
from panoply.wire.conversation import is_empty

MESSAGE_COLUMNS = frozenset(("message_id", "parent_id", "text", "role", "rank"))
"""Columns of a file of messages, each of which names the one that it answers."""
TREE_COLUMNS = ("message_tree_id", "prompt")
"""Columns of a file of trees, which holds the replies to a message inside of it."""
Node = dict[str, object]


def holds_messages(columns: Collection[str]) -> bool:
    """Returns whether a file with these columns lists messages that belong to trees."""
    return set(columns) >= MESSAGE_COLUMNS and "prompt" not in columns


def trees_of(rows: Rows) -> Rows:
    """Yields the trees of a file's messages, which may stand in any order: all are held in memory.

    A message whose parent is not in the file belongs to no tree, and is no record.
    """
    nodes: dict[str, Node] = {}
    for row in rows:
        name = "" if isinstance(row, Unreadable) else str(row.get("message_id") or "")
        if isinstance(row, Unreadable):
            yield row
        elif not name or name in nodes:
            yield Unreadable(name, "message has no message_id of its own")
        else:
            nodes[name] = {**row, "replies": []}
    roots: list[Node] = []
    for node in nodes.values():
        parent = nodes.get(str(node.get("parent_id")))
        if is_empty(node.get("parent_id")):
            roots.append(node)
        elif parent is not None:
            _replies(parent).append(node)
    reached: set[int] = set()
    for root in roots:
        reached.update(map(id, _below(root)))
        yield {"message_tree_id": root.get("message_tree_id") or root["message_id"], "prompt": root}
    for node in nodes.values():
        if id(node) not in reached:
            yield Unreadable(str(node["message_id"]), "message answers one that is not in the file")


def _replies(node: Mapping[str, object]) -> list[Node]:
    return cast("list[Node]", node["replies"])


def _below(root: Node) -> Iterator[Row]:
    """Yields a message and all that answer it, directly or not."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += _replies(node)
