"""dotdo: atomic actions and durable services."""

from dotdo.action import Action, action
from dotdo.async_client import AsyncDo
from dotdo.async_runs import AsyncHandle
from dotdo.catalogue import Catalogue
from dotdo.client import Do, Handle
from dotdo.context import (
    AsyncContext,
    CompletionStatement,
    Context,
    call,
    continue_as_new,
    current_context,
    now,
    publish,
    random,
    sleep,
    uuid,
    wait_for_event,
)
from dotdo.effect import Effect, EffectCall, Staged, StandIn, effect
from dotdo.errors import (
    ActionFailed,
    AttemptOver,
    DefinitionError,
    DotdoError,
    Fail,
    InputError,
    InvalidInput,
    KeyConflict,
    RetryLater,
    RunBlocked,
    RunCancelled,
    SecretExposed,
    StillRunning,
    StoreError,
    UnknownName,
    UnknownSecret,
)
from dotdo.fan_out import map
from dotdo.policy import Concurrency, Rate, Retention, Retry
from dotdo.preview import Preview
from dotdo.records import Failure, Run
from dotdo.secret import FromSecret, Secret
from dotdo.secret_provider import EnvironmentSecrets, FileSecrets, SecretProvider
from dotdo.service import Service, service
from dotdo.step import Step

__all__ = [
    "Action",
    "ActionFailed",
    "AsyncContext",
    "AsyncDo",
    "AsyncHandle",
    "AttemptOver",
    "Catalogue",
    "CompletionStatement",
    "Concurrency",
    "Context",
    "DefinitionError",
    "Do",
    "DotdoError",
    "Effect",
    "EffectCall",
    "EnvironmentSecrets",
    "Fail",
    "Failure",
    "FileSecrets",
    "FromSecret",
    "Handle",
    "InputError",
    "InvalidInput",
    "KeyConflict",
    "Preview",
    "Rate",
    "Retention",
    "Retry",
    "RetryLater",
    "Run",
    "RunBlocked",
    "RunCancelled",
    "Secret",
    "SecretExposed",
    "SecretProvider",
    "Service",
    "Staged",
    "StandIn",
    "Step",
    "StillRunning",
    "StoreError",
    "UnknownName",
    "UnknownSecret",
    "action",
    "call",
    "continue_as_new",
    "current_context",
    "effect",
    "map",
    "now",
    "publish",
    "random",
    "service",
    "sleep",
    "uuid",
    "wait_for_event",
]
