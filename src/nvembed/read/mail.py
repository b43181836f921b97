"""E-mail messages (.eml): subject, sender, recipients and date as metadata and above the text."""

import email
import email.policy
from collections.abc import Callable
from datetime import UTC
from email.message import EmailMessage
from typing import Any

from nvembed.read import charset
from nvembed.read.extracted import DocumentText, count_of
from nvembed.read.html import read_html

_HEADERS = ("From", "To", "Cc", "Date")
MAX_PARTS = 10_000


def read_eml(raw: bytes, max_bytes: int, progress: Callable[[], None]) -> DocumentText:
    """Return the text of a message: the plain text, or else the HTML. A warning names attachments.

    Raises:
        ValueError: not a message.
    """
    del max_bytes  # a message does not expand
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    if not message.keys():
        raise ValueError("not an e-mail message: it has no headers")
    progress()
    headers = {name: " ".join(str(message[name] or "").split()) for name in ("Subject", *_HEADERS)}
    warnings: list[str] = []
    texts: list[str] = []
    attachments: list[str] = []
    for part in _parts(message):
        if part.get_content_disposition() == "attachment" or part.get_content_maintype() != "text":
            attachments.append(part.get_filename() or part.get_content_type())
        elif part.get_content_subtype() == "html":
            text, _, notes = read_html(_html(part), progress=progress)
            texts.append(text)
            warnings += notes
        else:
            texts.append(_plain(part, warnings).replace("\r\n", "\n").strip())
    if attachments:
        names = ", ".join(attachments[:10])
        warnings.append(f"{count_of(len(attachments), 'attachment')}: {names}")
    lines = [f"{name}: {headers[name]}" for name in _HEADERS if headers[name]]
    title = [f"# {headers['Subject']}"] if headers["Subject"] else []
    text = "\n\n".join(filter(None, [*title, "\n".join(lines), *texts]))
    return DocumentText(text, _metadata(message, headers), (), tuple(warnings))


def _parts(message: EmailMessage) -> list[Any]:
    """Return the parts that a mail program shows, in order: of alternatives the plain text, or the last."""
    parts: list[Any] = []
    stack: list[Any] = [message]
    while stack and len(parts) < MAX_PARTS:
        part = stack.pop()
        if not part.is_multipart() or part.get_content_type() == "message/rfc822":
            parts.append(part)
        elif part.get_content_subtype() == "alternative":
            forms = list(part.iter_parts())
            plain = [form for form in forms if form.get_content_type() == "text/plain"]
            stack += (plain or forms)[-1:]
        else:
            stack += reversed(list(part.iter_parts()))
    return parts


def _plain(part: Any, warnings: list[str]) -> str:
    raw = part.get_payload(decode=True) or b""
    label = part.get_content_charset() or "utf-8"
    name = charset.from_label(label)
    if name is None or name == "replacement":
        warnings.append(f"unknown encoding {label!r}: read as windows-1252")
        name = "windows-1252"
    return charset.decode(raw, name)


def _html(part: Any) -> bytes:
    """Return an HTML part; its declared encoding becomes UTF-8 with a byte order mark."""
    raw = part.get_payload(decode=True) or b""
    name = charset.from_label(part.get_content_charset() or "")
    if name is None or name == "replacement" or charset.bom(raw):
        return bytes(raw)
    return b"\xef\xbb\xbf" + charset.decode(raw, name).encode()


def _metadata(message: EmailMessage, headers: dict[str, str]) -> dict[str, Any]:
    metadata = {"title": headers["Subject"], "from": headers["From"], "to": headers["To"]}
    date = getattr(message["Date"], "datetime", None)
    if date is not None:
        metadata["date"] = (date if date.tzinfo is None else date.astimezone(UTC)).isoformat()
    return {name: value for name, value in metadata.items() if value}
