/** `Do`: the client of a platform. Actions and services are called by name, or by their typed definitions. */
import { AsyncLocalStorage } from "node:async_hooks";
import type { Json, JsonObject } from "./codec.js";
import { DefinitionError, MAX_SECONDS } from "./errors.js";
import {
  type Definition,
  type Preview,
  type Run,
  type RunKind,
  readDefinition,
  readPreview,
  type WireDefinition,
  type WirePreview,
} from "./records.js";
import { callBody, isLast, Remote, type RunOptions, segment, WAIT_SECONDS } from "./remote.js";
import { type CallerOptions, checked, Handle, outputOf, Runs, within } from "./runs.js";

/** Where `dotdo serve` and `dotdo dev` listen unless told otherwise. */
const DEFAULT_URL = "http://127.0.0.1:8787";

export interface ClientOptions {
  /** The platform's address; by default DOTDO_URL, else where `dotdo dev` serves. */
  readonly url?: string | undefined;
  /** `do_...`; by default DOTDO_API_KEY. */
  readonly apiKey?: string | undefined;
}

/** What may be said about one call, beside its input. Times are in seconds. */
export interface CallOptions extends CallerOptions {
  /** The same key and input again is the same run. */
  readonly key?: string | undefined;
  /** Which version; by default the newest. */
  readonly version?: number | undefined;
  /** Ties this run to others. */
  readonly trail?: string | undefined;
  /** For the whole run. */
  readonly deadline?: number | undefined;
  /** Before its start. */
  readonly delay?: number | undefined;
  /** From -10 to 10, 0 by default: where runs wait, the higher goes first. */
  readonly priority?: number | undefined;
  /** For how long this caller waits: then StillRunning is thrown, and the run goes on. */
  readonly wait?: number | undefined;
  readonly labels?: Readonly<Record<string, string>> | undefined;
}

/** A call by name, in one object. */
export interface ExecuteOptions<Input extends object = object> extends CallOptions {
  /** `send-welcome-email`, or with its version `send-welcome-email@2`. */
  readonly name: string;
  readonly params?: Input | undefined;
}

/** An action or service with known types: what `@do-sdk/core` defines. */
export interface Callable<Input extends object, Output> {
  readonly kind: RunKind;
  readonly name: string;
  readonly version: number | undefined;
  /** Never there: it carries the types. */
  readonly types?: { readonly input: Input; readonly output: Output };
}

/** An action or service by name, with options. */
export interface ByName<Input extends object = object, Output = JsonObject> {
  /** Runs it and returns its output. Throws ActionFailed when it failed for good. */
  invoke(params?: Input): Promise<Output>;
  /** The same as `invoke`. */
  run(params?: Input): Promise<Output>;
  /** Runs it and returns the run: `id`, `status`, `result`. Throws ActionFailed when it failed for good. */
  execute(params?: Input): Promise<Run<Output>>;
  /** Starts it; the handle's id is durable when this resolves. */
  start(params?: Input): Promise<Handle<Output>>;
  /** What it would do: its result, effects and SQL. Nothing happens. */
  preview(params?: Input): Promise<Preview<Output>>;
}

/** `client.action` and `client.service`: call by name. */
export interface Names {
  /** An action or service by name (`"x"` or `"x@2"`). */
  <Output = JsonObject, Input extends object = object>(name: string, options?: CallOptions): ByName<Input, Output>;
  /** Runs it and returns the run: `id`, `status`, `result`. Throws ActionFailed when it failed for good. */
  execute<Output = JsonObject, Input extends object = object>(call: ExecuteOptions<Input>): Promise<Run<Output>>;
  /** What can be called, with schemas. */
  list(options?: CallerOptions): Promise<Definition[]>;
}

const trails = new AsyncLocalStorage<string>();

/** What to do before a client's first call and every other, such as starting a worker. For @do-sdk/core. @internal */
export const preparations = new WeakMap<Do, () => Promise<void>>();

/** The client of a platform. */
export class Do {
  readonly action: Names;
  readonly service: Names;
  readonly runs: Runs;
  readonly #options: ClientOptions;
  #remote: Remote | undefined;

  constructor(options: ClientOptions = {}) {
    this.#options = options;
    if (options.url !== undefined) this.#connected();
    this.runs = new Runs(() => this.#connected());
    this.action = this.#names("action");
    this.service = this.#names("service");
  }

  /** Runs an action or service and returns its output, typed. Throws ActionFailed when it failed for good. */
  async run<Input extends object, Output>(
    definition: Callable<Input, Output>,
    params: Input,
    options: CallOptions = {},
  ): Promise<Output> {
    return this.#of(definition, options).invoke(params);
  }

  /** Starts an action or service; the handle's id is durable when this resolves. */
  async start<Input extends object, Output>(
    definition: Callable<Input, Output>,
    params: Input,
    options: CallOptions = {},
  ): Promise<Handle<Output>> {
    return this.#of(definition, options).start(params);
  }

  /** What an action or service would do. Nothing happens. */
  async preview<Input extends object, Output>(
    definition: Callable<Input, Output>,
    params: Input,
    options: CallOptions = {},
  ): Promise<Preview<Output>> {
    return this.#of(definition, options).preview(params);
  }

  /** The handle of a run that was started earlier. */
  handle<Output = JsonObject>(id: string): Handle<Output> {
    return new Handle(id, this.runs);
  }

  /** Ties what is invoked inside, also later in what it awaits, together under one trail. */
  trail<T>(name: string, work: () => T): T {
    return trails.run(name, work);
  }

  /** Closes the connections. Runs go on. A process may end without it. */
  close(): void {
    this.#connected().close();
  }

  #of<Input extends object, Output>(definition: Callable<Input, Output>, options: CallOptions): ByName<Input, Output> {
    const { kind, name, version } = definition;
    return this.#byName(kind, name, { ...options, version: options.version ?? version });
  }

  #names(kind: RunKind): Names {
    const byName = <Output, Input extends object>(name: string, options: CallOptions = {}): ByName<Input, Output> =>
      this.#byName(kind, name, options);
    return Object.assign(byName, {
      execute: async <Output, Input extends object>(call: ExecuteOptions<Input>): Promise<Run<Output>> => {
        const { name, params, ...options } = call;
        return this.#byName<Input, Output>(kind, name, options).execute(params);
      },
      list: async ({ signal }: CallerOptions = {}): Promise<Definition[]> => {
        const path = `/v1/${kind}s`;
        const found = await this.#connected().read<{ definitions: WireDefinition[] }>(path, { signal });
        return found.definitions.map(readDefinition);
      },
    });
  }

  #byName<Input extends object, Output>(kind: RunKind, given: string, call: CallOptions): ByName<Input, Output> {
    const { name, version } = split(given);
    check(call);
    const { wait, signal, ...rest } = call;
    const options: RunOptions = { ...rest, version: call.version ?? version, trail: call.trail ?? trails.getStore() };
    const start = async (params: object, seconds: number): Promise<Run<Json>> => {
      await preparations.get(this)?.();
      return this.#connected().start(kind, name, params, options, seconds, signal);
    };
    const execute = async (params: object = {}): Promise<Run<Output>> => {
      const remote = this.#connected();
      if (wait === undefined) {
        const run = await start(params, WAIT_SECONDS);
        return checked(isLast(run) ? run : await remote.result(run.id, signal));
      }
      const { id } = await start(params, 0);
      return checked(await within(id, { timeout: wait, signal }, (limit) => remote.result(id, limit)));
    };
    const invoke = async (params?: object): Promise<Output> => outputOf(await execute(params));
    return {
      execute,
      invoke,
      run: invoke,
      start: async (params = {} as Input) => new Handle((await start(params, 0)).id, this.runs),
      preview: async (params = {} as Input) => {
        await preparations.get(this)?.();
        const path = `/v1/${kind}s/${segment(name)}/preview`;
        const seconds = wait ?? WAIT_SECONDS;
        const headers = { Prefer: `wait=${seconds}` };
        const body = callBody(params, options);
        const request = { query: { version: options.version }, headers, body, wait: seconds, signal };
        return readPreview(await this.#connected().post<WirePreview>(path, request)) as Preview<Output>;
      },
    };
  }

  #connected(): Remote {
    // When first needed, so that a program may load its settings after its imports.
    this.#remote ??= connect(this.#options);
    return this.#remote;
  }
}

/** The platform that the options, or else the environment, name. @internal */
export function connect({ url, apiKey }: ClientOptions): Remote {
  const { DOTDO_URL, DOTDO_API_KEY } = process.env;
  return new Remote(url ?? (DOTDO_URL || DEFAULT_URL), apiKey ?? (DOTDO_API_KEY || undefined));
}

/** `"x@2"` as name and version. */
function split(given: string): { name: string; version: number | undefined } {
  const [, name = given, version] = /^(.*)@(\d+)$/s.exec(given) ?? [];
  return { name, version: version === undefined ? undefined : Number(version) };
}

const OPTIONS = ["key", "version", "trail", "deadline", "delay", "priority", "wait", "labels", "signal"];

/** Refuses what JavaScript lets through, before anything was started. */
function check(options: CallOptions): void {
  const unknown = Object.keys(options).find((name) => !OPTIONS.includes(name));
  if (unknown !== undefined) {
    throw new DefinitionError(`${unknown}: a call has no such option; it takes ${OPTIONS.join(", ")}.`);
  }
  for (const name of ["deadline", "delay", "wait"] as const) {
    const value = options[name];
    if (value !== undefined && !(value >= 0 && value <= MAX_SECONDS)) {
      throw new DefinitionError(`${name}: ${value}: a number of seconds from 0 to ${MAX_SECONDS} is needed.`);
    }
  }
}
