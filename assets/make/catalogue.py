"""The catalogue: 384 things of 32 kinds, each with a title and words that people look for it with."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass, field

from general import content_words
from wordnet import ACT, ANIMAL, ARTIFACT, FOOD, PLANT, Synset, WordNet

TOPICS = [
    (ANIMAL, "dog bird fish insect snake rodent lizard"),
    (ARTIFACT, "garment shoe fabric jewelry furniture tool container vehicle boat building hat musical_instrument"),
    (FOOD, "edible_fruit vegetable sauce bread candy meat beverage cake"),
    (PLANT, "flower tree shrub"),
    (ACT, "game dance"),
]
ITEMS_PER_TOPIC = 12
POOL = 4  # fewest query words of an item
LONGEST_WORD = 10  # of a query, in letters: longer words are many tokens


@dataclass
class Item:
    """One thing of the catalogue."""

    number: int
    topic: int
    synset: Synset
    title: str = ""
    pool: list[str] = field(default_factory=list)  # query words
    seen: list[str] = field(default_factory=list)  # query words that logs contain
    held: list[str] = field(default_factory=list)  # query words that no log contains

    @property
    def id(self) -> str:
        """The name in data files, such as `bull-terrier`."""
        return self.synset.name.replace(" ", "-")


def choose(net: WordNet, seed: int) -> tuple[list[Item], set[str]]:
    """The items, and the keys of all synsets of the same kinds."""
    roots = [net.noun(name.replace("_", " "), lexfile) for lexfile, names in TOPICS for name in names.split()]
    below = {root.key: set(net.kinds_of(root.key)) for root in roots}
    kinds = []
    for root in roots:
        # A boat is a vehicle: it belongs to the narrowest topic only.
        narrower = [below[other.key] | {other.key} for other in roots if other.key in below[root.key]]
        kinds.append(sorted(below[root.key].difference(*narrower)))
    poor: set[str] = set()
    while True:
        items = _draw(kinds, poor, net, seed)
        _name(items, net, seed)
        _halve_words(items, seed)
        found = {item.synset.key for item in items if len(item.pool) < POOL}
        if not found:
            return items, {key for keys in kinds for key in keys}
        poor |= found


def _draw(kinds: list[list[str]], poor: set[str], net: WordNet, seed: int) -> list[Item]:
    items, names = [], set()
    for topic, keys in enumerate(kinds):
        fit = [s for k in keys if k not in poor and (s := net.synsets[k]) and _is_fit(s)]
        random.Random(f"{seed} topic {topic}").shuffle(fit)
        chosen = list({s.name: s for s in fit if s.name not in names}.values())[:ITEMS_PER_TOPIC]
        if len(chosen) < ITEMS_PER_TOPIC:
            raise LookupError(f"topic {topic} has only {len(chosen)} fit kinds")
        names.update(s.name for s in chosen)
        first = len(items)
        items.extend(Item(first + i, topic, s) for i, s in enumerate(chosen))
    return items


def _is_fit(synset: Synset) -> bool:
    """A plain name of one or two words, and a gloss with enough to ask for."""
    return re.fullmatch(r"[a-z]{3,}( [a-z]{3,})?", synset.name) is not None and 5 <= len(_telling(synset)) <= 14


def _telling(synset: Synset) -> list[str]:
    """The gloss's content words that are not in the name."""
    own = synset.name.split()
    return [w for w in content_words(synset.gloss) if w not in own]


def _name(items: list[Item], net: WordNet, seed: int) -> None:
    """Titles (the name and one word of the gloss) and query words (the gloss's others, synonyms, the kind).

    A title takes the word that fewest items share: no title's word may be asked for, since the item's row
    would know it from the start.
    """
    shared = Counter(w for item in items for w in _telling(item.synset))
    for item in items:
        telling = _telling(item.synset)
        random.Random(f"{seed} title {item.id}").shuffle(telling)
        item.title = f"{item.synset.name} {min(telling, key=shared.__getitem__)}"
        synonyms = [w.lower() for w in item.synset.lemmas[1:]]
        parents = [net.synsets[k].name for k in item.synset.hypernyms if k in net.synsets]
        item.pool = list(dict.fromkeys(telling + content_words(" ".join(synonyms + parents))))
    titles = {w for item in items for w in item.title.split()}
    for item in items:
        item.pool = [w for w in item.pool if w not in titles and len(w) <= LONGEST_WORD]


def _halve_words(items: list[Item], seed: int) -> None:
    """Splits the query words into those that logs contain and those that they never do.

    Every item keeps at least two words to be asked for with.
    """
    words = sorted({w for item in items for w in item.pool})
    random.Random(f"{seed} words").shuffle(words)
    seen = set(words[: len(words) // 2])
    for item in items:
        missing = 2 - sum(w in seen for w in item.pool)
        seen.update([w for w in item.pool if w not in seen][: max(missing, 0)])
    for item in items:
        item.seen = [w for w in item.pool if w in seen]
        item.held = [w for w in item.pool if w not in seen]
