"""One request to a server with OpenAI's chat API, and what its reply means. No retries here."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from searchfit.config import OpenAISettings
from searchfit.errors import GeneratorError
from searchfit.generators import prompts
from searchfit.generators.answers import shown
from searchfit.generators.prompts import STYLES, Prompt

_CHARS_A_TOKEN = 4
_LEAST_KEY = 6
_PASSING = (408, 409, 425, 429)
_KEY_LIKE = re.compile(r"(?i)bearer\s+[^\s\"',;]+|\bsk-[\w*-]{6,}")
_NO_FORM = ("response_format", "json_schema", "json_object", "structured output", "guided", "grammar")

_SCHEMA = {
    "type": "object",
    "properties": {
        "queries": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "style": {"type": "string", "enum": list(STYLES)},
                    "text": {"type": "string"},
                },
                "required": ["style", "text"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["queries"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Form:
    """How a request is written: the form of the answer, the name of the limit, and whether there is a system
    message. Servers differ, and say so by refusing."""

    answers: str
    limit: str = "max_tokens"
    system: bool = True

    @property
    def prompt(self) -> prompts.Form:
        """What the prompt asks for."""
        return "lines" if self.answers == "lines" else "json"

    def messages(self, prompt: Prompt) -> Any:
        """System and user message, or both as one."""
        if not self.system:
            return [{"role": "user", "content": f"{prompt.system}\n\n{prompt.user}"}]
        return [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]

    def extra(self, most: int) -> dict[str, Any]:
        """The other fields of the request that depend on the form; `most` tokens are to be written."""
        fields: dict[str, Any] = {self.limit: most}
        if self.answers == "schema":
            schema = {"name": "queries", "strict": True, "schema": _SCHEMA}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self.answers == "json":
            fields["response_format"] = {"type": "json_object"}
        return fields

    def after(self, message: str) -> Form | None:
        """The form to try where the server refuses this one with `message`; None where it is not the form
        that it minds. Each change is made once, so this ends."""
        said = message.lower()
        if self.limit == "max_tokens" and "max_completion_tokens" in said:
            return replace(self, limit="max_completion_tokens")
        if self.answers != "lines" and any(word in said for word in _NO_FORM):
            return replace(self, answers="json" if self.answers == "schema" else "lines")
        if self.system and "role" in said and "system" in said:
            return replace(self, system=False)
        return None


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one request: `text` of the answer, or a `fault`.

    `final`: asking again would not help; `refused`: the server found the request bad; `heard`: it answered
    as such a server does; `unheard`: it could not be reached. `adapted`: ask again at once, in another form.
    `cut`: the fault if the text holds no queries, because it was cut off. `wait`: seconds that the server
    asked for; `slow_down`: it asked this of all requests. `read`, `wrote`: tokens that were charged.
    """

    text: str = ""
    fault: str = ""
    final: bool = False
    refused: bool = False
    heard: bool = False
    unheard: bool = False
    adapted: bool = False
    fatal: GeneratorError | None = None
    cut: str = ""
    wait: float = 0.0
    slow_down: bool = False
    read: int = 0
    wrote: int = 0


class Line:
    """The connection to a server, and the form that it takes. The key never leaves it but in the request."""

    def __init__(self, settings: OpenAISettings, model: str, url: str, key: str, local: bool) -> None:
        import openai

        self._openai, self._settings, self._model, self._key = openai, settings, model, key
        self._client = openai.AsyncOpenAI(
            api_key=key,
            base_url=url or None,
            max_retries=0,
            timeout=settings.timeout,
            # Passages go to the server that was named: not through a proxy to this machine, not elsewhere.
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False, trust_env=not local, timeout=settings.timeout
            ),
        )
        self.form = Form("schema" if settings.answers == "auto" else settings.answers)
        if not url:  # the hosted service no longer takes the older name
            self.form = replace(self.form, limit="max_completion_tokens")
        parts = urlsplit(str(self._client.base_url))
        self.server = f"{parts.scheme}://{parts.netloc}"

    async def close(self) -> None:
        """Give the connections back."""
        await self._client.close()

    async def ask(self, prompt: Prompt, form: Form) -> Reply:
        """One request. Never raises for what the server does."""
        openai = self._openai
        estimate = (len(prompt.system) + len(prompt.user)) // _CHARS_A_TOKEN
        try:
            raw = await asyncio.wait_for(
                self._client.chat.completions.with_raw_response.create(
                    model=self._model,
                    messages=form.messages(prompt),
                    temperature=self._settings.temperature,
                    # As a body of its own: the package walks through its typed fields, which takes longer.
                    extra_body=form.extra(self._settings.max_new_tokens),
                ),
                self._settings.timeout,
            )
            return self._read(raw.content.decode("utf-8", "replace"), estimate)
        except openai.APIStatusError as error:
            return self._status(error.status_code, error.response, form)
        except (asyncio.TimeoutError, openai.APITimeoutError):
            # It may have been written, and charged, all the same.
            return Reply(fault=f"no answer within {self._settings.timeout:g} seconds", read=estimate)
        except openai.APIConnectionError as error:
            cause = type(error.__cause__ or error).__name__
            return Reply(fault=f"the connection failed ({cause})", unheard=True)
        except (openai.OpenAIError, OSError) as error:
            return Reply(fault=f"the reply could not be read ({type(error).__name__})", read=estimate)

    def _read(self, body: str, estimate: int) -> Reply:
        """A reply with a status of success."""
        try:
            tree = json.loads(body)
            choice = tree["choices"][0]
            message = choice["message"]
            content, refusal = message.get("content"), message.get("refusal")
        except (ValueError, RecursionError):
            return Reply(fault="the reply was not JSON or was cut off", read=estimate)
        except (LookupError, TypeError, AttributeError):
            return Reply(fault="the reply held no choices", read=estimate)
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        text = self._without_key(content) if isinstance(content, str) else ""
        read, wrote = _usage(tree.get("usage"), estimate, -(-len(text) // _CHARS_A_TOKEN))
        ends = choice.get("finish_reason")
        fault = ""
        if isinstance(refusal, str) and refusal and not text:
            fault = f"the model refused: {shown(self._without_key(refusal))}"
        elif ends == "content_filter" and not text:
            fault = "the server's filter withheld the answer"
        limit = self._settings.max_new_tokens
        cut = f"the answer was cut off at openai.max_new_tokens ({limit})" if ends == "length" else ""
        return Reply(text, fault, final=bool(fault), heard=True, cut=cut, read=read, wrote=wrote)

    def _status(self, status: int, response: Any, form: Form) -> Reply:
        """A reply with a status of failure."""
        body = response.content[:20_000].decode("utf-8", "replace")
        message = shown(_KEY_LIKE.sub("***", self._without_key(_message(body))))
        unpaid = status == 402 or (status == 429 and "insufficient_quota" in body)
        if status in (401, 403, 404) or 300 <= status < 400 or unpaid:
            return Reply(fatal=self._fatal(status, message))
        if status >= 500 or status in _PASSING:
            fault = f"the server is too busy (HTTP {status})" if status == 429 else f"HTTP {status} {message}"
            return Reply(fault=fault, wait=_retry_after(response.headers), slow_down=status == 429)
        if status in (400, 422):
            if form != self.form:
                return Reply(adapted=True)  # another request has found the form meanwhile
            other = form.after(_message(body))
            if other and other.answers != form.answers and self._settings.answers != "auto":
                hint = 'Set openai.answers to "auto".'
                said = f"{self.server} does not take openai.answers {form.answers}: {message}."
                return Reply(fatal=GeneratorError(said, hint))
            if other:
                self.form = other
                return Reply(adapted=True)
        fault = f"the server refused the request (HTTP {status}): {message}"
        return Reply(fault=fault, final=True, refused=True)

    def _fatal(self, status: int, message: str) -> GeneratorError:
        variable = self._settings.api_key_env
        if status in (401, 403):  # what such replies say may hold a part of the key
            return GeneratorError(
                f"{self.server} refuses the key (HTTP {status}).",
                f"Put a valid one into the environment variable {variable}; the same command carries on.",
            )
        if status == 404:
            return GeneratorError(
                f"{self.server} knows no model {self._model!r}, or is no such server (HTTP 404): {message}.",
                "Check the model's name and openai.base_url, which mostly ends in /v1.",
            )
        if 300 <= status < 400:
            return GeneratorError(
                f"{self.server} sends requests elsewhere (HTTP {status}).", "Name the address it points to."
            )
        return GeneratorError(
            f"{self.server} wants to be paid first (HTTP {status}): {message}.",
            "See to the account; the same command carries on.",
        )

    def _without_key(self, text: str) -> str:
        """Servers echo what they were sent; shorter keys are words like "none"."""
        return text.replace(self._key, "***") if len(self._key) >= _LEAST_KEY else text


def _message(body: str) -> str:
    """The server's own words, where they stand in the usual place."""
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        return body
    for _ in range(2):
        if isinstance(tree, dict):
            tree = next((tree[key] for key in ("error", "message", "detail") if key in tree), tree)
    return tree if isinstance(tree, str) else body


def _usage(usage: Any, read: int, wrote: int) -> tuple[int, int]:
    """Tokens read and written; the estimates where the server does not say."""
    counts = []
    for key, estimate in (("prompt_tokens", read), ("completion_tokens", wrote)):
        said = usage.get(key) if isinstance(usage, dict) else None
        is_count = isinstance(said, int) and not isinstance(said, bool) and said >= 0
        counts.append(int(str(said)) if is_count else estimate)
    return counts[0], counts[1]


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds to wait by a Retry-After header (seconds or an HTTP date); 0 where there is none."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except (ValueError, TypeError, IndexError):
            return 0.0
        when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
        seconds = (when - datetime.now(timezone.utc)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
