"""A replica: requests of any origin in, the scores that the model gives in-process out."""

import asyncio

import pytest
import torch
from transformers import AutoTokenizer

from actors.function_replica import FunctionReplica
from actors.model_replica import MAX_FAILURES, RewardModelReplica
from panoply.config.serve import BatchConfig, ScalingConfig, ServedModelConfig
from panoply.hub.artefact.load import load_reward_model
from panoply.hub.doctor import examine_loaded
from panoply.hub.reward_model import ScoringModel, provenance_of
from panoply.serve.calls import ReplicaRequest
from panoply.wire.request import Chat, RenderedText, RequestError, Tokens
from panoply.wire.slime import SlimeSample
from panoply.wire.verl import verl_request
from tests.builders.models import make_pairwise, make_run, publish, save_small
from tests.builders.tokenizers import MERGES, TURNS, WHITE, byte_tokenizer

PROMPTS = [
    [{"role": "user", "content": text}] for text in ("How do I boil an egg?", "Why?", "Well" * 9)
]
RESPONSES = ("Ten minutes.", "No.", "", "Put it into boiling water, and wait.")
ALL = frozenset({"objectives", "gate", "drivers", "provenance"})


@pytest.fixture(scope="module")
def folders(tiny_model_folder, tmp_path_factory):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    root = tmp_path_factory.mktemp("judged")
    save_small(root / "scalar", tokenizer)
    save_small(root / "ensemble", tokenizer, num_heads=3)
    make_run(root / "gated", tokenizer, pooling="mean_response")
    return {
        "scalar": root / "scalar",
        "ensemble": root / "ensemble",
        "gated": root / "gated" / "model",
    }


def replica_of(folder, *, max_tokens=300, rendered_by="", batches=None):
    """A replica and its model; statistics of its batches are put into `batches`."""
    config = ServedModelConfig(
        name="m",
        where=str(folder),
        rendered_by=rendered_by,
        scaling=ScalingConfig(cpus=torch.get_num_threads()),
        batch=BatchConfig(max_tokens=max_tokens),
    )
    replica = RewardModelReplica(config)
    if batches is not None:
        replica.queue.watch = lambda stats: batches.append((stats, replica.computed))
    return replica, replica.model


def request(*items, **changes):
    return ReplicaRequest(items=items, bucket=0, timeout=60.0, **changes)


def answers(replica, requests):
    async def run():
        return await asyncio.gather(*(replica.answer(request) for request in requests))

    return asyncio.run(run())


def values(answer):
    return [[score.score for score in item] for item in answer.items]


@pytest.mark.parametrize("kind", ["scalar", "ensemble", "gated"])
def test_scores_are_those_in_process_however_requests_come(folders, kind):
    batches = []
    replica, model = replica_of(folders[kind], batches=batches)
    expected = {
        (p, r): float(model.score(prompt, [response])[0])
        for p, prompt in enumerate(PROMPTS)
        for r, response in enumerate(RESPONSES)
    }
    single = [(p, r) for r in range(len(RESPONSES)) for p in range(len(PROMPTS))]
    replies = answers(
        replica,
        [
            request(*(Chat(tuple(prompt), RESPONSES) for prompt in PROMPTS)),
            *(request(Chat(tuple(PROMPTS[p]), (RESPONSES[r],))) for p, r in single),
        ],
    )
    together = [score for item in values(replies[0]) for score in item]
    assert together == pytest.approx(list(expected.values()), rel=1e-4, abs=1e-5)
    for (p, r), answer in zip(single, replies[1:], strict=True):
        assert values(answer) == [[pytest.approx(expected[p, r], rel=1e-4, abs=1e-5)]]
    assert sum(stats.num_responses for stats, _ in batches) == 2 * len(expected)
    for stats, computed in batches:
        assert computed.num_needed < stats.num_separate_tokens
        assert computed.num_needed <= computed.num_positions


def test_messages_text_and_token_ids_of_one_conversation_score_alike(folders):
    replica, model = replica_of(folders["gated"])
    render = model.backbone.renderer.tokenizer.apply_chat_template
    prompt = render(PROMPTS[0], tokenize=False, add_generation_prompt=True)
    turns = [*PROMPTS[0], {"role": "assistant", "content": "No."}]
    whole = render(turns, tokenize=False)
    ids = model.backbone.renderer.tokenizer(whole, add_special_tokens=False)["input_ids"]
    (reply,) = answers(
        replica,
        [
            request(
                Chat(tuple(PROMPTS[0]), ("No.",)),
                RenderedText(prompt, (whole.removeprefix(prompt),)),
                RenderedText("", (whole,)),
                Tokens((tuple(ids),)),
            )
        ],
    )
    found = [score for item in values(reply) for score in item]
    assert found == pytest.approx([found[0]] * 4, rel=1e-5)


DIALOGUES = [
    [{"role": "user", "content": "Why? \n"}],
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "\nWhy?"},
        {"role": "assistant", "content": "\n\nNo."},
        {"role": "user", "content": "Well?"},
    ],
]


@pytest.fixture(scope="module")
def merging(tmp_path_factory):
    """Models whose tokenizer merges the white space between header and reply."""
    tokenizer = byte_tokenizer(TURNS, adds_bos=True, merges=MERGES)
    root = tmp_path_factory.mktemp("merging")
    save_small(root / "scalar", tokenizer)
    kinds = {
        "header_first": {"gate": "header_first", "pooling": "last"},
        "turn_end": {"gate": "turn_end", "pooling": "mean_response"},
        "prompt_last": {"gate": "prompt_last", "pooling": "mean_response"},
    }
    for name, changes in kinds.items():
        make_run(root / name, tokenizer, **changes)
    return {"scalar": root / "scalar"} | {name: root / name / "model" for name in kinds}


@pytest.mark.parametrize("kind", ["scalar", "header_first", "turn_end", "prompt_last"])
def test_a_reply_scores_alike_in_all_forms_whatever_white_space_it_begins_with(merging, kind):
    replica, model = replica_of(merging[kind], max_tokens=4000)
    tokenizer = model.backbone.renderer.tokenizer
    render = tokenizer.apply_chat_template
    items, expected = [], []
    for dialogue in DIALOGUES:
        prompt = render(dialogue, tokenize=False, add_generation_prompt=True)
        for response in WHITE:
            turns = [*dialogue, {"role": "assistant", "content": response}]
            whole = render(turns, tokenize=False)
            ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
            forms = [
                Chat(tuple(dialogue), (response,)),
                RenderedText(prompt, (whole.removeprefix(prompt),)),
                RenderedText(prompt, (response,)),
                RenderedText("", (whole,)),
                Tokens((tuple(ids),)),
                *SlimeSample(prompt=dialogue, response=f"{response}<|end|>").request().items,
                *SlimeSample(prompt=prompt, response=f"{response}<|end|>").request().items,
            ]
            items += forms
            expected += [float(model.score(dialogue, [response])[0])] * len(forms)
        items.append(Chat(tuple(dialogue), tuple(WHITE)))
        expected += model.score(dialogue, WHITE).tolist()
    (answer,) = answers(replica, [request(*items)])
    scores = [score for item in values(answer) for score in item]
    assert scores == pytest.approx(expected, rel=1e-4, abs=1e-5)
    # And in company: no response moves the gate of another.
    alone = [float(model.score(DIALOGUES[0], [response])[0]) for response in WHITE]
    assert model.score(DIALOGUES[0], WHITE).tolist() == pytest.approx(alone, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("end", ["<|im_end|>", "<|eot_id|>", "</s>", "<end_of_turn>\n", "<|end|>"])
def test_the_token_that_ended_a_policys_reply_is_no_content_behind_messages(folders, end):
    replica, model = replica_of(folders["gated"])
    expected = model.score(PROMPTS[0], ["No."])
    slime = SlimeSample(prompt=PROMPTS[0], response="No." + end).request()
    verl = verl_request("m", "No." + end, None, {"prompt": PROMPTS[0]}, "prompt")
    (answer,) = answers(replica, [request(*slime.items, *verl.items)])
    assert values(answer) == [[pytest.approx(float(expected[0]), rel=1e-4)]] * 2


def test_a_score_says_how_many_tokens_limits_cut_away(folders, pairwise):
    long, short = "x" * 300, "y" * 400
    prompt = ({"role": "user", "content": long},)
    for kind in ("gated", "scalar", "ensemble"):
        replica, model = replica_of(folders[kind])
        renderer = model.backbone.renderer
        limits = renderer.rendering
        text = renderer.tokenizer.apply_chat_template(
            list(prompt), tokenize=False, add_generation_prompt=True
        )
        opening = renderer.ids([text])[0]
        cut = len(opening) - limits.max_prompt_tokens, 400 - limits.max_response_tokens
        ids = tuple(renderer.ids([text + short])[0])
        forms = request(Chat(prompt, (short, "No.")), RenderedText(text, (short,)), Tokens((ids,)))
        compared = request(Chat(prompt, (short, "No.")), compares=True)
        answer, pair = answers(replica, [forms, compared])
        assert [score.num_cut for item in answer.items for score in item] == [
            *(sum(cut), cut[0]),
            *(sum(cut), sum(cut)),
        ]
        assert pair.items[0][0].num_cut == sum(cut) + cut[0]
    replica, model = replica_of(pairwise)
    made = model.render_pair(list(prompt), short * 20, "No.")
    (answer,) = answers(replica, [request(Chat(prompt, (short * 20, "No.")), compares=True)])
    assert made.response_tokens_cut > 0
    assert answer.items[0][0].num_cut == 2 * (made.prompt_tokens_cut + made.response_tokens_cut)


def test_text_of_the_policys_template_is_rendered_again_in_the_models_own(folders):
    replica, model = replica_of(folders["gated"], rendered_by="chatml")
    prompt = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    (reply,) = answers(replica, [request(RenderedText(prompt, ("No.<|im_end|>\n",)))])
    expected = model.score(PROMPTS[1], ["No."])
    assert values(reply)[0] == pytest.approx(expected, rel=1e-4)


def test_details_are_those_of_the_models_own_explanation(folders):
    replica, model = replica_of(folders["gated"])
    (reply,) = answers(replica, [request(Chat(tuple(PROMPTS[0]), ("No.",)), details=ALL)])
    found, expected = reply.items[0][0].details, model.explain(PROMPTS[0], "No.")
    assert [d.objective for d in found.drivers] == [d.objective for d in expected.drivers]
    assert [d.contribution for d in found.drivers] == pytest.approx(
        [d.contribution for d in expected.drivers], rel=1e-4, abs=1e-6
    )
    own = {d.objective: d.value for d in expected.drivers}
    assert found.objectives == pytest.approx(own, rel=1e-4)
    assert sum(found.gate.values()) == pytest.approx(1)
    assert set(reply.provenance) >= {"kind", "weights", "template", "dtype"}


def test_an_ensemble_tells_its_lower_bound(folders):
    replica, model = replica_of(folders["ensemble"])
    asked = request(Chat(tuple(PROMPTS[0]), RESPONSES), details=frozenset({"objectives"}))
    (reply,) = answers(replica, [asked])
    bounds = [score.details.objectives["lower_bound"] for score in reply.items[0]]
    expected = model.lower_bound(PROMPTS[0], RESPONSES)
    assert bounds == pytest.approx(list(expected), rel=1e-4, abs=1e-5)


def test_weights_of_a_request_take_the_gates_place(folders):
    replica, model = replica_of(folders["gated"])
    names = list(model.objectives)
    items = (Chat(tuple(PROMPTS[0]), ("No.",)),)
    steered, plain = answers(replica, [request(*items, weights={names[0]: 2.0}), request(*items)])
    tree = model.backbone.renderer.render(PROMPTS[0], ["No."]).tree
    with torch.inference_mode():
        found = model.score_trees([tree])
        r = model.head.debiased(found.values_BO, found.length_B)[0]
    assert values(steered)[0][0] == pytest.approx(2 * float(r[0]), rel=1e-4)
    assert values(plain)[0][0] == pytest.approx(float(found.score_B[0]), rel=1e-4)


def test_weights_of_objectives_that_are_not_there_are_refused(folders):
    replica, _ = replica_of(folders["scalar"])
    (reply,) = answers(replica, [request(weights={"helpfulness": 1.0})])
    assert isinstance(reply, RequestError)
    assert "no objective ['helpfulness']; it has none" in str(reply)


def test_what_cannot_be_read_is_an_error_of_its_item_alone(folders):
    replica, model = replica_of(folders["gated"])
    (reply,) = answers(
        replica,
        [
            request(
                RenderedText("", ("no template at all",)),
                Chat(tuple(PROMPTS[0]), ("No.",)),
                Tokens(((10**6, 1),)),
            )
        ],
    )
    assert values(reply) == [[None], [pytest.approx(model.score(PROMPTS[0], ["No."])[0])], [None]]
    assert "no assistant header" in reply.items[0][0].error
    assert "token id 1000000" in reply.items[2][0].error


def test_a_score_that_is_not_finite_is_an_error_and_no_number(folders):
    replica, model = replica_of(folders["scalar"])
    model.heads_KD.fill_(float("nan"))
    (reply,) = answers(replica, [request(Chat(tuple(PROMPTS[0]), ("No.",)))])
    assert reply.items[0][0].score is None
    assert "not finite: nan" in reply.items[0][0].error


def test_a_model_whose_forwards_all_fail_is_taken_for_broken_and_one_bad_text_is_not(folders):
    replica, model = replica_of(folders["scalar"])
    heads, items = model.heads_KD, [request(Chat(tuple(p), RESPONSES)) for p in PROMPTS]
    model.heads_KD = heads[:, :3]  # no product of these shapes
    for reply in answers(replica, items):
        assert {score.error.split(":")[1] for score in reply.items[0]} == {" RuntimeError"}
    assert replica.num_failures >= MAX_FAILURES
    model.heads_KD = heads
    healed = values(answers(replica, items)[0])[0]
    assert healed == pytest.approx(model.score(PROMPTS[0], RESPONSES))
    assert replica.num_failures == 0


def test_a_full_queue_says_when_to_come_back(folders):
    replica, _ = replica_of(folders["scalar"])
    replica.queue.config = BatchConfig(max_queued=1, max_wait=0.2)
    item = Chat(tuple(PROMPTS[0]), ("No.",))
    first, second = answers(replica, [request(item), request(item)])
    assert values(first)
    assert isinstance(second, RequestError)
    assert (second.status, second.retry_after) == (429, 1.0)


def test_nothing_asked_is_answered_with_nothing(folders):
    replica, _ = replica_of(folders["scalar"])
    (reply,) = answers(replica, [request(Chat(tuple(PROMPTS[0]), ()), RenderedText("", ()))])
    assert reply.items == ((), ())


PAIRS = [(p, a, b) for p in PROMPTS for a, b in ((RESPONSES[0], RESPONSES[1]), RESPONSES[2:])]


@pytest.fixture(scope="module")
def pairwise(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairwise")
    return make_pairwise(folder, byte_tokenizer("<s>" + TURNS, adds_bos=True))


@pytest.mark.parametrize("kind", ["scalar", "ensemble", "gated", "pairwise"])
def test_comparisons_are_those_in_process_through_the_same_queue(folders, pairwise, kind):
    batches = []
    folder = (folders | {"pairwise": pairwise})[kind]
    replica, model = replica_of(folder, max_tokens=4000, batches=batches)
    replies = answers(
        replica, [request(Chat(tuple(p), (a, b)), compares=True, details=ALL) for p, a, b in PAIRS]
    )
    expected = [model.compare(*pair) for pair in PAIRS]
    assert [values(one) for one in replies] == [[[pytest.approx(p, abs=1e-5)]] for p in expected]
    assert max(expected) - min(expected) > 1e-3
    assert replies[0].provenance["kind"] == model.provenance["kind"]
    # Pairs of a prompt share it, both orders of each too.
    assert sum(stats.num_responses for stats, _ in batches) == 2 * len(PAIRS)
    apart = sum(stats.num_separate_tokens for stats, _ in batches)
    assert sum(computed.num_needed for _, computed in batches) < 0.8 * apart


def test_a_pairwise_model_asked_for_scores_says_what_to_ask(pairwise):
    replica, _ = replica_of(pairwise)
    assert replica.about()["kind"] == "pairwise"
    texts = Chat(tuple(PROMPTS[0]), RESPONSES), RenderedText("p", ("r",)), Tokens(((1, 2),))
    for reply in answers(replica, [request(item) for item in texts]):
        assert isinstance(reply, RequestError)
        assert reply.status == 400
        assert "'m' is a pairwise model" in str(reply)
        assert "/v1/compare" in str(reply)


def test_a_pair_that_cannot_be_compared_fails_alone(folders, pairwise):
    system = ({"role": "system", "content": "Be kind."}, *PROMPTS[0])
    replica, model = replica_of(pairwise)
    asked = request(Chat(system, ("a", "b")), Chat(tuple(PROMPTS[0]), ("a", "b")), compares=True)
    (reply,) = answers(replica, [asked])
    assert values(reply) == [[None], [pytest.approx(model.compare(PROMPTS[0], "a", "b"))]]
    assert "user and assistant turns in turn" in reply.items[0][0].error
    replica, model = replica_of(folders["scalar"])
    model.heads_KD.fill_(float("nan"))
    (reply,) = answers(replica, [request(Chat(tuple(PROMPTS[0]), ("a", "b")), compares=True)])
    assert "not finite: nan" in reply.items[0][0].error


def test_functions_are_not_compared():
    arm = FunctionReplica(
        ServedModelConfig(name="m", where="function:panoply.serve.verifiers:length")
    )
    (reply,) = answers(arm, [request(Chat(tuple(PROMPTS[0]), ("a", "b")), compares=True)])
    assert reply.status == 400
    assert "'m' is a function, whose scores have no temperature" in str(reply)


def test_a_published_model_is_judged_as_it_scores(tmp_path):
    replica, model = replica_of(publish(tmp_path / "m", byte_tokenizer(TURNS)))
    (reply,) = answers(replica, [request(Chat(tuple(PROMPTS[0]), RESPONSES), details=ALL)])
    assert values(reply)[0] == pytest.approx(model.score(PROMPTS[0], RESPONSES), rel=1e-4)
    assert reply.provenance["kind"] == "linear"


def test_a_response_without_its_prompt_is_refused_by_models_and_taken_by_functions(folders):
    replica, model = replica_of(folders["scalar"])
    prompt = tuple(PROMPTS[0])
    (answer,) = answers(replica, [request(Chat((), ("No.", "Yes.")), Chat(prompt, ("No.",)))])
    refused, scored = answer.items
    for score in refused:
        assert (score.score, score.transient) == (None, False)
        assert "'m' scores a reply to a prompt, and none was sent" in score.error
    assert scored[0].score == pytest.approx(float(model.score(prompt, ["No."])[0]), rel=1e-4)
    length = FunctionReplica(
        ServedModelConfig(name="n", where="function:panoply.serve.verifiers:length")
    )
    assert values(answers(length, [request(Chat((), ("No.", "Yes.")))])[0]) == [[3, 4]]


def test_a_name_in_a_turn_is_written_by_the_template_that_reads_it(folders):
    replica, model = replica_of(folders["scalar"])
    turn = {"role": "user", "content": "Why?"}
    named = turn | {"name": "Ada"}
    (answer,) = answers(replica, [request(Chat((turn,), ("No.",)), Chat((named,), ("No.",)))])
    assert answer.items[0] == answer.items[1]  # this one does not
    tokenizer = model.backbone.renderer.tokenizer
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m['content'] }}", "{{ m['name'] or '' }}{{ m['content'] }}"
    )
    (answer,) = answers(replica, [request(Chat((turn,), ("No.",)), Chat((named,), ("No.",)))])
    assert answer.items[0] != answer.items[1]


class ShortestReply(ScoringModel[int]):
    """A kind of reward model from outside: minus the number of tokens of a response."""

    temperature = 10.0

    def __init__(self, backbone):
        self.backbone, self.provenance = backbone, provenance_of("shortest", backbone, {})

    def forward(self, trees):
        """Returns the number of tokens of each response."""
        return [len(branch.tokens) for tree in trees for branch in tree.branches]

    def score_of(self, output):
        """Returns minus that."""
        return -float(output)


def test_a_new_kind_of_reward_model_is_served_and_examined_by_its_class_alone(folders):
    replica, _ = replica_of(folders["scalar"])
    # A prepacked model, as a replica's is, cannot be copied, as the doctor does.
    replica.model = kind = ShortestReply(load_reward_model(folders["scalar"]).backbone)
    prompt = tuple(PROMPTS[0])
    rewards, preference = answers(
        replica,
        [request(Chat(prompt, RESPONSES)), request(Chat(prompt, ("No.", "Never.")), compares=True)],
    )
    assert values(rewards) == [kind.score(prompt, RESPONSES).tolist()]
    assert values(preference) == [[kind.compare(prompt, "No.", "Never.")]]
    assert kind.compare(prompt, "No.", "Never.") == pytest.approx(1 / (1 + 2.718281828**-0.3))
    findings = examine_loaded(kind, folders["scalar"])
    assert {finding.check for finding in findings} >= {"BOS", "scale", "batch drift", "bfloat16"}
    assert not [finding for finding in findings if finding.verdict == "fail"]
