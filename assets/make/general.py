"""General text from WordNet: what the demo's language model knows before it is tuned."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

from wordnet import ACT, ANIMAL, ARTIFACT, FOOD, PLANT, Synset, WordNet

# How often a synset is drawn: the catalogue's own, those of the same kinds, all others. The catalogue is
# over-represented on purpose: a model of 1.3 M parameters that saw a few million tokens would hardly
# know its words otherwise.
DRAWS_ITEM, DRAWS_KIN, DRAWS_OTHER = 40, 8, 2
# Chance that a draw adds one usage example as a line of its own.
EXAMPLE = 0.35

STOP = frozenset(
    "a about above after all also although among an and another any are around as at be because been before"
    " being below between both but by can cannot certain could did do does done down during each either"
    " especially etc ever every few for from had has have having he her him his how if in into is it its itself"
    " just kind kinds large less like made make makes making many may member more most much must neither no nor"
    " not of off often on one only onto or other others out over own part people person resembling same several"
    " she should similar small so some someone something such than that the their them then there these they"
    " thing things this those through to too two under until up upon us use used uses using usually various"
    " very was were what when where whether which while who whom whose will with within without would you your"
    .split()
)


def content_words(text: str) -> list[str]:
    """Words that carry meaning, in order, each once."""
    return list(dict.fromkeys(w for w in re.findall(r"[a-z]+", text) if len(w) > 2 and w not in STOP))


def line(synset: Synset, net: WordNet, rng: random.Random) -> str:
    """One of five ways to say what a synset is."""
    words = list(synset.lemmas)
    rng.shuffle(words)
    names, word, way = " , ".join(w.lower() for w in words[:3]), words[0].lower(), rng.random()
    if way < 0.35:
        return f"{names} : {synset.gloss} ."
    if way < 0.60:
        return f"{synset.gloss} : {names} ."
    content = content_words(synset.gloss)
    if way < 0.75 and content:
        count = rng.randint(1, min(3, len(content)))
        start = rng.randrange(len(content) - count + 1)
        return f"{' '.join(content[start:start + count])} : {word} ."
    parents = [net.synsets[k].name for k in synset.hypernyms if k in net.synsets]
    if way < 0.88 and parents:
        parent = rng.choice(parents)
        return f"{word} is a kind of {parent} ." if rng.random() < 0.5 else f"one kind of {parent} is {word} ."
    if len(words) > 1:
        return f"{word} is another word for {words[1].lower()} ."
    return f"{word} : {synset.gloss} ."


def training_lines(net: WordNet, items: set[str], kin: set[str], held_out: set[str], seed: int) -> list[str]:
    """The pretraining text, a line a draw, shuffled. `held_out` synsets do not take part."""
    rng = random.Random(f"{seed} general text")
    lines = []
    for key, synset in net.synsets.items():
        if key in held_out:
            continue
        draws = DRAWS_ITEM if key in items else DRAWS_KIN if key in kin else DRAWS_OTHER
        for _ in range(draws):
            lines.append(line(synset, net, rng))
            if synset.examples and rng.random() < EXAMPLE:
                lines.append(f"{rng.choice(synset.examples)} .")
    rng.shuffle(lines)
    return lines


def held_out_synsets(net: WordNet, kin: set[str], count: int, seed: int) -> list[str]:
    """Synsets that no training line speaks of, of other domains than the catalogue's."""
    near = {ACT, ANIMAL, ARTIFACT, FOOD, PLANT}
    far = [k for k, s in net.synsets.items() if k not in kin and (k[0] != "n" or s.lexfile not in near)]
    return random.Random(f"{seed} held out").sample(far, count)


def definitions(synsets: Iterable[Synset]) -> list[str]:
    """A document a synset: its words and what they mean."""
    return [f"{' , '.join(w.lower() for w in s.lemmas[:3])} : {s.gloss} ." for s in synsets]


def sentences(synsets: Iterable[Synset]) -> list[str]:
    """Usage examples, each a document: running sentences instead of definitions."""
    return [f"{e} ." for s in synsets for e in s.examples if len(e.split()) > 3]
