"""Real files of many kinds in one folder: copies from folders, and office documents of their texts.

    python benchmarks/mixed_files.py OUT /usr/share/doc SITE_PACKAGES --files 3000

Kinds are taken in turn, so that rare ones are all there. The texts of Markdown and text files become
documents of Word, PowerPoint, Excel, OpenDocument and e-mail too, written by the libraries that people use.
Then every file is read; files that cannot be read are counted by reason. ``--show`` prints texts of kinds.
"""

import argparse
import email.message
import hashlib
import json
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from nvembed.errors import DataError
from nvembed.read.corpus import DOCUMENT_KINDS, list_files, read_documents
from nvembed.read.lines import known_format

OFFICE_SHARE = 0.1  # of the files, in office formats
Blocks = list[tuple[str, str]]  # (heading, paragraph)


def collect(sources: Sequence[Path], out: Path, count: int, max_bytes: int) -> dict[str, int]:
    """Copy files of known kinds, write office documents of their texts, and return the counts of suffixes."""
    by_suffix: dict[str, list[tuple[Path, Path]]] = defaultdict(list)
    for source in sources:
        for path in source.rglob("*"):
            inside = Path(source.name) / path.relative_to(source)
            hidden = any(part.startswith(".") for part in inside.parts)
            if hidden or path.is_symlink() or not path.is_file() or not 20 < path.stat().st_size <= max_bytes:
                continue
            if path.suffix.lower() in DOCUMENT_KINDS or known_format(path):
                by_suffix[path.suffix.lower()].append((path, inside))
            elif path.suffix == "" and b"\0" not in path.read_bytes():  # copyright, README, METADATA
                by_suffix[".text"].append((path, inside.with_name(f"{inside.name}.text")))
    for files in by_suffix.values():
        files.sort(key=lambda pair: hashlib.sha256(str(pair[1]).encode()).digest())
    turns = (pair for turn in zip_longest(*by_suffix.values()) for pair in turn if pair is not None)
    office = int(OFFICE_SHARE * count)
    chosen = [pair for pair, _ in zip(turns, range(count - office), strict=False)]
    texts = [pair for pair in chosen if pair[1].suffix in (".md", ".txt", ".text", ".rst")]
    for path, inside in chosen:
        (out / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out / inside)
    written = 0
    for number, (path, inside) in enumerate(texts * (1 + office // max(1, len(texts)))):
        if written == office:
            break
        blocks = _blocks(path.read_bytes().decode(errors="replace"))
        suffix, write = WRITERS[number % len(WRITERS)]
        if blocks:
            (out / "office").mkdir(exist_ok=True)
            write(blocks, out / "office" / f"{written:04d}-{inside.stem}{suffix}")
            written += 1
    suffixes = Counter(path.suffix.lower() for path in out.rglob("*") if path.is_file())
    return dict(suffixes.most_common())


def _blocks(text: str) -> Blocks:
    printable = "".join(char for char in text if char in "\n\t" or char.isprintable())
    paragraphs = [" ".join(part.split()) for part in printable.split("\n\n")]
    blocks, heading = [], "Introduction"
    for paragraph in filter(None, paragraphs):
        if len(paragraph) < 60:
            heading = paragraph.lstrip("# ")
        else:
            blocks.append((heading, paragraph))
    return blocks[:20]


def _docx(blocks: Blocks, path: Path) -> None:
    import docx

    document = docx.Document()
    for heading, paragraph in blocks:
        document.add_heading(heading, 1)
        document.add_paragraph(paragraph)
    table = document.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "Section", "Words"
    for heading, paragraph in blocks:
        cells = table.add_row().cells
        cells[0].text, cells[1].text = heading, str(len(paragraph.split()))
    document.save(str(path))


def _pptx(blocks: Blocks, path: Path) -> None:
    import pptx

    slides = pptx.Presentation()
    for heading, paragraph in blocks:
        slide = slides.slides.add_slide(slides.slide_layouts[1])
        slide.shapes.title.text, slide.placeholders[1].text = heading, paragraph
        slide.notes_slide.notes_text_frame.text = f"Notes on {heading}"
    slides.save(str(path))


def _xlsx(blocks: Blocks, path: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = "Sections"
    book.active.append(["Section", "Text", "Words"])
    for heading, paragraph in blocks:
        book.active.append([heading.lstrip("="), paragraph.lstrip("=")[:500], len(paragraph.split())])
    book.save(path)


def _odt(blocks: Blocks, path: Path) -> None:
    from odf.opendocument import OpenDocumentText
    from odf.text import H, P

    document = OpenDocumentText()
    for heading, paragraph in blocks:
        document.text.addElement(H(outlinelevel=1, text=heading))
        document.text.addElement(P(text=paragraph))
    document.save(str(path))


def _ods(blocks: Blocks, path: Path) -> None:
    from odf.opendocument import OpenDocumentSpreadsheet
    from odf.table import Table, TableCell, TableRow
    from odf.text import P

    document = OpenDocumentSpreadsheet()
    table = Table(name="Sections")
    for row in [("Section", "Text"), *blocks]:
        line = TableRow()
        for value in row:
            cell = TableCell(valuetype="string")
            cell.addElement(P(text=value))
            line.addElement(cell)
        table.addElement(line)
    document.spreadsheet.addElement(table)
    document.save(str(path))


def _eml(blocks: Blocks, path: Path) -> None:
    message = email.message.EmailMessage()
    message["Subject"], message["From"], message["To"] = blocks[0][0][:60], "a@example.org", "b@example.org"
    message["Date"] = "Mon, 02 Mar 2026 10:00:00 +0000"
    message.set_content("\n\n".join(paragraph for _, paragraph in blocks))
    path.write_bytes(message.as_bytes())


WRITERS: list[tuple[str, Callable[[Blocks, Path], None]]] = [
    (".docx", _docx), (".pptx", _pptx), (".xlsx", _xlsx), (".odt", _odt), (".ods", _ods), (".eml", _eml)
]  # fmt: skip


def read_all(folder: Path) -> Iterator[tuple[str, str, str | DataError]]:
    """Yield the suffix, the name and the text or the error of each document."""
    for file in list_files(str(folder)).files:
        suffix = file.path.suffix.lower()
        try:
            for read in read_documents(file):
                document = read.document
                yield suffix, file.name, document if isinstance(document, DataError) else document.text
        except DataError as error:
            yield suffix, file.name, error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("sources", type=Path, nargs="*")
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--max-bytes", type=int, default=300_000, help="size of the largest file")
    parser.add_argument("--show", nargs="*", default=[], help="suffixes of which samples are printed")
    args = parser.parse_args()
    if args.sources:
        print(json.dumps(collect(args.sources, args.out, args.files, args.max_bytes)), flush=True)
    start = time.perf_counter()
    counts: Counter[tuple[str, str]] = Counter()
    failed: list[str] = []
    shown: Counter[str] = Counter()
    last, slowest = time.perf_counter(), [(0.0, "")]
    for suffix, name, text in read_all(args.out):
        now = time.perf_counter()
        slowest.append((now - last, name))
        last = now
        counts[suffix, "failed" if isinstance(text, DataError) else "read"] += 1
        if isinstance(text, DataError):
            failed.append(str(text).replace(str(args.out), ""))
        elif suffix in args.show and shown[suffix] < 3:
            shown[suffix] += 1
            print(f"--- {name}\n{text[:1500]}")
    print(f"{time.perf_counter() - start:.1f} s; slowest {sorted(slowest)[-5:]}")
    print({f"{suffix} {what}": count for (suffix, what), count in sorted(counts.items())})
    print("\n".join(failed), file=sys.stderr)


if __name__ == "__main__":
    main()
