/**
 * Every error, by who must act on it; `code` is stable and shared with HTTP and Python.
 *
 *     DotdoError
 *     ├── DefinitionError          a definition or a setting is wrong: mend the code
 *     ├── InputError               a request was refused before anything happened
 *     │   ├── InvalidInput             parameters do not fit; lists every problem
 *     │   ├── UnknownName              no such action, service, effect or run
 *     │   ├── KeyConflict              the same key with another input
 *     │   ├── InvalidValue             a value that JSON cannot carry
 *     │   └── InvalidOperation         the run's state does not allow that
 *     ├── OutcomeError             the request was done, and this is how it ended
 *     │   ├── ActionFailed             failed for good; its message is the handler's
 *     │   ├── RunCancelled             cancelled
 *     │   ├── RunBlocked               waits for a person
 *     │   └── StillRunning             not ended within the caller's wait
 *     ├── HandlerError             thrown by handlers to steer the policy
 *     │   ├── Fail                     permanent: it did not happen, do not retry
 *     │   └── RetryLater               not now; try again, after a given time
 *     ├── AttemptOver              the attempt has ended (timed out, cancelled, lost): stop
 *     ├── AccessError              a platform did not do as asked
 *     │   ├── AccessDenied             the API key is missing, unknown, revoked, expired, or does not allow this
 *     │   ├── Unreachable              it cannot be reached; nothing happened
 *     │   └── OutcomeUnknown           the answer was lost; ask again, by `runId` or with the same key
 *     └── StoreError               the platform's store cannot be used: its operator must act
 *         └── ClientClosed             the client was closed
 *
 * `instanceof` goes by `code`, so that an error of one copy of this module (ESM and CommonJS, or both packages, in one
 * process) is an instance of the class of another.
 */

const KINDS = Symbol.for("dotdo.error.kinds");

/** One problem of an input: `path` such as `$.email`, and a message in words. */
export interface Problem {
  readonly path: string;
  readonly message: string;
}

/** Base of all errors. */
export class DotdoError extends Error {
  static readonly code: string = "error";
  /** Stable, shared with HTTP and Python. */
  readonly code: string;
  /** The request that it came from, as the server's log names it. */
  declare requestId?: string;

  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = (new.target as typeof DotdoError).code;
    const kinds: string[] = [];
    for (let kind = new.target as typeof DotdoError; kind !== Function.prototype && kind.code; kind = parentOf(kind)) {
      kinds.push(kind.code);
    }
    Object.defineProperty(this, KINDS, { value: kinds });
    Object.defineProperty(this, "name", { value: new.target.name, configurable: true, writable: true });
  }

  static override [Symbol.hasInstance](value: unknown): boolean {
    if (!Object.hasOwn(this, "code")) return Function.prototype[Symbol.hasInstance].call(this, value);
    return value instanceof Error && ((value as { [KINDS]?: string[] })[KINDS]?.includes(this.code) ?? false);
  }
}

function parentOf(kind: typeof DotdoError): typeof DotdoError {
  return Object.getPrototypeOf(kind) as typeof DotdoError;
}

/** An action, effect or setting is defined wrongly. */
export class DefinitionError extends DotdoError {
  static override readonly code: string = "invalid_definition";
}

/** The request was refused; nothing happened. */
export class InputError extends DotdoError {
  static override readonly code: string = "refused";
}

/** The parameters do not fit. `problems` holds every one of them. */
export class InvalidInput extends InputError {
  static override readonly code = "invalid_input";

  constructor(
    readonly subject: string,
    readonly problems: readonly Problem[],
  ) {
    super(
      `The input of ${subject} is not valid:\n${problems.map((each) => `  ${each.path}: ${each.message}`).join("\n")}`,
    );
  }
}

/** No definition or run goes by that name, version or id. */
export class UnknownName extends InputError {
  static override readonly code = "unknown_name";
}

/** The key was already used for this name with another input. */
export class KeyConflict extends InputError {
  static override readonly code = "key_conflict";
}

/** A value cannot be carried as JSON (NaN, NUL, too deep, a function, ...). */
export class InvalidValue extends InputError {
  static override readonly code = "invalid_value";
}

/** The run's state does not allow the operation (an event for an ended run, ...). */
export class InvalidOperation extends InputError {
  static override readonly code = "invalid_operation";
}

/** The run came to an outcome that is not a result; `runId` names it. */
export class OutcomeError extends DotdoError {
  static override readonly code: string = "outcome";

  constructor(
    message: string,
    readonly runId: string,
  ) {
    super(message);
  }
}

/** What is known of a failure, beside its message. */
export interface FailureDetails {
  /** The action (or child service) that failed. */
  readonly action: string;
  /** The type's name of the last error, such as `Error`, `Fail` or `AttemptTimedOut`. */
  readonly errorType: string;
  /** How many attempts were made. */
  readonly attempts: number;
  /** The step in the run. */
  readonly step: string | null;
  /** What of the run was undone. */
  readonly undo: "none" | "partial" | "all";
}

/** An action (or service) failed for good. `message` is the last error's own, such as `User not found.` */
export class ActionFailed extends OutcomeError implements FailureDetails {
  static override readonly code = "action_failed";
  readonly action: string;
  readonly errorType: string;
  readonly attempts: number;
  readonly step: string | null;
  readonly undo: "none" | "partial" | "all";

  constructor(message: string, runId: string, details: FailureDetails) {
    super(message || details.errorType, runId);
    this.action = details.action;
    this.errorType = details.errorType;
    this.attempts = details.attempts;
    this.step = details.step;
    this.undo = details.undo;
  }
}

/** The run was cancelled. */
export class RunCancelled extends OutcomeError {
  static override readonly code = "cancelled";
}

/** The run waits for a person; the message spells out the question. */
export class RunBlocked extends OutcomeError {
  static override readonly code = "blocked";
}

/** The run had not ended when the caller's wait was over; it goes on. */
export class StillRunning extends OutcomeError {
  static override readonly code = "still_running";
}

/** Thrown by handlers to steer the policy. */
export class HandlerError extends DotdoError {
  static override readonly code: string = "handler_error";
}

/** A permanent failure: the step is not retried. `throw new Fail("User not found.")`. */
export class Fail extends HandlerError {
  static override readonly code = "fail";
}

/** Not now: try again after `after` seconds (undefined: as the retry policy says). It counts as an attempt. */
export class RetryLater extends HandlerError {
  static override readonly code = "retry_later";
  readonly after: number | undefined;

  constructor(message = "Asked to be tried again later.", options: { after?: number } = {}) {
    super(message);
    const { after } = options;
    if (after !== undefined && !(after >= 0 && after <= MAX_SECONDS)) {
      throw new RangeError(`RetryLater: after: ${after}: a number of seconds up to ${MAX_SECONDS} is needed.`);
    }
    this.after = after;
  }
}

/** The attempt has ended meanwhile (timed out, cancelled, given to another worker): its context does nothing more. */
export class AttemptOver extends DotdoError {
  static override readonly code = "attempt_over";
}

/** A platform over HTTP did not do as asked. */
export class AccessError extends DotdoError {
  static override readonly code: string = "access_error";
}

/** The API key is missing, unknown, revoked, expired, or does not allow this. Nothing happened. */
export class AccessDenied extends AccessError {
  static override readonly code = "access_denied";
}

/** The platform cannot be reached. Nothing happened. */
export class Unreachable extends AccessError {
  static override readonly code = "unreachable";
}

/** The answer was lost, so nobody here knows whether the request was done. `runId` names the run, if it was. */
export class OutcomeUnknown extends AccessError {
  static override readonly code = "outcome_unknown";
  declare runId?: string;
}

/** The platform's store cannot be used. */
export class StoreError extends DotdoError {
  static override readonly code: string = "store_error";
}

/** The client was closed and takes no more calls. */
export class ClientClosed extends StoreError {
  static override readonly code = "client_closed";
}

/** The longest wait that can be asked for, about 30 years. */
export const MAX_SECONDS = 1_000_000_000;
