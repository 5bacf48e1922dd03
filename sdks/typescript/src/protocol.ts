/** What a worker and the server say to each other: versions 1 and 2 of contract/worker-protocol.md, as types. */
import type { Json, JsonObject } from "./codec.js";

/** The lowest version that has all but limits; and the first one whose servers keep to limits. */
export const PROTOCOL = 1;
export const WITH_LIMITS = 2;

export interface Reference {
  readonly name: string;
  readonly version: number;
}

export interface RetryOffer {
  readonly attempts: number | null;
  readonly delay: number;
  readonly factor: number;
  readonly max_delay: number;
  readonly jitter: boolean;
  readonly max_elapsed: number | null;
}

export interface LimitOffer<Limit> {
  readonly limit: Limit;
  readonly key: string | null;
}

export interface ActionOffer extends Reference {
  readonly doc: string;
  readonly input_schema: JsonObject;
  readonly output_schema: JsonObject;
  readonly retry: RetryOffer | null;
  readonly timeout: number | null;
  readonly undo: Reference | null;
  readonly fallback: Reference | null;
  readonly on_failure: readonly Reference[];
  readonly pivot: boolean;
  readonly concurrency: readonly LimitOffer<number>[];
  readonly rate: readonly LimitOffer<string>[];
}

export interface EffectOffer extends Reference {
  readonly doc: string;
  readonly input_schema: JsonObject;
  readonly output_schema: JsonObject;
  readonly dedup: "none" | "key" | "find";
  readonly key_window: number | null;
  readonly on_unknown: "ask" | "resend";
  readonly retry: RetryOffer | null;
  readonly timeout: number | null;
  readonly undo: boolean;
  readonly lookup: boolean;
}

export interface Registered {
  readonly worker: string;
  readonly lease_seconds: number;
  readonly heartbeat_seconds: number;
  readonly poll_seconds: number;
  readonly max_body: number;
  readonly served_here?: readonly string[];
}

interface TaskBase extends Reference {
  readonly id: string;
  readonly token: string;
  readonly run: string;
  readonly step: string;
  readonly attempt: number;
}

interface CallTask extends TaskBase {
  readonly key: string;
  readonly actor: string | null;
  readonly trail: string | null;
  readonly timeout: number | null;
  readonly input: JsonObject;
}

export interface ActionTask extends CallTask {
  readonly kind: "action";
  readonly generation: number;
  readonly epoch: number;
  /** What the server knows already of the attempt's completion. */
  readonly completion: JsonObject;
}

export interface EffectTask extends CallTask {
  readonly kind: "effect" | "lookup" | "effect_undo";
  /** Of effect_undo: what the effect had answered. */
  readonly answer?: Json;
}

export interface SettleTask extends TaskBase {
  readonly kind: "settle";
  readonly generation: number;
}

export type Task = ActionTask | EffectTask | SettleTask;

export interface Batch {
  readonly batch: number;
  readonly tasks?: readonly Task[];
  readonly cancelled?: readonly string[];
}

export interface Failure {
  readonly type: string;
  readonly message: string;
  readonly traceback: string;
  readonly kind: "error" | "fail" | "refused" | "retry_later" | "timed_out";
  readonly after: number | null;
}

export interface Results {
  readonly results?: readonly { task: string; state: "accepted" | "lease_lost" | "refused"; detail?: string }[];
}

export interface Beat {
  readonly lease_seconds: number;
  readonly cancelled?: readonly string[];
  readonly lost?: readonly string[];
}

export interface RequestState {
  readonly state: "pending" | "answered" | "failed" | "over";
  readonly request?: string;
  readonly answer?: Json;
  readonly error?: Partial<Failure> | null;
}
