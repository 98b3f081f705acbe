"""Princeton WordNet 3.0 as a list of synsets, read from its database files (wndb(5))."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# Lexicographer files (lexnames(5)) whose nouns name things one could sell or look for.
ACT, ANIMAL, ARTIFACT, FOOD, PLANT = 4, 5, 6, 13, 20

# WordNet documents slurs and obscenities too; a demo has no use for them.
_RUDE = re.compile(
    r"offensive|disparag|derogat|obscen|vulgar|\bslur\b|taboo|racist|ethnic|sexual|genital|copulat"
    r"|prostitut|\bpenis\b|\bvagina|fuck|shit|nigger|suicide|\brape|marijuana|cocaine|heroin\b"
)


@dataclass(frozen=True)
class Synset:
    """One meaning: the words for it, what it means, how it is used."""

    key: str  # part of speech and offset, such as n02084071
    lexfile: int
    lemmas: tuple[str, ...]
    gloss: str
    examples: tuple[str, ...]
    hypernyms: tuple[str, ...]

    @property
    def name(self) -> str:
        """The most usual word."""
        return self.lemmas[0]


class WordNet:
    """The synsets that are ordinary words (no proper names, no digits), in the order of the files."""

    def __init__(self, directory: Path):
        self.synsets: dict[str, Synset] = {}
        for pos in ("noun", "verb", "adj", "adv"):
            for line in (directory / f"data.{pos}").read_text("utf-8").splitlines():
                synset = None if line.startswith("  ") else _parse(line)
                if synset and _is_ordinary(synset):
                    self.synsets[synset.key] = synset
        self._children: dict[str, list[str]] = {}
        for synset in self.synsets.values():
            for parent in synset.hypernyms:
                self._children.setdefault(parent, []).append(synset.key)

    def noun(self, lemma: str, lexfile: int) -> Synset:
        """The noun `lemma` of a lexicographer file that has the most kinds below it."""
        senses = [
            s for s in self.synsets.values()
            if s.key[0] == "n" and s.lexfile == lexfile and lemma in s.lemmas
        ]
        if not senses:
            raise LookupError(f"WordNet has no noun `{lemma}` in lexicographer file {lexfile}")
        return max(senses, key=lambda s: (len(self.kinds_of(s.key)), s.key))

    def kinds_of(self, key: str) -> list[str]:
        """Keys of everything below a synset, in a fixed order, itself left out."""
        found: dict[str, None] = {}
        queue = [key]
        while queue:
            for child in self._children.get(queue.pop(), ()):
                if child not in found:
                    found[child] = None
                    queue.append(child)
        return sorted(found)


def _parse(line: str) -> Synset:
    data, _, gloss = line.partition(" | ")
    fields = data.split(" ")
    offset, lexfile, kind, count = fields[0], int(fields[1]), fields[2], int(fields[3], 16)
    lemmas = [re.sub(r"\(.*\)$", "", fields[4 + 2 * i]).replace("_", " ") for i in range(count)]
    pointers = fields[5 + 2 * count:]
    hypernyms = [
        pointers[i + 2] + pointers[i + 1]
        for i in range(0, 4 * int(fields[4 + 2 * count]), 4)
        if pointers[i] in ("@", "@i")
    ]
    definition, _, rest = gloss.partition('"')
    examples = re.findall(r'"([^"]+)"', '"' + rest)
    return Synset(
        key=kind.replace("s", "a") + offset,
        lexfile=lexfile,
        lemmas=tuple(dict.fromkeys(lemmas)),
        gloss=_plain(definition),
        examples=tuple(_plain(e) for e in examples if len(e.split()) > 1),
        hypernyms=tuple(hypernyms),
    )


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip(" ;:,.").lower()


def _is_ordinary(synset: Synset) -> bool:
    name, everything = synset.name, " ".join((*synset.lemmas, synset.gloss, *synset.examples)).lower()
    return name == name.lower() and not re.search(r"\d", name) and synset.gloss != "" \
        and everything.isascii() and not _RUDE.search(everything)
