/**
 * When this process works: from the first call of `client` on, for as long as the process lives by itself; or with `serve`,
 * until it is told to stop. A session that ended is followed by another.
 */
import { hostname } from "node:os";
import { catalogue } from "./catalogue.js";
import { type ClientOptions, connect } from "./client.js";
import { DefinitionError, DotdoError, OutcomeUnknown, StoreError, Unreachable } from "./errors.js";
import { type Remote, sleep } from "./remote.js";
import { Worker, type WorkerOptions } from "./worker.js";

const LONGEST_PAUSE_MS = 5_000;

export interface ServeOptions extends ClientOptions {
  /** For people: how the platform's operators see this worker. By default host and process. */
  readonly name?: string;
  /** How many actions at a time. By default 10. */
  readonly concurrency?: number;
  /** Seconds that actions in flight are given when it stops. By default 10. */
  readonly grace?: number;
  /** Stops it, beside SIGTERM and SIGINT. */
  readonly signal?: AbortSignal;
  /** Told once it is ready for the first task. */
  readonly onReady?: () => void;
}

/** Sessions of a worker, one after the other, until it is stopped. */
class Working {
  /** Rejects when it cannot go on: the key was revoked, for example. */
  readonly failed: Promise<never>;
  readonly #remote: Remote;
  readonly #options: WorkerOptions;
  #fail: (error: unknown) => void = () => {};
  #worker: Worker | undefined;
  #starting: Promise<void> | undefined;
  #stopped = false;

  constructor(remote: Remote, options: WorkerOptions) {
    this.#remote = remote;
    this.#options = options;
    this.failed = new Promise((_, reject) => {
      this.#fail = reject;
    });
    this.failed.catch(() => {});
  }

  /** Begins to work, unless it does; what was defined meanwhile is offered, too. Throws what registering throws. */
  async ready(): Promise<void> {
    while (this.#worker === undefined || this.#worker.over || this.#worker.edition !== catalogue.edition) {
      this.#starting ??= this.#start().finally(() => {
        this.#starting = undefined;
      });
      await this.#starting;
    }
  }

  /** Finishes what it has, at most `grace` seconds long, and leaves. */
  async stop(grace: number): Promise<void> {
    this.#stopped = true;
    if (grace > 0) await this.#worker?.drain(grace);
    await this.#worker?.leave();
  }

  async #start(): Promise<void> {
    const before = this.#worker;
    const worker = await Worker.start(catalogue, this.#remote, this.#options);
    this.#worker = worker;
    if (before !== undefined) void before.drain(DEFAULT_GRACE);
    void worker.end.then((cause) => {
      if (this.#worker === worker && cause !== undefined) void this.#again(cause);
    });
  }

  /** The session is over, though nobody wanted that: another one is begun. */
  async #again(cause: unknown): Promise<void> {
    let error = cause;
    for (let pause = 100; !this.#stopped; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
      const isOver = error instanceof DotdoError && error.code === "unknown_worker";
      const isPassing = error instanceof Unreachable || error instanceof OutcomeUnknown || error instanceof StoreError;
      if (!isOver && !isPassing) {
        console.error("dotdo: this process works no more:", error);
        this.#fail(error);
        return;
      }
      try {
        await this.ready();
        return;
      } catch (failure) {
        error = failure;
        await sleep(pause, undefined, this.#options.background);
      }
    }
  }
}

/** The worker that calls of `client` start; and the one of `serve`, which is used instead while it runs. */
let hosting: Working | undefined;
let serving: Working | undefined;

const NAME = `${hostname()}:${process.pid}`;
const DEFAULT_CONCURRENCY = 10;
const DEFAULT_GRACE = 10;

/** Begins to work, unless this process does already or has nothing to offer. */
export async function ready(): Promise<void> {
  if (isEmpty()) return;
  if (serving === undefined && hosting === undefined) {
    hosting = new Working(connect({}), { name: NAME, concurrency: DEFAULT_CONCURRENCY, background: true });
    // A process that ends leaves at once: nobody needs to wait for the end of its lease.
    process.once("beforeExit", () => void hosting?.stop(0));
  }
  await (serving ?? hosting)?.ready();
}

/**
 * Works for the platform until SIGTERM or SIGINT: runs the actions and effects that this process defines. Then it finishes
 * what it has, and resolves. Throws AccessDenied when the key lacks the scope `workers:serve`.
 */
export async function serve(options: ServeOptions = {}): Promise<void> {
  const { name = NAME, concurrency = DEFAULT_CONCURRENCY, grace = DEFAULT_GRACE, signal } = options;
  if (serving !== undefined) throw new DefinitionError("serve() was called before, and goes on.");
  if (isEmpty()) {
    throw new DefinitionError("There is nothing to serve: no action and no effect is defined in this process.");
  }
  const stop = new AbortController();
  const restore = onSignals(() => stop.abort());
  const working = new Working(connect(options), { name, concurrency, background: false });
  serving = working;
  try {
    await working.ready();
    void hosting?.stop(grace);
    hosting = undefined;
    options.onReady?.();
    const until = signal ? AbortSignal.any([signal, stop.signal]) : stop.signal;
    await Promise.race([working.failed, aborted(until)]);
  } finally {
    await working.stop(grace);
    serving = undefined;
    restore();
  }
}

function isEmpty(): boolean {
  return catalogue.actions.size === 0 && catalogue.effects.size === 0;
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener("abort", () => resolve(), { once: true });
  });
}

/** Calls `stop` at the first signal; the second one ends the process. Gives what undoes this. */
function onSignals(stop: () => void): () => void {
  const signals = ["SIGTERM", "SIGINT"] as const;
  const restore = (): void => {
    for (const signal of signals) process.off(signal, first);
  };
  const first = (): void => {
    restore();
    stop();
  };
  for (const signal of signals) process.on(signal, first);
  return restore;
}
