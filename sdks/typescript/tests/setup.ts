/** Starts one platform for all tests: see python/start.py. */
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { TestProject } from "vitest/node";

export interface Platform {
  readonly url: string;
  readonly key: string;
  readonly postgres: string;
  readonly shop: string;
  readonly ledger: string;
  /** The Python that everything runs with. */
  readonly python: string;
}

declare module "vitest" {
  interface ProvidedContext {
    platform: Platform;
  }
}

const HERE = fileURLToPath(new URL(".", import.meta.url));
const VENV = fileURLToPath(new URL("../../../.venv/bin/python", import.meta.url));

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const python = process.env.PYTHON ?? (existsSync(VENV) ? VENV : "python3");
  const child = spawn(python, [`${HERE}python/start.py`], { stdio: ["pipe", "pipe", "inherit"] });
  const ended = new Promise<void>((resolve) => child.on("close", () => resolve()));
  let text = "";
  for await (const piece of child.stdout) {
    text += piece;
    if (text.includes("\n")) break;
  }
  if (!text.includes("\n")) throw new Error("the platform did not start");
  project.provide("platform", { ...JSON.parse(text), python } as Platform);
  return () => {
    child.stdin.end();
    return ended;
  };
}
