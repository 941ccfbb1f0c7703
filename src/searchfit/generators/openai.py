"""Queries by any server with OpenAI's chat API: many requests in flight, retried, each paid for once."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar
from urllib.parse import urlsplit

from searchfit.config import OpenAISettings, Settings
from searchfit.errors import GeneratorError, MissingExtraError, SettingsError
from searchfit.generators import Task, Written
from searchfit.generators.answers import parse
from searchfit.generators.openai_wire import Line, Reply
from searchfit.generators.prompts import Prompt, Template
from searchfit.records import Passage

_VERSION = 1
_LEAST_ROW = 20
"""Passages in a row that fail before the server is held for gone, not the passages for bad."""
_LONGEST_WAIT = 60.0
_OVERHEAD = 400
"""Tokens beside the messages, at most: the chat template and the schema."""
_NO_KEY = "none"

T = TypeVar("T")


class OpenAIGenerator:
    """Asks a server with OpenAI's chat API.

    At most `openai.concurrency` requests are in flight. What may pass (time-outs, resets, 408, 409, 429,
    5xx, answers that cannot be read) is asked for again up to `openai.attempts` times, after a growing wait
    or the server's Retry-After; a request that the server finds bad costs the passage its queries and nothing
    more. The key comes from the environment and is in no message.

    Raises MissingExtraError without the openai package, GeneratorError without a key for a server that is
    not on this machine, SettingsError for a base_url that is none or carries a password; `write` raises
    GeneratorError where the server refuses the key or the model, or does not answer at all.
    """

    def __init__(self, name: str, model: str, per_passage: int, settings: Settings) -> None:
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("The openai generator", "openai") from error
        self.name, self.per_passage = name, per_passage
        self._model, self._settings = model, settings.openai
        self._template = Template.load(settings.prompt, per_passage, settings.seed)
        self._url = self._settings.base_url or os.environ.get("OPENAI_BASE_URL") or ""
        self._local = _is_loopback(_checked(self._url))
        self._key = _key(self._settings.api_key_env, self._local, self._url)

    @property
    def fingerprint(self) -> str:
        """Of the model's name, the template and decoding; not of the server, prices and time-outs."""
        ours = self._settings
        parts = (
            *(_VERSION, self._model, self._template.hash, self.per_passage),
            *(ours.temperature, ours.max_new_tokens, ours.answers),
        )
        return f"openai-{hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()}"

    @property
    def details(self) -> Mapping[str, str]:
        """Model, server, template and decoding."""
        return {
            "model": self._model,
            "server": self._url or "the default of the openai package",
            "template": self._template.hash,
            "decoding": f"temperature {self._settings.temperature:g}, at most "
            f"{self._settings.max_new_tokens} tokens, answers {self._settings.answers}",
        }

    def content(self, passage: Passage) -> tuple[str, ...]:
        """Title and text."""
        return (passage.title, passage.text)

    def most_cost(self, passage: Passage) -> float:
        """The price of one attempt: each byte of the prompt a token, the answer as long as it may be."""
        prompt = self._template.prompt(passage)
        read = len(prompt.system.encode()) + len(prompt.user.encode()) + _OVERHEAD
        return _cost(self._settings, read, self._settings.max_new_tokens)

    def write(self, tasks: Iterable[Task]) -> Iterator[Sequence[Written]]:
        """See `Generator.write`: passages as their answers come in. Closing it cancels what is in flight."""
        line = Line(self._settings, self._model, self._url, self._key, self._local)
        with closing(_Session(line, self._template, self._settings)) as session:
            yield from session.written(tasks)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """`lost`: the server did not answer; `unheard`: nor could it be reached; `refused`: it found the request
    bad, which may be the passage's fault or ours."""

    written: Written
    lost: bool = False
    unheard: bool = False
    refused: bool = False


class _Session:
    """One `write`: its event loop and client, what is in flight, and what is held back."""

    def __init__(self, line: Line, template: Template, settings: OpenAISettings) -> None:
        self._line, self._template, self._settings = line, template, settings
        self._loop = _PatientLoop()
        self._pending: set[asyncio.Task[_Outcome]] = set()
        self._jitter = Random()
        self._gate = 0.0
        self._slowed, self._asking = False, 0
        self._news = asyncio.Event()
        self._answered = False
        self._held: list[_Outcome] = []

    def written(self, tasks: Iterable[Task]) -> Iterator[Sequence[Written]]:
        """See `OpenAIGenerator.write`."""
        source = (task.passage for task in tasks if not task.known)
        while True:
            while (
                len(self._pending) < self._settings.concurrency
                and (passage := next(source, None)) is not None
            ):
                self._pending.add(self._loop.create_task(self._outcome(passage)))
            if not self._pending:
                break
            waiting = asyncio.wait(self._pending, return_when=asyncio.FIRST_COMPLETED)
            done, self._pending = self._loop.step(waiting)
            errors = [error for task in done if (error := task.exception())]
            ready = [
                written for task in done if not task.exception() for written in self._settled(task.result())
            ]
            if ready:
                yield ready  # before any error: it is paid for
            if errors:
                raise errors[0]
            self._check_row()
        if self._held:
            if not self._answered and all(outcome.unheard for outcome in self._held):
                raise self._gone()
            yield [outcome.written for outcome in self._held]

    def close(self) -> None:
        """Cancel what is in flight and give the connections back."""
        for task in self._pending:
            task.cancel()
        try:
            self._loop.step(_ended(self._pending, self._line))
        finally:
            self._loop.close()

    def _settled(self, outcome: _Outcome) -> list[Written]:
        """What can be recorded now. Failures wait until another passage is answered, which shows that the
        server is there and the fault is theirs."""
        if outcome.lost or (outcome.refused and not self._answered):
            self._held.append(outcome)
            return []
        self._answered = self._answered or not outcome.refused
        ready = [held.written for held in self._held]
        self._held = []
        return [*ready, outcome.written]

    def _check_row(self) -> None:
        if len(self._held) >= max(_LEAST_ROW, self._settings.concurrency + 1):
            raise self._gone()

    def _gone(self) -> GeneratorError:
        fault = self._held[-1].written.fault
        many = f"{len(self._held)} passages in a row" if len(self._held) > 1 else "the only passage"
        if all(outcome.refused for outcome in self._held):
            return GeneratorError(
                f"{self._line.server} refuses what it is asked: {many} failed. The last: {fault}.",
                "Nothing of these is recorded. Check generate.generator, the settings openai and prompt.",
            )
        return GeneratorError(
            f"{self._line.server} does not answer: {many} failed. The last: {fault}.",
            "Nothing of these is recorded. See that the server runs; the same command carries on.",
        )

    async def _outcome(self, passage: Passage) -> _Outcome:
        """Ask until there is an answer, at most `openai.attempts` times; changes of form do not count."""
        read = wrote = attempt = 0
        heard, unheard = False, True
        reply = Reply()
        while attempt < self._settings.attempts:
            prompt, reply = await self._exchange(passage)
            if reply.adapted:
                continue
            if reply.fatal:
                raise reply.fatal
            attempt += 1
            read, wrote = read + reply.read, wrote + reply.wrote
            heard, unheard = heard or reply.heard, unheard and reply.unheard
            if reply.final and reply.fault:
                return _Outcome(self._made(passage, (), reply.fault, read, wrote), refused=reply.refused)
            if not reply.fault:
                answer = parse(reply.text, prompt)
                if answer.queries or answer.final:
                    return _Outcome(self._made(passage, answer.queries, answer.fault, read, wrote))
                reply = Reply(fault=reply.cut or answer.fault, final=bool(reply.cut))
                if reply.final:
                    break
            if attempt < self._settings.attempts:
                await self._wait(reply, attempt)
        times = f" ({attempt} attempts)" if attempt > 1 else ""
        written = self._made(passage, (), f"{reply.fault}{times}", read, wrote)
        return _Outcome(written, lost=not heard, unheard=unheard)

    def _made(
        self, passage: Passage, queries: tuple[tuple[str, str], ...], fault: str, read: int, wrote: int
    ) -> Written:
        return Written(passage, queries, fault, read, wrote, _cost(self._settings, read, wrote))

    async def _exchange(self, passage: Passage) -> tuple[Prompt, Reply]:
        """One request, when the server may be asked."""
        await self._permission()
        form = self._line.form
        prompt = self._template.prompt(passage, form.prompt)
        self._asking += 1
        try:
            reply = await self._line.ask(prompt, form)
        finally:
            self._asking -= 1
        self._slowed = reply.slow_down
        self._news.set()
        self._news = asyncio.Event()
        return prompt, reply

    async def _permission(self) -> None:
        """Wait while the server has asked for fewer requests; then one goes first, and the others when any
        reply shows that the storm is over: else each of them would spend its attempts on it."""
        while True:
            if (wait := self._gate - self._loop.time()) > 0:
                await asyncio.sleep(wait)
            elif self._slowed and self._asking:
                await self._news.wait()
            else:
                return

    async def _wait(self, reply: Reply, attempt: int) -> None:
        """Exponential backoff with jitter, or as long as the server said."""
        backoff = self._settings.backoff * 2 ** (attempt - 1) * self._jitter.uniform(0.5, 1.0)
        wait = min(reply.wait or backoff, _LONGEST_WAIT)
        if reply.slow_down:
            self._gate = max(self._gate, self._loop.time() + wait)
        else:
            await asyncio.sleep(wait)


class _PatientLoop(asyncio.SelectorEventLoop):
    """An event loop driven step by step. Its clock stands still in between, so that no request times out
    because the caller was busy."""

    def __init__(self) -> None:
        self._lost, self._left = 0.0, time.monotonic()
        super().__init__()

    def time(self) -> float:
        """Seconds that this loop has been running."""
        return time.monotonic() - self._lost

    def step(self, work: Coroutine[Any, Any, T]) -> T:
        """Run until `work` is done, also where the caller's thread runs a loop of its own (notebooks)."""
        self._lost += time.monotonic() - self._left
        try:
            if not _in_a_loop():
                return self.run_until_complete(work)
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(self.run_until_complete, work).result()
        finally:
            self._left = time.monotonic()


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _ended(pending: Iterable[asyncio.Task[_Outcome]], line: Line) -> None:
    await asyncio.gather(*pending, return_exceptions=True)
    await line.close()


def _cost(settings: OpenAISettings, read: int, wrote: int) -> float:
    return (read * settings.price_input + wrote * settings.price_output) / 1e6


def _checked(url: str) -> str:
    """The host of a URL, "" for none."""
    try:
        parts = urlsplit(url)
        host, scheme, secret = parts.hostname or "", parts.scheme, parts.username or parts.password
    except ValueError:
        host, scheme, secret = "", "", None
    if url and (scheme not in ("http", "https") or not host):
        raise SettingsError(
            "openai.base_url is not the address of a server.", "For example http://127.0.0.1:11434/v1."
        )
    if secret or (url and urlsplit(url).query):
        raise SettingsError(
            "openai.base_url holds a user name, a password or parameters, which would be written to disk.",
            "Leave them out; the key comes from the environment variable that openai.api_key_env names.",
        )
    return host


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _key(variable: str, local: bool, url: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key and not local:
        raise GeneratorError(
            f"the environment variable {variable} is not set, which should hold the key for "
            f"{url or 'the default server of the openai package'}.",
            "Set it, or name another with openai.api_key_env; any text does for a server that asks for none.",
        )
    return key or _NO_KEY
