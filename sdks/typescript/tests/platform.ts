/** The platform that runs for the tests, and clients of it. */
import { Do } from "@do-platform/sdk";
import { inject } from "vitest";

export const platform = inject("platform");

/** A client that may do everything. */
export function connect(): Do {
  return new Do({ url: platform.url, apiKey: platform.key });
}

/** A name that no other test has. */
export function unique(name: string): string {
  return `${name}-${crypto.randomUUID().slice(0, 8)}`;
}

/** What a promise is rejected with. */
export async function rejection(promise: PromiseLike<unknown>): Promise<unknown> {
  return promise.then(
    (value) => {
      throw new Error(`expected a rejection, got ${JSON.stringify(value)}`);
    },
    (error: unknown) => error,
  );
}
