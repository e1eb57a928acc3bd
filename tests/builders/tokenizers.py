"""Tokenizers of one token per byte, their chat templates, and texts that are hard to tokenize."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

TURNS = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)

WORDS = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Ends in a space, so that a tokenizer may merge it with what follows."""

NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
) + WORDS
"""Refuses system turns, as the template of Gemma 2 does."""

MERGES = [
    *(("Ċ", "Ċ"), ("ĊĊ", "ĊĊ"), ("Ġ", "Ġ"), ("Ġ", "Ċ"), ("ĠĠ", "Ċ")),
    *(("č", "Ċ"), ("Ġ", "h"), ("Ġh", "i"), (".", "Ċ")),
]
"""White space merges, as in the tokenizers of Llama 3, Qwen and SmolLM2."""

HEBREW = "\u05e9\u05dc\u05d5\u05dd"

WHITE = [
    *("\n", "\n\n", "\n\n\n\n", " ", "\t", "  \n", "\r\n", " \n \n"),
    *("\nFine.", "\n\nTurn the water off.", " Fine.", "\tFine.", "  \nFine.", "\r\nFine.\r\n"),
    *("", "🙂", "\n🙂\n", HEBREW, f"\n{HEBREW} ", "hi", "Fine.\n", "Fine. \n\n"),
]

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def chat_tokenizer():
    """One token per byte, and a token for each role; pad is end-of-turn, and there is no BOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", pad_token="<|end|>"
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def byte_tokenizer(template, *, adds_bos=False, merges=()):
    """One token per byte unless merged, with <s>, <|start|> and <|end|>."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {a + b: len(vocab) + i for i, (a, b) in enumerate(merges)}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "<|start|>", "<|end|>"])
    if adds_bos:
        bos = ("<s>", inner.token_to_id("<s>"))
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[bos]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="<|end|>", pad_token="<|end|>"
    )
    tokenizer.chat_template = template
    return tokenizer
