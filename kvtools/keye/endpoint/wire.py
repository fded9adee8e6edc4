"""One call of one server: chat completions of OpenAI's protocol, through OpenAI's client, which here never retries by itself.

The key of the service comes from an environment variable, and is in no message, cache or report: what a server says is taken
with the key struck out, in its own letters or escaped as in JSON, Python or an address.
"""

import json
import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    import openai

_PASSING = (408, 409, 425, 429)  # beside 5xx: errors that pass
_NEW_NAMES = {"max_tokens": "max_completion_tokens"}
_QUOTED = 200  # characters of a server's message
_CONNECT_S = 10.0
_LONGEST_WAIT_S = 300.0  # that a server can ask for
_SHORTEST_KEY = 8  # characters; servers without keys are given words such as EMPTY, which answers may hold


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    text: str
    finish: str
    prompt_tokens: int
    answer_tokens: int


class Failed(Exception):
    """A call without an answer. is_final: the same call would fail again. is_busy: nothing is wrong, the server has too much to
    do. wait_s: how long it asks to wait."""

    def __init__(self, reason: str, *, is_final: bool = False, is_busy: bool = False, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.is_final, self.is_busy, self.wait_s = is_final, is_busy, wait_s


def api_root(url: str) -> str:
    """The address below which the protocol's paths lie, of what users write: with or without /v1 or /chat/completions.

    Raises ValueError for what is no web address, and for one that holds a password, since command lines are recorded.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # which quotes what may hold a password
        parts = urlsplit("")
    is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
    has_more = parts.username or parts.password or parts.query or parts.fragment
    if has_more or (not is_address and not {"@", "?", "#"}.isdisjoint(url)):
        raise ValueError("the address holds a password or a query, and would be recorded; put the key into the environment")
    if not is_address:
        raise ValueError(f"{url} is not a web address, such as http://localhost:8000/v1")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


class Server:
    """One server. key_variable: the environment variable with the key; a server without keys needs none. Raises ValueError for
    an address that is none, and a key that cannot be sent."""

    def __init__(self, url: str, *, timeout_s: float, key_variable: str) -> None:
        self.url = api_root(url)
        self.not_before = 0.0  # on the monotonic clock: the server asked for a pause until then
        self._timeout_s = timeout_s
        self._secret = _key_in(key_variable)
        self._renamed: dict[str, str] = {}  # fields of the protocol that the server does not take: their new names, or none
        self._made: openai.OpenAI | None = None
        self._lock = threading.Lock()

    def ask(self, messages: list[dict[str, Any]], model: str, sampling: Mapping[str, Any]) -> Answer:
        """The answer of one call. messages and sampling: as the protocol has them. Raises Failed.

        What this server has refused to be told, such as a temperature by models that reason, it is not told again.
        """
        import openai

        fields = {self._renamed.get(name, name): value for name, value in sampling.items()}
        body = {name: value for name, value in fields.items() if name}
        try:
            # not chat.completions.create, which checks the types of each message: half of the processor time of a call
            reply = self._client().post(
                "/chat/completions", body={"model": model, "messages": messages, **body}, cast_to=object
            )
            answer = _answer_of(json.loads(reply) if isinstance(reply, str) else reply)
            return replace(answer, text=self._without_key(answer.text), finish=self._without_key(answer.finish))
        except openai.APIStatusError as error:
            if (
                error.status_code == 400
                and error.param in body.keys() & sampling.keys()
                and str(error.code).startswith("unsupported_")
            ):
                self._renamed[error.param] = _NEW_NAMES.get(error.param, "")
                return self.ask(messages, model, sampling)
            raise self._refused(error) from None
        except openai.APITimeoutError:
            raise Failed(f"{self.url}: no answer within {self._timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            raise Failed(f"{self.url}: the connection failed{self._quoted(error.__cause__)}") from None
        except (openai.OpenAIError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise Failed(f"{self.url}: what came back is no chat completion{self._quoted(error)}") from None

    def first_model(self) -> str:
        """The first model that the server lists; "default" where it lists none."""
        import openai

        try:
            return self._without_key(next((model.id for model in self._client().models.list()), "default"))
        except (openai.OpenAIError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return "default"

    def close(self) -> None:
        """Close the connections."""
        if self._made is not None:
            self._made.close()

    def _client(self) -> "openai.OpenAI":
        import openai

        with self._lock:
            if self._made is None:
                timeout = openai.Timeout(self._timeout_s, connect=min(_CONNECT_S, self._timeout_s))
                self._made = openai.OpenAI(
                    api_key=self._secret or "none", base_url=self.url, max_retries=0, timeout=timeout
                )  # fmt: skip
            return self._made

    def _refused(self, error: "openai.APIStatusError") -> Failed:
        status = error.status_code
        is_spent = error.code == "insufficient_quota"  # which OpenAI has as 429 too
        is_final = is_spent or (status < 500 and status not in _PASSING)
        reason = f"{self.url}: status {status}{self._quoted(error.body or error.response.text)}"
        return Failed(reason, is_final=is_final, is_busy=status == 429, wait_s=_wait_s(error.response.headers))

    def _quoted(self, found: object) -> str:
        text = self._without_key(" ".join(str(found or "").split()), shortest=1)
        return f" ({text if len(text) <= _QUOTED else text[:_QUOTED] + '…'})" if text else ""

    def _without_key(self, text: str, *, shortest: int = _SHORTEST_KEY) -> str:
        """A text with the key struck out, however it is escaped, unless the key is shorter than that."""
        if len(self._secret) >= shortest:
            forms = {self._secret, repr(self._secret)[1:-1], json.dumps(self._secret)[1:-1], quote(self._secret, safe="")}
            for form in sorted(forms, key=len, reverse=True):
                text = text.replace(form, "…")
        return text


def _key_in(variable: str) -> str:
    """The key in an environment variable, empty where it has none. Raises ValueError for one that no header can hold, which
    libraries would quote."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(f"the key in {variable} holds a blank, the end of a line or a letter that is not ASCII")
    return key


def _answer_of(body: Any) -> Answer:
    """What a body of the protocol says. Raises KeyError and its kin for another body."""
    choice = body["choices"][0]
    text, usage = choice["message"].get("content"), body.get("usage") or {}
    if not isinstance(text, str | None):
        raise TypeError(f"the content is {text!r}")
    n_prompt, n_answer = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
    return Answer(text or "", str(choice.get("finish_reason") or ""), n_prompt, n_answer)


def _wait_s(headers: Mapping[str, str]) -> float | None:
    """The pause that Retry-After asks for, in seconds or as a date; None where there is none."""
    text = headers.get("retry-after", "")
    try:
        wait_s = float(text)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(wait_s, 0.0), _LONGEST_WAIT_S) if math.isfinite(wait_s) else None
