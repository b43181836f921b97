"""Options of the server: one schema for flags, environment (``NVEMBED_PORT``) and TOML (``port = 8000``)."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from nvembed.errors import InputError
from nvembed.recipe import Recipe
from nvembed.text.prompt import format_prompt


def _split(value: object) -> object:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple):
        return value
    return tuple(part for item in values for part in (item.split(",") if isinstance(item, str) else [item]))


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ServerSettings(Recipe):
    """Each field is a flag of ``nvembed serve``; its description is the flag's help."""

    model_config = ConfigDict(strict=False)  # flags and variables come as strings

    model: str = Field("", description="A checkpoint folder or a hub id.")
    served_name: Names = Field((), description="Names of the model in requests, separated by commas.")
    device: str | None = Field(None, description="cpu, cuda, cuda:1, or several: cuda:0,cuda:1.")
    dtype: Literal["float32", "bfloat16", "float16", "int8", "int4", "fp8"] | None = Field(
        None, description="Number format. Default: bfloat16 on CUDA, float32 on CPU."
    )
    compiled: bool = Field(
        False,
        description="Compile the layers at the first batches, which takes minutes; on CUDA, replay single "
        "short texts as graphs.",
    )
    revision: str | None = Field(None, description="A hub branch, tag or commit.")

    index: Names = Field(
        (), description="Indexes to search, FOLDER or NAME=FOLDER: /search, a page at /page/search."
    )
    index_server: str = Field(
        "", description="PostgreSQL URL of the server that stores their passages, without the password."
    )
    index_map: Names = Field((), description="Their maps, FOLDER or NAME=FOLDER: what nvembed cluster wrote.")

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 is every address of this host.")
    port: int = Field(8000, ge=0, le=65535, description="Port; 0 takes a free one and logs it.")
    api_key: Names = Field((), description="Keys of clients. Others can see flags: prefer --api-key-file.")
    api_key_file: Path | None = Field(None, description="A file with one key per line.")
    allowed_host: Names = Field(
        (), description="Further Host headers to accept on loopback without a key (behind a proxy)."
    )
    cors_origin: Names = Field(
        (), description="Origins of web pages that may call this server, such as https://example.org."
    )
    tls_cert: Path | None = Field(None, description="A PEM certificate chain: serve HTTPS.")
    tls_key: Path | None = Field(None, description="The PEM private key of --tls-cert.")

    query_instruction: str = Field(
        "Given a question, retrieve passages that answer the question",
        description="Instruction of input_type query, for requests without an instruction or task.",
    )
    classification_instruction: str = Field("", description="The same for input_type classification.")
    clustering_instruction: str = Field("", description="The same for input_type clustering.")
    vocabulary: str | None = Field(
        None, description="Accept token ids of this vocabulary: model, or a tiktoken encoding (cl100k_base)."
    )

    max_length: Positive | None = Field(
        None, description="Tokens read of one text. Default: the model's limit."
    )
    max_items: Annotated[int, Field(ge=1, le=65_536)] = Field(2048, description="Texts in one request.")
    max_body_bytes: Positive = Field(
        16 * 2**20, description="Bytes of one request, and of its texts with the prompt prepended to each."
    )
    max_text_bytes: Positive = Field(2 * 2**20, description="Bytes of one text and its prompt.")
    max_batch_tokens: Positive | None = Field(
        None, description="Tokens computed at a time. Default: from the free memory."
    )
    max_queue_tokens: Positive | None = Field(
        None, description="Tokens that may wait; further requests get 429. Default: 64 batches."
    )
    max_connections: Positive = Field(4096, description="Open connections, idle ones included.")
    query_tokens: Positive = Field(
        1024, description="Largest request in tokens that may count as a query, which goes before bulk."
    )
    pause_ms: Annotated[float, Field(ge=1, le=60_000)] = Field(
        50.0, description="Target for a query's wait for the batch at work; batches adapt to it."
    )
    tokenise_threads: Annotated[int, Field(ge=1, le=64)] = Field(2, description="Threads that tokenise.")

    timeout_s: Seconds = Field(
        300.0, description="Time limit of a request; the header X-Timeout-S can lower it."
    )
    body_timeout_s: Seconds = Field(30.0, description="Time limit for the arrival of a request's body.")
    idle_timeout_s: Seconds = Field(60.0, description="Time a connection may stay open without a request.")
    drain_timeout_s: Seconds = Field(60.0, description="Time for running requests to finish on SIGTERM.")

    log_format: Literal["json", "text"] = Field("json", description="Format of the log on standard error.")
    otlp_endpoint: str | None = Field(None, description="Send OpenTelemetry spans to this OTLP/HTTP address.")

    def keys(self) -> tuple[bytes, ...]:
        """Return the API keys; if there are none, requests need no key.

        Raises:
            InputError: the key file cannot be read, or a key is empty or not printable ASCII.
        """
        keys = list(self.api_key)
        if self.api_key_file is not None:
            try:
                lines = self.api_key_file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"api_key_file {self.api_key_file} cannot be read: {error}") from error
            keys += [line.strip() for line in lines if line.strip()]
            if not keys:
                raise InputError(f"api_key_file {self.api_key_file} has no key: expected one per line")
        for number, key in enumerate(keys):
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise InputError(f"API key {number} is empty, or not printable ASCII without spaces")
        return tuple(key.encode() for key in keys)

    def check(self) -> None:
        """Check fields that depend on each other, and files.

        Raises:
            InputError: there is no model, a file is missing, or a value cannot be used.
        """
        if not self.model:
            raise InputError("no model: pass nvembed serve MODEL, or set model in --config or NVEMBED_MODEL")
        if "" in self.served_name:
            raise InputError("served_name has an empty name: expected names separated by commas")
        for device in (self.device or "cpu").split(","):
            if re.fullmatch(r"cpu|cuda(:\d{1,4})?", device) is None:
                expected = "expected cpu, cuda, cuda:1, or several: cuda:0,cuda:1"
                raise InputError(f"device is {device!r}: {expected}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("tls_cert and tls_key go together: expected both or neither")
        for name, path in (("tls_cert", self.tls_cert), ("tls_key", self.tls_key)):
            if path is not None and not path.is_file():
                raise InputError(f"{name} {path} is not a file: expected PEM")
        for name in ("query_instruction", "classification_instruction", "clustering_instruction"):
            try:
                format_prompt(getattr(self, name))
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
        if self.otlp_endpoint and not self.otlp_endpoint.startswith(("http://", "https://")):
            raise InputError(f"otlp_endpoint is {self.otlp_endpoint!r}: expected http://HOST:4318, or https")
        for origin in self.cors_origin:
            if origin != "*" and not origin.startswith(("http://", "https://")):
                raise InputError(f"cors_origin is {origin!r}: expected https://HOST, or *")
        if self.query_tokens > (self.max_queue_tokens or self.query_tokens):
            raise InputError(
                f"query_tokens {self.query_tokens:,} is above max_queue_tokens {self.max_queue_tokens:,}"
            )

    @property
    def exposed(self) -> bool:
        """Whether other hosts can connect without a key."""
        return self.host not in LOOPBACK and not self.api_key and self.api_key_file is None
