"""PDF files written by hand, so that a test knows what every one of them holds."""

import math
from collections.abc import Sequence


def words(x: float, y: float, text: str, *, angle: float = 0, size: float = 12) -> str:
    """A content stream that writes a text at a place."""
    c, s = round(math.cos(math.radians(angle)), 6), round(math.sin(math.radians(angle)), 6)
    return f"BT /F1 {size} Tf {c} {s} {-s} {c} {x} {y} Tm ({text}) Tj ET\n"


def lines(x: float, y: float, texts: Sequence[str], *, leading: float = 14) -> str:
    return "".join(words(x, y - leading * at, text) for at, text in enumerate(texts))


def pdf_file(
    *contents: str | bytes,
    rotate: int = 0,
    objects: Sequence[str] = (),
    page: str = "",
    catalog: str = "",
    stream: str = "",
) -> bytes:
    """A PDF of one page for each content stream.

    Args:
        rotate: /Rotate of every page.
        objects: further objects; the first has the number 4.
        page, catalog, stream: further entries of every page, of the catalog and of every content stream.
    """
    first = 4 + len(objects)
    kids = " ".join(f"{first + 2 * at} 0 R" for at in range(len(contents)))
    bodies: list[bytes] = [
        f"<< /Type /Catalog /Pages 2 0 R {catalog} >>".encode(),
        f"<< /Type /Pages /Kids [{kids}] /Count {len(contents)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        *(body.encode("latin-1") for body in objects),
    ]
    for at, content in enumerate(contents):
        raw = content.encode("latin-1") if isinstance(content, str) else content
        bodies.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Rotate {rotate} {page} "
            f"/Contents {first + 2 * at + 1} 0 R /Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        bodies.append(b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(raw), stream.encode(), raw))
    out = b"%PDF-1.7\n"
    places = []
    for number, body in enumerate(bodies, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(bodies) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    return out + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(bodies) + 1, table)
