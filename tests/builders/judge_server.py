"""A server that speaks OpenAI's protocol, and answers as a test has it."""

import json
import math
import re
from contextlib import contextmanager

import yaml

from panoply.scorers.judge.scorer import JudgeScorer
from tests.builders.http_server import DROP, answering

HTML = (200, {"content-type": "text/html"}, b"<!DOCTYPE html><title>It works</title>")


def completion(text, *, finish="stop", logprobs=None, read=100, written=10):
    """The body of a chat completion; `logprobs` is a probability by token for each token."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    choice["finish_reason"] = finish
    if logprobs is not None:
        choice["logprobs"] = {"content": list(map(_token, logprobs))}
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}


def _token(probabilities):

    top = [{"token": token, "logprob": math.log(p)} for token, p in probabilities.items()]
    return {**top[0], "top_logprobs": top}


def shown(body):
    """The texts between marks in what a judge reads, by name; without marks the whole message."""
    text = body["messages"][-1]["content"]
    parts = re.findall(r"\[BEGIN ([^\]]*) (\w+)\]\n(.*?)\n\[END \1 \2\]", text, re.DOTALL)
    return {name: content for name, _, content in parts} or {"": text}


def by_length(body):
    """A judge that likes what is longer, in every form of question."""
    texts = {name: len(text) for name, text in shown(body).items() if "response" in name}
    if set(texts) == {"response"}:
        return json.dumps({"score": min(10, texts["response"])})
    if "responses A" not in texts and "ranking" not in json.dumps(body.get("response_format")):
        a, b = texts["response A"], texts["response B"]
        return json.dumps({"better": "tie" if a == b else "AB"[b > a]})
    ranked = sorted(texts, key=lambda name: -texts[name])
    return json.dumps({"ranking": [name[-1] for name in ranked]})


def stalling(release):
    """A judge that likes what is longer, and answers what is slow after an event alone."""

    def reply(body):
        if "slow" in json.dumps(body):
            release.wait(20)
        return by_length(body)

    return reply


REFUSAL = (400, {}, {"error": {"message": "messages are missing"}})


@contextmanager
def judging(answer, empty=REFUSAL):
    """A server that answers what `answer` makes of a request's body, and `empty` to an empty one.

    An answer is a text, the body of a completion, (status, headers, body), or `DROP`. The address
    and all requests are yielded: (path, headers, body, time).
    """

    def reply_to(_, content):
        body = json.loads(content)
        reply = answer(body) if body else empty
        if reply == DROP:
            return DROP
        if isinstance(reply, str):
            reply = completion(reply)
        status, headers, sent = reply if isinstance(reply, tuple) else (200, {}, reply)
        return status, {"content-type": "application/json"} | headers, sent

    with answering(reply_to) as (url, seen):
        yield f"{url}/v1", seen


def judge_file(folder, url, **settings):
    """A file of settings of a judge behind an address."""
    server = {"url": f"{url}#small", **settings.pop("server", {})}
    path = folder / "judge.yaml"
    path.write_text(yaml.safe_dump({"server": server, **settings}, sort_keys=False))
    return path


def open_judge(folder, url, **settings):
    """A judge behind an address; without a cache, unless the settings have it."""
    return JudgeScorer(str(judge_file(folder, url, **{"cache": False, **settings})))


def written_by(folder):
    """What a language model answers, for `judging`: greedily, with probabilities of each token.

    Args:
        folder: of the model and its tokenizer.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    blank = [i for i in range(model.config.vocab_size) if not tokenizer.decode(i).strip()]
    blank.append(tokenizer.eos_token_id)

    @torch.inference_mode()
    def answer(body):
        chat = tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        ids, steps = chat["input_ids"], []
        for _ in range(body["max_tokens"]):
            logits = model(ids).logits[0, -1].float()
            if not steps:  # a random model may begin with its end or a space, which is no verdict
                logits[blank] = -torch.inf
            p = logits.softmax(-1)
            top = p.topk(min(20, len(p)))
            token = top.indices[:1]
            if token.item() == tokenizer.eos_token_id:
                break
            names = map(tokenizer.decode, top.indices)
            steps.append(dict(zip(names, top.values.tolist(), strict=True)))
            ids = torch.cat([ids, token[None]], dim=1)
        num_read = chat["input_ids"].shape[1]
        text = tokenizer.decode(ids[0, num_read:])
        finish = "length" if len(steps) == body["max_tokens"] else "stop"
        logprobs = steps if body.get("logprobs") else None
        return completion(text, finish=finish, logprobs=logprobs, read=num_read, written=len(steps))

    return answer
