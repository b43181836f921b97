"""Instructions: every task of the paper and of MTEB resolves, with the text and the sides of its source."""

import json
import tomllib
from pathlib import Path

import pytest

from nvembed.errors import InputError
from nvembed.files import data_path
from nvembed.text.prompt import format_prompt, instruction_for, known_tasks, training_instructions

RECIPES = data_path("recipes") / "nv_embed_v2"


def words(text: str) -> list[str]:
    return text.split()


STS = words("BIOSSES SICK-R STS12 STS13 STS14 STS15 STS16 STS17 STS22 STSBenchmark")
SYMMETRIC = STS + words("""
    AmazonCounterfactualClassification AmazonPolarityClassification AmazonReviewsClassification
    Banking77Classification EmotionClassification ImdbClassification MTOPDomainClassification
    MTOPIntentClassification MassiveIntentClassification MassiveScenarioClassification
    ToxicConversationsClassification TweetSentimentExtractionClassification
    ArxivClusteringP2P ArxivClusteringS2S BiorxivClusteringP2P BiorxivClusteringS2S MedrxivClusteringP2P
    MedrxivClusteringS2S RedditClustering RedditClusteringP2P StackExchangeClustering
    StackExchangeClusteringP2P TwentyNewsgroupsClustering
    AskUbuntuDupQuestions MindSmallReranking SciDocsRR StackOverflowDupQuestions
    SprintDuplicateQuestions TwitterSemEval2015 TwitterURLCorpus SummEval QuoraRetrieval
""")
ASYMMETRIC = words("""
    ArguAna CQADupstackRetrieval ClimateFEVER DBPedia FEVER FiQA2018 HotpotQA MSMARCO NFCorpus NQ SCIDOCS
    SciFact TRECCOVID Touche2020
""")
SUBFORUMS = words(
    "Android English Gaming Gis Mathematica Physics Programmers Stats Tex Unix Webmasters Wordpress"
)
TABLE_12 = words("""
    ArguAna SNLI PAQ MSMARCO SQuAD StackExchange NaturalQuestions HotpotQA FEVER FiQA2018 BioASQ HoVer
    NFCorpus MIRACL Mr.TyDi SciFact STS12 STS22 STSBenchmark AmazonCounterfactual AmazonPolarity AmazonReviews
    Banking77 Emotion Imdb MTOPIntent MTOPDomain MassiveIntent MassiveScenario ToxicConversations
    TweetSentimentExtraction
    Arxiv-Clustering-P2P Arxiv-Clustering-S2S Biorxiv-Clustering-P2P Biorxiv-Clustering-S2S
    Medrxiv-Clustering-P2P Medrxiv-Clustering-S2S Reddit-Clustering Reddit-Clustering-S2S
    Stackexchange-Clustering Stackexchange-Clustering-S2S TwentyNewsgroups
""")


def shared() -> Path:
    for parent in Path(__file__).resolve().parents:
        if (parent / "shared" / "reference").is_dir():
            return parent / "shared"
    pytest.skip("needs the folder 'shared' beside the checkout")


def test_the_56_tasks_of_mteb_resolve_on_the_right_sides() -> None:
    assert len(SYMMETRIC) + len(ASYMMETRIC) == 56
    for task in SYMMETRIC:
        assert instruction_for(task) == instruction_for(task, "corpus") != "", task
    for task in ASYMMETRIC:
        assert instruction_for(task) != "", task
        assert instruction_for(task, "corpus") == "", task


def test_subforums_share_one_instruction() -> None:
    assert {instruction_for(f"CQADupstack{name}Retrieval") for name in SUBFORUMS} == {
        instruction_for("CQADupstackRetrieval")
    }


def test_tables_of_the_paper_resolve() -> None:
    for task in TABLE_12:
        assert task in known_tasks(), task
        assert all(training_instructions(task)), task
    assert len(training_instructions("SNLI")) == 2
    assert len(training_instructions("PAQ")) == len(training_instructions("MSMARCO")) == 3
    assert training_instructions("MSMARCO")[0] == instruction_for("MSMARCO")
    assert training_instructions("Emotion") == (instruction_for("EmotionClassification"),)
    # Table 12 prints the Medrxiv instruction on the Reddit rows; nobody trains on that twice.
    assert "Reddit" in instruction_for("Reddit-Clustering-S2S")


def test_known_texts() -> None:
    """Two texts by hand, against a slip that every other test would share."""
    assert instruction_for("NQ") == "Given a question, retrieve passages that answer the question"
    assert instruction_for("SprintDuplicateQuestions") == "Retrieve duplicate questions from Sprint forum"


def test_released_file_is_the_default() -> None:
    released = json.loads((shared() / "reference" / "released-instructions.json").read_text())
    for name, sides in released.items():
        tasks = {"STS": STS, "SUMM": ["SummEval"]}.get(name, [name])
        for task in tasks:
            assert instruction_for(task) == sides.get("query", sides.get("text"))
            assert instruction_for(task, "corpus") == sides.get("corpus", sides.get("text"))


def test_published_scores_name_known_tasks() -> None:
    scores = json.loads((shared() / "reference" / "published_scores.json").read_text())
    for result in scores["results"]:
        assert result["task"].removeprefix("MTEB ").split(" (")[0] in known_tasks()


def test_the_released_wording_is_followed() -> None:
    assert instruction_for("FiQA2018").endswith("retrieve relevant passages that answer the query")
    assert instruction_for("STS16", "corpus") == "Retrieve semantically similar text"


def test_unknown_names() -> None:
    with pytest.raises(InputError, match=r"no instruction for task 'SciFacts': did you mean 'SciFact'"):
        instruction_for("SciFacts")
    with pytest.raises(InputError, match=r"did you mean .*'ArguAna'"):
        training_instructions("Arguanna")
    with pytest.raises(InputError, match="'query' or 'corpus', got 'passage'"):
        instruction_for("SciFact", "passage")  # type: ignore[arg-type]


def test_format_prompt() -> None:
    assert format_prompt("") == ""
    assert format_prompt(instruction_for("NQ")) == (
        "Instruct: Given a question, retrieve passages that answer the question\nQuery: "
    )
    assert format_prompt("a {brace}") == "Instruct: a {brace}\nQuery: "
    for text, said in {
        " ": "white space",
        "a\nb": "line break",
        "a\u2028b": "line break",
        "a\n": "line break",
    }.items():
        with pytest.raises(InputError, match=said):
            format_prompt(text)


def test_every_instruction_line_names_its_source() -> None:
    """House rule: a value line of a recipe ends with where the value comes from."""
    for path in RECIPES.parent.rglob("*.toml"):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            key, equals, value = line.partition(" = ")
            if equals and not key.startswith(("#", " ")) and '"""' not in value:
                assert any(f"# {source}: " in value for source in ("paper", "released", "ours")), (
                    f"{path}:{number}"
                )


def test_known_answer_is_the_model_card() -> None:
    known = tomllib.loads((RECIPES / "known_answer.toml").read_text())
    assert known["prompt"] == format_prompt(instruction_for("NQ"))
    card = json.loads((shared() / "parity" / "model_card.json").read_text())
    for key in ("queries", "passages", "scores_v2"):
        assert known[key] == card[key]


def test_every_name_has_one_meaning_and_one_line() -> None:
    book = tomllib.loads((RECIPES / "instructions.toml").read_text("utf-8"))
    assert not book["query"].keys() & book["both"].keys()
    assert not {*book["query"], *book["both"], *book["training"]} & book["alias"].keys()
    for task in known_tasks():
        for instruction in (instruction_for(task), *training_instructions(task)):
            assert format_prompt(instruction) != ""
