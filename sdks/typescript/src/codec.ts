/**
 * Values to JSON: the one format that the journal, both SDKs and HTTP share.
 *
 * What JSON would lose or change without a word (NaN, functions, Map, Set, a lone surrogate) is refused with its place,
 * before anything is sent.
 */
import { InvalidValue } from "./errors.js";

/** A value as JSON carries it. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [name: string]: Json };

/** A JSON object: what an action gives when nothing else is said of its output. */
export type JsonObject = { readonly [name: string]: Json };

const MAX_DEPTH = 64;

/** The value as JSON text. `what` is how messages name it. Throws InvalidValue with the place of what cannot be carried. */
export function encode(value: unknown, what: string): string {
  const refuse = (problem: string): never => {
    throw new InvalidValue(`${what} cannot be carried as JSON: ${problem}`);
  };
  return JSON.stringify(plain(value, "$", 0, refuse));
}

type Refuse = (problem: string) => never;

function plain(value: unknown, path: string, depth: number, refuse: Refuse): Json {
  switch (typeof value) {
    case "string":
      return text(value, path, refuse);
    case "number":
      if (!Number.isFinite(value)) refuse(`${path} is ${value}, which is not a JSON number`);
      return value;
    case "boolean":
      return value;
    case "undefined":
      return null;
    case "object":
      return value === null ? null : composed(value, path, depth, refuse);
    default:
      return refuse(`${path} is a ${typeof value}`);
  }
}

function composed(value: object, path: string, depth: number, refuse: Refuse): Json {
  if (depth >= MAX_DEPTH) refuse(`${path.slice(0, 200)} is nested deeper than ${MAX_DEPTH} levels, or is cyclic`);
  if (Array.isArray(value)) return value.map((item, index) => plain(item, `${path}[${index}]`, depth + 1, refuse));
  if ("toJSON" in value && typeof value.toJSON === "function") {
    if (value instanceof Date && Number.isNaN(value.getTime())) refuse(`${path} is no date`);
    return plain(value.toJSON(), path, depth + 1, refuse);
  }
  if (value instanceof Number || value instanceof String || value instanceof Boolean) {
    return plain(value.valueOf(), path, depth, refuse);
  }
  const kind = Object.prototype.toString.call(value).slice(8, -1);
  if (kind !== "Object" || value instanceof Error) {
    refuse(`${path} is a ${value.constructor?.name ?? kind}; make it an object, an array or text`);
  }
  const found: Record<string, Json> = Object.create(null) as Record<string, Json>;
  for (const [name, item] of Object.entries(value)) {
    // As JSON.stringify does; optional properties are often undefined.
    if (item === undefined) continue;
    found[text(name, `${path} (a key)`, refuse)] = plain(item, `${path}.${name}`, depth + 1, refuse);
  }
  return found;
}

function text(value: string, path: string, refuse: Refuse): string {
  if (value.includes("\0")) refuse(`${path} contains a NUL character`);
  if (/\p{Surrogate}/u.test(value)) refuse(`${path} contains a lone surrogate, which is not Unicode text`);
  return value;
}
