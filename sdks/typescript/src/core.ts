/**
 * `@do-sdk/core`: define atomic actions, run them for a platform, and call actions and services.
 *
 * A process that defines actions becomes a worker with the first call of `client`, or with `serve()`.
 */
import { Do, preparations } from "./client.js";
import { ready } from "./serving.js";

export { Action, type ActionOptions, type Handler, Service } from "./action.js";
export type { CompletionOptions, Context, Log, Staged } from "./attempt.js";
export type { Limited, Limits, Retry } from "./catalogue.js";
export {
  type CompletionStatement,
  type Database,
  type Dialect,
  type Parameter,
  postgres,
  sqlite,
  useDatabase,
} from "./database.js";
export { Effect, type EffectCall, type EffectOptions } from "./effect.js";
export { AttemptOver } from "./errors.js";
export * from "./sdk.js";
export { type ServeOptions, serve } from "./serving.js";

/** A client of the platform that DOTDO_URL and DOTDO_API_KEY name, by default the one of `dotdo dev` on this machine. */
export const client = new Do();

preparations.set(client, ready);
