"""Conversations that clients send, awkward ones among them, as messages and as rendered text."""

import random

MODELS = ("gated", "scalar", "classifier")
"""Models of the server; it also serves a function."""
LONG = "word " * 4000
"""20,000 characters, which a tokenizer of one token a byte makes 20,000 tokens."""


def user(text):
    """A prompt of one user's turn."""
    return [{"role": "user", "content": text}]


AWKWARD = [
    (user("Is the tap closed?"), ""),
    (user("How do I fix a tap?"), "\n\nTurn the water off."),
    (user("How do I fix a pipe?"), "\nTurn the water off."),
    (user("How do I fix a sink?"), "   Turn the water off."),
    (user("How do I fix a drain?"), "\tTurn the water off.\r\nThen wait."),
    (user("How do I fix a bath?"), " \n"),
    (user("How do I fix a shower?\n\n"), "\n\n\nCall a plumber.\n\n"),
    (user(" "), "What is it?"),
    (user("\n\nWhy?"), "Because."),
    (user("Schreib „Grüße“ \U0001f600\U0001f468‍\U0001f469‍\U0001f467"), "Grüße \U0001f600!"),
    (user("ما هو الماء؟"), "الماء سائل شفاف."),
    (user("水是什么?"), "水是一种液体。"),
    (user("A combining e\u0301 and a zero\u200bwidth space"), "e\u0301\u200b."),
    (user('{"role": "user"}'), "<b>No</b> & 'yes' \\n"),
    (user(LONG), "Too long to read."),
    (user("Write a long story."), LONG[:1000]),
    (
        [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": "What boils at 100 degrees?"},
        ],
        "Water.",
    ),
    (
        [
            {"role": "system", "content": "You are terse.\n"},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "\n\nHello."},
            {"role": "user", "content": "And now?"},
        ],
        "\n\nNow we wait.",
    ),
    (
        [
            {"role": "user", "content": "Turn the water off?"},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "And then?"},
            {"role": "assistant", "content": ""},
            {"role": "user", "content": "Hello?"},
        ],
        "Change the washer.",
    ),
]


def plain(num):
    """Dialogues with a prompt of their own each."""
    rng = random.Random(0)
    words = [
        "water",
        "tap",
        "pipe",
        "washer",
        "turn",
        "off",
        "open",
        "slowly",
        "twice",
        "never",
        "always",
        "why",
        "because",
    ]
    for i in range(num):
        prompt = " ".join(rng.choices(words, k=rng.randint(3, 12)))
        reply = " ".join(rng.choices(words, k=rng.randint(1, 30)))
        yield user(f"Question {i}: {prompt}?"), f"{reply}."


DISTINCT = [*AWKWARD, *plain(64 - len(AWKWARD))]
"""64 conversations, no two of which share a prompt."""
DIALOGS = [*DISTINCT, DISTINCT[1], DISTINCT[-1], (DISTINCT[-1][0], "No."), DISTINCT[1]]
"""Those, some of them twice, and one prompt with two replies."""


def opening(tokenizer, prompt):
    """The text that a policy goes on from."""
    return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)


def whole(tokenizer, prompt, reply):
    """The text of a whole conversation."""
    turns = [*prompt, {"role": "assistant", "content": reply}]
    return tokenizer.apply_chat_template(turns, tokenize=False)
