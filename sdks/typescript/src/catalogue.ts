/** What this process defines: actions, effects, and the databases that its handlers commit in. */
import type { Action } from "./action.js";
import type { Database } from "./database.js";
import type { Effect } from "./effect.js";
import { DefinitionError } from "./errors.js";
import type { LimitOffer, RetryOffer } from "./protocol.js";

/** When a failed attempt is tried again. Durations are in seconds. */
export interface Retry {
  /** How many attempts in all; null: as many as `maxElapsed` allows. By default 4. */
  readonly attempts?: number | null;
  /** Before the second attempt. By default 1. */
  readonly delay?: number;
  /** Growth of the delay from one to the next. By default 2. */
  readonly factor?: number;
  /** By default 60. */
  readonly maxDelay?: number;
  /** A random share of the delay, which keeps many retries from arriving together. By default true. */
  readonly jitter?: boolean;
  /** Since the first attempt, after which no further one is made. */
  readonly maxElapsed?: number | null;
}

/** As the protocol has it. */
export function retryOffer(given: Retry | number | undefined): RetryOffer | null {
  if (given === undefined) return null;
  const { attempts = 4, ...retry } = typeof given === "number" ? { attempts: given } : given;
  return {
    attempts,
    delay: retry.delay ?? 1,
    factor: retry.factor ?? 2,
    max_delay: retry.maxDelay ?? 60,
    jitter: retry.jitter ?? true,
    max_elapsed: retry.maxElapsed ?? null,
  };
}

/** A limit for each value of a parameter: so many at a time (5), or so many starts within a time ("100/minute"). */
export interface Limited<Limit> {
  readonly limit: Limit;
  /** A parameter, or a path into one, such as `order.customerId`. Without it the limit is for all. */
  readonly key?: string;
}

/** One limit, or several that hold together. */
export type Limits<Limit> = Limit | Limited<Limit> | readonly (Limit | Limited<Limit>)[];

/** As the protocol has them. */
export function limitOffers<Limit extends number | string>(given: Limits<Limit> | undefined): LimitOffer<Limit>[] {
  if (given === undefined) return [];
  const each = Array.isArray(given)
    ? (given as readonly (Limit | Limited<Limit>)[])
    : [given as Limit | Limited<Limit>];
  return each.map((one) =>
    typeof one === "object" ? { limit: one.limit, key: one.key ?? null } : { limit: one, key: null },
  );
}

export class Catalogue {
  readonly actions = new Map<string, Action<never, unknown>>();
  readonly effects = new Map<string, Effect<never, unknown>>();
  readonly databases = new Map<string, Database>();
  /** Rises with each definition. */
  edition = 0;

  /** Throws DefinitionError when one of that name and version is there. */
  add<T extends { readonly name: string; readonly version: number }>(
    kind: string,
    known: Map<string, T>,
    definition: T,
  ): void {
    const { name, version } = definition;
    if (!/^[^\s@/]{1,200}$/.test(name)) {
      throw new DefinitionError(`The name of the ${kind} ${JSON.stringify(name)} must have no spaces, @ or /.`);
    }
    if (!Number.isInteger(version) || version < 1) {
      throw new DefinitionError(`The ${kind} ${name}: version: ${version}: a whole number from 1 is needed.`);
    }
    const key = `${name}@${version}`;
    if (known.has(key)) throw new DefinitionError(`There are two definitions of the ${kind} ${key} in this process.`);
    known.set(key, definition);
    this.edition += 1;
  }
}

/** All that this process has defined. */
export const catalogue = new Catalogue();
