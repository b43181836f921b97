"""Text of HTML pages: what a browser shows, in every encoding, of any depth and size."""

import codecs
from pathlib import Path

import pytest
import webencodings.labels

from nvembed.errors import DataError
from nvembed.read import child
from nvembed.read.charset import decode, from_label
from nvembed.read.documents import DocumentText, extract


def read(path: Path, raw: str | bytes, suffix: str = "html") -> DocumentText:
    file = path / f"a.{suffix}"
    file.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return extract(file, suffix)


LAYOUT = {
    "<dl><dt>Term one<dd>Definition one.<dt>Term two<dd>Definition two.</dl>": (
        "Term one\nDefinition one.\nTerm two\nDefinition two."
    ),
    "<details><summary>Summary</summary>Detail</details>end": "Summary\nDetail\nend",
    "<div><span>Price</span><span>9.50</span></div><div><a>One</a><a>Two</a></div>": "Price 9.50\nOne Two",
    "<td>x</td><td>y</td>": "x\ny",
    "<p>H<span>ello</span> <b>in</b><i>ter</i>national": "Hello international",
    "E = mc<sup>2</sup>, 10<sup>6</sup>, 10<sup>-6</sup>, H<sub>2</sub>O": "E = mc^2, 10^6, 10^-6, H2O",
    "the 1<sup>st</sup> of note<sup>[1]</sup>": "the 1st of note[1]",
    "one<br>two<hr>three": "one\ntwo\nthree",
    "<p>one<br><br>two": "one\n\ntwo",
    "<h1>Big <br>head</h1><h2></h2>text<h3>small</h3>end": "# Big head\n\ntext\n\n### small\n\nend",
    "<ul><li>a<li><p>b<ul><li>c</ul><li></ul><ol start=3><li>d<li>e</ol>": ("* a\n* b\n  * c\n\n3. d\n4. e"),
    "<select><option>A<option>B</select><button>Go</button><input value=Send type=submit>": "A\nB\nGo Send",
    "<p>see<img alt='a cat'>there": "see a cat there",
    "<p>see<img src=x>there": "see there",
    "<ruby>漢<rp>(</rp><rt>kan</rt><rp>)</rp></ruby>字": "漢(kan)字",
    "<pre>def f():\n    return  1\n</pre>end": "def f():\n    return  1\n\nend",
    "<p>a  b\n c&nbsp;d co&shy;op a<wbr>b &lt;&amp;": "a b c d coop ab <&",
    "<title>t</title><style>s{}</style><script>s()</script><template>t</template>text": "text",
    "<p hidden>no<p style='color:red; DISPLAY : none'>no<p>yes<!-- no --><noscript>no</noscript>": "yes",
    "<p>say <q>yes</q>": 'say "yes"',
    "<table><caption>C</caption><tr><th>n<th>m<tr><td>1<td><p>2</p><tr><td><td>3<br>4<tr><td>5<td></table>": (
        "C\nn | m\n1 | 2\n| 3 4\n5"
    ),
    "<table><tr><td><h2>Left</h2>text<td><table><tr><td>i<td>j</table>right</table>": (
        "## Left\n\ntext\n\ni | j\n\nright"
    ),
    "<form><label>Name</label><input value=Ann><input type=hidden value=no></form>": "Name Ann",
    "<div hidden=until-found>no</div><p>1<p>2": "1\n\n2",
    "<textarea>\n a  b\n</textarea>": " a  b",
}


@pytest.mark.parametrize("source", LAYOUT)
def test_layout(tmp_path: Path, source: str) -> None:
    text = read(tmp_path, "<!doctype html><meta charset=utf-8>" + source).text
    assert "\n".join(filter(None, text.split("\n"))) == "\n".join(filter(None, LAYOUT[source].split("\n")))
    assert text.count("\n\n") >= LAYOUT[source].count("\n\n")


def test_title_is_metadata(tmp_path: Path) -> None:
    page = read(tmp_path, "<title>A\n  page</title><svg><title>no</title></svg><p>x")
    assert (page.text, page.metadata, page.warnings) == ("x", {"title": "A page"}, ())


@pytest.mark.parametrize("depth", [300, 3_000, 10_000])
def test_deep_pages_are_whole(tmp_path: Path, depth: int) -> None:
    deep = "start" + "<div>" * depth + "deep" + "</div>" * depth + "<p>end"
    assert read(tmp_path, deep).text.split() == ["start", "deep", "end"]
    unclosed = "".join(f"<p><font color=red>paragraph {at}" for at in range(depth)) + "<p>end"
    assert read(tmp_path, unclosed).text.split("\n\n") == [*(f"paragraph {i}" for i in range(depth)), "end"]
    lists = "<ul><li>" * depth + "x" + "</ul>" * depth + "<p>end"
    assert read(tmp_path, lists).text.split()[-2:] == ["x", "end"]


def test_large_nodes_lose_nothing(tmp_path: Path) -> None:
    big = "A" * (11 << 20)
    page = f"<p>one<img src='data:,{big}'><script>{big}</script><!--{big}--><p>two {'word ' * 10**6}<p>end"
    words = read(tmp_path, page).text.split()
    assert (words[:2], len(words), words[-1]) == (["one", "two"], 10**6 + 3, "end")


def test_tables_are_not_padded(tmp_path: Path) -> None:
    rows = "".join(f"<tr><td>{at}<td>b" for at in range(3000))
    source = f"<table><tr><td>{'wide ' * 2000}<td>b{rows}</table>"
    text = read(tmp_path, source).text
    assert len(text) < len(source)
    assert text.endswith("\n2998 | b\n2999 | b")


def test_a_page_too_costly_to_read_is_an_error_of_that_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "PROGRESS_S", 2.0)
    (tmp_path / "b").mkdir()
    fonts = "".join(f"<p><font size={at}>" for at in range(20_000))  # each paragraph reopens every font
    with pytest.raises(DataError, match=r"a\.html: .*(memory|too long)"):
        read(tmp_path, fonts)
    monkeypatch.undo()
    assert read(tmp_path / "b", "<p>next").text == "next"


def codec_of(encoding: str) -> str:
    special = {"gbk": "gb18030", "iso-2022-jp": "iso2022_jp"}
    return special.get(encoding) or webencodings.lookup(encoding).codec_info.name


def sample(codec: str) -> str:
    """Characters that an encoding has beyond ASCII."""
    some = "éöñłčřžΑΩЖяאבשابتกขค漢字日本語中文한국어«»”"
    return "".join(c for c in some if c.encode(codec, "ignore"))


UTF_16 = {"utf-16le", "utf-16be"}


@pytest.mark.parametrize("label", sorted(webencodings.labels.LABELS))
def test_every_label_of_the_standard(tmp_path: Path, label: str) -> None:
    encoding = webencodings.labels.LABELS[label]
    if encoding == "replacement":
        with pytest.raises(DataError, match="no browser reads"):
            read(tmp_path, f"<meta charset='{label}'><p>text")
        return
    name = {"x-user-defined": "windows-1252", **dict.fromkeys(UTF_16, "utf-8")}.get(encoding, encoding)
    codec = codec_of(name)
    text = sample(codec)
    assert len(text) >= 2
    for head in (
        f"<meta charset={label}>",
        f"<META foo http-equiv = Content-Type content='text/html; charset={label.upper()}' />",
        f"<!-- <meta charset=utf-7> --><script charset=koi8-u></script><meta charset='{label}'>",
        f"<?xml version='1.0' encoding='{label}'?>",
    ):
        page = read(tmp_path, head.encode() + b"<p>" + text.encode(codec))
        assert (page.text, page.warnings) == (text, ()), head


def test_what_browsers_decode_otherwise_than_python() -> None:
    assert decode(b"\x93\x80\x94\x81", "windows-1252") == "“€”\x81"
    assert decode(b"\x80\xa2\xe3", "gbk") == "€€"
    assert decode(b"\xad\xa1\xa1\xc1\xff", "euc-jp") == "①～\ufffd"
    assert decode(b"\x1b$B-!!A\x1b(B ~", "iso-2022-jp") == "①～ ~"
    assert decode(b"\x87\x40\xfa\x54", "shift_jis") == "①￢"
    assert decode(b"\xa2\x44\xf9\xd6", "big5") == "￥碁"
    assert decode(b"\x81\x41\xc8\xab", "euc-kr") == "갂홍"
    assert decode(b"\xae\xbe", "koi8-u") == "ўЎ"
    assert decode(b"\xef\xbb\xbfa\xff", "utf-8") == "a\ufffd"
    assert from_label(" Latin1\n") == "windows-1252"
    assert from_label("utf-7") is None


ENCODED = {
    "byte order mark first": (codecs.BOM_UTF8 + "<meta charset=iso-8859-1>é".encode(), "é"),
    "UTF-16 by its mark": ("<meta charset=iso-8859-1>é".encode("utf-16"), "é"),
    "UTF-16 big-endian": (codecs.BOM_UTF16_BE + "é".encode("utf-16-be"), "é"),
    "UTF-16 in meta means UTF-8": ("<meta charset=utf-16>é".encode(), "é"),
    "valid UTF-8 without a declaration": ("é – Ж".encode(), "é – Ж"),
    "unknown label": ("<meta charset=nonsense>é".encode(), "é"),
    "charset in a script": (
        "<script charset=latin1>charset=latin1</script><meta charset=utf8>é".encode(),
        "é",
    ),
    "meta behind 1024 bytes": (b"<title>" + b"x" * 2000 + b"</title><meta charset=koi8-r>\xc1", "а"),
    "content without http-equiv": ("<meta content='text/html; charset=koi8-r'>é".encode(), "é"),
    "attributes of other tags": (b"<p a='<meta charset=koi8-r>'>\xc3\xa9", "é"),
    "unclosed comment": (b"<!-- <meta charset=koi8-r> --><meta charset=koi8-r>\xc1", "а"),
}


@pytest.mark.parametrize("case", ENCODED)
def test_encoding(tmp_path: Path, case: str) -> None:
    raw, text = ENCODED[case]
    page = read(tmp_path, raw)
    assert (page.text, page.warnings) == (text, ())


def test_guesses_and_losses_are_warnings(tmp_path: Path) -> None:
    page = read(tmp_path, b"<p>caf\xe9 \x93x\x94")
    assert page.text == "café “x”"
    assert "windows-1252" in page.warnings[0]
    page = read(tmp_path, b"<meta charset=utf-8><p>caf\xe9")
    assert page.text == "caf\ufffd"
    assert "1 places" in page.warnings[0]
    page = read(tmp_path, "<meta charset=utf-8><p>\ufffd is in the file")
    assert page.warnings == ()


@pytest.mark.parametrize(
    "part", ["<" + "a" * 300_000, "<a" + " b" * 150_000 + '"', "<a " * 100_000, "<a b='" * 50_000]
)
def test_xhtml_is_read_in_linear_time(tmp_path: Path, part: str) -> None:
    assert read(tmp_path, f"<html><body>one {part}".encode(), "xhtml").text.startswith("one")


def test_xhtml_is_xml(tmp_path: Path) -> None:
    source = (
        "<?xml version='1.0' encoding='iso-8859-1'?><html><head><script src='x.js'/><title/></head><body>"
        "<p>café <![CDATA[a<b]]><br/><a id='x'/>text</p><!-- <div/> --></body></html>"
    )
    assert read(tmp_path, source.encode("latin-1"), "xhtml").text == "café a<b\ntext"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("a<sup>" * 20_000, 20_000),
        ("<h1><div>x" * 4_000, 2 * 4_000),
        ("<table><tr><td>x<td>" * 5_000, 5_000),
        ("<p style='" + "; display" * 20_000 + "'>x", 1),
        ("x<p>" + "<!--" * 50_000, 1),
        ("<meta content='" + 'charset="' * 20_000 + "'>x", 1),
        ("x" + "&nbsp;" * 50_000 + "y", 2),
    ],
)
@pytest.mark.parametrize("suffix", ["html", "xhtml"])
def test_repetition_costs_no_more_than_its_length(
    tmp_path: Path, suffix: str, source: str, words: int
) -> None:
    """Patterns and walks whose cost could grow with the square of the length."""
    assert len(read(tmp_path, source, suffix).text.replace("^", " ").split()) == words
