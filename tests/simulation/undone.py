"""What must be undone, and what must be left, by the journal's commits alone (I10): not by what the engine has planned.

Which steps can be undone, and which end the undoing, is what their actions declare.
"""

from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import msgspec

from dotdo.action import Action
from dotdo.catalogue import Catalogue

OWN_STEPS = ("undo:", "on_failure:")


@dataclass
class Committed:
    """The steps of a run that are committed, and neither undone nor left as they are by a person: the number of the
    entry, by step."""

    run: str
    undoable: frozenset[str]  # names of actions
    pivots: frozenset[str]
    at: dict[str, int] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    children: set[str] = field(default_factory=set)
    planned: bool = False
    wrong: list[str] = field(default_factory=list)

    def can_be_undone(self, step: str) -> bool:
        """Whether it declares an undo; a child is undone by undoing its run."""
        return step in self.children or step.partition(":")[0] in self.undoable

    def due(self) -> list[str]:
        """The steps to undo now, the newest first, down to the last pivot."""
        due: list[str] = []
        for step in sorted(self.at, key=lambda step: -self.at[step]):
            if step.partition(":")[0] in self.pivots:
                break
            if self.can_be_undone(step) and step not in self.left:
                due.append(step)
        return due

    def take(self, entry: dict[str, Any]) -> None:
        """The next entry."""
        data, step = msgspec.json.decode(entry["data"]), entry["step"]
        match entry["kind"]:
            case "child_started":
                self.children.add(step)
            case "committed" | "completed" if not step.startswith(OWN_STEPS):
                self.at[step], self.results[step] = entry["seq"], data["result"]
            case "failed" if step in self.at:
                self._give_up(step)
            case "undone" if not data.get("error"):
                self._forget(data["step"])
            case "resolved" if data["about"] == "undo":
                if data["outcome"] == "happened":
                    self._forget(step)
                elif data["outcome"] == "did_not_happen":
                    self.left.add(step)
            case "reopened":
                self.planned = False
                for each in data.get("dropped", ()):
                    if each in self.at and self.can_be_undone(each):
                        self.wrong.append(f"I10: {self.run} does {each} again, which is not undone")
                    self._forget(each)
            case "undo_planned":
                self.planned = True
                if data["steps"] != self.due():
                    self.wrong.append(f"I10: {self.run} plans to undo {data['steps']} instead of {self.due()}")
            case "ended" if data["status"] != "completed" and not self.planned and self.due():
                self.wrong.append(f"I10: {self.run} is {data['status']}, and {self.due()} are not undone")
            case _:
                pass

    def _give_up(self, step: str) -> None:
        """What could not be delivered has failed: its undo came before."""
        if self.can_be_undone(step) and step not in self.left:
            self.wrong.append(f"I10: {step} of {self.run} has failed, and what it had committed is not undone")
        self._forget(step)

    def _forget(self, step: str) -> None:
        self.at.pop(step, None)
        self.left.discard(step)


def check_undone(entries: list[dict[str, Any]], catalogue: Catalogue) -> tuple[list[str], set[str]]:
    """What does not hold, in words; and the stock that must be there, as the ledger names it. entries: of all runs, one
    run after the other, in order. catalogue: of their actions."""
    actions: list[Action[..., Any]] = catalogue.all("action")
    undoable = frozenset(action.name for action in actions if action.undo_action is not None)
    pivots = frozenset(action.name for action in actions if action.pivot)
    wrong: list[str] = []
    stock: set[str] = set()
    for run, of_it in groupby(entries, key=lambda entry: entry["run"]):
        committed = Committed(run, undoable, pivots)
        for entry in of_it:
            committed.take(entry)
        wrong += committed.wrong
        stock.update(f"{run} {committed.results[step]}" for step in committed.at if step.startswith("stocked:"))
    return wrong, stock
