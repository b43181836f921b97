"""``nvembed serve``: the embedding server."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin

from cyclopts import Parameter
from pydantic import ValidationError

from nvembed.cli.models import load
from nvembed.errors import InputError, MissingExtraError
from nvembed.recipe import read_recipe
from nvembed.serve.settings import Settings

if TYPE_CHECKING:
    from nvembed.serve.model import Model

PREFIX = "NVEMBED_"


def serve(
    model: str | None = None,
    /,
    *,
    config: Path | None = None,
    settings: Annotated[Settings | None, Parameter(name="*")] = None,
) -> None:
    """Serve a model: the embedding APIs of OpenAI, NVIDIA NIM, Cohere and TEI.

    Routes: /v1/embeddings, /v1/models, /v2/embed, /embed, /similarity, /tokenize, /info, /health/live,
    /health/ready, /metrics, /stats, /openapi.json. SIGTERM and Ctrl-C let the requests at work finish.

    Every option can also stand in a TOML file (port = 8000) or in the environment (NVEMBED_PORT=8000; several
    values parted by commas). A flag wins over the environment, and that over the file.

    Examples:

        nvembed serve nvidia/NV-Embed-v2 --device cuda:0,cuda:1

        nvembed serve small --host 0.0.0.0 --api-key-file keys.txt --tls-cert cert.pem --tls-key key.pem

        NVEMBED_API_KEY=secret nvembed serve --config server.toml

        nvembed serve --index manuals --index-map clusters

    Parameters
    ----------
    model
        A checkpoint folder, or a hub id.
    config
        A TOML file of options.
    """
    chosen = merged(settings, config, os.environ)
    if model is not None:
        chosen = chosen.model_copy(update={"model": model})
    try:
        from nvembed.serve.run import Server
    except ImportError as error:
        raise MissingExtraError(f"pip install 'nvembed[serve]' to serve ({error.name} is missing)") from error
    if chosen.index is None:
        Server(chosen, lambda: loaded(chosen)).serve_forever()
        return
    from nvembed.cli.serve_index import served_index

    index, its_model, check = served_index(chosen.index, chosen.index_map)
    chosen = chosen.model_copy(update={"model": chosen.model or its_model})

    def load_checked() -> "Model":
        model = loaded(chosen)
        check(model.fingerprint)
        return model

    Server(chosen, load_checked, index).serve_forever()


def merged(flags: Settings | None, file: Path | None, environment: Mapping[str, str]) -> Settings:
    """Return the settings that were given: flags before environment before file before defaults.

    Raises:
        ConfigError: the file cannot be used.
        InputError: a variable cannot be.
    """
    file = file or (Path(environment[f"{PREFIX}CONFIG"]) if f"{PREFIX}CONFIG" in environment else None)
    layers = [read_recipe(file, Settings)] if file else []
    layers.append(from_environment(environment))
    layers += [flags] if flags is not None else []
    values = {name: getattr(layer, name) for layer in layers for name in layer.model_fields_set}
    return Settings.model_construct(**values)


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Return what ``NVEMBED_...`` variables set.

    Raises:
        InputError: a value that cannot be used.
    """
    given: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        value = environment.get(PREFIX + name.upper(), "")
        if value or (name == "api_key" and f"{PREFIX}API_KEY" in environment):  # an empty key opens no server
            given[name] = value.split(",") if get_origin(field.annotation) is tuple else value
    try:
        return Settings.model_validate(given)  # not strict: numbers may be strings
    except ValidationError as error:
        faults = [
            f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}, got {e['input']!r:.80}" for e in error.errors()
        ]
        raise InputError("\n".join(faults)) from error


def loaded(settings: Settings) -> "Model":
    """Load the model that is to be served, and say what the server needs of it."""
    from nvembed.serve.model import Device, Model

    encoder = load(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        revision=settings.revision,
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
    return Model(
        name=settings.model,
        dim=encoder.dim,
        max_length=encoder.max_length,
        dtype=encoder.dtype,
        pooling=encoder.replicas[0].config.pooling,
        fingerprint=encoder.fingerprint,
        tokenise=tokenizer,
        text_of=tokenizer.text_of if settings.vocabulary == "model" else _tiktoken(settings.vocabulary),
        pieces=lambda text, prompt: tokenizer.pieces(text, prompt=prompt),
        devices=tuple(devices),
    )


def _tiktoken(name: str | None) -> Callable[[Sequence[int]], str] | None:
    """Return the function that decodes ids of a tiktoken encoding; None without a name.

    Raises:
        MissingExtraError: tiktoken is not installed.
        InputError: it knows no such encoding, or cannot fetch it.
    """
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
        except Exception as error:  # an id it does not know is a KeyError, or a panic of its Rust core
            raise InputError(f"these token ids are not {name}'s: {error}") from error

    return text_of
