"""A server of several indexes: by name, of one model and of two, while they change."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedded_folder import DIM, DOCUMENTS, FINGERPRINT, embed, write_embedded
from serving import Got, ask, fake_model, served

from nvembed.cli.serve_index import IndexesToServe
from nvembed.embed.embedded import open_embedded
from nvembed.errors import DataError, InputError
from nvembed.search.index import build
from nvembed.serve.model import Device, ServedModel
from nvembed.serve.run import Server
from nvembed.text.tokenize import Tokens

OTHER, OTHER_DIM = "f" * 32, 32


@dataclass
class OtherEncoder:
    """The model of the second index."""

    fingerprint: str = OTHER
    prompts: None = None

    def stream(self, texts: list[str], *, prompt: str, max_length: int) -> Iterator[Any]:
        yield type("Part", (), {"vectors": embed([prompt + text for text in texts], OTHER_DIM)})


def model() -> ServedModel:
    def vectors(tokens: Sequence[Tokens], *, pause: Callable[[], None] | None) -> np.ndarray:
        return embed(["".join(map(chr, item.input_ids)) for item in tokens])

    return replace(fake_model(), dim=DIM, fingerprint=FINGERPRINT, devices=(Device("fake", vectors, 64),))


def made(folder: Path, names: list[str], **more: Any) -> str:
    documents = {name: DOCUMENTS[name] for name in names}
    build(open_embedded(write_embedded(folder, documents, **more)), folder / "index", rebuild=True).close()
    return str(folder)


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    return [
        made(tmp_path / "sport", ["judo.md", "radio.md"]),
        f"pets={made(tmp_path / 'work', ['empty'])}",
        f"italian={made(tmp_path / 'it', [list(DOCUMENTS)[2]], fingerprint=OTHER, dim=OTHER_DIM)}",
    ]


@pytest.fixture
def server(folders: list[str]) -> Iterator[Server]:
    indexes = IndexesToServe(folders)
    assert indexes.load_models(FINGERPRINT, lambda name: OtherEncoder()) == ["model"]  # type: ignore[arg-type]
    with served(model(), index_of=indexes.served()) as server:
        yield server


def search(server: Server, query: str, **more: object) -> Got:
    return ask(server, "/search", {"query": query, **more})


def test_names_are_listed(server: Server) -> None:
    names = ["sport", "pets", "italian"]
    assert ask(server, "/index").json["name"] == "sport"
    assert ask(server, "/index?name=pets").json["name"] == "pets"
    assert ask(server, "/index").json["indexes"] == names
    assert ask(server, "/info").json["indexes"] == names
    assert ask(server, "/stats").json["indexes"] == names
    got = ask(server, "/index?name=nothing")
    assert (got.status, got.json["error"]["code"]) == (404, "index_not_found")


@pytest.mark.parametrize("mode", ["hybrid", "vector", "text"])
def test_searches(server: Server, mode: str) -> None:
    everything = search(server, "a cat sleeps all day gatto judo", mode=mode, top=20).json["hits"]
    assert {hit["index"] for hit in everything} == {"sport", "pets", "italian"}
    some = search(server, "a cat sleeps all day", mode=mode, indexes=["pets", "sport"]).json["hits"]
    assert {hit["index"] for hit in some} == {"sport", "pets"}
    assert some[0]["document"] == "empty"
    one = search(server, "il gatto dorme", mode=mode, indexes=["italian"]).json["hits"]
    assert [hit["index"] for hit in one] == ["italian"]
    if mode == "vector":
        assert one[0]["score"] == pytest.approx(float(embed(["il gatto dorme"], OTHER_DIM)[0] @ embed(
            [one[0]["text"]], OTHER_DIM
        )[0]), abs=1e-3)  # fmt: skip


def test_refusals(server: Server) -> None:
    got = search(server, "x", indexes=["sport", "nothing"])
    assert (got.status, got.json["error"]["code"]) == (404, "index_not_found")
    assert "'italian'" in got.json["error"]["message"]
    got = search(server, "x", where=["page = 3"])
    assert (got.status, got.json["error"]["code"]) == (400, "bad_filter")
    assert "index 'pets': no field 'page'" in got.json["error"]["message"]
    assert search(server, "x", where=["page = 3"], indexes=["sport"]).status == 200


def test_an_index_that_is_built_again_with_fields_and_another_prompt(server: Server, tmp_path: Path) -> None:
    assert search(server, "x", indexes=["pets"]).json["prompt"] == ""
    folder = tmp_path / "again"
    documents = {"owl": (["An owl hoots at night."], {"wings": 2})}
    source = open_embedded(write_embedded(folder, documents))
    from nvembed.search.index import IndexOptions

    options = IndexOptions(query_prompt="query: ")
    build(source, tmp_path / "work" / "index", options, rebuild=True).close()
    got = search(server, "owl", indexes=["pets"], where=["wings = 2"])
    assert (got.json["prompt"], [hit["document"] for hit in got.json["hits"]]) == ("query: ", ["owl"])
    facts = ask(server, "/index?name=pets").json
    assert (facts["fields"]["wings"], facts["query_prompt"]) == ("int", "query: ")
    assert search(server, "owl").status == 200  # beside indexes with another prompt


def test_an_index_that_becomes_another_models(server: Server, tmp_path: Path) -> None:
    source = open_embedded(write_embedded(tmp_path / "new", fingerprint="e" * 32))
    build(source, tmp_path / "work" / "index", rebuild=True).close()
    assert search(server, "x", indexes=["pets"]).status == 503
    assert search(server, "x", indexes=["sport"]).status == 200


def test_what_cannot_be_served(folders: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two indexes are named 'sport'"):
        IndexesToServe([folders[0], folders[0]])
    with pytest.raises(DataError, match="is not an index"):
        IndexesToServe([f"x={tmp_path / 'nothing'}"])
    with pytest.raises(InputError, match="expected NAME=FOLDER"):
        IndexesToServe(folders, [str(tmp_path)])
    with pytest.raises(InputError, match="names no index"):
        IndexesToServe(folders, [f"pet={tmp_path}"])
    with pytest.raises(InputError, match="FOLDER nor NAME=FOLDER"):
        IndexesToServe(["=x"])
    with pytest.raises(InputError, match="has the fingerprint 1"):
        IndexesToServe(folders).load_models(FINGERPRINT, lambda _: OtherEncoder("1"))  # type: ignore[arg-type]
