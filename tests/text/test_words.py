"""Words of any language, and which part of a passage matches a query."""

import time

import pytest

from nvembed.errors import InputError
from nvembed.text.mark import sentences, word_spans
from nvembed.text.words import Words, detect_language


@pytest.mark.parametrize(
    ("language", "passage", "query"),
    [
        ("english", "Wrestlers throw each other", "throwing wrestlers"),
        ("english", "a r\u00e9sum\u00e9 for caf\u00e9s", "resume"),
        ("none", "cafe\u0301", "CAFÉ"),
        ("english", "The Who played", "The Who"),
        ("english", "our IT department", "IT"),
        ("english", "sha256 " + "0123456789abcdef" * 4, "0123456789abcdef" * 4),
        ("german", "die gr\u00f6\u00dften H\u00e4user", "gr\u00f6\u00dfte"),
        ("none", "ERP\u5ba1\u6279\u6d41\u7a0b\u8bf4\u660e", "\u5ba1\u6279\u6d41\u7a0b"),
        ("none", "ERP\u5ba1\u6279\u6d41\u7a0b\u8bf4\u660e", "erp"),
        ("none", "\u6771\u4eac\u90fd\u306b\u4f4f\u3080", "\u6771\u4eac"),
        ("none", "\u732b\u304c\u5bdd\u308b", "\u732b"),
        ("none", "\u30d1\u30bd\u30b3\u30f3\u3092\u8cb7\u3046", "\uff8a\uff9f\uff7f\uff7a\uff9d"),
        ("none", "\ud55c\uad6d\uc5b4\ub97c \ubc30\uc6b0\ub2e4", "\ud55c\uad6d\uc5b4"),
        (
            "none",
            "\u0e41\u0e21\u0e27\u0e19\u0e2d\u0e19\u0e1a\u0e19\u0e42\u0e0b\u0e1f\u0e32",
            "\u0e41\u0e21\u0e27",
        ),
        ("none", "\uff25\uff32\uff30 system", "erp"),
        ("none", "def getUserName(self)", "user name"),
        ("english", "calls set_user_names()", "setUserName"),
        ("none", "parseHTTPResponse2024", "http 2024"),
        ("arabic", "\u0627\u0644\u0643\u062a\u0627\u0628", "\u0643\u062a\u0627\u0628"),
        ("greek", "\u03b4\u03c1\u03cc\u03bc\u03bf\u03c2", "\u03b4\u03c1\u03cc\u03bc\u03bf\u03c5"),
        (
            "russian",
            "\u043d\u043e\u0432\u044b\u0435 \u043a\u043d\u0438\u0433\u0438",
            "\u043a\u043d\u0438\u0433\u0430",
        ),
        (
            "none",
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e",
            "\u0939\u093f\u0928\u094d\u0926\u0940",
        ),
    ],
)
def test_a_query_finds_its_passage(language: str, passage: str, query: str) -> None:
    words = Words(language)
    assert set(words.query(query)) & set(words(passage))
    ((start, end), *_) = word_spans(query, [passage], words)[0]
    assert 0 <= start < end <= len(passage)


def test_queries() -> None:
    english = Words("english")
    assert english.query("the cat and the cats") == ["cat"]
    assert english.query("to be or not to be") == ["to", "be", "or", "not"]
    assert english.query("?! ...") == []
    assert Words()("\u5ba1\u6279") == ["\u5ba1", "\u5ba1\u6279", "\u6279"]
    assert Words().query("\u5ba1\u6279") == ["\u5ba1\u6279"]
    assert Words()("getUserName iPhone Hello NASA") == [
        *("getusername", "get", "user", "name", "iphone", "hello", "nasa")
    ]
    with pytest.raises(InputError, match="unknown language 'Klingon'"):
        Words("Klingon")


def test_marks_of_pairs_are_joined() -> None:
    (spans,) = word_spans("\u5ba1\u6279\u6d41\u7a0b", ["ERP\u5ba1\u6279\u6d41\u7a0b\u8bf4\u660e"], Words())
    assert spans == [(3, 7)]


def test_language() -> None:
    assert detect_language(["The cat is on the mat and it is not in the house."]) == "english"
    assert detect_language(["Die Katze ist nicht auf der Matte, sie ist im Haus."]) == "german"
    assert detect_language(["Le chat est sur la table avec les souris."]) == "french"
    assert detect_language(["\u5ba1\u6279\u6d41\u7a0b", "x = 3", ""]) == "none"
    assert detect_language([]) == "none"
    assert detect_language(["\u0647\u0630\u0627 \u0643\u062a\u0627\u0628 (book)"]) == "arabic"
    assert detect_language(["\u0627\u06cc\u0646 \u06a9\u062a\u0627\u0628 \u067e\u062f\u0631"]) == "persian"
    assert detect_language(["\u0391\u03c5\u03c4\u03cc \u03b5\u03af\u03bd\u03b1\u03b9"]) == "greek"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("यह पहला वाक्य है। यह दूसरा है।", 2),
        ("هل هذا سؤال؟ نعم، هذا سؤال.", 2),
        ("ทีมรับของแพนเธอร์สถอดใจที่คะแนน 308 ได้อันดับที่หกของลีก ในขณะที่เป็นผู้นำในเอ็นเอฟแอล", 2),
        ("สี่ ครั้ง", 1),  # a space within a clause
    ],
)
def test_sentences_of_other_scripts(text: str, parts: int) -> None:
    spans = sentences(text)
    assert len(spans) == parts
    assert "".join(text[a:b] for a, b in spans).replace(" ", "") == text.replace(" ", "")


def test_words_of_several_languages() -> None:
    words = Words("english", "german")
    assert {"grosst", "haus"} <= set(words.query("der größte der Häuser"))
    assert "der" not in words.query("der größte der Häuser"), "a stop word of the query's language"
    assert "the" not in words.query("who built the house")
    assert [span for span, word in words.located("Häuser") if word == "haus"] == [(0, 6)]
    text = "Der Hund und die Katze sind nicht im Haus, aber das ist gut so."
    assert detect_language([text], "english") == "german"
    assert detect_language(["Die Hard DVD"], "english") == "english"


def test_sentences() -> None:
    text = "Hello there. How?\nYes 3.5 is. \u597d\u7684\u3002\u518d\u89c1 end"
    assert [text[a:b] for a, b in sentences(text)] == [
        "Hello there.",
        "How?",
        "Yes 3.5 is.",
        "\u597d\u7684\u3002",
        "\u518d\u89c1 end",
    ]
    assert sentences("") == sentences(" \n ") == []


@pytest.mark.parametrize(
    "text",
    [
        "." * 100_000 + "x",
        "\u3002" * 100_000,
        "! " * 50_000,
        "\n" * 100_000,
        " " * 100_000 + "x",
        "a" * 100_000,
        "e\u0301" * 50_000,
        "\u0301" * 100_000,
        "\u5ba1" * 100_000,
        "\u0e01\u0e49" * 50_000,
        "a\u5ba1" * 50_000,
        "_" * 100_000,
    ],
)
def test_time_is_linear(text: str) -> None:
    start = time.process_time()
    sentences(text)
    word_spans(text, [text], Words("english"))
    assert time.process_time() - start < 10  # quadratic takes minutes
