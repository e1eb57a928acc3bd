"""Rewards in plain Python, scored as the models beside them are.

    def reward(prompt: list[dict], response: str, label) -> float | dict[str, float] | None: ...

    def reward(prompts, responses, labels) -> list[float | dict[str, float] | None]: ...

Either may be `async def`, and may leave out what it does not read, all but the response. It is
called with keywords. The second gets all responses of one call. `label` is what the client sent,
None where it sent none.

A dict has the key `score`; its other numbers become objectives, and other values are left out.
None says that the function does not apply: no score, which is not 0. So do an exception and NaN.

Of text that went through a template already, `prompt` is one message of the role `rendered`, or
empty where the client sent the whole conversation as one text, which then is the response; a server
that knows the template makes turns of it (`panoply.wire.templates`). It is empty too where a client
sent a response alone. A message has a `name` where the client's had one.

A plain function runs in a thread. One that is over its time is left to itself, for threads cannot
be stopped; one that never lets go of the interpreter's lock (a match of `re` that backtracks, say)
stops everything in its process while it runs, its own time limit included.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from inspect import Parameter
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, SupportsFloat, TypeVar

from pydantic import JsonValue

from panoply.wire.breaker import CircuitState
from panoply.wire.request import Chat, Item, Score, Tokens, scored

Scores = tuple[tuple[Score, ...], ...]
"""Scores by item and response."""
T = TypeVar("T")


def load_function(where: str, *, timeout: float = 30.0, max_concurrent: int = 16) -> FunctionScorer:
    """Returns the function of "package.module:name" or "path/to/file.py:name" as a scorer.

    Args:
        where: its place. A file can import installed packages, and not the files beside it.
        timeout: maximum seconds of one call.
        max_concurrent: maximum calls at the same time.

    Raises:
        ValueError: there is no such function, or its parameters are others.
    """
    place, _, name = where.rpartition(":")
    if not place or not name.isidentifier():
        raise ValueError(
            f"a function is named 'package.module:name' or 'path/to/file.py:name', got {where!r}"
        )
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    if not hasattr(module, name):
        there = [
            key
            for key, value in vars(module).items()
            if callable(value) and not key.startswith("_")
        ]
        raise ValueError(f"{place!r} has no {name!r}; what can be called there is {sorted(there)}")
    return FunctionScorer(getattr(module, name), timeout=timeout, max_concurrent=max_concurrent)


def _from_package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # importing runs anything
        # The missing module may be this one, or one that it imports.
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise ValueError(
                f"no module {name!r}: {error.name!r} is not on the path; install it, or name a file"
            ) from error
        raise ValueError(f"importing {name!r} failed with {_described(error)}") from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"no file {str(path)!r} in {str(Path.cwd())!r}")
    whole = str(path.resolve())
    name = f"{path.stem}_{hashlib.blake2b(whole.encode(), digest_size=8).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, whole)
    assert spec is not None, whole  # a name that ends with .py has a loader
    assert spec.loader is not None, whole
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the module that they are in
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"importing {str(path)!r} failed with {_described(error)}") from error
    return module


@dataclass(frozen=True, slots=True)
class _Sample:
    """Response, its prompt and its label."""

    prompt: tuple[Mapping[str, str], ...]
    response: str
    label: JsonValue

    def arguments(self) -> dict[str, Any]:
        # Copies, for one sample's function may write into what another's reads.
        prompt = [dict(message) for message in self.prompt]
        return {"prompt": prompt, "response": self.response, "label": self.label}


class FunctionScorer:
    """Function that scores responses."""

    def __init__(
        self, function: Callable[..., Any], *, timeout: float = 30.0, max_concurrent: int = 16
    ) -> None:
        """Checks how the function is called.

        Args:
            function: as in the module's docstring.
            timeout: maximum seconds of one call.
            max_concurrent: maximum calls at the same time.

        Raises:
            ValueError: a setting is wrong, or the function cannot be called so.
        """
        if not timeout > 0:
            raise ValueError(f"`timeout` must be positive, got {timeout!r}")
        if max_concurrent < 1:
            raise ValueError(f"`max_concurrent` must be at least 1, got {max_concurrent!r}")
        self.timeout, self.max_concurrent = timeout, max_concurrent
        self._function = function
        self._names, self._takes_lists = _keywords(function)
        calls = (function, type(function).__call__)
        self._is_async = any(map(inspect.iscoroutinefunction, calls))
        self._slots = asyncio.Semaphore(max_concurrent)
        self._num_overdue = 0

    @property
    def circuit(self) -> CircuitState:
        """State of the function: "closed", or "open" while too many of its calls hang."""
        return "open" if self._num_overdue >= self.max_concurrent else "closed"

    def about(self) -> dict[str, JsonValue]:
        """Returns what its calls are bounded by."""
        return {"limits": {"calls_at_once": self.max_concurrent, "seconds": self.timeout}}

    def check_health(self) -> None:
        """Checks that the function can still be called.

        Raises:
            RuntimeError: as many calls hang as may run at the same time. Threads cannot be stopped:
                a new process is the only cure.
        """
        if self.circuit == "open":
            raise RuntimeError(f"{self._num_overdue} calls of the function hang after their time")

    async def score(self, items: Sequence[Item]) -> Scores:
        """Returns the scores of all items; those that failed as errors of their response."""
        samples = list(chain.from_iterable(map(_samples, items)))
        if self._takes_lists:
            flat = await self._call(samples) if samples else []
        else:
            calls = await asyncio.gather(*(self._call([sample]) for sample in samples))
            flat = [score for (score,) in calls]
        scores = iter(flat)
        unreadable = Score(error="token ids have no text that a function could read")
        by_item: list[tuple[Score, ...]] = []
        for item in items:
            num = len(item.responses)
            if isinstance(item, Tokens):
                by_item.append((unreadable,) * num)
            else:
                by_item.append(tuple(next(scores) for _ in range(num)))
        return tuple(by_item)

    async def _call(self, samples: Sequence[_Sample]) -> list[Score]:
        async with self._slots:
            if self._num_overdue >= self.max_concurrent:
                why = f"{self._num_overdue} calls of the function hang after their time"
                return [Score(error=why, transient=True)] * len(samples)
            if self._is_async:
                work = awaited = asyncio.ensure_future(self._await(samples))
            else:
                work = _in_thread(lambda: self._run(samples))
                awaited = asyncio.shield(work)
            try:
                async with asyncio.timeout(self.timeout):
                    return await awaited
            except TimeoutError:
                why = f"the function did not return within {self.timeout:g} s"
                return [Score(error=why)] * len(samples)
            finally:
                if not work.done():  # a thread goes on, also where nobody waits for it any more
                    self._num_overdue += 1
                    work.add_done_callback(self._came_back)

    def _came_back(self, _: asyncio.Future[list[Score]]) -> None:
        self._num_overdue -= 1

    # A user's function may raise anything, and what it raises is the error of its responses.

    def _run(self, samples: Sequence[_Sample]) -> list[Score]:
        try:
            return self._read(self._function(**self._arguments(samples)), len(samples))
        except (Exception, SystemExit) as error:
            return _failed(error, len(samples))

    async def _await(self, samples: Sequence[_Sample]) -> list[Score]:
        try:
            return self._read(await self._function(**self._arguments(samples)), len(samples))
        except (Exception, SystemExit) as error:
            return _failed(error, len(samples))

    def _arguments(self, samples: Sequence[_Sample]) -> dict[str, Any]:
        each = [sample.arguments() for sample in samples]
        if not self._takes_lists:
            return {name: each[0][name] for name in self._names}
        arguments: dict[str, Any] = {}
        for name in self._names:
            singular = name.removesuffix("s")
            arguments[name] = [sample[singular] for sample in each]
        return arguments

    def _read(self, returned: Any, num: int) -> list[Score]:
        if not self._takes_lists:
            return [_score(returned)]
        is_list = isinstance(returned, Iterable) and not isinstance(returned, str | Mapping)
        rewards = list(returned) if is_list else None
        if rewards is None or len(rewards) != num:
            got = type(returned).__name__ if rewards is None else len(rewards)
            return [Score(error=f"the function returned {got} for {num} responses")] * num
        return [_score(reward) for reward in rewards]


def _keywords(function: Callable[..., Any]) -> tuple[list[str], bool]:
    """Returns the keywords that a function is called with, and whether it takes lists.

    Raises:
        ValueError: it is no function, takes no response, or needs other arguments.
    """
    name = getattr(function, "__qualname__", repr(function))
    if inspect.isclass(function) or not callable(function):
        kind = "a class" if inspect.isclass(function) else f"of type {type(function).__name__}"
        raise ValueError(f"{name!r} is {kind}, not a function")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name!r} has no signature that can be read: wrap it") from error
    parameters = list(signature.parameters.values())
    by_keyword = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    names = {parameter.name for parameter in parameters if parameter.kind in by_keyword}
    takes_lists = "responses" in names
    keywords = ["prompt", "response", "label"]
    if takes_lists:
        keywords = [f"{keyword}s" for keyword in keywords]
    response = keywords[1]
    needed = [
        parameter.name
        for parameter in parameters
        if parameter.default is Parameter.empty
        and parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        and parameter.name not in keywords
    ]
    if response not in names or needed:
        fault = f"it needs {needed}" if needed else f"it takes no `{response}`"
        raise ValueError(
            f"{name}{signature} is called with keywords `prompt`, `response`, `label` (or with "
            f"`prompts`, `responses`, `labels`, as lists), and {fault}"
        )
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
        return keywords, takes_lists
    return [keyword for keyword in keywords if keyword in names], takes_lists


def _samples(item: Item) -> list[_Sample]:
    """Returns a sample for each response of an item; none of token ids, which have no text."""
    if isinstance(item, Tokens):
        return []
    if isinstance(item, Chat):
        prompt = item.prompt
    else:
        prompt = ({"role": "rendered", "content": item.prompt},) if item.prompt else ()
    return [_Sample(prompt, response, item.label) for response in item.responses]


def _score(reward: Any) -> Score:
    """Returns a function's reward for one response as a score."""
    named = reward if isinstance(reward, Mapping) else {"score": reward}
    value = named.get("score")
    if value is None:
        why = "the function gave none" if "score" in named else f"no `score` in {list(named)[:10]}"
        return Score(error=f"no score: {why}")
    if not isinstance(value, SupportsFloat):
        return Score(
            error=f"the function returned a {type(value).__name__}; a number, a dict with the key "
            "`score`, or None are allowed"
        )
    objectives = {
        str(name): float(number)
        for name, number in named.items()
        if name != "score" and isinstance(number, SupportsFloat)
    }
    return scored(float(value), objectives=objectives)


def _failed(error: BaseException, num: int) -> list[Score]:
    """Returns an exception as an error of its class and place: its text may hold a secret."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return [Score(error=f"the function raised {type(error).__name__}{place}")] * num


def _described(error: BaseException) -> str:
    """Returns an error's type and the start of its text, which may hold a whole response."""
    text = " ".join(str(error).split())
    if len(text) > 200:
        text = f"{text[:200]}..."
    return f"{type(error).__name__}: {text}"


def _in_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    """Starts a call in a thread of its own, which does not keep the process if it hangs."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return asyncio.wrap_future(done)
