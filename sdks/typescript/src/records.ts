/**
 * What callers see of runs, and how it is read from the API's JSON.
 *
 * Names are those of Python and HTTP in camelCase. Values of the user's own (inputs, results, the data of entries) are
 * passed on as they are. Times are ms since 1970 by the platform's clock.
 */
import type { Json, JsonObject } from "./codec.js";

export type RunKind = "action" | "service";

export type Status =
  | "pending"
  | "running"
  | "waiting"
  | "stopping"
  | "undoing"
  | "completed"
  | "failed"
  | "cancelled"
  | "blocked";

export type Undo = "none" | "partial" | "all";

/** What a person can answer to the question of a blocked run. */
export type Outcome = "happened" | "did_not_happen" | "try_again";

/** Why a run failed, was cancelled or is blocked. */
export interface RunError {
  readonly type: string;
  readonly message: string;
  readonly action: string | null;
  readonly step: string | null;
  readonly attempts: number;
}

/** What a blocked run asks of a person; `client.runs.resolve` answers it. */
export interface Question {
  readonly key: string;
  readonly about: "request" | "delivery" | "undo" | "request_undo";
  readonly step: string;
  readonly effect: string;
  readonly version: number;
  readonly text: string;
  readonly at: number;
  readonly input: Json;
  readonly error: RunError | null;
  readonly answers: readonly Outcome[];
  readonly shape: JsonObject | null;
}

/** Why an unfinished run does not move, in words and data. */
export interface WaitingFor {
  readonly kind: string;
  readonly text: string;
  readonly until: number | null;
  readonly step: string | null;
  readonly questions: readonly Question[];
}

/** One run. `result` is there when `status` is completed; `error` when it failed, was cancelled or is blocked. */
export interface Run<Output = JsonObject> {
  readonly id: string;
  readonly kind: RunKind;
  readonly name: string;
  readonly version: number;
  readonly status: Status;
  readonly undo: Undo;
  readonly generation: number;
  readonly result: Output;
  readonly error: RunError | null;
  /** Effects that stay, as `step: effect`. */
  readonly notUndone: readonly string[];
  readonly waitingFor: WaitingFor | null;
  /** What its service has published last. */
  readonly progress: Json;
  readonly key: string | null;
  readonly trail: string | null;
  readonly actor: string | null;
  readonly labels: Readonly<Record<string, string>>;
  readonly priority: number;
  readonly parent: string | null;
  readonly root: string;
  readonly continues: string | null;
  readonly continuedAs: string | null;
  readonly createdAt: number;
  readonly endedAt: number | null;
  readonly erasedAt: number | null;
  readonly erasedBy: string | null;
}

/** A page of runs, newest first. `next` is the cursor of the page after it. */
export interface RunPage {
  readonly runs: readonly Run<Json>[];
  readonly next: string | null;
}

/** One entry of a run's journal. `data` is as journaled, null if it was erased; `digest` is its place in the hash chain. */
export interface Entry {
  readonly seq: number;
  readonly kind: string;
  readonly step: string;
  readonly generation: number;
  readonly attempt: number;
  readonly at: number;
  readonly data: JsonObject | null;
  readonly digest: string;
}

/** What can be called. */
export interface Definition {
  readonly kind: RunKind;
  readonly name: string;
  readonly version: number;
  readonly doc: string;
  readonly inputSchema: JsonObject;
  readonly outputSchema: JsonObject;
  readonly policy: JsonObject;
}

/** One step of a preview. */
export interface PreviewedStep {
  readonly id: string;
  readonly kind: "action" | "service" | "timer" | "undo" | "on_failure";
  readonly name: string;
  readonly version: number | null;
  readonly status: "completed" | "failed" | "cancelled" | "incomplete";
  readonly input: Json;
  readonly result: Json;
  readonly error: RunError | null;
  readonly at: number;
}

/** A call to the outside world that would have been made. */
export interface PreviewedEffect {
  readonly step: string;
  readonly kind: "staged" | "requested" | "undone";
  readonly name: string;
  readonly version: number;
  readonly input: Json;
  readonly text: string | null;
  readonly answer: Json;
}

/** An SQL statement that would have been executed. */
export interface PreviewedStatement {
  readonly step: string;
  readonly sql: string;
  readonly rows: number | null;
  readonly parameters: Json;
  readonly kept: boolean;
}

/** What a run would have done; nothing of it has happened. */
export interface Preview<Output = JsonObject> {
  readonly kind: RunKind;
  readonly name: string;
  readonly version: number;
  readonly status: "completed" | "failed" | "cancelled" | "blocked" | "incomplete";
  readonly result: Output | null;
  readonly error: RunError | null;
  readonly steps: readonly PreviewedStep[];
  readonly effects: readonly PreviewedEffect[];
  readonly statements: readonly PreviewedStatement[];
  readonly notes: readonly { readonly text: string; readonly step: string | null }[];
}

const ENDED: ReadonlySet<Status> = new Set(["completed", "failed", "cancelled"]);

/** Whether a run has ended. */
export function ended(run: { readonly status: Status }): boolean {
  return ENDED.has(run.status);
}

/** Whether a run has ended or is blocked: nothing happens to it by itself. */
export function rests(run: { readonly status: Status }): boolean {
  return ended(run) || run.status === "blocked";
}

// -- reading ------------------------------------------------------------------------------------------------------------

type WireError = Partial<RunError> & { type: string; message: string };

interface WireQuestion extends Omit<Question, "error" | "version" | "input" | "answers" | "shape"> {
  version?: number;
  input?: Json;
  error?: WireError;
  answers?: Outcome[];
  shape?: JsonObject;
}

interface WireWaitingFor {
  kind: string;
  text: string;
  until?: number;
  step?: string;
  questions?: WireQuestion[];
}

/** A run as the API writes it. */
export interface WireRun
  extends Omit<
    Run<Json>,
    "error" | "notUndone" | "waitingFor" | "continuedAs" | "createdAt" | "endedAt" | "erasedAt" | "erasedBy"
  > {
  error: WireError | null;
  not_undone: string[];
  waiting_for: WireWaitingFor | null;
  continued_as: string | null;
  created_at: number;
  ended_at: number | null;
  erased_at: number | null;
  erased_by: string | null;
}

/** A definition as the API writes it. */
export interface WireDefinition extends Pick<Definition, "kind" | "name" | "version" | "doc" | "policy"> {
  input_schema: JsonObject;
  output_schema: JsonObject;
}

/** A preview as the API writes it. */
export interface WirePreview extends Omit<Preview<Json>, "error" | "steps"> {
  error: WireError | null;
  steps: (Omit<PreviewedStep, "error"> & { error: WireError | null })[];
}

export function readRun(wire: WireRun): Run<Json> {
  const { not_undone, waiting_for, continued_as, created_at, ended_at, erased_at, erased_by, error, ...same } = wire;
  return {
    ...same,
    error: readError(error),
    notUndone: not_undone,
    waitingFor: waiting_for && readWaitingFor(waiting_for),
    continuedAs: continued_as,
    createdAt: created_at,
    endedAt: ended_at,
    erasedAt: erased_at,
    erasedBy: erased_by,
  };
}

function readWaitingFor(wire: WireWaitingFor): WaitingFor {
  return {
    kind: wire.kind,
    text: wire.text,
    until: wire.until ?? null,
    step: wire.step ?? null,
    questions: (wire.questions ?? []).map((each) => ({
      ...each,
      version: each.version ?? 1,
      input: each.input ?? null,
      error: readError(each.error ?? null),
      answers: each.answers ?? [],
      shape: each.shape ?? null,
    })),
  };
}

function readError(wire: WireError | null): RunError | null {
  if (wire === null) return null;
  const { type, message, action = null, step = null, attempts = 1 } = wire;
  return { type, message, action, step, attempts };
}

export function readDefinition(wire: WireDefinition): Definition {
  const { input_schema, output_schema, ...same } = wire;
  return { ...same, inputSchema: input_schema, outputSchema: output_schema };
}

export function readPreview(wire: WirePreview): Preview<Json> {
  const steps = wire.steps.map((step) => ({ ...step, error: readError(step.error) }));
  return { ...wire, steps, error: readError(wire.error) };
}
