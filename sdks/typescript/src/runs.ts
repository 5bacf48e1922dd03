/** `client.runs`, and the handles of started runs: what can be asked of runs that are there. */
import { randomUUID } from "node:crypto";
import { encode, type Json, type JsonObject } from "./codec.js";
import { ActionFailed, DefinitionError, InvalidOperation, RunBlocked, RunCancelled, StillRunning } from "./errors.js";
import {
  type Entry,
  type Outcome,
  type Question,
  type Run,
  rests,
  type Status,
  type Undo,
  type WireRun,
} from "./records.js";
import { AUTO_KEY, type Remote, readRun, segment, WAIT_SECONDS } from "./remote.js";
import { streamJournal } from "./streaming.js";

/** Of any call: aborting the signal gives up waiting; what was started goes on. */
export interface CallerOptions {
  readonly signal?: AbortSignal | undefined;
}

/** How long a caller waits, in seconds; without `timeout` as long as it takes. */
export interface WaitOptions extends CallerOptions {
  readonly timeout?: number | undefined;
}

/** Which runs to list; what is left out does not restrict. */
export interface RunFilter extends CallerOptions {
  readonly status?: Status | undefined;
  readonly undo?: Undo | undefined;
  readonly name?: string | undefined;
  readonly trail?: string | undefined;
  readonly parent?: string | undefined;
  /** Runs that have all of these. */
  readonly labels?: Readonly<Record<string, string>> | undefined;
  /** Runs accepted at this time or later, ms since 1970. */
  readonly since?: number | undefined;
  /** How many a page has, 200 at most. */
  readonly limit?: number | undefined;
}

/** Which question is answered, and with what. */
export interface Resolution extends CallerOptions {
  /** What the effect that happened had answered. */
  readonly answer?: unknown;
  /** The question's step (its id, or its action's name), when several are open. */
  readonly step?: string | undefined;
  /** The question's key, when several are open. */
  readonly key?: string | undefined;
}

/** Where a handle or `client.runs` gets its platform. @internal */
export type GetRemote = () => Remote;

/** A started run: its id, and what can be asked of it. */
export class Handle<Output = JsonObject> {
  readonly #runs: Runs;

  /** @internal */
  constructor(
    readonly id: string,
    runs: Runs,
  ) {
    this.#runs = runs;
  }

  /** Waits for the end and returns the output. Throws ActionFailed, RunCancelled, RunBlocked, StillRunning. */
  async result(options: WaitOptions = {}): Promise<Output> {
    return outputOf<Output>(await this.#runs.wait(this.id, options));
  }

  /** The run as it stands; if its service has continued as new, the run that goes on for it. */
  async get(options: CallerOptions = {}): Promise<Run<Output>> {
    let run = await this.#runs.get<Output>(this.id, options);
    while (run.continuedAs !== null) run = await this.#runs.get<Output>(run.continuedAs, options);
    return run;
  }

  /** Asks for the run to be cancelled; what it did is undone. */
  cancel(options: CallerOptions = {}): Promise<void> {
    return this.#runs.cancel(this.id, options);
  }

  /** Sends an event to the run. key: the sender's own; the same one twice is one event. */
  sendEvent(
    name: string,
    value: unknown = null,
    options: CallerOptions & { readonly key?: string } = {},
  ): Promise<void> {
    return this.#runs.sendEvent(this.id, name, value, options);
  }

  /** Every entry of the run so far. */
  journal(options: CallerOptions & { readonly after?: number } = {}): Promise<Entry[]> {
    return this.#runs.journal(this.id, options);
  }

  /** The run's entries, those to come as they come, until it has ended. */
  stream(options: CallerOptions & { readonly after?: number } = {}): AsyncGenerator<Entry, void, void> {
    return this.#runs.stream(this.id, options);
  }

  /** Every value that the run's service has published and will publish, until the run has ended or is blocked. */
  progress(options: CallerOptions = {}): AsyncGenerator<Json, void, void> {
    return this.#runs.progress(this.id, options);
  }
}

/** Runs, newest first: await it for one page, or iterate over all of them. */
export class RunList implements PromiseLike<Run<Json>[]>, AsyncIterable<Run<Json>> {
  readonly #page: (cursor: string | undefined) => Promise<{ runs: Run<Json>[]; next: string | null }>;

  /** @internal */
  constructor(page: (cursor: string | undefined) => Promise<{ runs: Run<Json>[]; next: string | null }>) {
    this.#page = page;
  }

  // biome-ignore lint/suspicious/noThenProperty: awaiting a list asks for its first page
  then<A = Run<Json>[], B = never>(
    onFulfilled?: ((runs: Run<Json>[]) => A | PromiseLike<A>) | null,
    onRejected?: ((error: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    return this.#page(undefined)
      .then(({ runs }) => runs)
      .then(onFulfilled, onRejected);
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Run<Json>, void, void> {
    let cursor: string | null | undefined;
    while (cursor !== null) {
      const page = await this.#page(cursor);
      yield* page.runs;
      cursor = page.next;
    }
  }
}

/** `client.runs`: look at runs, and steer them. */
export class Runs {
  readonly #remote: GetRemote;

  /** @internal */
  constructor(remote: GetRemote) {
    this.#remote = remote;
  }

  /** A run as it stands. Throws UnknownName. */
  async get<Output = JsonObject>(id: string, options: CallerOptions = {}): Promise<Run<Output>> {
    return (await this.#remote().get(id, options.signal)) as Run<Output>;
  }

  /** Runs, newest first: `await` it for a page, `for await` for all. */
  list(filter: RunFilter = {}): RunList {
    const { signal, labels = {}, ...given } = filter;
    const label = Object.entries(labels).map(([name, value]) => `${name}=${value}`);
    return new RunList(async (cursor) => {
      type Page = { runs: WireRun[]; next: string | null };
      const page = await this.#remote().read<Page>("/v1/runs", { query: { ...given, label, cursor }, signal });
      return { runs: page.runs.map(readRun), next: page.next };
    });
  }

  /** Waits for the end and returns the run. Throws ActionFailed, RunCancelled, RunBlocked, StillRunning. */
  async wait<Output = JsonObject>(id: string, options: WaitOptions = {}): Promise<Run<Output>> {
    const remote = this.#remote();
    return checked<Output>(await within(id, options, (signal) => remote.result(id, signal)));
  }

  /** The entries of a run after a number. */
  journal(id: string, options: CallerOptions & { readonly after?: number } = {}): Promise<Entry[]> {
    return this.#remote().journal(id, options.after ?? 0, 0, options.signal);
  }

  /** A run's entries after a number, those to come as they come, until it has ended. Broken connections are resumed. */
  stream(id: string, options: CallerOptions & { readonly after?: number } = {}): AsyncGenerator<Entry, void, void> {
    return streamJournal(this.#remote(), id, options.after ?? 0, options.signal);
  }

  /** Every value that a run's service has published and will publish, until the run has ended or is blocked. */
  async *progress(id: string, options: CallerOptions = {}): AsyncGenerator<Json, void, void> {
    const remote = this.#remote();
    for (let next: string | null = id; next !== null; ) {
      let after = 0;
      let run: Run<Json>;
      do {
        run = await remote.get(next, options.signal);
        const entries = await remote.journal(next, after, rests(run) ? 0 : WAIT_SECONDS, options.signal);
        after = entries.at(-1)?.seq ?? after;
        for (const { kind, data } of entries) if (kind === "published" && data !== null) yield data.value ?? null;
      } while (!rests(run));
      next = run.continuedAs;
    }
  }

  /** Asks for a run to be cancelled. Throws InvalidOperation when it has ended. */
  cancel(id: string, options: CallerOptions = {}): Promise<void> {
    return this.#remote().steer(id, "cancel", "{}", options.signal);
  }

  /** Opens a failed, cancelled or blocked run again; committed steps that stand keep their results. */
  retry(id: string, options: CallerOptions = {}): Promise<void> {
    return this.#remote().steer(id, "retry", "{}", options.signal);
  }

  /** Takes back what an ended run did. */
  undo(id: string, options: CallerOptions = {}): Promise<void> {
    return this.#remote().steer(id, "undo", "{}", options.signal);
  }

  /** Answers a question of a blocked run (`run.waitingFor.questions`). Throws InvalidOperation when none such is open. */
  async resolve(id: string, outcome: Outcome, options: Resolution = {}): Promise<void> {
    const { answer, signal } = options;
    const { key } = theQuestion(await this.get(id, options), options);
    const body = encode({ key, outcome, answer }, "The answer");
    await this.#remote().steer(id, "resolve", body, signal);
  }

  /** Sends an event to a run. Throws InvalidOperation when it has ended. */
  async sendEvent(
    id: string,
    name: string,
    value: unknown = null,
    options: CallerOptions & { readonly key?: string } = {},
  ): Promise<void> {
    const key = options.key ?? `${AUTO_KEY}${randomUUID().replaceAll("-", "")}`;
    const body = encode({ name, value, key }, `The value of the event ${JSON.stringify(name)}`);
    await this.#remote().post(`/v1/runs/${segment(id)}/events`, { body, signal: options.signal });
  }
}

/** The output of a completed run. */
export function outputOf<Output>(run: Run<Output>): Output {
  if (run.erasedAt === null) return run.result;
  throw new InvalidOperation(
    `The run ${run.id} of ${run.name} completed, and its data was erased; so there is no result to give. To do it ` +
      "again, use another key.",
  );
}

/** The run, if it completed. Throws what its outcome means otherwise. */
export function checked<Output>(run: Run<Json>): Run<Output> {
  if (run.status === "completed") return run as Run<Output>;
  const { error } = run;
  if (run.status === "failed" && error !== null) {
    const { type: errorType, attempts, step } = error;
    const details = { action: error.action ?? run.name, errorType, attempts, step, undo: run.undo };
    throw new ActionFailed(error.message, run.id, details);
  }
  const kind = run.status === "blocked" ? RunBlocked : RunCancelled;
  throw new kind(`The run ${run.id} of ${run.name} is ${run.status}: ${error?.message ?? ""}`, run.id);
}

/** In milliseconds; Node has a timer that is set for longer ring at once. */
const LONGEST_TIMER = 2 ** 31 - 1;

/** Waits for a run no longer than `timeout` seconds. Throws StillRunning. */
export async function within<T>(
  id: string,
  options: WaitOptions,
  work: (signal: AbortSignal | undefined) => Promise<T>,
): Promise<T> {
  const { timeout, signal } = options;
  if (timeout === undefined) return work(signal);
  if (!(timeout >= 0)) throw new DefinitionError(`timeout: ${timeout}: a number of seconds is needed.`);
  const limit = new AbortController();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const arm = (left: number): void => {
    const step = Math.min(left, LONGEST_TIMER);
    timer = setTimeout(() => (left > step ? arm(left - step) : limit.abort()), step);
  };
  arm(timeout * 1000);
  try {
    return await work(signal ? AbortSignal.any([signal, limit.signal]) : limit.signal);
  } catch (error) {
    if (error !== limit.signal.reason || !limit.signal.aborted) throw error;
    throw new StillRunning(`The run ${id} had not ended after ${timeout} s. It goes on; ask again by its id.`, id);
  } finally {
    clearTimeout(timer);
  }
}

function theQuestion(run: Run<unknown>, { step, key }: Resolution): Question {
  if (run.status !== "blocked") {
    throw new InvalidOperation(`The run ${run.id} is ${run.status}; only a blocked run has questions to resolve.`);
  }
  const questions = run.waitingFor?.questions ?? [];
  if (questions.length === 0) {
    const why = run.error ? ` (${run.error.message})` : "";
    throw new InvalidOperation(`The blocked run ${run.id} asks no question${why}; mend what blocks it, then retry it.`);
  }
  const isMeant = (one: Question): boolean =>
    (key === undefined || one.key === key) && (step === undefined || [one.step, one.step.split(":")[0]].includes(step));
  const [found, ...more] = questions.filter(isMeant);
  if (found !== undefined && more.length === 0) return found;
  const known = questions.map((one) => `\n  ${one.effect} of the step ${one.step}, key ${one.key}`).join("");
  const what = found ? "several open questions" : "no such open question";
  throw new InvalidOperation(`The run ${run.id} has ${what}; name one by its step or key:${known}`);
}
