"""Items of a board: a prompt, right and wrong responses to it, and where each stands.

A scorer gets the responses of an item in the order of their hashes, each text once, so that no
place tells a right response. Scores hang on the content of the item and on the place there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from panoply.data.data_file import Unreadable
from panoply.data.parse import as_messages
from panoply.data.quarantine import BadRow, Quarantine
from panoply.data.read import Input, Opened, open_inputs
from panoply.data.rollouts import item_id
from panoply.data.schema import PROMPT, Message, digest, split_key
from panoply.data.validate import check_text, clean_prompt
from panoply.files import whole_file
from panoply.types import Bools
from panoply.wire.request import Chat

if TYPE_CHECKING:
    from panoply.boards.board import Adapt, Board

ITEMS_FILE = "items.parquet"
ITEMS = pa.schema(
    [
        ("item_id", pa.string()),
        ("subset", pa.string()),
        ("kind", pa.string()),
        ("group", pa.string()),
        ("prompt", PROMPT),
        ("candidates", pa.list_(pa.string())),
        ("right", pa.list_(pa.int32())),
        ("wrong", pa.list_(pa.int32())),
        ("seen_by", pa.list_(pa.string())),
    ]
)
"""An item as a run leaves it. `right` and `wrong` are places in `candidates`, in the board's order;
`seen_by` names the scorers that are known to have been trained on the prompt."""


@dataclass(frozen=True, slots=True)
class ItemPart:
    """Holds the fields of an item that one row of a file states."""

    subset: str
    prompt: Sequence[Message]
    right: Mapping[str, object]
    """Right responses by a name that orders them, such as their style."""
    wrong: Mapping[str, object]
    kind: str = ""
    """What the arithmetic has to know beyond the subset."""
    key: str = ""
    """Rows of one key are one item; empty: the row is an item by itself."""
    group: str = ""
    """Items of one group are one prompt's to an interval; empty: those of equal prompts."""
    split_group: str = ""
    """Unit of splitting that the row names in place of its prompt, as `split_key` takes it."""
    size: tuple[int, int] | None = None
    """Right and wrong responses that the item has to have; None: at least one of each."""


@dataclass(frozen=True, slots=True)
class BoardItem:
    """A prompt with right and wrong responses, as scorers get it."""

    item_id: str
    """Hash of the prompt and its responses."""
    subset: str
    kind: str
    key: str
    """Split key of the prompt, by which models know what they were trained on."""
    group: str
    """Unit of resampling."""
    chat: Chat
    right: tuple[int, ...]
    """Places of the right responses in `chat.responses`, in the board's order."""
    wrong: tuple[int, ...]


@dataclass(slots=True)
class _Draft:
    first: ItemPart
    right: dict[str, str] = field(default_factory=dict[str, str])
    wrong: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, part: ItemPart) -> None:
        for texts, others in ((self.right, part.right), (self.wrong, part.wrong)):
            for name, text in others.items():
                if texts.setdefault(name, _clean_response(text)) != text:
                    raise BadRow("the item has two different responses of one name")

    def item(self) -> BoardItem:
        """Returns the finished item.

        Raises:
            BadRow: it has not the responses that an item of the board has.
        """
        sizes = (len(self.right), len(self.wrong))
        if not all(sizes) or self.first.size not in (None, sizes):
            needed = self.first.size or ("some", "some")
            raise BadRow(
                f"the item has {sizes[0]} right and {sizes[1]} wrong responses, and needs "
                f"{needed[0]} and {needed[1]}"
            )
        prompt = clean_prompt(self.first.prompt)
        right = [self.right[name] for name in sorted(self.right)]
        wrong = [self.wrong[name] for name in sorted(self.wrong)]
        texts = sorted({*right, *wrong}, key=lambda text: digest("response", text))
        place = {text: i for i, text in enumerate(texts)}
        chat = Chat(tuple(prompt), tuple(texts))
        key = split_key(prompt, self.first.split_group)
        return BoardItem(
            item_id=item_id(chat),
            subset=self.first.subset,
            kind=self.first.kind,
            key=key,
            group=self.first.group or key,
            chat=chat,
            right=tuple(place[text] for text in right),
            wrong=tuple(place[text] for text in wrong),
        )


def turns_of(prompt: object) -> Sequence[Message]:
    """Returns a board's prompt as turns: a text is one user's turn, whatever it looks like."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return as_messages(prompt)


def _clean_response(text: object) -> str:
    """Returns a response, which may be empty: a board's items are not chosen here.

    Raises:
        BadRow: it is no text, or not a whole one.
    """
    if not isinstance(text, str):
        raise BadRow("response is no text")
    check_text(text)
    return text


def read_items(
    board: Board, inputs: Sequence[Input], quarantine: Path, max_share: float
) -> tuple[list[BoardItem], Quarantine]:
    """Returns the items of a board's files in the order of their first rows, and the bad rows.

    Args:
        board: whose files they are.
        inputs: the files.
        quarantine: file of the bad rows.
        max_share: largest share of bad rows.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged or of no such board, or too many
            rows are bad.
    """
    files = open_board(board, inputs)
    drafts: dict[str, tuple[str, int, _Draft]] = {}
    items: list[BoardItem] = []
    quarantine.parent.mkdir(parents=True, exist_ok=True)
    with Quarantine(quarantine) as bad:
        for opened, adapt in files:
            _read_rows(opened, adapt, drafts, bad)
        for label, number, draft in drafts.values():
            try:
                items.append(draft.item())
            except BadRow as error:
                bad.reject(label, number, str(error), None)
                continue
            bad.num_good += 1
        bad.check_share(max_share)
    if not items:
        labels = ", ".join(opened.label for opened, _ in files)
        raise ValueError(f"no row of {labels} is an item of {board.title}: see {str(quarantine)!r}")
    return items, bad


def open_board(board: Board, inputs: Sequence[Input]) -> list[tuple[Opened, Adapt]]:
    """Returns the files of a board, with the readers of their rows.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged or of no such board.
    """
    return [(opened, _reader(board, opened)) for opened in open_inputs(inputs)]


def _reader(board: Board, opened: Opened) -> Adapt:
    """Returns the reader of a file's rows.

    Raises:
        ValueError: the file is of no such board.
    """
    adapt = board.adapt(frozenset(opened.columns), opened.name or "")
    if adapt is None:
        raise ValueError(
            f"{opened.label} is no file of {board.title}: it has columns {sorted(opened.columns)}, "
            f"and those of {board.title} have {board.layout}; where names differ, say which "
            "column is which, as in --columns prompt=question"
        )
    return adapt


def _read_rows(
    opened: Opened, adapt: Adapt, drafts: dict[str, tuple[str, int, _Draft]], bad: Quarantine
) -> None:
    """Adds what a file's rows say to the drafts of their items."""
    for number, row in enumerate(opened.rows(None), 1):
        try:
            if isinstance(row, Unreadable):
                raise BadRow(row.reason)
            item_parts = list(adapt(row))
            bad.num_ties += not item_parts
            for place, part in enumerate(item_parts):
                key = part.key or f"{opened.label} {number} {place}"
                new = (opened.label, number, _Draft(part))
                label, first, draft = drafts.get(key, new)
                draft.add(part)
                drafts[key] = (label, first, draft)
        except BadRow as error:
            content = row.text if isinstance(row, Unreadable) else row
            bad.reject(opened.label, number, str(error), content)


def write_items(out: Path, items: Sequence[BoardItem], seen_by: Mapping[str, Bools]) -> None:
    """Writes `OUT/items.parquet`.

    Args:
        out: folder of the run.
        items: of the board.
        seen_by: which items each scorer has seen in its training.
    """
    rows = [
        {
            "item_id": item.item_id,
            "subset": item.subset,
            "kind": item.kind,
            "group": item.group,
            "prompt": [dict(turn) for turn in item.chat.prompt],
            "candidates": list(item.chat.responses),
            "right": list(item.right),
            "wrong": list(item.wrong),
            "seen_by": [name for name, seen in seen_by.items() if seen[number]],
        }
        for number, item in enumerate(items)
    ]
    with whole_file(out / ITEMS_FILE) as partial:
        pq.write_table(pa.Table.from_pylist(rows, ITEMS), partial)
