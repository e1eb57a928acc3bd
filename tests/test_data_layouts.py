"""Layouts of published data sets, each taken apart from a row as it is published."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from panoply.data.ingest import ingest_pairs
from panoply.data.layouts import HELPSTEER, ULTRAFEEDBACK, pair_layout, prompt_layout, rating_layout
from panoply.data.parse import as_messages, number, parse_dialogue
from panoply.data.quarantine import BadRow
from panoply.data.ratings import RatingMap
from panoply.data.read import Input
from panoply.data.rows import RawPair, RawRating
from panoply.data.validate import clean_pair


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


NAN = float("nan")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "system": NAN, "history": NAN, "tools": NAN, "images": NAN},
        {"prompt": "Why?", "images": [{"bytes": None, "path": None}], "system_prompt": None},
        {"instruction": "Why?", "input": NAN},
        {"instruction": NAN, "input": "Why?"},
    ],
)
def test_what_is_missing_is_missing_as_nan_and_in_records_of_nulls_too(row: dict[str, Any]) -> None:
    assert adapt_pair({**row, "chosen": "a", "rejected": "b"}) == RawPair([user("Why?")], "a", "b")


def test_a_missing_group_or_subset_is_none_and_no_name() -> None:
    row = {"prompt": "Why?", "chosen": "a", "rejected": "b"}
    unnamed, wanted = (
        clean_pair(adapt_pair({**row, **columns}), "s")
        for columns in ({"group": NAN, "subset": NAN}, {})
    )
    assert unnamed == wanted


def test_alpacas_instruction_and_input_are_texts() -> None:
    row = {"instruction": "Sum up.", "input": ["a", "b"], "chosen": "a", "rejected": "b"}
    with pytest.raises(BadRow, match="'instruction' and 'input' are not both texts"):
        adapt_pair(row)


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
def test_a_column_of_system_turns_stands_before_the_prompt(name: str) -> None:
    row = {name: "Be brief.", "prompt": "Why?", "chosen": "a", "rejected": "b"}
    system = {"role": "system", "content": "Be brief."}
    assert adapt_pair(row).prompt == [system, user("Why?")]
    assert name in pair_layout(row).reads
    other = [{"role": "system", "content": "Be long."}, user("Why?")]
    with pytest.raises(BadRow, match=f"column '{name}' contradicts the system turn"):
        adapt_pair({**row, "prompt": other})


@pytest.mark.parametrize("name", ["functions", "documents", "image_path", "image_urls"])
def test_a_column_that_no_template_is_given_is_a_reason_where_it_holds_something(name: str) -> None:
    row = {"prompt": "Why?", "chosen": "a", "rejected": "b"}
    assert adapt_pair({**row, name: []}).prompt == [user("Why?")]
    with pytest.raises(BadRow, match=f"column '{name}' holds something"):
        adapt_pair({**row, name: ["a.png"]})


def test_messages_that_are_the_chosen_dialogue_give_its_prompt() -> None:
    chosen, rejected = [user("Why?"), assistant("So.")], [user("Why?"), assistant("No.")]
    row = {"messages": chosen, "chosen": chosen, "rejected": rejected}
    assert adapt_pair(row) == RawPair([user("Why?")], "So.", "No.")


def test_a_prompt_in_an_unknown_column_is_asked_for_by_a_flag() -> None:
    with pytest.raises(BadRow, match="--columns prompt=COLUMN"):
        adapt_pair({"trajectory": "Why?", "chosen": "a", "rejected": "b"})


def test_responses_that_show_the_same_text_are_identical() -> None:
    row = {"prompt": "Why?", "chosen": "caf\u00e9", "rejected": "cafe\u0301 "}
    with pytest.raises(BadRow, match="identical responses"):
        clean_pair(adapt_pair(row), "s")


def flat_messages() -> list[dict[str, Any]]:
    """Two questions with three ranked replies, the first of which is answered and replied to."""
    root = {"message_id": "q", "parent_id": None, "text": "Why?", "role": "prompter", "rank": None}
    rows = [root, {**root, "message_id": "p", "parent_id": NAN, "text": "How?"}]
    for rank, name in enumerate("abc"):
        reply = {"parent_id": "q", "text": name, "role": "assistant", "rank": float(rank)}
        rows += [
            {**reply, "message_id": name},
            {**reply, "message_id": f"p{name}", "parent_id": "p"},
        ]
    more = {"message_id": "m", "parent_id": "a", "text": "More", "role": "prompter", "rank": None}
    for rank in (1, 0):
        reply = {"parent_id": "m", "text": f"m{rank}", "role": "assistant", "rank": rank}
        rows.append({**reply, "message_id": f"m{rank}"})
    return [*reversed(rows), more]


def test_messages_that_name_the_ones_they_answer_are_trees_of_ranked_replies(
    tmp_path: Path,
) -> None:
    orphan = {**flat_messages()[0], "message_id": "z", "parent_id": "gone"}
    file = tmp_path / "oasst.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*flat_messages(), orphan]))
    result = ingest_pairs([Input(file)], tmp_path)
    pairs = pq.read_table(result.path).to_pylist()
    told = {(row["prompt"][-1]["content"], row["chosen"], row["rejected"]) for row in pairs}
    ranked = {("a", "b"), ("a", "c"), ("b", "c")}
    wanted = {(question, *pair) for question in ("Why?", "How?") for pair in ranked}
    assert told == wanted | {("More", "m0", "m1")}
    (deep,) = [row for row in pairs if len(row["prompt"]) > 1]
    assert deep["prompt"] == [user("Why?"), assistant("a"), user("More")]
    assert len({row["split_key"] for row in pairs}) == 2
    assert result.num_quarantined == {"message answers one that is not in the file": 1}
    assert result.notes == ()


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


# Several responses with ranks, scores or verdicts

ANSWERS = [{"answer": "a", "rank": 2.0}, {"answer": "b", "rank": 1.0}, {"answer": "c", "rank": 2.0}]
COMPLETIONS = [
    {"rank": 1, "completion": [assistant("No.")]},
    {"rank": 0, "completion": [assistant("So.")]},
]
SCORED = [{"response": "No.", "overall_score": 4.0}, {"response": "So.", "overall_score": 7.5}]
DIALOGUES = {
    "conversation_a": [user("Why?"), assistant("No.")],
    "conversation_b": [user("Why?"), assistant("So.")],
}
HH_PROMPT = "\n\nHuman: Why?\n\nAssistant: "
SHAREGPT = {
    "conversations": [{"from": "human", "value": "Why?"}],
    "chosen": {"from": "gpt", "value": "So."},
    "rejected": {"from": "gpt", "value": "No."},
}
AB = {"prompt": "Why?", "response_a": "So.", "response_b": "No."}
TEXTS_AB = {"prompt": '["Why?"]', "response_a": '["No."]', "response_b": '["So."]'}
MODEL_B = {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}
PUBLISHED: dict[str, tuple[dict[str, Any], float | None]] = {
    "HelpSteer3": (
        {"context": [user("Why?")], "response1": "So.", "response2": "No.", "domain": "general",
         "overall_preference": -2, "individual_preference": []}, 2.0),
    "HelpSteer2-Preference": (
        {"prompt": "Why?", "response_1": "No.", "response_2": "So.", "preference_strength": 3},
        3.0),
    "SHP, first": (
        {"history": "Why?", "human_ref_A": "So.", "human_ref_B": "No.", "labels": 1}, None),
    "SHP, second": (
        {"history": "Why?", "human_ref_A": "No.", "human_ref_B": "So.", "labels": 0}, None),
    "PKU-SafeRLHF": (
        {"prompt": "Why?", "response_0": "No.", "response_1": "So.", "better_response_id": 1,
         "safer_response_id": 0}, None),
    "Chatbot Arena": ({**DIALOGUES, "winner": "model_b", "question_id": "x"}, None),
    "WSDM": ({**AB, "winner": "model_a"}, None),
    "LMSYS 55k": ({**TEXTS_AB, **MODEL_B}, None),
    "StackLLaMA": ({"question": "Why?", "response_j": "So.", "response_k": "No.", "qid": 1}, None),
    "WebGPT": (
        {"question": {"full_text": "Why?"}, "answer_0": "No.", "answer_1": "So.",
         "score_0": -0.5, "score_1": 1.0}, 1.5),
    "AlpacaFarm": (
        {"instruction": "Why?", "input": "", "output_1": "No.", "output_2": "So.",
         "preference": 2}, None),
    "NeMo-RL": ({"context": [user("Why?")], "completions": COMPLETIONS}, None),
    "UltraFeedback": ({"instruction": "Why?", "completions": SCORED, "source": "x"}, 3.5),
    "distilabel": (
        {"instruction": "Why?", "generations": ["No.", "So."], "ratings": [1, 4]}, 3.0),
    "LLaMA-Factory, one output": ({"instruction": "Why?", "input": "", "output": ["So.", "No."]},
                                  None),
    "LLaMA-Factory, ShareGPT": (SHAREGPT, None),
    "LLaMA-Factory, Alpaca": (
        {"instruction": "Why?", "input": "", "chosen": "So.", "rejected": "No.", "history": []},
        None),
    "ms-swift, a reply": (
        {"messages": [user("Why?"), assistant("So.")], "rejected_response": "No."}, None),
    "ms-swift, messages": (
        {"messages": DIALOGUES["conversation_b"], "rejected_messages": DIALOGUES["conversation_a"]},
        None),
    "ms-swift, query": ({"query": "Why?", "response": "So.", "rejected_response": "No."}, None),
    "Skywork": (
        {"chosen": DIALOGUES["conversation_b"], "rejected": DIALOGUES["conversation_a"]}, None),
    "argilla": (
        {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "chosen-rating": 5,
         "rejected-rating": 2}, 3.0),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_layout_gives_its_pair(name: str) -> None:
    row, margin = PUBLISHED[name]
    pair = adapt_pair(row)
    assert (pair.prompt, pair.chosen, pair.rejected) == ([user("Why?")], "So.", "No.")
    assert (pair.margin, pair.is_tie) == (margin, False)


@pytest.mark.parametrize(
    "row",
    [
        {**DIALOGUES, "winner": "tie (bothbad)"},
        {**DIALOGUES, "winner": "both_bad"},
        {**AB, "winner": "tie"},
        {**TEXTS_AB, "winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1},
        {"context": [user("q")], "response1": "a", "response2": "b", "overall_preference": 0},
        {"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1.5},
        {"instruction": "q", "completions": [SCORED[0], {**SCORED[1], "overall_score": 4.0}]},
    ],
)
def test_a_tie_is_marked_as_one(row: dict[str, Any]) -> None:
    assert adapt_pair(row).is_tie


def test_every_response_is_paired_with_all_that_rank_below_it_and_equal_ranks_are_ties() -> None:
    row = {"prompt": HH_PROMPT, "answers": ANSWERS, "turns": 1, "source": ["x"]}
    pairs = pair_layout(row).adapt(row)
    assert [(p.chosen, p.rejected) for p in pairs if not p.is_tie] == [("b", "a"), ("b", "c")]
    assert [(p.chosen, p.rejected) for p in pairs if p.is_tie] == [("a", "c")]
    assert all(pair.prompt == [user("Why?")] and pair.margin is None for pair in pairs)


def test_lists_of_right_and_wrong_responses_are_paired_each_with_each() -> None:
    row = {"prompt": "q", "chosen": ["a", "b", "c"], "rejected": ["x", "y", "z"], "domain": "chat"}
    pairs = pair_layout(row).adapt(row)
    assert [f"{pair.chosen}{pair.rejected}" for pair in pairs] == [
        "ax",
        "ay",
        "az",
        "bx",
        "by",
        "bz",
        "cx",
        "cy",
        "cz",
    ]
    assert {pair.subset for pair in pairs} == {"chat"}


def test_a_tree_gives_the_pairs_of_every_message_with_ranked_replies() -> None:
    second = {
        "role": "prompter",
        "text": "Really?",
        "replies": [
            {"role": "assistant", "text": "no", "rank": 1, "replies": []},
            {"role": "assistant", "text": "yes", "rank": 0, "replies": []},
            {"role": "assistant", "text": "spam", "rank": None, "replies": []},
        ],
    }
    replies = [
        {"role": "assistant", "text": "So.", "rank": 0, "replies": [second]},
        {"role": "assistant", "text": "No.", "rank": 1},
    ]
    root = {"role": "prompter", "text": "Why?", "lang": "en", "replies": replies}
    row = {"message_tree_id": "t", "tree_state": "ready_for_export", "prompt": root}
    first, deep = pair_layout(row).adapt(row)
    assert (first.chosen, first.rejected) == ("So.", "No.")
    assert deep.prompt == [user("Why?"), assistant("So."), user("Really?")]
    assert (deep.chosen, deep.rejected, deep.group, deep.subset) == ("yes", "no", "t", "en")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**AB, "winner": "gpt-4"}, "neither model_a"),
        ({**AB, "winner": None}, "no verdict"),
        ({"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 3}, "none of"),
        ({"prompt": "q", "answers": "a"}, "no list of two responses"),
        ({"prompt": "q", "answers": [{"answer": "a"}, {"answer": "b"}]}, "fewer than two"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1]}, "has not as many numbers"),
        ({**TEXTS_AB, **MODEL_B, "winner_tie": 1}, "not exactly one"),
        ({**TEXTS_AB, **MODEL_B, "prompt": '["a", "b"]'}, "as many replies"),
        ({"message_tree_id": "t", "prompt": "q"}, "no prompt"),
    ],
)
def test_what_gives_no_order_says_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        pair_layout(row).adapt(row)


def test_one_broken_annotation_leaves_its_siblings_and_is_no_rating() -> None:
    good = {"response": "So.", "annotations": {"honesty": {"Rating": "4"}}, "overall_score": 7.5}
    broken = [{**good, "annotations": value} for value in ("bad", {"honesty": "4"})]
    ratings = adapt_ratings({"instruction": "q", "completions": [good, *broken]})
    assert number(ratings[0].ratings["honesty"]) == 4
    for rating in ratings[1:]:
        with pytest.raises(BadRow, match="label is no number"):
            number(rating.ratings["honesty"])


def test_unpaired_preferences_and_rated_dialogues_are_ratings() -> None:
    (rating,) = adapt_ratings({"prompt": "Why?", "completion": "So.", "label": True})
    assert (rating.response, rating.ratings) == ("So.", {"label": True})
    (rating,) = adapt_ratings({"messages": DIALOGUES["conversation_b"], "quality": 3})
    assert (rating.prompt, rating.response) == ([user("Why?")], "So.")


def test_named_columns_are_the_ratings_and_unknown_ones_are_refused() -> None:
    columns = {"prompt": False, "response": False, "tone": True, "grade": False, "seed": True}
    assert rating_layout(columns).attributes == ("tone",)
    assert rating_layout(columns, ["grade", "seed"]).attributes == ("grade", "seed")
    with pytest.raises(ValueError, match=r"\['tine'\] are to be ratings.*--rating-columns"):
        rating_layout(columns, ["tine"])


@pytest.mark.parametrize(
    ("row", "prompt", "label", "source"),
    [
        ({"prompt": [user("2+2?")], "data_source": "openai/gsm8k", "ability": "math",
          "reward_model": {"style": "rule", "ground_truth": "4"}}, "2+2?", "4", "openai/gsm8k"),
        ({"problem": "2+2?", "answer": "4"}, "2+2?", "4", None),
        ({"context_messages": [user("2+2?")]}, "2+2?", None, None),
        ({"prompt": "2+2?", "label": 4, "source": "s"}, "2+2?", 4, "s"),
    ],
)  # fmt: skip
def test_prompts_bring_their_label_and_source(
    row: dict[str, Any], prompt: str, label: object, source: str | None
) -> None:
    (raw,) = prompt_layout(row).adapt(row)
    assert (raw.prompt, raw.label, raw.source) == ([user(prompt)], label, source)


def test_a_layout_says_which_columns_it_reads() -> None:
    row, _ = PUBLISHED["HelpSteer3"]
    assert set(row) - pair_layout(row).reads == {"individual_preference"}


def documented_rows() -> list[tuple[str, str, dict[str, Any]]]:
    """Section, layout and row of each example in docs/data.md that is written in full."""
    examples: list[tuple[str, str, dict[str, Any]]] = []
    section = ""
    for line in (Path(__file__).parents[1] / "docs" / "data.md").read_text().splitlines():
        section = line.removeprefix("## ") if line.startswith("## ") else section
        match = re.match(r"\| ([^|]+) \| `(\{.*?\})`", line)
        if match:
            examples.append((section, match[1], json.loads(match[2])))
    return examples


def test_every_row_of_the_documentation_is_read() -> None:
    examples = documented_rows()
    assert len(examples) > 30
    for section, name, row in examples:
        numeric = {column: isinstance(value, (int, float)) for column, value in row.items()}
        if section == "Pairs":
            assert clean_pair(pair_layout(row).adapt(row)[0], "s")["chosen"] == "So.", name
        elif section == "Ratings":
            assert rating_layout(numeric).adapt(row)[0].response == "So.", name
        else:
            assert prompt_layout(row).adapt(row)[0].label == "4", name
