"""Detection and decoding of the encoding of an HTML file, as in browsers (WHATWG Encoding and HTML
standards).

Labels come from ``webencodings``. Python's codecs differ from the standard in some characters (C1 controls,
NEC and IBM extensions, the euro sign), which ``decode`` corrects.
"""

import codecs
import re
from collections.abc import Callable

import webencodings

PRESCAN_BYTES = 1024

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16le"), (codecs.BOM_UTF16_BE, "utf-16be"))
_XML = re.compile(rb"<\?xml[^>]*?\sencoding\s*=\s*([\"'])([^\"'>]*)\1")
_ATTRIBUTE = re.compile(
    rb"[\s/]*([^\s/>=][^\s/>=]*)(?:\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s>\"'][^\s>]*)))?"
)
_CHARSET = re.compile(r"charset\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s;\"']+))", re.IGNORECASE)

_CODECS = {"gbk": "gb18030", "iso-2022-jp": "iso2022_jp_ext"}
# Characters that browsers decode differently from Python's codec of the same name.
_DIFFERENCES = {
    "big5": str.maketrans(
        "\u2022\uff64\u203e\u223c\u2641\u2609\u00a5\u00a2\u00a3",
        "\u2027\ufe51\u00af\uff5e\u2295\u2299\uffe5\uffe0\uffe1",
    ),
    "koi8-u": str.maketrans("\u255d\u256c", "\u045e\u040e"),
    "gb18030": str.maketrans(
        "\ue5e5\ue78d\ue78e\ue78f\ue790\ue791\ue792\ue793\ue794\ue795\ue796"
        "\ue7c7\ue81e\ue826\ue82b\ue82c\ue832\ue843\ue854\ue864",
        "\u3000\ufe10\ufe12\ufe11\ufe13\ufe14\ufe15\ufe16\ufe17\ufe18\ufe19"
        "\u1e3f\u9fb4\u9fb5\u9fb6\u9fb7\u9fb8\u9fb9\u9fba\u9fbb",
    ),
    "jis": str.maketrans("\u301c\u2016\u2212\u00a2\u00a3\u00ac", "\uff5e\u2225\uff0d\uffe0\uffe1\uffe2"),
}
_DIFFERENCES |= {"gbk": _DIFFERENCES["gb18030"]}
_DIFFERENCES |= {"euc-jp": _DIFFERENCES["jis"], "iso-2022-jp": _DIFFERENCES["jis"]}


def bom(raw: bytes) -> str | None:
    """Return the encoding that a byte order mark names."""
    return next((name for mark, name in _BOMS if raw.startswith(mark)), None)


def from_label(label: str) -> str | None:
    """Return the encoding of a label in a page, where UTF-16 means UTF-8; None if it is unknown."""
    encoding = webencodings.lookup(label)
    if encoding is None:
        return None
    name: str = encoding.name
    return {"utf-16le": "utf-8", "utf-16be": "utf-8", "x-user-defined": "windows-1252"}.get(name, name)


def from_content(content: str) -> str | None:
    """Return the encoding in the content of ``<meta http-equiv="Content-Type">``."""
    match = _CHARSET.search(content[:PRESCAN_BYTES])
    return from_label(next(group for group in match.groups() if group is not None)) if match else None


def prescan(raw: bytes) -> str | None:
    """Return the encoding that the first 1,024 bytes declare in a ``meta`` element, or in an XML prologue.

    Comments and other elements with their attributes are skipped.
    """
    head = raw[:PRESCAN_BYTES]
    at = 0
    while (at := head.find(b"<", at)) >= 0:
        if head.startswith(b"<!--", at):
            end = head.find(b"-->", at + 2)
            if end < 0:
                break
            at = end + 3
        elif re.match(rb"<meta[\s/]", head[at : at + 6], re.IGNORECASE):
            attributes, at = _attributes(head, at + 5)
            if name := _declared(attributes):
                return name
        elif re.match(rb"</?[a-z]", head[at : at + 3], re.IGNORECASE):
            space = re.compile(rb"[\s>]").search(head, at)
            _, at = _attributes(head, space.start() if space else len(head))
        elif head[at + 1 : at + 2] in (b"!", b"/", b"?"):
            end = head.find(b">", at)
            if end < 0:
                break
            at = end + 1
        else:
            at += 1
    return xml_encoding(raw)


def xml_encoding(raw: bytes) -> str | None:
    """Return the encoding that an XML prologue declares."""
    match = _XML.match(raw[:PRESCAN_BYTES])
    return from_label(match[2].decode("latin-1")) if match else None


def _attributes(head: bytes, at: int) -> tuple[dict[str, str], int]:
    """Return the attributes of the tag whose name ends at ``at``, and the end of the tag."""
    attributes: dict[str, str] = {}
    while match := _ATTRIBUTE.match(head, at):
        value = next((group for group in match.groups()[1:] if group is not None), b"")
        attributes.setdefault(match[1].decode("latin-1").lower(), value.decode("latin-1"))
        at = match.end()
    end = head.find(b">", at)
    return attributes, len(head) if end < 0 else end + 1


def _declared(attributes: dict[str, str]) -> str | None:
    if "charset" in attributes:
        return from_label(attributes["charset"])
    if attributes.get("http-equiv", "").lower() == "content-type":
        return from_content(attributes.get("content", ""))
    return None


def decode(raw: bytes, name: str) -> str:
    """Decode bytes as a browser does; bytes that the encoding does not define become U+FFFD.

    Args:
        name: an encoding of the WHATWG standard, as ``from_label`` and ``bom`` return it.
    """
    mark = next((mark for mark, encoding in _BOMS if encoding == name and raw.startswith(mark)), b"")
    codec = _CODECS.get(name) or webencodings.lookup(name).codec_info.name
    for handler, function in _HANDLERS.items():
        codecs.register_error(handler, function)
    if name in ("utf-8", "utf-16le", "utf-16be"):
        return raw[len(mark) :].decode(codec, "replace")
    if name in ("gbk", "gb18030"):
        handler = "nvembed.euro"
    elif name in ("euc-jp", "iso-2022-jp"):
        handler = "nvembed.jis"
    else:
        handler = "nvembed.c1" if name.startswith("windows-") else "replace"
    text = raw.decode(codec, handler)
    return text.translate(_DIFFERENCES[name]) if name in _DIFFERENCES else text


def _c1(error: UnicodeError) -> tuple[str, int]:
    """Decode bytes 0x80 to 0x9F that a Windows code page does not define as controls of the same number."""
    assert isinstance(error, UnicodeDecodeError)
    byte = error.object[error.start]
    return chr(byte) if 0x80 <= byte <= 0x9F else "\ufffd", error.start + 1


def _euro(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return ("\u20ac" if error.object[error.start] == 0x80 else "\ufffd"), error.start + 1


def _jis(error: UnicodeError) -> tuple[str, int]:
    """Decode characters of NEC and IBM as Shift_JIS does at the same row and cell."""
    assert isinstance(error, UnicodeDecodeError)
    pair = error.object[error.start : error.start + 2]
    row, cell = (byte & 0x7F for byte in pair) if len(pair) == 2 else (0, 0)
    if not (0x21 <= row <= 0x7E and 0x21 <= cell <= 0x7E and (pair[0] ^ pair[1]) < 0x80):
        return "\ufffd", error.start + 1
    lead = ((row - 0x21) >> 1) + (0x81 if row < 0x5F else 0xC1)
    trail = cell + (0x1F if cell < 0x60 else 0x20) if row % 2 else cell + 0x7E
    return bytes((lead, trail)).decode("cp932", "replace"), error.start + 2


_HANDLERS: dict[str, Callable[[UnicodeError], tuple[str, int]]] = {
    "nvembed.c1": _c1,
    "nvembed.euro": _euro,
    "nvembed.jis": _jis,
}
