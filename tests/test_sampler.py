"""A sampler's answers depend on what is asked, and on nothing else."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.sampler import Sampler
from panoply.config import Rendering
from panoply.config.policy import SamplingConfig
from panoply.data.tasks import Task
from panoply.hub.backbone.renderer import Renderer
from panoply.hub.policy.policy import Policy, load_policy
from panoply.model.shared_prefix import PrefixLayer, attend_after_prefix

SHORT = SamplingConfig(max_tokens=24, batch_size=12, temperature=3.0)
TEXTS = ("say a", "say something longer than that", "b", "what now, and then, and after that?")


def questions(count=4):
    return [Task(f"q{i}", [{"role": "user", "content": TEXTS[i]}]) for i in range(count)]


@pytest.fixture(scope="module")
def sampler(tiny_policy_folder):
    return Sampler(str(tiny_policy_folder), SHORT, dtype="float32")


@pytest.fixture(scope="module")
def drawn(sampler):
    return {found.prompt_id: found for found in sampler.sample(questions(), 6, 0, 0)}


def texts(samples):
    return [response.text for response in samples.responses]


def test_every_prompt_is_answered_n_times_and_differently(drawn):
    assert sorted(drawn) == ["q0", "q1", "q2", "q3"]
    every = [text for samples in drawn.values() for text in texts(samples)]
    assert len(every) == 24
    assert len(set(every)) > 18
    ended = [r.ended for samples in drawn.values() for r in samples.responses]
    assert any(ended)
    assert not all(ended)


def test_a_sample_is_the_same_alone_in_other_batches_and_on_another_worker(
    sampler, drawn, tiny_policy_folder
):
    for question in questions():
        (alone,) = sampler.sample([question], 1, 0, 0)
        assert alone.responses[0].text == drawn[question.prompt_id].responses[0].text
    config = SamplingConfig(max_tokens=24, batch_size=64, temperature=3.0)
    other = Sampler(str(tiny_policy_folder), config, dtype="float32")
    for found in other.sample(list(reversed(questions())), 6, 0, 0):
        mine = drawn[found.prompt_id].responses
        assert texts(found) == [response.text for response in mine]
        assert [r.ended for r in found.responses] == [r.ended for r in mine]
        wanted = pytest.approx([r.log_prob for r in mine], abs=1e-4)
        assert [r.log_prob for r in found.responses] == wanted


def test_the_same_call_gives_the_same_bits(sampler, drawn):
    assert {found.prompt_id: found for found in sampler.sample(questions(), 6, 0, 0)} == drawn


@pytest.mark.parametrize(("seed", "round"), [(1, 0), (0, 1)])
def test_another_seed_or_round_draws_others(sampler, drawn, seed, round):
    (found,) = sampler.sample(questions(1), 6, seed, round)
    assert not set(texts(found)) & {text for text in texts(drawn["q0"]) if text}


def plain_sample(folder, question, number, config):
    """One sample, token by token, each by a forward over the whole text."""
    from panoply.model.sampling import choose_tokens, stream

    renderer = Renderer(AutoTokenizer.from_pretrained(folder), Rendering())
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids, total = renderer.opening(question.prompt), 0.0
    name, end = stream(0, 0, question.prompt_id, number), renderer.tokenizer.eos_token_id
    spoken = []
    for step in range(config.max_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids + spoken])).logits[:, -1]
        token, log_prob = choose_tokens(logits, [name], step, config.temperature, config.top_p)
        spoken, total = [*spoken, int(token)], total + float(log_prob)
        if spoken[-1] == end:
            break
    return renderer.tokenizer.decode(spoken, skip_special_tokens=True), len(spoken), total


def test_samples_are_those_of_plain_forwards_without_a_cache(drawn, tiny_policy_folder):
    for question in questions():
        for number in (0, 5):
            found = drawn[question.prompt_id].responses[number]
            text, size, total = plain_sample(tiny_policy_folder, question, number, SHORT)
            assert (found.text, found.num_tokens) == (text, size)
            assert found.log_prob == pytest.approx(total, abs=1e-3)


def test_prompts_come_as_soon_as_their_last_sample_is_over(tiny_policy_folder):
    policy = load_policy(str(tiny_policy_folder), dtype="float32")
    prompts = [policy.renderer.opening(question.prompt) for question in questions()]
    streams = [[g] for g in range(4)]
    long = SamplingConfig(max_tokens=250, temperature=1.0)
    found = list(policy.sample(prompts, streams, long))
    sizes = [max(len(one.tokens) for one in samples) for _, samples in found]
    assert sorted(number for number, _ in found) == [0, 1, 2, 3]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 1


def test_attention_after_a_prefix_is_that_over_the_whole_sequence():
    torch.manual_seed(0)
    sizes, each, length = (5, 3), 2, 4
    prompts = [torch.randn(2, 2, size, 8) for size in sizes]  # keys and values
    own = torch.randn(2, 2 * each, 2, length, 8)
    query = torch.randn(2 * each, 4, 1, 8)
    padded = torch.full((2, 2, 2, 5, 8), 1e4)
    for g, size in enumerate(sizes):
        padded[:, g, :, 5 - size :] = prompts[g]
    hidden = torch.tensor([[False] * 5, [True, True, False, False, False]])
    for softcap in (None, 2.0):
        found = attend_after_prefix(
            query,
            own[0],
            own[1],
            PrefixLayer(padded[0], padded[1]),
            hidden,
            scale=0.3,
            softcap=softcap,
        )
        for row in range(2 * each):
            keys, values = (
                torch.cat([prompts[row // each][i], own[i, row]], dim=1) for i in (0, 1)
            )
            for head in range(4):
                scores = 0.3 * keys[head // 2] @ query[row, head, 0]
                scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
                wanted = scores.softmax(0) @ values[head // 2]
                assert torch.allclose(found[row, head, 0], wanted, atol=1e-5)


def test_a_prompt_that_leaves_no_room_is_refused(tiny_policy_folder):
    config = SamplingConfig(max_tokens=2040)
    sampler = Sampler(str(tiny_policy_folder), config, dtype="float32")
    with pytest.raises(ValueError, match=r"do not fit .*attention spans 2048: lower"):
        list(sampler.sample(questions(), 1, 0, 0))


def test_a_long_prompt_keeps_its_end_and_its_header(tiny_policy_folder):
    renderer = Renderer(
        AutoTokenizer.from_pretrained(tiny_policy_folder), Rendering(max_prompt_tokens=16)
    )
    ids = renderer.opening([{"role": "user", "content": "x" * 50 + "end"}])
    assert renderer.tokenizer.decode(ids).endswith("xxxend<|end|><|assistant|>")
    assert len(ids) == 16
    tree = renderer.render([{"role": "user", "content": "x" * 50 + "end"}], ["y"]).tree
    assert tree.shared == tuple(ids)


def test_a_model_whose_samples_are_not_its_own_is_refused(tiny_policy_folder):
    class Forgetful(torch.nn.Module):
        """Adds what depends on where in the batch a row stands."""

        def __init__(self, model):
            super().__init__()
            self.inner, self.config, self.dtype = model, model.config, model.dtype
            self.generation_config, self.device = model.generation_config, model.device
            self.set_attn_implementation = model.set_attn_implementation

        def forward(self, **kwargs):
            out = self.inner(**kwargs)
            if "prefix" in kwargs:
                out.logits = out.logits.flip(-1)
            return out

    model = AutoModelForCausalLM.from_pretrained(tiny_policy_folder)
    renderer = Renderer(AutoTokenizer.from_pretrained(tiny_policy_folder), Rendering())
    with pytest.raises(ValueError, match="decodes after a shared prompt with other probabilities"):
        Policy("forgetful", Forgetful(model), renderer)
