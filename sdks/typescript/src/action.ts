/** Actions that this process defines; actions and services of others that it calls with types. */

import type { Context } from "./attempt.js";
import { catalogue, type Limits, limitOffers, type Retry, retryOffer } from "./catalogue.js";
import type { Callable } from "./client.js";
import type { JsonObject } from "./codec.js";
import type { ActionOffer, Reference } from "./protocol.js";

/** What an action does. What it does to the world goes through `ctx`, or is done at least once. */
export type Handler<Input extends object, Output> = (inputs: Input, ctx: Context) => Output | Promise<Output>;

export interface ActionOptions<Input extends object, Output> {
  readonly name: string;
  readonly version?: number;
  /** What it does, for people. */
  readonly doc?: string;
  readonly handler: Handler<Input, Output>;
  /** When a failed attempt is tried again, or how many attempts there are in all. */
  readonly retry?: Retry | number;
  /** Seconds for one attempt. */
  readonly timeout?: number;
  /** How many attempts run at a time, on all workers and nodes together: 5, or `{ limit: 1, key: "customer" }`. */
  readonly concurrency?: Limits<number>;
  /** How many attempts start within a time: "100/minute", or `{ limit: "10/second", key: "customer" }`. */
  readonly rate?: Limits<string>;
  /** Takes back what this one has committed: an action that is given `{ output, input }` (see docs/typescript.md). */
  readonly undo?: Reference;
  /** Tried instead, with the same input, when the retries are used up. */
  readonly fallback?: Reference;
  /** Actions that are given `{ failure }` when a run of this one fails for good. */
  readonly onFailure?: readonly Reference[];
  /** A service's undoing ends at this step. */
  readonly pivot?: boolean;
  /** JSON Schema of the input: what does not fit is refused before anything happens. By default anything fits. */
  readonly inputSchema?: JsonObject;
  /** JSON Schema of the output, for those who read it. */
  readonly outputSchema?: JsonObject;
}

/** An action that this process runs for its platform. Call it by name, or `client.run(action, inputs)`. */
export class Action<Input extends object = object, Output = JsonObject> implements Callable<Input, Output> {
  readonly kind = "action";
  readonly name: string;
  readonly version: number;
  declare readonly types?: { readonly input: Input; readonly output: Output };
  /** The bare handler, for unit tests. */
  readonly handler: Handler<Input, Output>;
  readonly #options: ActionOptions<Input, Output>;

  constructor(options: ActionOptions<Input, Output>) {
    this.name = options.name;
    this.version = options.version ?? 1;
    this.handler = options.handler;
    this.#options = options;
    catalogue.add("action", catalogue.actions, this as unknown as Action<never, unknown>);
  }

  /** @internal */
  offer(): ActionOffer {
    const { doc = "", inputSchema = {}, outputSchema = {}, retry, timeout, undo, fallback, ...rest } = this.#options;
    return {
      name: this.name,
      version: this.version,
      doc,
      input_schema: inputSchema,
      output_schema: outputSchema,
      retry: retryOffer(retry),
      timeout: timeout ?? null,
      undo: undo ? reference(undo) : null,
      fallback: fallback ? reference(fallback) : null,
      on_failure: (rest.onFailure ?? []).map(reference),
      pivot: rest.pivot ?? false,
      concurrency: limitOffers(rest.concurrency),
      rate: limitOffers(rest.rate),
    };
  }
}

/** A service (durable workflow) that is defined elsewhere, with the types of its input and output. */
export class Service<Input extends object = object, Output = JsonObject> implements Callable<Input, Output> {
  readonly kind = "service";
  readonly name: string;
  readonly version: number | undefined;
  declare readonly types?: { readonly input: Input; readonly output: Output };

  constructor(options: { readonly name: string; readonly version?: number }) {
    this.name = options.name;
    this.version = options.version;
  }
}

function reference({ name, version }: Reference): Reference {
  return { name, version };
}
