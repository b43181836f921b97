"""Citations in every form that chat models write them, and what only looks like one."""

import pytest

from nvembed.search.citation import ABSENT, find_citations, uniform


def numbers(text: str, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the distinct numbers cited: those of passages, and others."""
    citations = find_citations(text, count)
    present = dict.fromkeys(number for one in citations for number in one.present)
    missing = dict.fromkeys(number for one in citations for number in one.missing)
    return tuple(present), tuple(missing)


@pytest.mark.parametrize(
    ("text", "cited", "absent"),
    [
        ("Judo [1]. Karate too[9].", (1,), (9,)),
        ("allowed[1].", (1,), ()),
        ("it's[9] and end.[9]", (), (9,)),
        ("[2] [1][2] and [2; 3]", (2, 1), (3,)),
        ("[1-2]", (1, 2), ()),
        ("[2-9]", (2,), (9,)),
        ("[1\u20139]", (1, 2), (9,)),
        ("[1 to 9]", (1, 2), (9,)),
        ("[1-99999999999999999999]", (1, 2), (99999999999999999999,)),
        ("[ 9 ]", (), (9,)),
        ("[9,]", (), (9,)),
        ("[^9]", (), (9,)),
        ("[#9]", (), (9,)),
        ("[[9]]", (), (9,)),
        ("([9])", (), (9,)),
        ("\\[9\\]", (), (9,)),
        ("[9](http://example.org)", (), (9,)),
        ("[Passage 9]", (), (9,)),
        ("[passages: 1, 2 and 9]", (1, 2), (9,)),
        ("[1, Source 9]", (1,), (9,)),
        ("[2 and 9]", (2,), (9,)),
        ("\u30109\u3011 \u30101\u3011", (1,), (9,)),
        ("\u30104:0\u2020source\u3011 \u30101\u2020source\u3011", (1,), (4,)),
        ("\uff3b9\uff3d [\uff19]", (), (9,)),
        ("\u662f\u7684[1]\u3002\u0414\u0430[2].", (1, 2), ()),
        ("[12345678901234567890]", (), (12345678901234567890,)),
        (f"[{'9' * 5000}]", (), ()),
        ("`x = [1, 2, 9]`", (), ()),
        ("x = [1, 2, 9]", (), ()),
        ("```python\nx = [9]\n``` [1]", (1,), ()),
        ("```\nnever closed [9]", (), ()),
        ("`` [9] ` [9] `` [1]", (1,), ()),
        ("x[9], rows_all[9], [text], [1.5], [1:30]", (), ()),
        ("[1, p. 3] [2, pages 4-5] [9, page 1] [p. 7] [pages 1-2]", (1, 2), (9,)),
        ("[2020] and [2019, 2020]", (), ()),
        ("[^1]: a note", (), ()),
    ],
)
def test_brackets(text: str, cited: tuple[int, ...], absent: tuple[int, ...]) -> None:
    assert numbers(text, 2) == (cited, absent)
    written, places = uniform(text, find_citations(text, 2))
    assert written.count(ABSENT) >= bool(absent)
    assert numbers(written, 2) == (cited, ())  # nothing absent passes unmarked
    assert all(written[start:end] == f"[{number}]" for start, end, number in places)
    assert set(cited) == {number for _, _, number in places}


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Judo [1, 2].", "Judo [1][2]."),
        ("Judo [1-3].", "Judo [1][2][3]."),
        ("Judo \u30101\u3011\u3002", "Judo [1]\u3002"),
        ("Judo [^1], [source 2], [Passage 3], [doc_1].", "Judo [1], [2], [3], [1]."),
        ("Judo \\[1\\].", "Judo [1]."),
        ("Judo (1). Karate (2).", "Judo [1]. Karate [2]."),
        ("No (1).", "No [1]."),
        ("Judo (1, 3). Karate (2)(3)", "Judo [1][3]. Karate [2][3]"),
        ("Judo (source 1) and karate (see passages 2 and 3) too.", "Judo [1] and karate [2][3] too."),
        ("\u67d4\u9053\u53ef\u4ee5\uff081\uff09\u3002", "\u67d4\u9053\u53ef\u4ee5[1]\u3002"),
        ("Judo is allowed.\u00b9 Karate\u00b2,\u00b3 too", "Judo is allowed.[1] Karate[2][3] too"),
        ("Judo is allowed\u00b9\u00b2.", "Judo is allowed[1][2]."),
        ("Judo is allowed.<sup>1, 2</sup>", "Judo is allowed.[1][2]"),
        ("According to passage 2, judo is allowed.", "According to passage [2], judo is allowed."),
        ("Passages 1 and 3 allow it.", "Passages [1][3] allow it."),
    ],
)
def test_each_form_becomes_one(text: str, written: str) -> None:
    assert uniform(text, find_citations(text, 3))[0] == written
    assert uniform(written, find_citations(written, 3))[0] == written


@pytest.mark.parametrize(
    "text",
    [
        "1. mix\n2. bake",
        "(1) mix, (2) bake",
        "The steps are (1) mix and (2) bake it.",
        "see equation (1), figure (2) and Section (3).",
        "Article 5(1), 5(a)(1), f(2), print(3), [a](1)",
        "In (2020) and (1999).",
        "We won (2-1) and lost (1-3).",
        "3 m\u00b2, x\u00b2, 10\u00b3, E = mc\u00b2, 5 feet\u00b3 and 9 square metres\u00b2",
        "x<sup>2</sup> + (a + b)<sup>2</sup>",
        "```\nprint(a) (1).\n```\n~~~\n[2] (1).\n~~~",
        "`[1]` and ``(2).``",
        "arr[1] = 2 and args[2]; total[1] += 3; name_list[1]",
        "version [1.2], time [1:30], [x], [], [1] = nothing",
        "[2020], [1999-2003]",
        "[^1]: the note itself",
        "the point (1, 2).",
        "Passage 7 does not exist",
    ],
)
def test_what_is_no_citation(text: str) -> None:
    assert numbers(text, 3) == ((), ())
    assert uniform(text, find_citations(text, 3)) == (text, [])


def test_weaker_forms_count_only_alone() -> None:
    """In an answer that cites in brackets, a number in round brackets is something else."""
    text = "There are judo throws (2). They are allowed [1]."
    assert numbers(text, 3) == ((1,), ())
