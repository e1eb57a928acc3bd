"""Layouts of published data sets, each taken apart from a row as it is published."""

from typing import Any

import pytest

from panoply.data.layouts import HELPSTEER, ULTRAFEEDBACK, pair_layout, rating_layout
from panoply.data.parse import BadRow, as_messages, number, parse_dialogue
from panoply.data.ratings import RatingMap
from panoply.data.rows import RawPair, RawRating


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def adapt_pair(row: dict[str, Any]) -> RawPair:
    (pair,) = pair_layout(row).adapt(row)
    return pair


def adapt_ratings(row: dict[str, Any]) -> list[RawRating]:
    numeric = {name: isinstance(value, (int, float)) for name, value in row.items()}
    return rating_layout(numeric).adapt(row)


@pytest.mark.parametrize("prompt", ["Why?", [user("Why?")]])
def test_prompt_and_replies_as_text(prompt: Any) -> None:
    pair = adapt_pair({"prompt": prompt, "chosen": "So.", "rejected": "No.", "group": "g"})
    assert pair.prompt == [user("Why?")]
    assert (pair.chosen, pair.rejected, pair.group, pair.margin) == ("So.", "No.", "g", None)


def test_ultrafeedback_binarized_repeats_the_prompt_and_scores_both() -> None:
    pair = adapt_pair(
        {
            "prompt": "Why?",
            "prompt_id": "x",
            "chosen": [user("Why?"), assistant("So.")],
            "rejected": [user("Why?"), assistant("No.")],
            "messages": [],
            "score_chosen": 8.5,
            "score_rejected": 6.0,
        }
    )
    assert pair == RawPair([user("Why?")], "So.", "No.", margin=2.5)


def test_a_reply_given_as_messages_follows_the_prompt() -> None:
    row = {"prompt": [user("Why?")], "chosen": [assistant("So.")], "rejected": [assistant("No.")]}
    assert adapt_pair(row) == RawPair([user("Why?")], "So.", "No.")


def test_an_implicit_prompt_is_what_both_dialogues_begin_with() -> None:
    shared = [user("Hi"), assistant("Hello"), user("Why?")]
    pair = adapt_pair(
        {"chosen": [*shared, assistant("So.")], "rejected": [*shared, assistant("No.")]}
    )
    assert pair == RawPair(shared, "So.", "No.")


def test_hh_rlhf_dialogues_are_taken_apart() -> None:
    head = "\n\nHuman: Hi\n\nAssistant: Hello\nthere\n\nHuman: Why?\n\nAssistant:"
    pair = adapt_pair({"chosen": f"{head} So.\n\nIndeed.", "rejected": f"{head} No."})
    assert pair == RawPair(
        [user("Hi"), assistant("Hello\nthere"), user("Why?")], "So.\n\nIndeed.", "No."
    )


def test_an_empty_hh_reply_is_left_for_validation() -> None:
    pair = adapt_pair(
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant:"}
    )
    assert pair.rejected == ""


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "text", "rejected": "text"}, "not a Human/Assistant dialogue"),
        ({"chosen": None, "rejected": "\n\nHuman: a\n\nAssistant: b"}, "end in an assistant turn"),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}, "end in an assistant turn"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
            "do not share a prompt",
        ),
    ],
)
def test_a_pair_that_cannot_be_taken_apart_says_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        adapt_pair(row)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"question": "Why?"}, [user("Why?")]),
        ({"system": "Be brief.", "question": "Why?"},
         [{"role": "system", "content": "Be brief."}, user("Why?")]),
        ({"instruction": "Sum up.", "input": "A text."}, [user("Sum up.\n\nA text.")]),
        ({"instruction": "Sum up.", "input": ""}, [user("Sum up.")]),
        ({"input": "Why?"}, [user("Why?")]),
    ],
)  # fmt: skip
def test_the_prompt_may_stand_in_other_columns(row: dict[str, Any], prompt: Any) -> None:
    assert adapt_pair({**row, "chosen": "a", "rejected": "b"}) == RawPair(prompt, "a", "b")


def test_helpsteer_rows_bring_their_published_scales() -> None:
    row = {"prompt": "Why?", "response": "So.", **dict.fromkeys(HELPSTEER, 3)}
    (rating,) = adapt_ratings(row)
    assert rating == RawRating([user("Why?")], "So.", dict.fromkeys(HELPSTEER, 3))
    layout = rating_layout({n: n in HELPSTEER for n in row})
    assert layout.scales == dict.fromkeys(HELPSTEER, RatingMap(0, 4, bin_centers=True))


def test_helpsteer2_markers_separate_turns() -> None:
    text = "Hi<extra_id_1>Assistant\nHello\n<extra_id_1>User\nWhy?\nReally."
    assert as_messages(text) == [user("Hi"), assistant("Hello"), user("Why?\nReally.")]
    with pytest.raises(BadRow, match="unknown role"):
        as_messages("Hi<extra_id_1>Narrator\nOnce")


def test_ultrafeedback_gives_one_rating_per_completion() -> None:
    rated = {name: {"Rating": "4", "Rationale": "..."} for name in ULTRAFEEDBACK}
    row = {
        "source": "evol_instruct",
        "instruction": "Why?",
        "completions": [
            {"response": "So.", "annotations": rated, "overall_score": 7.5},
            {"response": "No.", "annotations": {"honesty": {"Rating": "N/A"}}, "overall_score": 1},
        ],
    }
    first, second = adapt_ratings(row)
    assert first.ratings == {**dict.fromkeys(ULTRAFEEDBACK, "4"), "overall_score": 7.5}
    assert (first.source, first.subset, first.response) == (None, "evol_instruct", "So.")
    assert number(second.ratings["honesty"]) is None
    assert second.ratings["truthfulness"] is None


def test_beavertails_is_rated_by_a_bool() -> None:
    columns = {"prompt": False, "response": False, "category": False, "is_safe": True}
    layout = rating_layout(columns)
    assert (layout.attributes, layout.scales) == (("is_safe",), {"is_safe": RatingMap(0, 1)})


def test_numbers_that_name_rows_are_no_ratings() -> None:
    columns = {"prompt": False, "response": False, "id": True, "group": True, "tone": True}
    assert rating_layout(columns).attributes == ("tone",)


def test_an_unknown_layout_lists_what_was_found_and_what_is_known() -> None:
    with pytest.raises(ValueError, match=r"\['chosen', 'prompt'\].*prompt, chosen, rejected"):
        pair_layout(["prompt", "chosen"])
    with pytest.raises(ValueError, match=r"\['prompt', 'response'\].*UltraFeedback"):
        rating_layout({"prompt": False, "response": False})


@pytest.mark.parametrize(
    ("label", "value"),
    [
        (None, None),
        (float("nan"), None),
        ("N/A", None),
        ("", None),
        ("4", 4.0),
        (True, 1.0),
        (0, 0.0),
    ],
)
def test_labels_are_numbers_or_not_rated(label: object, value: float | None) -> None:
    assert number(label) == value


@pytest.mark.parametrize("label", [float("inf"), float("-inf"), 1e39, "good", [1]])
def test_other_labels_are_refused(label: object) -> None:
    with pytest.raises(BadRow, match="label is"):
        number(label)


def test_text_before_the_first_turn_is_no_dialogue() -> None:
    with pytest.raises(BadRow, match="not a Human"):
        parse_dialogue("Once\n\nHuman: a\n\nAssistant: b")
