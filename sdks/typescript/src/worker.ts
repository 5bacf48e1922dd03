/**
 * One session of a worker: registers what this process defines, claims tasks, runs them, and says how they ended.
 *
 * See contract/worker-protocol.md. Every request may be repeated, so a lost answer or an absent server costs time only.
 * When the session is over at the server (its lease ran out, or the server was started anew) nothing is said of its tasks
 * any more: they are somebody else's.
 */

import { Attempt, type AttemptWorker, failureOf, TimedOut } from "./attempt.js";
import type { Catalogue } from "./catalogue.js";
import { encode } from "./codec.js";
import { type Database, forget, prepare, settle } from "./database.js";
import type { EffectCall } from "./effect.js";
import {
  AttemptOver,
  ClientClosed,
  DefinitionError,
  InputError,
  InvalidValue,
  OutcomeUnknown,
  StoreError,
  Unreachable,
} from "./errors.js";
import type { Batch, Beat, Registered, RequestState, Results } from "./protocol.js";
import {
  type ActionTask,
  type EffectTask,
  type Failure,
  PROTOCOL,
  type SettleTask,
  type Task,
  WITH_LIMITS,
} from "./protocol.js";
import { type Remote, sleep } from "./remote.js";

const LONGEST_PAUSE_MS = 5_000;
const REQUEST_WAIT_SECONDS = 20;
/** Outcomes of one request; and about how many characters of them. */
const MOST_OUTCOMES = 100;
const MOST_TEXT = 4_000_000;

export interface WorkerOptions {
  readonly name: string;
  readonly concurrency: number;
  /** The process may end while this worker has nothing to do. */
  readonly background: boolean;
}

interface Outcome {
  readonly task: string;
  /** JSON. */
  readonly text: string;
  readonly accepted: () => void;
}

export class Worker implements AttemptWorker {
  /** What was offered. */
  readonly edition: number;
  readonly #catalogue: Catalogue;
  readonly #remote: Remote;
  readonly #options: WorkerOptions;
  readonly #session: Registered;
  /** The tasks that this worker has, each with what ends it. */
  readonly #held = new Map<string, AbortController>();
  readonly #outcomes: Outcome[] = [];
  readonly #ended = new AbortController();
  #batch = 0;
  #renewed: number;
  #completing: Promise<void> | undefined;
  #idle: (() => void) | undefined;
  #cause: unknown;

  private constructor(
    catalogue: Catalogue,
    remote: Remote,
    options: WorkerOptions,
    session: Registered,
    edition: number,
    asked: number,
  ) {
    this.#catalogue = catalogue;
    this.#remote = remote;
    this.#options = options;
    this.#session = session;
    this.edition = edition;
    this.#renewed = asked;
  }

  /** Registers what is defined, and begins to work. Throws AccessDenied, Unreachable, InputError. */
  static async start(catalogue: Catalogue, remote: Remote, options: WorkerOptions): Promise<Worker> {
    const { edition } = catalogue;
    await Promise.all([...catalogue.databases.values()].map(prepare));
    const actions = [...catalogue.actions.values()].map((action) => action.offer());
    const limited = actions.some(({ concurrency, rate }) => concurrency.length + rate.length > 0);
    const offer = {
      // An older server does not speak the second one, and so takes no limits that it would not keep.
      protocol: limited ? WITH_LIMITS : PROTOCOL,
      name: options.name,
      sdk: "dotdo-typescript/0.1.0",
      concurrency: options.concurrency,
      databases: [...catalogue.databases.keys()],
      actions,
      effects: [...catalogue.effects.values()].map((effect) => effect.offer()),
    };
    const asked = performance.now();
    const session = await remote.post<Registered>("/v1/worker/register", { body: encode(offer, "The offer") });
    const worker = new Worker(catalogue, remote, options, session, edition, asked);
    void worker.#claim();
    void worker.#beat();
    return worker;
  }

  /** Whether the session is over; then another one is started for what is still to be done. */
  get over(): boolean {
    return this.#ended.signal.aborted;
  }

  /** Resolves when the session is over, with what ended it: nothing, if it has left. */
  get end(): Promise<unknown> {
    return new Promise((resolve) => {
      if (this.over) resolve(this.#cause);
      else this.#ended.signal.addEventListener("abort", () => resolve(this.#cause), { once: true });
    });
  }

  /** Takes no more actions, finishes those that it has, at most `grace` seconds long, and leaves. */
  async drain(grace: number): Promise<void> {
    if (this.over) return;
    const late = sleep(grace * 1000, this.#ended.signal, true).catch(() => undefined);
    await Promise.race([this.#ask("drain", "{}", { background: false }).catch(() => undefined), late]);
    const done = new Promise<void>((resolve) => {
      this.#idle = resolve;
      this.#checkIdle();
    });
    await Promise.race([done, late]);
    await this.leave();
  }

  /** Ends the session: what it still has is lost, and tried again by others. */
  async leave(): Promise<void> {
    if (this.over) return;
    const body = JSON.stringify({ worker: this.#session.worker });
    this.#finish("The worker has stopped.");
    const signal = AbortSignal.timeout(2_000);
    await this.#remote.post("/v1/worker/leave", { body, signal }).catch(() => undefined);
  }

  /** One request of a handler. */
  async request(
    task: ActionTask,
    number: number,
    effect: { readonly name: string; readonly version: number },
    input: string,
    signal: AbortSignal,
  ): Promise<RequestState> {
    const { id, token } = task;
    const head = { task: id, token, number, effect: effect.name, version: effect.version, wait: REQUEST_WAIT_SECONDS };
    const body = `${JSON.stringify(head).slice(0, -1)},"input":${input}}`;
    try {
      for (;;) {
        const state = await this.#ask<RequestState>("request", body, { wait: REQUEST_WAIT_SECONDS, signal });
        if (state.state !== "pending") return state;
      }
    } catch (error) {
      if (!(error instanceof InputError) || error.code !== "lease_lost") throw error;
      this.#cancel([id], "It was given to another worker.");
      return { state: "over" };
    }
  }

  get databases(): ReadonlyMap<string, Database> {
    return this.#catalogue.databases;
  }

  // -- the loop ---------------------------------------------------------------------------------------------------------

  async #claim(): Promise<void> {
    const wait = this.#session.poll_seconds;
    try {
      while (!this.over) {
        const { background } = this.#options;
        const body = JSON.stringify({ after: this.#batch, wait });
        const batch = await this.#ask<Batch>("claim", body, { wait, background });
        this.#cancel(batch.cancelled ?? [], "It was cancelled.");
        if (batch.batch === this.#batch) continue;
        this.#batch = batch.batch;
        for (const task of batch.tasks ?? []) void this.#take(task);
      }
    } catch (error) {
      this.#stopped(error);
    }
  }

  async #beat(): Promise<void> {
    const { heartbeat_seconds, lease_seconds } = this.#session;
    let beating: Promise<void> | undefined;
    try {
      while (!this.over) {
        await sleep(heartbeat_seconds * 1000, this.#ended.signal, this.#options.background);
        // By then the work is somebody else's. A courtesy: rows of attempts keep SQL from being committed twice.
        const isLost = performance.now() - this.#renewed > lease_seconds * 1000;
        if (isLost) this.#cancel([...this.#held.keys()], "The worker's lease is over: the platform did not answer.");
        beating ??= this.#sayAlive().finally(() => {
          beating = undefined;
        });
        beating.catch((error: unknown) => this.#stopped(error));
      }
    } catch (error) {
      this.#stopped(error);
    }
  }

  async #sayAlive(): Promise<void> {
    const body = JSON.stringify({ tasks: [...this.#held.keys()], after: this.#batch });
    const beat = await this.#ask<Beat>("heartbeat", body, { background: true });
    this.#cancel(beat.cancelled ?? [], "It was cancelled.");
    this.#cancel(beat.lost ?? [], "It was given to another worker.");
  }

  #cancel(ids: readonly string[], why: string): void {
    for (const id of ids) {
      this.#held.get(id)?.abort(new AttemptOver(why));
      this.#held.delete(id);
    }
    this.#checkIdle();
  }

  async #take(task: Task): Promise<void> {
    if (this.#held.has(task.id)) return;
    const over = new AbortController();
    this.#held.set(task.id, over);
    // Whatever goes wrong in here is no reason to leave a task without an outcome.
    let outcome = await this.#perform(task, over).catch((error: unknown) => failed(error));
    if (!this.#held.has(task.id) || this.over) return;
    const { id, token } = task;
    if (outcome.text.length > this.#session.max_body / 4) outcome = this.#bounded(outcome);
    const text = `${JSON.stringify({ task: id, token }).slice(0, -1)},${outcome.text}}`;
    this.#outcomes.push({ task: id, text, accepted: outcome.accepted ?? (() => {}) });
    this.#completing ??= this.#complete().catch((error: unknown) => this.#stopped(error));
  }

  async #complete(): Promise<void> {
    while (this.#outcomes.length > 0 && !this.over) {
      let length = 0;
      const fits = this.#outcomes.findIndex(({ text }, index) => {
        length += text.length;
        return index >= MOST_OUTCOMES || (index > 0 && length > MOST_TEXT);
      });
      const sent = this.#outcomes.splice(0, fits < 0 ? this.#outcomes.length : fits);
      const body = `{"tasks":[${sent.map(({ text }) => text).join(",")}]}`;
      const { results = [] } = await this.#ask<Results>("complete", body, {});
      for (const [index, { task, accepted }] of sent.entries()) {
        this.#held.delete(task);
        const { state, detail } = results[index] ?? {};
        if (state === "accepted") accepted();
        if (state === "refused") console.error(`dotdo: the outcome of a task was refused: ${detail}`);
      }
    }
    this.#completing = undefined;
    this.#checkIdle();
  }

  /** The outcome, if a request can carry it. */
  #bounded(outcome: Ended): Ended {
    const bytes = Buffer.byteLength(outcome.text);
    const most = this.#session.max_body - 10_000;
    if (bytes <= most) return outcome;
    const message = `What it gives has ${bytes} bytes as JSON; a worker can send ${most}. Put it elsewhere and give its address.`;
    return failed(new InvalidValue(message));
  }

  #checkIdle(): void {
    if (this.#held.size === 0) this.#idle?.();
  }

  // -- tasks ------------------------------------------------------------------------------------------------------------

  #perform(task: Task, over: AbortController): Promise<Ended> {
    if (task.kind === "action") return this.#act(task, over);
    if (task.kind === "settle") return this.#settle(task);
    return this.#effect(task, over);
  }

  async #act(task: ActionTask, over: AbortController): Promise<Ended> {
    const action = this.#catalogue.actions.get(`${task.name}@${task.version}`);
    if (action === undefined) throw new DefinitionError(`This worker has no action ${task.name}@${task.version}.`);
    const attempt = new Attempt(task, this, over);
    let ended: Ended;
    let raised: unknown;
    try {
      const work = async (): Promise<unknown> => action.handler(task.input as never, attempt);
      const result = await within(task.timeout, over, work);
      ended = { text: `"outcome":"completed","completion":${attempt.completion(result)}` };
    } catch (error) {
      raised = error;
      ended = failed(error, (text) => attempt.hidden(text));
    }
    attempt.end();
    const { committing } = attempt;
    if (committing === undefined) return ended;
    return (await this.#committed(attempt, committing, raised)) ?? (raised === undefined ? UNCOMMITTED : ended);
  }

  /** How an attempt ended whose handler has asked for a completion statement: its row decides, not what it did then. */
  async #committed(
    attempt: Attempt,
    { name, database }: NonNullable<Attempt["committing"]>,
    raised: unknown,
  ): Promise<Ended | undefined> {
    for (let pause = 100; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
      try {
        const completion = await settle(database, attempt.place);
        if (completion === null) return undefined;
        if (raised !== undefined) attempt.log.warn("had committed, and counts; it then threw", raised);
        const accepted = (): void => void forgetLater(database, attempt.place);
        return { text: `"outcome":"completed","completion":${completion}`, accepted };
      } catch (error) {
        attempt.log.warn(`waits for the database ${name}, to learn how it ended:`, error);
        await sleep(pause, this.#ended.signal, this.#options.background);
      }
    }
  }

  async #settle(task: SettleTask): Promise<Ended> {
    let found: string | null = null;
    for (const database of this.databases.values()) found ??= await settle(database, task);
    const accepted = (): void => {
      for (const database of this.databases.values()) if (found !== null) void forgetLater(database, task);
    };
    return { text: `"outcome":"completed","completion":${found}`, accepted };
  }

  async #effect(task: EffectTask, over: AbortController): Promise<Ended> {
    const effect = this.#catalogue.effects.get(`${task.name}@${task.version}`);
    if (effect === undefined) throw new DefinitionError(`This worker has no effect ${task.name}@${task.version}.`);
    const { key, run, step, attempt, actor, trail } = task;
    const call: EffectCall = { key, runId: run, step, attempt, actor, trail, signal: over.signal };
    const { perform, lookup, undo } = effect.options;
    const input = task.input as never;
    const work = async (): Promise<unknown> => {
      if (task.kind === "effect") return perform(input, call);
      return task.kind === "lookup" ? lookup?.(input, call) : undo?.(task.answer ?? null, input, call);
    };
    const answer = await within(task.timeout, over, work);
    if (task.kind === "effect_undo") return { text: '"outcome":"completed"' };
    const text = encode(answer, `The answer of the effect ${task.name}`);
    const found = task.kind === "lookup" ? `,"found":${answer !== undefined}` : "";
    return { text: `"outcome":"completed","answer":${text}${found}` };
  }

  // -- requests ---------------------------------------------------------------------------------------------------------

  /** One request of the session, repeated until it is answered. Throws SessionOver when there is no such session. */
  async #ask<T>(
    what: string,
    body: string,
    how: { wait?: number; background?: boolean; signal?: AbortSignal },
  ): Promise<T> {
    const { worker } = this.#session;
    const { signal = this.#ended.signal } = how; // a handler's ends with the session, too
    const request = {
      ...how,
      signal,
      body: `{"worker":${JSON.stringify(worker)}${body === "{}" ? "" : ","}${body.slice(1)}`,
    };
    for (let pause = 100; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
      const asked = performance.now();
      try {
        const answer = await this.#remote.post<T>(`/v1/worker/${what}`, request);
        this.#renewed = Math.max(this.#renewed, asked);
        return answer;
      } catch (error) {
        if (!isTransient(error)) throw error;
        await sleep(pause, signal, this.#options.background);
      }
    }
  }

  #stopped(error: unknown): void {
    if (this.over) return;
    this.#cause = error;
    this.#finish("The worker's session is over.");
  }

  #finish(why: string): void {
    const error = new AttemptOver(why);
    this.#ended.abort(error);
    this.#cancel([...this.#held.keys()], why);
  }
}

interface Ended {
  /** The fields of the outcome, as JSON without braces. */
  readonly text: string;
  /** What to do once it is durable. */
  readonly accepted?: () => void;
}

const UNCOMMITTED = failed(
  new DefinitionError(
    "The handler asked for a completion statement, and nothing of it is committed in the database: it was not executed, " +
      "not committed, or in another database.",
  ),
);

function failed(error: unknown, hidden: Attempt["hidden"] = (text) => text): Ended {
  const failure: Failure = failureOf(error, hidden);
  return { text: `"outcome":"failed","error":${encode(failure, "The error")}` };
}

/** The work's result; or the error that `over` is aborted with, which here also happens when the time is over. */
async function within(seconds: number | null, over: AbortController, work: () => Promise<unknown>): Promise<unknown> {
  const timer = seconds === null ? undefined : setTimeout(() => over.abort(new TimedOut(seconds)), seconds * 1000);
  try {
    return await new Promise((resolve, reject) => {
      over.signal.addEventListener("abort", () => reject(over.signal.reason), { once: true });
      work().then(resolve, reject);
    });
  } finally {
    clearTimeout(timer);
  }
}

async function forgetLater(database: Database, place: Parameters<typeof forget>[1]): Promise<void> {
  try {
    await forget(database, place);
  } catch {
    // It stays, and does no harm.
  }
}

/** Whether the same request may succeed later: nobody answered, or the server could not. */
function isTransient(error: unknown): boolean {
  if (error instanceof ClientClosed) return false;
  if (error instanceof InputError) return error.code === "overloaded" || error.code === "rate_limited";
  return error instanceof Unreachable || error instanceof OutcomeUnknown || error instanceof StoreError;
}
