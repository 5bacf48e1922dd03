/**
 * One attempt of an action: what its handler's context does, and how it ends.
 *
 * It has ended once its outcome is decided: then its context does nothing any more, whatever the handler goes on to do.
 */
import { createHash } from "node:crypto";
import { encode, type Json } from "./codec.js";
import { type CompletionStatement, completionStatement, type Database, type Dialect, type Place } from "./database.js";
import type { Effect } from "./effect.js";
import { AttemptOver, DefinitionError, Fail, HandlerError, InvalidValue, RetryLater } from "./errors.js";
import type { ActionTask, Failure, RequestState } from "./protocol.js";

/** Where a handler writes what a person may want to read: with the run, step and attempt in front. */
export type Log = Readonly<
  Record<"debug" | "info" | "warn" | "error", (message: string, ...details: unknown[]) => void>
>;

/** A staged effect: `key` is its idempotency key; it leaves after the commit. */
export interface Staged {
  readonly key: string;
  readonly effect: string;
}

export interface CompletionOptions {
  /** Which of the databases named with `useDatabase`; by default the first. */
  readonly database?: string;
  /** How the driver marks parameters; by default `$1` for PostgreSQL and `?` for SQLite. */
  readonly style?: "$1" | "?";
}

/** What a handler may ask for. */
export interface Context {
  readonly runId: string;
  /** The step's id within the run. */
  readonly step: string;
  /** Which attempt of the step this is, from 1. */
  readonly attempt: number;
  /** A key for this step, equal on every attempt, for calls that go round the context. */
  readonly idempotencyKey: string;
  /** Who asked for the run. */
  readonly actor: string | null;
  readonly trail: string | null;
  /** Aborted when the attempt has ended: its time is over, it was cancelled, or given to another worker. */
  readonly signal: AbortSignal;
  readonly log: Log;

  /** Has an effect sent after the commit; if the handler throws, nothing is sent. */
  stage<Input extends object, Answer>(effect: Effect<Input, Answer> | string, input: NoInfer<Input>): Staged;

  /** Calls an effect now and gives its answer. Intent and answer are journaled; a retry gets the same answer again. */
  request<Answer = Json, Input extends object = object>(
    effect: Effect<Input, Answer> | string,
    input: NoInfer<Input>,
  ): Promise<Answer>;

  /** Says that the handler is alive. Throws AttemptOver when its attempt has ended meanwhile. */
  heartbeat(): void;

  /** An environment variable. From here on it is hidden in errors, and refused in results. Throws DefinitionError. */
  secret(name: string): string;

  /**
   * A statement to execute as the last one of a transaction of the handler's own: then what that does happens exactly once.
   * `result` is what the handler is about to return. Stage and request before.
   */
  completionStatement(result?: unknown, options?: CompletionOptions): CompletionStatement;
}

/** What an attempt needs of its worker. */
export interface AttemptWorker {
  readonly databases: ReadonlyMap<string, Database>;
  request(task: ActionTask, number: number, effect: Named, input: string, signal: AbortSignal): Promise<RequestState>;
}

interface Named {
  readonly name: string;
  readonly version: number;
}

export class Attempt implements Context {
  readonly runId: string;
  readonly step: string;
  readonly attempt: number;
  readonly idempotencyKey: string;
  readonly actor: string | null;
  readonly trail: string | null;
  readonly signal: AbortSignal;
  readonly log: Log;
  /** The database in which the completion is committed, once its statement was asked for. */
  committing: { readonly name: string; readonly database: Database } | undefined;
  readonly #task: ActionTask;
  readonly #worker: AttemptWorker;
  readonly #over: AbortController;
  readonly #effects: string[] = [];
  readonly #counts = new Map<string, number>();
  readonly #requests: string[] = [];
  readonly #secrets: string[] = [];
  #asked = 0;
  #ended: Error | undefined;

  constructor(task: ActionTask, worker: AttemptWorker, over: AbortController) {
    this.runId = task.run;
    this.step = task.step;
    this.attempt = task.attempt;
    this.idempotencyKey = task.key;
    this.actor = task.actor;
    this.trail = task.trail;
    this.signal = over.signal;
    this.log = logOf(task);
    this.#task = task;
    this.#worker = worker;
    this.#over = over;
    // Users take these from the context by name: `({ stage, log }) => ...`.
    this.stage = this.stage.bind(this);
    this.request = this.request.bind(this);
    this.heartbeat = this.heartbeat.bind(this);
    this.secret = this.secret.bind(this);
    this.completionStatement = this.completionStatement.bind(this);
  }

  stage(effect: Named | string, input: object): Staged {
    this.#check("stage");
    const { name, version } = named(effect);
    const count = this.#counts.get(name) ?? 0;
    this.#counts.set(name, count + 1);
    const hash = createHash("sha256").update(`${this.step}|${name}|${count}`).digest("hex").slice(0, 16);
    const key = `${this.runId}.${hash}.${this.#task.epoch}`;
    const given = this.#encode(input, `The input of the effect ${name}`);
    this.#effects.push(`{"effect":${JSON.stringify(name)},"version":${version},"key":"${key}","input":${given}}`);
    return { key, effect: name };
  }

  async request<Answer>(effect: Named | string, input: object): Promise<Answer> {
    this.#check("request");
    const called = named(effect);
    const given = this.#encode(input, `The input of the effect ${called.name}`);
    this.#asked += 1;
    const state = await this.#worker.request(this.#task, this.#asked, called, given, this.signal);
    if (state.state === "over") this.#over.abort(new AttemptOver("The attempt has ended."));
    this.heartbeat();
    if (state.state === "failed") throw requestError(state.error ?? {});
    if (state.request !== undefined) this.#requests.push(state.request);
    return state.answer as Answer;
  }

  heartbeat(): void {
    this.signal.throwIfAborted();
    if (this.#ended !== undefined) throw this.#ended;
  }

  secret(name: string): string {
    const text = process.env[name];
    if (text === undefined)
      throw new DefinitionError(`There is no secret ${name}: no environment variable has that name.`);
    if (text.length >= 4) this.#secrets.push(text);
    return text;
  }

  completionStatement(result?: unknown, options: CompletionOptions = {}): CompletionStatement {
    this.heartbeat();
    const { databases } = this.#worker;
    const name = options.database ?? databases.keys().next().value;
    const database = name === undefined ? undefined : databases.get(name);
    if (name === undefined || database === undefined) {
      const known = [...databases.keys()].join(", ") || "none";
      throw new DefinitionError(
        `completionStatement() needs the database that the transaction is in (known: ${known}): useDatabase("main", ...).`,
      );
    }
    if (this.committing !== undefined && this.committing.name !== name) {
      throw new DefinitionError("An attempt commits in one database; its statement was asked for another one before.");
    }
    this.committing = { name, database };
    const completion = {
      ...this.#task.completion,
      input: this.#task.input,
    };
    const text = `${JSON.stringify(completion).slice(0, -1)},${this.completion(result).slice(1)}`;
    const statement = completionStatement(name, database, this.place, text);
    return { ...statement, sql: styled(statement.sql, database.dialect, options.style) };
  }

  /** What the attempt commits, as JSON. Throws InvalidValue. */
  completion(result: unknown): string {
    const text = this.#encode(result, `The result of ${this.#task.name}`);
    const requests = JSON.stringify(this.#requests);
    const sql = JSON.stringify(this.committing ? [this.committing.name] : []);
    return `{"result":${text},"effects":[${this.#effects.join(",")}],"requests":${requests},"sql":${sql}}`;
  }

  /** The attempt as its row in a database names it. */
  get place(): Place {
    const { run, step, generation, attempt } = this.#task;
    return { run, step, generation, attempt };
  }

  /** From here on the context does nothing any more. */
  end(): void {
    this.#ended = new AttemptOver("The attempt has ended.");
  }

  /** A text without the secrets that were asked for. */
  hidden(text: string): string {
    return this.#secrets.reduce((cleaned, secret) => cleaned.replaceAll(secret, "***"), text);
  }

  #encode(value: unknown, what: string): string {
    const text = encode(value, what);
    if (this.#secrets.some((secret) => text.includes(JSON.stringify(secret).slice(1, -1)))) {
      throw new InvalidValue(`${what} has the text of a secret in it, which would be stored in the clear.`);
    }
    return text;
  }

  #check(what: string): void {
    this.heartbeat();
    if (this.committing === undefined) return;
    throw new DefinitionError(`${what}() after completionStatement(): the statement holds what came before it only.`);
  }
}

/** What a task's failure is, for the server. */
export function failureOf(error: unknown, hidden: (text: string) => string): Failure {
  const known = error instanceof Error ? error : undefined;
  const message = known ? known.message : typeof error === "string" ? error : safely(error);
  const type = known && known.name !== "Error" ? known.name : (known?.constructor.name ?? "Error");
  const after = error instanceof RetryLater ? (error.after ?? null) : null;
  const traceback = hidden((known?.stack ?? "").slice(0, 8_000));
  return { type, message: hidden(message), traceback, kind: kindOf(error), after };
}

function kindOf(error: unknown): Failure["kind"] {
  if (error instanceof TimedOut) return "timed_out";
  if (error instanceof RetryLater) return "retry_later";
  if (error instanceof Fail) return "fail";
  if (error instanceof DefinitionError || error instanceof InvalidValue) return "refused";
  return "error";
}

/** The attempt's time was over. */
export class TimedOut extends AttemptOver {
  constructor(seconds: number) {
    super(`It did not end within its timeout of ${seconds} s.`);
    this.name = "AttemptTimedOut";
  }
}

function requestError(error: Partial<Failure>): Error {
  const { type = "Error", message = "", kind = "error", after } = error;
  if (kind === "retry_later") return new RetryLater(message, after == null ? {} : { after });
  const raised = kind === "error" || kind === "timed_out" ? new HandlerError(message) : new Fail(message);
  return Object.assign(raised, { name: type });
}

function named(effect: Named | string): Named {
  if (typeof effect !== "string") return effect;
  const [, name = effect, version = "1"] = /^(.*)@(\d+)$/s.exec(effect) ?? [];
  return { name, version: Number(version) };
}

function styled(sql: string, dialect: Dialect, style: CompletionOptions["style"]): string {
  if (style === "?" && dialect === "postgresql") return sql.replace(/\$\d/g, "?");
  if (style === "$1" && dialect === "sqlite") throw new DefinitionError("SQLite's parameters are marked with ?.");
  return sql;
}

function logOf({ name, run, step, attempt }: ActionTask): Log {
  const where = `[${name} ${run} ${step === name ? "" : `${step} `}attempt ${attempt}]`;
  const to =
    (level: keyof Log): Log["info"] =>
    (message, ...details) =>
      // Standard output belongs to the program.
      console.error(level, where, message, ...details);
  return { debug: to("debug"), info: to("info"), warn: to("warn"), error: to("error") };
}

function safely(value: unknown): string {
  try {
    return JSON.stringify(value) ?? String(value);
  } catch {
    return String(value);
  }
}
