"""Books (.epub): the pages of the spine in order, each read as HTML."""

import posixpath
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from nvembed.read.archive import Archive, properties_of
from nvembed.read.extracted import DocumentText, count_of
from nvembed.read.html import read_html

_CONTAINER = "{urn:oasis:names:tc:opendocument:xmlns:container}"
_OPF = "{http://www.idpf.org/2007/opf}"
_ENCRYPTED = "{http://www.w3.org/2001/04/xmlenc#}EncryptedData"
_REFERENCE = ".//{http://www.w3.org/2001/04/xmlenc#}CipherReference"
_PAGES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")


def read_epub(raw: bytes, max_bytes: int, progress: Callable[[], None]) -> DocumentText:
    """Return the text of a book, with its title, author and language.

    Pages that are not in the reading order (``linear="no"``) and the table of contents are left out.

    Raises:
        ValueError: damaged, encrypted or too large.
    """
    archive = Archive(raw, max_bytes=max_bytes)
    root = archive.xml("META-INF/container.xml").find(f".//{_CONTAINER}rootfile")
    if root is None:
        raise ValueError("not a book: META-INF/container.xml names no package")
    main = root.get("full-path", "")
    package, folder = archive.xml(main), posixpath.dirname(main)
    encrypted = _encrypted(archive)
    items = {item.get("id"): item for item in package.iter(f"{_OPF}item")}
    pages: list[str] = []
    warnings: list[str] = []
    missing = 0
    for reference in package.iter(f"{_OPF}itemref"):
        item = items.get(reference.get("idref"))
        if item is None or reference.get("linear") == "no":
            continue
        if item.get("media-type") not in _PAGES or "nav" in item.get("properties", "").split():
            continue
        name = posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))
        if name in encrypted:
            raise ValueError("encrypted (DRM): its pages cannot be read")
        if name not in archive:
            missing += 1
            continue
        text, _, notes = read_html(archive.read(name), xhtml=True, named_rows=True, progress=progress)
        pages.append(text)
        warnings += (f"{name}: {note}" for note in notes)
        progress()
    if missing:
        warnings.append(count_of(missing, "page", "missing in the file"))
    metadata: dict[str, Any] = {}
    if (about := package.find(f"{_OPF}metadata")) is not None:
        metadata = properties_of(about)
        for nested in about:  # EPUB 2 before 2007
            metadata = {**properties_of(nested), **metadata}
    return DocumentText("\n\n".join(filter(str.strip, pages)), metadata, (), tuple(warnings))


def _encrypted(archive: Archive) -> set[str]:
    name = "META-INF/encryption.xml"
    if name not in archive:
        return set()
    references = (item.find(_REFERENCE) for item in archive.xml(name).iter(_ENCRYPTED))
    return {unquote(item.get("URI", "")) for item in references if item is not None}
