"""Options of the commands that ask a chat model: ask, chat and serve."""

import json
import os
from typing import Annotated, Any

from cyclopts import Group, Parameter
from pydantic import BeforeValidator, ConfigDict, Field

from nvembed.errors import InputError
from nvembed.recipe import Recipe
from nvembed.search.chat import ChatModel

_GROUP = Group("Chat model", sort_key=5)


def _option(alias: str = "") -> Parameter:
    return Parameter(alias=alias or None, group=_GROUP)


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Several = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class ChatOptions(Recipe):
    """The model that answers. Its key is read from NVEMBED_CHAT_KEY or OPENAI_API_KEY."""

    model_config = ConfigDict(strict=False)  # flags and variables come as strings

    chat_endpoint: Annotated[str | None, _option("--endpoint")] = Field(
        default=None,
        description="Base URL of an OpenAI-compatible chat API, such as http://localhost:8001/v1.",
    )
    chat_model: Annotated[str | None, _option()] = Field(
        default=None, description="Name of the chat model there."
    )
    chat_temperature: Annotated[float | None, _option("--temperature")] = Field(
        default=None, description="Temperature of sampling. Default: the endpoint's, as for the next four."
    )
    chat_max_tokens: Annotated[int | None, _option("--max-tokens")] = Field(
        default=None, ge=1, description="Most tokens of a reply."
    )
    chat_top_p: Annotated[float | None, _option("--top-p")] = Field(
        default=None, description="Sample from the most likely tokens with this probability in total."
    )
    chat_seed: Annotated[int | None, _option("--seed")] = Field(default=None, description="Seed of sampling.")
    chat_stop: Annotated[Several, _option("--stop")] = Field(
        default=(), description="A string that ends the reply. May be repeated."
    )
    chat_param: Annotated[Several, _option("--param")] = Field(
        default=(), description="Further parameter of the request, such as top_k=20. May be repeated."
    )
    chat_body: Annotated[str | None, _option("--body")] = Field(
        default=None, description="Further parameters of the request, as one JSON object."
    )
    chat_header: Annotated[Several, _option("--header")] = Field(
        default=(), description='Further header of the request, such as "X-Team: search". May be repeated.'
    )
    chat_timeout: Annotated[float, _option("--timeout")] = Field(
        default=120, description="Seconds to wait for the next part of the chat model's reply, up to a day."
    )
    chat_stream: Annotated[bool, _option()] = Field(default=True, description="Ask for the reply in pieces.")

    def chat(self) -> ChatModel | None:
        """Return the chat model; None without an endpoint.

        Raises:
            InputError: an option cannot be used, or the endpoint or the name of the model is missing.
        """
        if (self.chat_endpoint is None) != (self.chat_model is None):
            raise InputError("expected --chat-endpoint and --chat-model together, or neither")
        if self.chat_endpoint is None or self.chat_model is None:
            return None
        return ChatModel(
            endpoint=self.chat_endpoint,
            model=self.chat_model,
            key=os.environ.get("NVEMBED_CHAT_KEY") or os.environ.get("OPENAI_API_KEY"),
            timeout_s=self.chat_timeout,
            parameters=self._parameters(),
            headers=_headers(self.chat_header),
            stream=self.chat_stream,
        )

    def _parameters(self) -> dict[str, Any]:
        named = {
            "temperature": self.chat_temperature,
            "max_tokens": self.chat_max_tokens,
            "top_p": self.chat_top_p,
            "seed": self.chat_seed,
            "stop": list(self.chat_stop) or None,
        }
        values = {name: value for name, value in named.items() if value is not None}
        for further in (parse_parameters(self.chat_param), parse_body(self.chat_body)):
            for name in further:
                if name in values:
                    raise InputError(
                        f"the chat parameter {name!r} is set twice: leave one of the options out"
                    )
            values |= further
        return values


def parse_parameters(texts: tuple[str, ...]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` options; a value that is JSON has its JSON type, anything else is text."""
    parameters = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise InputError(f"--chat-param is {text!r}; expected KEY=VALUE, such as top_k=20")
        try:
            parameters[name] = json.loads(value)
        except (ValueError, RecursionError):
            parameters[name] = value
    return parameters


def parse_body(text: str | None) -> dict[str, Any]:
    """Read the JSON object of ``--chat-body``."""
    try:
        body = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"--chat-body is {text!r:.100}; expected one JSON object ({error})") from error
    if not isinstance(body, dict):
        raise InputError(f"--chat-body is {text!r:.100}; expected one JSON object")
    return body


def _headers(texts: tuple[str, ...]) -> dict[str, str]:
    headers = {}
    for text in texts:
        name, colon, value = text.partition(":")
        if not name.strip() or not colon:
            raise InputError(f"--chat-header {name!r:.60}: expected NAME: VALUE")
        headers[name.strip()] = value.strip()
    return headers
