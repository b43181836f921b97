"""Zip files of XML parts (office documents, EPUB), whose parts are counted before they are expanded."""

import io
import posixpath
import zipfile
import zlib
from typing import Any
from urllib.parse import unquote

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

MAX_ENTRIES = 50_000

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_CORE = "{http://schemas.openxmlformats.org/package/2006/metadata/core-properties}"
_DC, _TERMS = "{http://purl.org/dc/elements/1.1/}", "{http://purl.org/dc/terms/}"
_PROPERTIES = {
    f"{_DC}title": "title",
    f"{_DC}creator": "author",
    f"{_DC}language": "language",
    f"{_TERMS}created": "created",
    f"{_TERMS}modified": "modified",
    f"{_CORE}keywords": "keywords",
}


class Archive:
    """The parts of a zip file.

    Args:
        raw: the file.
        max_bytes: of all parts that are read, when expanded.

    Raises:
        ValueError: the file is not a zip file, is incomplete or encrypted.
    """

    def __init__(self, raw: bytes, *, max_bytes: int) -> None:
        if raw.startswith(_OLE):
            raise ValueError(
                "encrypted with a password, or in the binary format of Office 97; save a copy in the current "
                "format without a password"
            )
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(raw))
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise ValueError(f"damaged or cut off ({error}); download or save it again") from error
        self._parts = {entry.filename: entry for entry in self._zip.infolist()}
        self._max_bytes = self._left = max_bytes
        if len(self._zip.infolist()) > MAX_ENTRIES:
            raise ValueError(f"more than {MAX_ENTRIES:,} parts; expected one document")

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    @property
    def names(self) -> list[str]:
        """The names of the parts, in the file's order."""
        return list(self._parts)

    def size(self, name: str) -> int:
        """Return the size of a part in bytes, expanded."""
        return self._parts[name].file_size

    def read(self, name: str) -> bytes:
        """Return a part, expanded.

        Raises:
            ValueError: it is missing, damaged or encrypted, or the parts expand to more than ``max_bytes``.
        """
        entry = self._parts.get(name)
        if entry is None:
            raise ValueError(f"damaged: its part {name} is missing; save it again")
        if entry.flag_bits & 1:
            raise ValueError("encrypted; save a copy without the password")
        self._left -= entry.file_size
        if self._left < 0:
            raise ValueError(f"its parts expand to more than {self._max_bytes >> 20} MiB; split it")
        try:
            return self._zip.read(entry)  # never more than the size that was counted
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise ValueError(f"damaged: its part {name} cannot be read ({error}); save it again") from error

    def xml(self, name: str) -> Any:
        """Return the root element of an XML part. Entities are not expanded, and nothing outside is read.

        Raises:
            ValueError: as ``read``, or it is not XML.
        """
        return parse_xml(self.read(name), name)

    def relations(self, name: str) -> dict[str, str]:
        """Return what a part of an Office document refers to: the target's name by the reference's id."""
        folder, _, file = name.rpartition("/")
        relations = f"{folder}/_rels/{file}.rels".lstrip("/")
        if relations not in self:
            return {}
        return {
            item.get("Id", ""): posixpath.normpath(
                posixpath.join(folder, unquote(item.get("Target", "")))
                if not item.get("Target", "").startswith("/")
                else item.get("Target", "").lstrip("/")
            )
            for item in self.xml(relations)
            if item.get("TargetMode") != "External"
        }

    def properties(self) -> dict[str, Any]:
        """Return the properties of an Office document, such as title, author and dates."""
        return properties_of(self.xml("docProps/core.xml")) if "docProps/core.xml" in self else {}


def properties_of(parent: Any) -> dict[str, Any]:
    """Return the Dublin Core elements among the children of an element, as metadata."""
    metadata: dict[str, Any] = {}
    for child in parent:
        name, value = _PROPERTIES.get(child.tag), (child.text or "").strip()
        if name and value:
            metadata.setdefault(name, value)
    return metadata


def parse_xml(raw: bytes, name: str) -> Any:
    """Return the root element of XML without entity declarations.

    Raises:
        ValueError: not XML, or it declares entities.
    """
    try:
        return ElementTree.fromstring(raw)
    except DefusedXmlException as error:
        raise ValueError(
            f"refused: its part {name} declares entities, which documents do not need"
        ) from error
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"damaged: its part {name} is not XML ({error}); save it again") from error
