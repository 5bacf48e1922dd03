"""What a worker offers of a catalogue."""

from typing import Any

import msgspec

from dotdo.action import Action
from dotdo.catalogue import Catalogue, default_catalogue
from dotdo.effect import Effect
from dotdo.worker_protocol import ActionOffer, ConcurrencyOffer, EffectOffer, RateOffer, Reference, RetryOffer


class Offers(msgspec.Struct, frozen=True):
    """What is offered; what stays where it is, and why, in words."""

    actions: list[ActionOffer]
    effects: list[EffectOffer]
    left_out: list[str]

    @property
    def limited(self) -> list[str]:
        """Actions with limits, which not every server keeps."""
        return sorted({each.name for each in self.actions if each.concurrency or each.rate})


def offers_of(catalogue: Catalogue) -> Offers:
    """Everything of a catalogue that may run in a worker."""
    left_out: list[str] = []
    actions: list[ActionOffer] = []
    for action in catalogue.all("action"):
        if action.schema.secrets is not None:
            left_out.append(f"{action.subject}: its secret inputs do not leave the server")
        else:
            actions.append(_action(action))
    found = {(each.name, each.version): each for each in (*default_catalogue.all("effect"), *catalogue.all("effect"))}
    effects: list[EffectOffer] = []
    for effect in found.values():
        if effect.schema.secrets is not None:
            left_out.append(f"{effect.subject}: its secret inputs do not leave the server")
        else:
            effects.append(_effect(effect))
    services = sorted({each.name for each in catalogue.all("service")})
    if services:
        many = len(services) > 1
        which = f"services {', '.join(services)}" if many else f"the service {services[0]}"
        left_out.append(f"{which}: the server runs {'them' if many else 'it'}")
    return Offers(actions, effects, left_out)


def _action(action: Action[..., Any]) -> ActionOffer:
    limits = action.limits
    return ActionOffer(
        name=action.name,
        version=action.version,
        doc=_doc(action),
        input_schema=action.schema.input_schema(),
        output_schema=action.schema.output_schema(),
        retry=RetryOffer.of(action.retry),
        timeout=action.timeout,
        undo=_reference(action.undo_action),
        fallback=_reference(action.fallback),
        on_failure=[Reference(each.name, each.version) for each in action.on_failure],
        pivot=action.pivot,
        concurrency=[] if limits is None else [ConcurrencyOffer(each.limit, each.key) for each in limits.concurrency],
        rate=[] if limits is None else [RateOffer(each.limit, each.key) for each in limits.rate],
    )


def _effect(effect: Effect[..., Any]) -> EffectOffer:
    return EffectOffer(
        name=effect.name,
        version=effect.version,
        doc=_doc(effect),
        input_schema=effect.schema.input_schema(),
        output_schema=effect.schema.output_schema(),
        dedup=effect.dedup,
        key_window=effect.key_window,
        on_unknown=effect.on_unknown,
        retry=RetryOffer.of(effect.retry),
        timeout=effect.timeout,
        undo=effect.undo is not None,
        lookup=effect.lookup is not None,
    )


def _doc(definition: Any) -> str:
    return definition.definition().doc


def _reference(action: Action[..., Any] | None) -> Reference | None:
    return None if action is None else Reference(action.name, action.version)
