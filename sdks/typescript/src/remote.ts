/**
 * A platform over HTTP: requests, and what their answers mean.
 *
 * Every request that starts something carries a key, the caller's or one of its own, so it can be repeated safely: the
 * answer that was lost comes again. What cannot be told in the end is said plainly: refused, done, or unknown.
 */
import { createHash, randomUUID } from "node:crypto";
import type { IncomingHttpHeaders, IncomingMessage } from "node:http";
import { encode, type Json } from "./codec.js";
import {
  AccessDenied,
  ClientClosed,
  DefinitionError,
  DotdoError,
  InputError,
  InvalidInput,
  InvalidOperation,
  InvalidValue,
  KeyConflict,
  OutcomeUnknown,
  type Problem,
  StoreError,
  UnknownName,
  Unreachable,
} from "./errors.js";
import { type Answer, Connections, ExchangeFailed } from "./http.js";
import { type Entry, type Run, type RunKind, readRun as readAnyRun, rests, type WireRun } from "./records.js";

/** For how long one request waits for a run's end, before it asks again. */
export const WAIT_SECONDS = 30;
const TRIES = 5;
const FIRST_DELAY = 0.1;
const LONGEST_DELAY = 5;
/** Beyond what the server was asked to wait. */
const TIMEOUT_SECONDS = 15;
/** Begins the keys that a client makes up. */
export const AUTO_KEY = "auto:";

/** What a caller may say about one run, beside its input. Times are in seconds. */
export interface RunOptions {
  readonly key?: string | undefined;
  readonly version?: number | undefined;
  readonly trail?: string | undefined;
  readonly deadline?: number | undefined;
  readonly delay?: number | undefined;
  readonly priority?: number | undefined;
  readonly labels?: Readonly<Record<string, string>> | undefined;
}

export interface Request {
  readonly query?: Readonly<Record<string, string | number | readonly string[] | undefined>>;
  readonly headers?: Readonly<Record<string, string>>;
  /** JSON. */
  readonly body?: string;
  /** Seconds that the server was asked to wait. */
  readonly wait?: number;
  /** Whether the same request again does no harm. */
  readonly repeats?: boolean;
  readonly signal?: AbortSignal | undefined;
  /** The process may end while this is under way. */
  readonly background?: boolean;
}

export class Remote {
  readonly url: string;
  readonly #connections: Connections;
  readonly #headers: Readonly<Record<string, string>>;
  #closed = false;

  constructor(url: string, apiKey: string | undefined) {
    const parsed = URL.canParse(url) ? new URL(url) : undefined;
    if (parsed?.protocol !== "http:" && parsed?.protocol !== "https:") {
      throw new DefinitionError(`url: ${JSON.stringify(url)}: an address such as https://do.example.com is needed.`);
    }
    this.url = url.replace(/\/+$/, "");
    this.#connections = new Connections(parsed);
    this.#headers = {
      Accept: "application/json",
      ...(apiKey === undefined ? {} : { Authorization: `Bearer ${apiKey}` }),
    };
  }

  // -- runs -------------------------------------------------------------------------------------------------------------

  /** Accepts a run; it is durable when this returns. wait: for its end, in seconds. */
  async start(
    kind: RunKind,
    name: string,
    params: object,
    options: RunOptions,
    wait: number,
    signal?: AbortSignal,
  ): Promise<Run<Json>> {
    const key = options.key ?? AUTO_KEY + randomUUID().replaceAll("-", "");
    const headers = { "Idempotency-Key": headerText(key), Prefer: wait ? `wait=${wait}` : "respond-async" };
    const request = { query: { version: options.version }, headers, body: callBody(params, options), wait, signal };
    try {
      return readRun(await this.post(`/v1/${kind}s/${segment(name)}/execute`, request));
    } catch (error) {
      if (error instanceof UnderWay) return this.get(error.run, signal);
      if (error instanceof OutcomeUnknown) error.runId = keyedRunId(name, key);
      throw error;
    }
  }

  /** A run as it stands. */
  async get(id: string, signal?: AbortSignal): Promise<Run<Json>> {
    return readRun(await this.read(`/v1/runs/${segment(id)}`, { signal }));
  }

  /** Waits until the run, and whatever goes on for it, has ended or is blocked. */
  async result(id: string, signal?: AbortSignal): Promise<Run<Json>> {
    for (let asked = id; ; ) {
      const headers = { Prefer: `wait=${WAIT_SECONDS}` };
      const wire = await this.read<WireRun>(`/v1/runs/${segment(asked)}`, { headers, wait: WAIT_SECONDS, signal });
      const run = readRun(wire);
      if (isLast(run)) return run;
      asked = run.continuedAs ?? asked;
    }
  }

  /** The entries of a run after a number; waits for some, for so many seconds. */
  async journal(id: string, after: number, wait: number, signal?: AbortSignal): Promise<Entry[]> {
    const request = { query: { after }, headers: { Prefer: `wait=${wait}` }, wait, signal };
    return (await this.read<{ entries: Entry[] }>(`/v1/runs/${segment(id)}/journal`, request)).entries;
  }

  /** Cancel, retry, undo, resolve: each said once. */
  async steer(id: string, verb: string, body: string, signal?: AbortSignal): Promise<void> {
    try {
      await this.post(`/v1/runs/${segment(id)}/${verb}`, { body, repeats: false, signal });
    } catch (error) {
      if (error instanceof OutcomeUnknown) error.runId = id;
      throw error;
    }
  }

  // -- requests ---------------------------------------------------------------------------------------------------------

  read<T>(path: string, request: Request = {}): Promise<T> {
    return this.#send("GET", path, request);
  }

  post<T>(path: string, request: Request & { body: string }): Promise<T> {
    return this.#send("POST", path, request);
  }

  /** Opens a stream of server-sent events, once. Throws what `read` throws. */
  async stream(path: string, request: Request): Promise<IncomingMessage> {
    this.#checkOpen();
    const { headers, signal } = request;
    try {
      const asked = { method: "GET", path: withQuery(path, request.query), signal };
      const response = await this.#connections.open({
        ...asked,
        headers: { ...this.#headers, Accept: "text/event-stream", ...headers },
      });
      if (response.statusCode === 200) return response;
      response.destroy();
    } catch (error) {
      if (!(error instanceof ExchangeFailed)) throw error;
      throw new Unreachable(`${this.url} cannot be reached (${error.message}); nothing happened.`);
    }
    await this.read(path.replace(/\/stream$/, ""), { signal }); // says what is wrong
    throw new Unreachable(`${this.url} gave no stream of events.`);
  }

  /** Closes idle connections; runs go on. */
  close(): void {
    this.#closed = true;
    this.#connections.close();
  }

  /** One request, repeated while that is safe and may help. Throws what the problem means. */
  async #send<T>(method: string, path: string, request: Request): Promise<T> {
    const { body, wait = 0, repeats = true, signal, background } = request;
    const exchange = {
      method,
      path: withQuery(path, request.query),
      headers: { ...this.#headers, ...request.headers, ...(body && { "Content-Type": "application/json" }) },
      body,
      timeout: (TIMEOUT_SECONDS + wait) * 1000,
      signal,
      background,
    };
    let sent = false;
    for (let attempt = 1; ; attempt += 1) {
      this.#checkOpen();
      let pause = (0.5 + Math.random() / 2) * Math.min(LONGEST_DELAY, FIRST_DELAY * 3 ** (attempt - 1));
      let failure: DotdoError;
      try {
        const answer = await this.#connections.exchange(exchange);
        if (answer.status < 300) return JSON.parse(answer.body) as T;
        const meant = meaningOf(answer);
        if (!meant.again) throw meant.error;
        failure = meant.error;
        pause = Math.max(pause, retryAfter(answer.headers));
      } catch (error) {
        if (!(error instanceof ExchangeFailed)) throw error;
        sent ||= error.sent;
        failure = sent ? unknown(this.url, error) : unreachable(this.url, error);
        if (error.sent && !repeats) throw failure;
      }
      if (attempt === TRIES) throw failure;
      await sleep(pause * 1000, signal, background);
    }
  }

  #checkOpen(): void {
    if (this.#closed) throw new ClientClosed("The client is closed; open a new one.");
  }
}

/** A run, without a key that was none of the caller's own. */
export function readRun(wire: WireRun): Run<Json> {
  const run = readAnyRun(wire);
  return run.key?.startsWith(AUTO_KEY) ? { ...run, key: null } : run;
}

/** Whether a run rests, and nothing goes on for it. */
export function isLast(run: Run<Json>): boolean {
  return rests(run) && (run.continuedAs === null || run.undo !== "none");
}

/** Waits so many ms. Throws what the signal was aborted with. background: the process may end meanwhile. */
export function sleep(ms: number, signal?: AbortSignal, background = false): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = (): void => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, ms);
    if (background) timer.unref();
    if (signal?.aborted) abort();
    else signal?.addEventListener("abort", abort, { once: true });
  });
}

/** The body of execute and preview. */
export function callBody(params: object, options: RunOptions): string {
  const { trail, deadline, delay, priority, labels } = options;
  if (Array.isArray(params)) throw new InvalidValue("The input cannot be an array: an object is needed.");
  const input = encode(params, "The input");
  const others = encode({ trail, deadline, delay, priority, labels }, "The options").slice(1, -1);
  return `{"params":${input}${others && `,${others}`}}`;
}

/** A name or id as a segment of a path. */
export function segment(text: string): string {
  return encodeURIComponent(text);
}

/** The id of the one run of that name under that idempotency key. */
export function keyedRunId(name: string, key: string): string {
  return `run_${createHash("sha256").update(`${name}\0${key}`).digest("hex").slice(0, 32)}`;
}

/** The run of this key is under way. */
class UnderWay extends DotdoError {
  constructor(
    message: string,
    readonly run: string,
  ) {
    super(message);
  }
}

interface ProblemDocument {
  readonly code?: string;
  readonly detail?: string;
  readonly retryable?: boolean;
  readonly request_id?: string;
  readonly run?: string;
  readonly errors?: readonly Problem[];
}

const BY_CODE: Readonly<Record<string, new (message: string) => DotdoError>> = Object.fromEntries(
  [DefinitionError, InvalidOperation, InvalidValue, KeyConflict, StoreError, UnknownName].map((kind) => [
    kind.code,
    kind,
  ]),
);
const STORE_CODES = ["store_unusable", "store_unavailable", "node_draining", "fence_lost", "secret_unreadable"];

/** What a refusal means, and whether the same request may succeed later. */
export function meaningOf(answer: Answer): { error: DotdoError; again: boolean } {
  const problem = problemOf(answer);
  const { code = "refused", detail = "", retryable = false } = problem;
  const means = (error: DotdoError, again = false): { error: DotdoError; again: boolean } => {
    const id = problem.request_id ?? answer.headers["x-request-id"];
    if (typeof id === "string") error.requestId = id;
    return { error, again };
  };
  if (code === "still_running" && problem.run !== undefined) return means(new UnderWay(detail, problem.run));
  if (answer.status === 401 || answer.status === 403) return means(new AccessDenied(detail));
  if (code === "invalid_input") return means(invalidInput(detail, problem.errors ?? []));
  if (answer.status >= 500 && !retryable) {
    return means(new OutcomeUnknown(problem.request_id ? `${detail} (request ${problem.request_id})` : detail));
  }
  const kind = STORE_CODES.includes(code) ? StoreError : (BY_CODE[code] ?? InputError);
  return means(Object.assign(new kind(detail), { code }), retryable);
}

function problemOf(answer: Answer): ProblemDocument {
  try {
    const found: unknown = JSON.parse(answer.body);
    if (typeof found === "object" && found !== null && !Array.isArray(found)) return found;
  } catch {
    // a proxy's page, most likely
  }
  const moved = answer.status < 400 ? ` and points to ${answer.headers.location}: use that as the client's url` : "";
  return { detail: `The server answered ${answer.status}${moved}.`, retryable: answer.status >= 500 };
}

function invalidInput(detail: string, problems: readonly Problem[]): InvalidInput {
  const subject = /The input of (.*?) is not valid/s.exec(detail)?.[1] ?? "the request";
  const found = problems.map(({ path, message }) => ({
    path: `$${path.replace(/^\$\.params/, "").replace(/^\$/, "")}`,
    message,
  }));
  return new InvalidInput(subject, found.length > 0 ? found : [{ path: "$", message: detail }]);
}

function unreachable(url: string, error: Error): Unreachable {
  return new Unreachable(`${url} cannot be reached (${error.message}); nothing happened.`);
}

function unknown(url: string, error: Error): OutcomeUnknown {
  return new OutcomeUnknown(
    `The answer of ${url} was lost (${error.message}); whether the request was done is not known.`,
  );
}

function retryAfter(headers: IncomingHttpHeaders): number {
  const text = headers["retry-after"] ?? "";
  return /^\d+$/.test(text) ? Math.min(Number(text), 60) : 0;
}

function withQuery(path: string, query: Request["query"] = {}): string {
  const pairs = Object.entries(query).flatMap(([name, value]) =>
    value === undefined ? [] : [value].flat().map((each): [string, string] => [name, String(each)]),
  );
  const text = new URLSearchParams(pairs).toString();
  return text ? `${path}?${text}` : path;
}

function headerText(key: string): string {
  if (!/^[\x21-\x7e][\x20-\x7e]{0,254}$/.test(key)) {
    throw new DefinitionError(`key: ${JSON.stringify(key)}: 1 to 255 printable ASCII characters are needed.`);
  }
  return key;
}
