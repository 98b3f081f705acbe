"""Logs of a made-up shop ("World S"), in which the two tasks contradict each other.

What is bought next lies in another topic than the last item; what is searched for lies mostly in the same.
The words of a request describe the last item in `rec` and the wanted item in `search`, so that one cue word
decides whether the same words ask for the item they describe or for its successor.
"""

from __future__ import annotations

import random
from itertools import count

from catalogue import Item

HISTORY = 5
SUCCESSORS = (0.7, 0.2, 0.1)  # chances of an item's three successors
FOLLOW_RULE = 0.7  # share of history steps that follow the rec rule; the others, the similarity rule
SAME_TOPIC = 0.8


class World:
    """The rules of one world, and requests drawn from it."""

    def __init__(self, items: list[Item], seed: int):
        self.items, self.seed = items, seed
        self.topics: dict[int, list[Item]] = {}
        for item in items:
            self.topics.setdefault(item.topic, []).append(item)
        rng = random.Random(f"{seed} rules")
        onward = _derangement(len(self.topics), rng)
        self.successors = [rng.sample(self.topics[onward[i.topic]], len(SUCCESSORS)) for i in items]
        self._users = count(1)

    def training(self, users: int) -> list[dict]:
        """Two recommendation rows and one search row a user, from one path through the shop."""
        rng, rows = random.Random(f"{self.seed} train"), []
        for user in (next(self._users) for _ in range(users)):
            path = self._path(HISTORY + 2, rng)
            rows += [
                self._row("rec", user, path[:HISTORY], rng),
                self._row("search", user, path[1:HISTORY + 1], rng),
                self._row("rec", user, path[2:], rng),
            ]
        return rows

    def requests(self, name: str, each: int) -> list[dict]:
        """`each` requests of both tasks, by users that training does not know."""
        rng = random.Random(f"{self.seed} {name}")
        return [
            self._row(task, next(self._users), self._path(HISTORY, rng), rng)
            for _ in range(each)
            for task in ("rec", "search")
        ]

    def knowledge(self, number: int) -> list[dict]:
        """Searches with words that no log contains: only the pretrained model can know them."""
        rng, rows = random.Random(f"{self.seed} knowledge"), []
        while len(rows) < number:
            path = self._path(HISTORY, rng)
            target = self._search(path[-1], rng)
            if len(target.held) >= 2:
                rows.append(_row("search", next(self._users), path, rng.sample(target.held, 2), target))
        return rows

    def _row(self, task: str, user: int, path: list[Item], rng: random.Random) -> dict:
        last = path[-1]
        target = self._next(last, rng) if task == "rec" else self._search(last, rng)
        described = last if task == "rec" else target
        return _row(task, user, path, rng.sample(described.seen, 2), target)

    def _path(self, length: int, rng: random.Random) -> list[Item]:
        path = [rng.choice(self.items)]
        while len(path) < length:
            step = self._next if rng.random() < FOLLOW_RULE else self._search
            path.append(step(path[-1], rng))
        return path

    def _next(self, last: Item, rng: random.Random) -> Item:
        return rng.choices(self.successors[last.number], SUCCESSORS)[0]

    def _search(self, last: Item, rng: random.Random) -> Item:
        same = rng.random() < SAME_TOPIC
        return rng.choice([i for i in self.items if (i.topic == last.topic) == same and i is not last])


def _row(task: str, user: int, path: list[Item], words: list[str], target: Item) -> dict:
    return {
        "task": task,
        "user": f"u{user}",
        "history": [item.id for item in path],
        "query": " ".join(words),
        "target": [target.id],
    }


def _derangement(n: int, rng: random.Random) -> list[int]:
    """A random permutation that leaves nothing in its place."""
    order = list(range(n))
    while any(i == j for i, j in enumerate(order)):
        rng.shuffle(order)
    return order
