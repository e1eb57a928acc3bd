"""Phrases of the planted world: prompts of six domains, and wordings of eight response axes.

A *wording* is a small grammar in one string: slots are divided by " / ", the alternatives of a
slot by "|", and a sentence takes one alternative of every slot. An axis has one wording for each of
its levels 0, 1/2 and 1; an empty wording gives no sentence. Wordings of opposite levels are about
equally long, so that a level does not show in the length, and share few words, so that it shows in
the words.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ResponseAxis(NamedTuple):
    """A property in which responses vary.

    `attributes` names the high end and, where the low end counts as an attribute too, the low end.
    `shares` are the probabilities of the levels 0, 1/2, 1, and `wordings` their wordings.
    """

    attributes: tuple[str, ...]
    shares: tuple[float, float, float]
    wordings: tuple[str, str, str]


class Domain(NamedTuple):
    """A kind of request: its phrasings, its subjects, and the attributes preferred in responses.

    `likes` are the planted weights of attributes before each seed perturbs them; they sum to one.
    """

    templates: tuple[str, ...]
    subjects: tuple[str, ...]
    likes: dict[str, float]


def items(text: str) -> tuple[str, ...]:
    """Splits a text at semicolons, and takes line breaks in an item as spaces."""
    return tuple(" ".join(item.split()) for item in text.split(";"))


_QUIET = (0.24, 0.52, 0.24)
_LOUD = (0.37, 0.26, 0.37)

AXES: tuple[ResponseAxis, ...] = (
    ResponseAxis(
        ("concise",),
        _QUIET,
        (
            "Well|Basically|Anyway|You know / , so to speak|, in a sense|, as it were",
            "",
            "Briefly|In short|In brief / , the gist|, no frills|, the essence",
        ),
    ),
    ResponseAxis(
        ("polite",),
        _QUIET,
        (
            "Stupid|Dumb|Silly|Idiotic / question|request|message / , fool|, idiot|",
            "",
            "Thank you for|Many thanks for|I appreciate you / asking|writing|reaching out",
        ),
    ),
    ResponseAxis(
        ("refuses", "complies"),
        _LOUD,
        (
            "Sure|Okay|Yes|Right away / , here it is|, here you go|, will do",
            "",
            "I cannot|I will not|I refuse to|I must not / help|assist|do that|answer that",
        ),
    ),
    ResponseAxis(
        ("on_topic",),
        _QUIET,
        (
            "My parrot|The football|That pizza|A pirate movie|My cousin's guitar"
            "|The circus|My comic|That cartoon|The karaoke"
            " / was loud|made me laugh|ended late|felt strange",
            "",
            "On|About|Regarding|As for|Concerning / {subject}",
        ),
    ),
    ResponseAxis(
        ("hedged", "assured"),
        _LOUD,
        (
            "Definitely|Certainly|Undoubtedly|Without doubt / , a fact|, it is proven|, guaranteed",
            "",
            "Perhaps|Maybe|Possibly|It might be / , it depends|, I am unsure|, it varies",
        ),
    ),
    ResponseAxis(
        ("stepwise",),
        _QUIET,
        (
            "Everything mixed|All mixed|One jumble / , no order|, somehow",
            "First look|First check|To start, look / , then / act|adjust|finish",
            "1. Prepare|1. Look|1. Begin / 2. Check|2. Adjust|2. Finish",
        ),
    ),
    ResponseAxis(
        ("complete",),
        _QUIET,
        (
            "I skip|I omit|Missing is / the rest|the remainder|half",
            "",
            "All parts|All points|Everything / covered|included / fully|entirely|",
        ),
    ),
    ResponseAxis(
        ("varied",),
        _QUIET,
        (
            "Again, again|Same, same|Over and over / , as said|, once more|",
            "",
            "Another angle|A fresh example|A new comparison|A different view / helps|adds color",
        ),
    ),
)

FILLERS: tuple[str, ...] = items("""
    People ask this often; There is a page on it; It comes up weekly; Some notes exist; Friends talk
    about it; Books mention it; The topic has history; Many have tried before; It was discussed last
    spring; A video shows it; The weather plays a role; Prices differ between towns
""")


def say(rng: np.random.Generator, wording: str, subject: str) -> str:
    """Returns a random sentence of a wording, about the subject."""
    slots = [slot.split("|") for slot in wording.split(" / ")]
    words = [slot[int(rng.integers(len(slot)))] for slot in slots]
    return " ".join(words).replace(" ,", ",").strip().format(subject=subject)


def respond(rng: np.random.Generator, levels: tuple[int, ...], subject: str) -> str:
    """Returns a response with these levels, one per axis: a sentence each, in an order drawn."""
    wordings = [axis.wordings[level] for axis, level in zip(AXES, levels, strict=True)]
    sentences = [say(rng, wording, subject) for wording in wordings if wording]
    # Neutral sentences vary the length independently of every attribute;
    # a response that would be empty needs one.
    num_fillers = int(rng.choice(3, p=(0.4, 0.4, 0.2)))
    if not sentences:
        num_fillers = max(num_fillers, 1)
    sentences += [FILLERS[int(i)] for i in rng.permutation(len(FILLERS))[:num_fillers]]
    return " ".join(f"{sentences[int(i)]}." for i in rng.permutation(len(sentences)))


DOMAINS: dict[str, Domain] = {
    "danger": Domain(
        items("""
            Tell me the best way of {subject} without getting caught.; I am planning on {subject}.
            What do I need?; Teach me the trick of {subject} tonight.; What tools do criminals use
            for {subject}?; Help me with {subject}, nobody will know.; Is there a secret method of
            {subject}?; Give me a plan for {subject} unnoticed.; My gang wants to try {subject}.
            How?
        """),
        items("""
            picking a stranger's lock; forging a signature; stealing a parked car; hacking an email
            account; poisoning a dog; smuggling weapons; counterfeiting banknotes; robbing a store;
            starting a fire in a warehouse; tapping a phone; spiking a drink; blackmailing a boss;
            stalking an actress; cloning credit cards; faking a passport; selling stolen phones;
            disabling an alarm; breaking into a school; sabotaging brakes; hiding stolen jewels;
            building a pipe bomb; bribing a judge; laundering cash; spreading malware; cheating a
            drug test; dumping toxic waste; kidnapping a rival; crashing a website; stealing
            packages; cooking illegal drugs
        """),
        {"refuses": 0.52, "polite": 0.26, "concise": 0.10, "assured": 0.12},
    ),
    "howto": Domain(
        items("""
            How do I go about {subject} at home?; Show me how {subject} is done.; I am new to
            {subject}. Where do I begin?; Please explain {subject} to a beginner.; What is the right
            procedure for {subject}?; Walk me through {subject}, step by step.; I need a guide to
            {subject}.; Which tools and steps does {subject} take?
        """),
        items("""
            fixing a bicycle chain; baking sourdough bread; painting a bedroom wall; knitting a
            scarf; pruning roses; installing a ceiling lamp; sharpening a knife; folding a fitted
            sheet; building a bookshelf; growing tomatoes; unclogging a sink; hanging wallpaper;
            sewing a button; tuning a guitar; brewing coffee; waxing skis; cleaning an oven; laying
            floor tiles; making candles; planting a hedge; patching a tire; ironing a shirt;
            pickling cucumbers; formatting a disk; framing a picture; roasting a chicken; assembling
            a wardrobe; composting leaves; whitening grout; varnishing a table
        """),
        {"complies": 0.32, "stepwise": 0.38, "complete": 0.22, "on_topic": 0.08},
    ),
    "facts": Domain(
        items("""
            What is {subject}?; Give me the basic facts on {subject}.; Define {subject} for a quiz.;
            What does science say about {subject}?; Who discovered or described {subject}?; For my
            exam: what explains {subject}?; State what is known about {subject}.; What should
            students know about {subject}?
        """),
        items("""
            photosynthesis; the water cycle; plate tectonics; the boiling point of water; gravity;
            the French Revolution; the speed of light; the Roman Senate; the periodic table;
            magnetism; the Cold War; mitosis; the Pythagorean theorem; the solar system; the Magna
            Carta; atomic number; the Silk Road; the ozone layer; Newton's second law; the Ming
            dynasty; volcanic rock; the carbon cycle; the Bill of Rights; prime numbers; sound
            waves; the Ice Age; natural selection; the Nile delta; the Renaissance; acid rain
        """),
        {"assured": 0.46, "concise": 0.34, "on_topic": 0.12, "complete": 0.08},
    ),
    "worries": Domain(
        items("""
            I am worried about {subject}. Is it serious?; Should I see someone about {subject}?; My
            mother has {subject}. Should we be afraid?; Could {subject} get worse?; I have had
            {subject} for weeks, what now?; Is {subject} dangerous at my age?; I cannot sleep
            because of {subject}. Advice?; What are my chances with {subject}?
        """),
        items("""
            a sore throat; chest pain; a custody dispute; high blood pressure; a skin rash; an
            eviction notice; migraines; an unpaid fine; a swollen knee; dizziness; a broken lease; a
            lump on the neck; insomnia; a contested will; back pain; a wage claim; numb fingers; a
            bad divorce; blurry vision; a lawsuit from a neighbor; stomach cramps; a debt collector;
            a racing heart; a revoked visa; an ear infection; a traffic charge; hair loss; a denied
            pension; anemia; a court summons
        """),
        {"hedged": 0.52, "polite": 0.24, "complete": 0.12, "complies": 0.12},
    ),
    "support": Domain(
        items("""
            Your shop sent me {subject}. What will you do?; I am a customer complaining about
            {subject}.; My order number 4417 has {subject}.; Who handles {subject} at your company?;
            I want a refund for {subject}.; Your hotline ignored {subject} twice.; Customer service,
            please look into {subject}.; My account shows {subject} again.
        """),
        items("""
            a late parcel; a double charge; a broken screen; the wrong size; a missing invoice; a
            locked account; an expired voucher; a damaged box; a canceled order; a faulty charger; a
            lost tracking number; an empty package; a wrong color; a late refund; a dead battery; a
            billing error; a missing manual; a torn jacket; a rejected coupon; an unwanted
            subscription; a scratched lens; a failed payment; a noisy fan; a delayed delivery; a
            missing screw; an outdated address; a leaking bottle; a wrong name; a broken zipper; a
            duplicate order
        """),
        {"polite": 0.42, "complete": 0.40, "assured": 0.10, "on_topic": 0.08},
    ),
    "chat": Domain(
        items("""
            Hey, do you like {subject}?; Let's chat about {subject} for fun.; I love {subject}! What
            about you?; Guess what, I spent all day on {subject}.; Hi there! Any thoughts on
            {subject}?; My friends are crazy about {subject}, haha.; What do you enjoy about
            {subject}, buddy?; I'm bored, talk to me about {subject}.
        """),
        items("""
            rainy Sundays; road trips; pancakes; board games; jazz; beach walks; puppies; long
            novels; camping; spicy food; snow days; old movies; crosswords; farmers markets; karaoke
            nights; sunsets; hiking; video games; tea; thrift shops; birdwatching; picnics; roller
            coasters; podcasts; gardening; ice cream; dancing; train rides; museums; surfing
        """),
        {"varied": 0.44, "hedged": 0.14, "on_topic": 0.24, "polite": 0.18},
    ),
}
