/** What `make` installs: a Node.js of its own only where there is none of version 20 or newer. */
import { execFileSync } from "node:child_process";
import { chmodSync, copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const SCRIPT = fileURLToPath(new URL("../scripts/install", import.meta.url));

/** Runs the script beside programs that only note what they are asked, and a Node.js that says it is of this version. */
function install(version: string): string[] {
  const root = mkdtempSync(join(tmpdir(), "install-"));
  try {
    const scripts = join(root, "sdks", "typescript", "scripts");
    for (const folder of [
      scripts,
      join(scripts, "..", "node_modules"),
      join(root, "bin"),
      join(root, ".venv", "bin"),
    ]) {
      mkdirSync(folder, { recursive: true });
    }
    copyFileSync(SCRIPT, join(scripts, "install"));
    const asked = join(root, "asked");
    const put = (path: string, lines: string): void => {
      writeFileSync(path, `#!/bin/sh\n${lines}\n`);
      chmodSync(path, 0o755);
    };
    put(join(root, "bin", "npm"), `echo npm "$@" >> '${asked}'`);
    put(join(root, ".venv", "bin", "python"), `echo python "$@" >> '${asked}'`);
    const claim = `Object.defineProperty(process, 'versions', { value: { node: '${version}' } });`;
    put(join(root, "bin", "node"), `exec '${process.execPath}' -e "${claim} $2"`);
    const PATH = [join(root, "bin"), process.env.PATH].join(delimiter);
    execFileSync("bash", [join(scripts, "install")], { env: { ...process.env, PATH }, stdio: "pipe" });
    return readFileSync(asked, "utf8").trim().split("\n");
  } finally {
    rmSync(root, { recursive: true });
  }
}

test.for(["20.0.0", "22.14.0", process.versions.node])("Node.js %s is used as it is", (version) => {
  expect(install(version)).toEqual([expect.stringMatching(/^npm ci/)]);
});

test("where Node.js is too old, another one is installed first", () => {
  expect(install("18.20.4")).toEqual([
    expect.stringMatching(/^python -m pip install.*node\.txt$/),
    expect.stringMatching(/^npm ci/),
  ]);
});
