/** Effects: defined calls to the outside world. What was staged or requested is performed by any process that has them. */
import { catalogue, type Retry, retryOffer } from "./catalogue.js";
import type { Json, JsonObject } from "./codec.js";
import type { EffectOffer } from "./protocol.js";

/** What an effect's functions are told of the call that they make. */
export interface EffectCall {
  /** The idempotency key, equal on every try. */
  readonly key: string;
  readonly runId: string;
  readonly step: string;
  /** Which try this is, from 1. */
  readonly attempt: number;
  readonly actor: string | null;
  readonly trail: string | null;
  /** Aborted when the try's time is over, or nobody wants it any more. */
  readonly signal: AbortSignal;
}

export interface EffectOptions<Input extends object, Answer> {
  readonly name: string;
  readonly version?: number;
  readonly doc?: string;
  /** Makes the call, and gives the receiver's answer. */
  readonly perform: (input: Input, call: EffectCall) => Answer | Promise<Answer>;
  /** How the receiver is kept from taking it twice: `key`: it honours our key; `find`: `lookup` finds it; `none`. */
  readonly dedup?: "none" | "key" | "find";
  /** For how many seconds the receiver remembers a key. */
  readonly keyWindow?: number;
  /** What happens after a lost answer that cannot be looked up: a person is asked, or it is sent again. */
  readonly onUnknown?: "ask" | "resend";
  readonly retry?: Retry | number;
  /** Seconds for one try; null: no limit. By default 60. */
  readonly timeout?: number | null;
  /** Takes back what has happened. */
  readonly undo?: (answer: Answer, input: Input, call: EffectCall) => unknown;
  /** Finds out by the key whether it has happened: its answer, or undefined. */
  readonly lookup?: (input: Input, call: EffectCall) => Answer | undefined | Promise<Answer | undefined>;
  /** JSON Schema of its input. */
  readonly inputSchema?: JsonObject;
  /** JSON Schema of its answer. */
  readonly outputSchema?: JsonObject;
}

/** A defined call to the outside world: give it to `ctx.stage` or `ctx.request`. */
export class Effect<Input extends object = object, Answer = Json> {
  readonly name: string;
  readonly version: number;
  declare readonly types?: { readonly input: Input; readonly answer: Answer };
  /** @internal */
  readonly options: EffectOptions<Input, Answer>;

  constructor(options: EffectOptions<Input, Answer>) {
    this.name = options.name;
    this.version = options.version ?? 1;
    this.options = options;
    catalogue.add("effect", catalogue.effects, this as unknown as Effect<never, unknown>);
  }

  /** @internal */
  offer(): EffectOffer {
    const { doc = "", inputSchema = {}, outputSchema = {}, dedup = "none", onUnknown = "ask", ...rest } = this.options;
    return {
      name: this.name,
      version: this.version,
      doc,
      input_schema: inputSchema,
      output_schema: outputSchema,
      dedup,
      key_window: rest.keyWindow ?? null,
      on_unknown: onUnknown,
      retry: retryOffer(rest.retry),
      timeout: rest.timeout === undefined ? 60 : rest.timeout,
      undo: rest.undo !== undefined,
      lookup: rest.lookup !== undefined,
    };
  }
}
