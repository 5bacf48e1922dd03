/** The platform that runs for the tests, and clients of it. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { Do } from "@do-platform/sdk";
import { inject, type TestContext } from "vitest";

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

/** A server of its own, without keys. */
export async function startServer(
  { onTestFinished }: TestContext,
  folder: string,
  port = 0,
): Promise<{ url: string; port: number; kill: () => Promise<void> }> {
  const here = fileURLToPath(new URL("./python/", import.meta.url));
  const args = ["-m", "dotdo", "serve", "--app", `${here}app.py`, "--store", `${folder}/dotdo.db`, "--open"];
  const env = { ...process.env, LEDGER: `${folder}/ledger`, DOTDO_WORKER_LEASE: "2" };
  const child = spawn(platform.python, [...args, "--port", String(port)], { env, stdio: ["ignore", "ignore", "pipe"] });
  const ended = once(child, "close");
  const kill = async (): Promise<void> => {
    child.kill("SIGKILL");
    await ended;
  };
  onTestFinished(kill);
  let text = "";
  for await (const piece of child.stderr.setEncoding("utf8").iterator({ destroyOnReturn: false })) {
    text += piece;
    const url = /at (http:\S+)/.exec(text)?.[1];
    if (url === undefined) continue;
    child.stderr.resume();
    return { url, port: Number(new URL(url).port), kill };
  }
  throw new Error(`the server did not start:\n${text}`);
}
