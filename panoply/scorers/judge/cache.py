"""Answers of judges by the content of the question, below the store that all runs share.

An answer is kept under the hash of all that was asked: server, model, messages (without the random
mark), seed and form. Of two that come at the same time the first one is kept, and both get it.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from panoply.files import cache_root
from panoply.records import Records, open_records
from panoply.scorers.judge.answer import JudgeAnswer

FOLDER = "judge-answers"


class AnswerCache:
    """Answers on the store, 256 folders of records.

    Args:
        root: folder or URI of the store; empty: `PANOPLY_STORE`, else the user's cache.
    """

    def __init__(self, root: str = "") -> None:
        self.root = root or os.environ.get("PANOPLY_STORE") or str(cache_root())
        self._folders: dict[str, Records] = {}

    def read(self, key: str) -> JudgeAnswer | None:
        """Returns the answer to a question; None where there is none, or a damaged one.

        Args:
            key: hash of the question, in hexadecimal digits.

        Raises:
            OSError: the store cannot be read.
        """
        content = self._folder(key).read(key)
        try:
            return None if content is None else JudgeAnswer.of_record(content)
        except ValueError:
            return None

    def keep(self, key: str, answer: JudgeAnswer) -> JudgeAnswer:
        """Keeps an answer, and returns the one that is kept: of several writers, the first one's.

        Raises:
            OSError: the store cannot be written.
        """
        if self._folder(key).create(key, answer.to_record()):
            return answer
        return self.read(key) or answer

    def _folder(self, key: str) -> Records:
        name = key[:2]
        if name not in self._folders:
            self._folders[name] = open_records(_below(self.root, f"{FOLDER}/{name}"))
        return self._folders[name]


def _below(root: str, path: str) -> str:
    """Returns the URI of a path below a root, whose parameters stay at the end."""
    url = urlsplit(root)
    if not url.scheme:
        return f"{root.rstrip('/')}/{path}"
    return url._replace(path=f"{url.path.rstrip('/')}/{path}").geturl()
