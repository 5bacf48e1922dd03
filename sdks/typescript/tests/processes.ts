/** Programs of tests/programs, or at a path from here, as processes of their own. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import type { TestContext } from "vitest";
import { platform } from "./platform.js";

export interface Program {
  readonly child: ChildProcess;
  /** Resolves with the code or signal that it has ended with. */
  readonly ended: Promise<number | string>;
  /** Waits for a line of its standard output. */
  line(wanted: string | RegExp): Promise<void>;
  /** What it has written so far. */
  output(): string;
}

/** Starts a program; it is killed when the test ends. */
export function program(
  { onTestFinished }: TestContext,
  name: string,
  args: readonly string[],
  env: Record<string, string> = {},
): Program {
  const path = fileURLToPath(new URL(name.includes("/") ? name : `./programs/${name}`, import.meta.url));
  const child = spawn(process.execPath, [path, ...args], {
    env: { ...process.env, DOTDO_URL: platform.url, DOTDO_API_KEY: platform.key, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let text = "";
  const waiting = new Set<() => void>();
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (piece: string) => {
      text += piece;
      for (const look of waiting) look();
    });
  }
  const ended = once(child, "close").then(([code, signal]: (number | string)[]) => signal ?? code ?? -1);
  onTestFinished(async () => {
    child.kill("SIGKILL");
    await ended;
  });
  const line = (wanted: string | RegExp): Promise<void> =>
    new Promise((resolve, reject) => {
      const look = (): void => {
        if (!text.split("\n").some((said) => (typeof wanted === "string" ? said === wanted : wanted.test(said))))
          return;
        waiting.delete(look);
        resolve();
      };
      waiting.add(look);
      look();
      void ended.then((how) => reject(new Error(`${name} ended with ${how} before it said ${wanted}:\n${text}`)));
    });
  return { child, ended, line, output: () => text };
}
