"""Whose turn it is: clients take turns, and within a client its sessions do.

The order is that of a queue: who had a turn goes to its end, and who is new begins at its end. So whatever the others
ask for, a client waits for one turn of each of them at most. Within a client, sessions of class ``main`` and all others
take turns as two groups: any number of subagents and side calls have half of their client's turns, and shorter ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest

from modeld.engine.job import Job

REMEMBERED = 4096
"""Places that are kept in mind: beyond them the longest unused are forgotten, and their owners begin at the end."""

Place = tuple[object, ...]


class Line:
    """The order of jobs by the turns that their clients and sessions had. Belongs to the scheduler's thread."""

    def __init__(self) -> None:
        self._clock = 0
        self._turns: dict[Place, int] = {}

    def order(self, jobs: Iterable[Job]) -> list[Job]:
        """Who is next, and who after that: a job of each client, then a second one of each, and so on."""
        clients: dict[Place, list[Job]] = {}
        for job in sorted(jobs, key=lambda job: job.arrived):
            clients.setdefault(_places(job)[0], []).append(job)
        return _one_of_each([self._of_client(clients[place]) for place in self._by_turn(clients)])

    def _of_client(self, jobs: Sequence[Job]) -> list[Job]:
        groups: dict[Place, dict[Place, list[Job]]] = {}
        for job in jobs:
            _, group, session = _places(job)
            groups.setdefault(group, {}).setdefault(session, []).append(job)
        return _one_of_each(
            [
                [job for session in self._by_turn(groups[group]) for job in groups[group][session]]
                for group in self._by_turn(groups)
            ]
        )

    def had_turn(self, job: Job) -> None:
        """The job's client, group and session go to the ends of their queues."""
        self._clock += 2
        for place in _places(job):
            self._turns[place] = self._clock
        if len(self._turns) > REMEMBERED:
            latest = sorted(self._turns.items(), key=lambda item: item[1])[REMEMBERED // 2 :]
            self._turns = dict(latest)

    def _by_turn(self, places: Iterable[Place]) -> list[Place]:
        # Who is new comes after all but the one who had the last turn.
        return sorted(places, key=lambda place: self._turns.setdefault(place, self._clock - 1))


def _places(job: Job) -> tuple[Place, Place, Place]:
    client: Place = (job.client,)
    group = (*client, job.session.session_class == "main")
    return client, group, (*group, job.session.key)


def _one_of_each(lists: Sequence[Sequence[Job]]) -> list[Job]:
    return [job for job in chain.from_iterable(zip_longest(*lists)) if job is not None]
