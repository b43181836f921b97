"""``nvembed serve``: the embedding server."""

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from pydantic import ValidationError

from nvembed.cli.chat_options import ChatOptions
from nvembed.cli.models import load
from nvembed.errors import InputError, MissingExtraError
from nvembed.recipe import nearest, read_recipe
from nvembed.serve.settings import ServerSettings

if TYPE_CHECKING:
    from nvembed.serve.model import ServedModel
    from nvembed.serve.run import Server

PREFIX = "NVEMBED_"
# Variables that are not settings of the server.
OTHERS = ("NVEMBED_CONFIG", "NVEMBED_CHAT_KEY")


class ServeOptions(ChatOptions, ServerSettings):
    """The options of the command: those of the server, and those of the chat model."""


def serve(
    model: str | None = None,
    /,
    *,
    config: Path | None = None,
    settings: Annotated[ServeOptions | None, Parameter(name="*")] = None,
) -> None:
    """Serve a model: the embedding APIs of OpenAI, NVIDIA NIM, Cohere and TEI.

    Routes: /v1/embeddings, /v1/models, /v1/embed, /v2/embed, /embed, /similarity, /tokenize, /info, /search,
    /ask, /health/live, /health/ready, /metrics, /stats, /openapi.json. SIGTERM and Ctrl-C let running
    requests finish.

    Every option can also be set in a TOML file (port = 8000) or in the environment (NVEMBED_PORT=8000).
    Several values are separated by commas. Flags override the environment, which overrides the file.

    Examples:

        nvembed serve nvidia/NV-Embed-v2 --device cuda:0,cuda:1

        nvembed serve small --host 0.0.0.0 --api-key-file keys.txt \\
            --tls-cert cert.pem --tls-key key.pem

        NVEMBED_API_KEY=secret nvembed serve --config server.toml

        nvembed serve --index manuals --index-map clusters

        nvembed serve --index manuals=work/manuals --index tickets=work/tickets

        nvembed serve --index manuals \\
            --chat-endpoint http://localhost:8001/v1 --chat-model qwen3

    Parameters
    ----------
    model
        Model: a folder or a hub id.
    config
        A TOML file with options.
    """
    chosen = merged(settings, config, os.environ)
    if model is not None:
        chosen = chosen.model_copy(update={"model": model})
    chat = chosen.chat()
    from nvembed.serve.run import Server

    if not chosen.index:
        if chosen.index_map or chat is not None:
            option = "index_map" if chosen.index_map else "chat_endpoint"
            raise InputError(f"{option} needs index: pass --index too")
        _refuse_missing(chosen.model)
        _run(Server(chosen, lambda: loaded(chosen)))
        return
    from nvembed.cli.serve_chat import served_chat
    from nvembed.cli.serve_index import IndexesToServe

    indexes = IndexesToServe(chosen.index, chosen.index_map, chosen.index_server)
    chosen = chosen.model_copy(update={"model": chosen.model or indexes.model})
    _refuse_missing(chosen.model)

    def load_all() -> "ServedModel":
        model = loaded(chosen)
        indexes.load_models(model.fingerprint, partial(load, device=chosen.device, dtype=chosen.dtype))
        return model

    _run(Server(chosen, load_all, indexes.served(), None if chat is None else served_chat(chat)))


def _refuse_missing(model: str) -> None:
    """Raise WeightsError for a name that is neither a folder nor a hub id, before the port is opened."""
    if model and len(model.split("/")) != 2:
        from nvembed.weights.hub import model_folder

        model_folder(model)


def _run(server: "Server") -> None:
    """Serve, and leave with 128 + the signal if one came before the model was loaded."""
    load = server.load

    def load_for_good() -> "ServedModel":
        model = load()
        gc.collect()
        gc.freeze()  # a pass over modules and model would stop every thread for 0.2 s and more
        return model

    server.load = load_for_good
    server.serve_forever()
    code = 0 if server.ended_by is None else 128 + server.ended_by
    native = [
        thread for thread in threading.enumerate() if thread.name.startswith(("load", "compute-", "search"))
    ]
    if native:  # still inside a library: the interpreter's own end would abort it
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def merged(flags: ServeOptions | None, file: Path | None, environment: Mapping[str, str]) -> ServeOptions:
    """Return the settings: flags before environment before file before defaults."""
    file = file or (Path(environment[f"{PREFIX}CONFIG"]) if f"{PREFIX}CONFIG" in environment else None)
    layers = [read_recipe(file, ServeOptions)] if file else []
    layers.append(from_environment(environment))
    layers += [flags] if flags is not None else []
    values = {name: getattr(layer, name) for layer in layers for name in layer.model_fields_set}
    return ServeOptions.model_construct(**values)


def from_environment(environment: Mapping[str, str]) -> ServeOptions:
    """Return the settings of ``NVEMBED_...`` variables."""
    variables = {PREFIX + name.upper(): name for name in ServeOptions.model_fields}
    for variable in environment:
        if variable.startswith(PREFIX) and variable not in variables and variable not in OTHERS:
            raise InputError(f"unknown variable {variable}: {nearest(variable, variables)}")
    values = {
        name: environment[variable]
        for variable, name in variables.items()
        # an empty key is refused later, not taken for none
        if environment.get(variable) or (name == "api_key" and variable in environment)
    }
    try:
        return ServeOptions.model_validate(values)  # not strict: numbers may be strings
    except ValidationError as error:
        faults = [
            f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}, got {e['input']!r:.80}" for e in error.errors()
        ]
        raise InputError("\n".join(faults)) from error


def loaded(settings: ServerSettings) -> "ServedModel":
    """Load the model, and return it as the functions that the server needs."""
    from nvembed.serve.model import Device, ServedModel

    encoder = load(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        revision=settings.revision,
        compiled=settings.compiled,
    )
    devices = [
        Device(
            f"{replica.device}",
            partial(encoder.embed_tokens, replica=number),
            settings.max_batch_tokens or encoder.batch_tokens(number),
        )
        for number, replica in enumerate(encoder.replicas)
    ]
    tokenizer = encoder.tokenizer
    return ServedModel(
        dim=encoder.dim,
        max_length=encoder.max_length,
        dtype=encoder.dtype,
        pooling=encoder.replicas[0].config.pooling,
        fingerprint=encoder.fingerprint,
        tokenise=tokenizer,
        text_of=tokenizer.text_of if settings.vocabulary == "model" else _tiktoken(settings.vocabulary),
        pieces=lambda text, prompt: tokenizer.pieces(text, prompt=prompt),
        devices=tuple(devices),
        prompts=encoder.prompts,
    )


def _tiktoken(name: str | None) -> Callable[[Sequence[int]], str] | None:
    """Return the function that decodes ids of a tiktoken encoding; None without a name."""
    if name is None:
        return None
    try:
        import tiktoken
    except ImportError as error:
        raise MissingExtraError(f"vocabulary {name!r} needs tiktoken: pip install tiktoken") from error
    try:
        encoding = tiktoken.get_encoding(name)
    except Exception as error:  # an unknown name, or a failed download, in several types
        raise InputError(f"vocabulary {name!r} cannot be used: {error}") from error

    def text_of(ids: Sequence[int]) -> str:
        try:
            return str(encoding.decode(list(ids)))
        except Exception as error:  # an unknown id is a KeyError, or a panic of its Rust core
            raise InputError(f"these token ids are not {name}'s: {error}") from error

    return text_of
