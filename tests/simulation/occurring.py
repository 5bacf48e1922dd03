"""What must have occurred in a simulation, or it would have proved little: each kind of fault, deed, entry and state.

SOMETIMES in any few dozen seeds, EVERYTHING in a thousand, RARELY in those of a night. `change.a.b`: a run in state a
came to be in state b.
"""

SOMETIMES = [
    *("store.before", "store.after", "store.slow", "kill.before", "kill.after"),
    *("sql.before", "sql.after"),
    *("effect.lost", "effect.not_done", "effect.refused", "effect.kill", "effect.kill_after"),
    *("deed.again", "deed.conflict", "deed.cancel", "deed.undo", "deed.event", "deed.retry"),
    *("entry.lost", "entry.blocked", "entry.resolved", "entry.reopened", "entry.undone", "entry.effects_dropped"),
    *("entry.child_started", "entry.fired", "entry.event", "entry.step_cancelled"),
    *("run.completed.none", "run.failed.all", "run.cancelled.all", "run.completed.all"),
]

EVERYTHING = [
    *SOMETIMES,
    *("sql.kill", "store.read", "effect.silent", "clock.back", "clock.forward", "asked.delivery", "asked.request"),
    *("sql.silent", "deed.cancel.in doubt", "turn.slots", "turn.claims"),
    *("deed.read", "deed.cancel.refused", "deed.event.refused", "deed.retry.refused", "deed.undo.refused"),
    *("entry.attempt_failed", "entry.failed", "entry.claimed", "entry.cancel_requested", "entry.stopping"),
    *("entry.undo_planned", "entry.delivery_failed", "entry.request_failed", "entry.request_undone", "entry.answered"),
    *("run.cancelled.none", "run.failed.none", "asked.undo", "change.undoing.blocked", "change.stopping.failed"),
    *("change.blocked.stopping", "change.blocked.cancelled"),
    *("change.pending.running", "change.running.waiting", "change.waiting.running", "change.running.blocked"),
    *("change.running.completed", "change.running.failed", "change.running.cancelled"),
    *("change.running.stopping", "change.running.undoing", "change.stopping.undoing", "change.stopping.cancelled"),
    *("change.stopping.waiting", "change.undoing.waiting", "change.undoing.failed", "change.undoing.cancelled"),
    *("change.undoing.completed", "change.blocked.pending", "change.completed.pending", "change.failed.pending"),
    "change.cancelled.pending",
]

RARELY = [
    *("run.completed.partial", "run.failed.partial", "run.cancelled.partial"),
    *("entry.request_undo_failed", "change.stopping.blocked", "change.blocked.undoing"),
]

SOMETIMES_ON_NODES = [
    *("node.freeze", "node.cut", "node.killed", "node.died", "cut.noticed", "fence.refused", "hint.lost", "hint.heard"),
    *("store.before", "store.after", "store.late", "late.refused", "entry.claimed", "entry.undone", "run.failed.all"),
]

EVERYTHING_ON_NODES = [
    *SOMETIMES_ON_NODES,
    *("freeze.before_commit", "freeze.after_commit", "heart.stops", "heart.missed"),
]
