"""What must have occurred in a simulation, or it would have proved little: each kind of fault, deed, entry and state.

SOMETIMES in any few dozen seeds, EVERYTHING in a thousand.
"""

SOMETIMES = [
    *("store.before", "store.after", "store.slow", "kill.before", "kill.after"),
    *("effect.lost", "effect.not_done", "effect.refused", "effect.kill", "effect.kill_after"),
    *("deed.again", "deed.conflict", "deed.cancel", "deed.undo", "deed.event", "deed.retry"),
    *("entry.lost", "entry.blocked", "entry.resolved", "entry.reopened", "entry.undone", "entry.effects_dropped"),
    *("entry.child_started", "entry.fired", "entry.event", "entry.step_cancelled"),
    *("run.completed.none", "run.failed.all", "run.cancelled.all", "run.completed.all"),
]

EVERYTHING = SOMETIMES

SOMETIMES_ON_NODES = [
    *("node.freeze", "node.cut", "node.killed", "node.died", "cut.noticed", "fence.refused", "hint.lost", "hint.heard"),
    *("store.before", "store.after", "store.late", "late.refused", "entry.claimed", "entry.undone", "run.failed.all"),
]

EVERYTHING_ON_NODES = [
    *SOMETIMES_ON_NODES,
    *("freeze.before_commit", "freeze.after_commit", "heart.stops", "heart.missed"),
]
