/** Every sample in the documentation of TypeScript compiles against the packages, strictly. */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import ts from "typescript";
import { expect, test } from "vitest";

const ROOT = fileURLToPath(new URL("../../../", import.meta.url));
const PAGES = [
  "docs/typescript.md",
  "sdks/typescript/packages/sdk/README.md",
  "sdks/typescript/packages/core/README.md",
];

test("samples compile", () => {
  const folder = `${ROOT}sdks/typescript/build/samples`;
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const files = PAGES.flatMap((page) => {
    const text = readFileSync(ROOT + page, "utf8");
    const blocks = [...text.matchAll(/^```(\w*)\n(.*?)^```$/gms)];
    expect(blocks.filter(([, language]) => !["ts", "text", "sh", "console"].includes(language ?? ""))).toEqual([]);
    return blocks.flatMap(([, language, sample = ""], index) => {
      if (language !== "ts") return [];
      const file = `${folder}/${page.replace(/\W+/g, "-")}-${index}.mts`;
      writeFileSync(file, sample);
      return [file];
    });
  });
  expect(files.length).toBeGreaterThan(8);
  const program = ts.createProgram(files, {
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    types: ["node"],
    typeRoots: [`${ROOT}sdks/typescript/node_modules/@types`],
    strict: true,
    noUnusedLocals: true,
    skipLibCheck: true,
    noEmit: true,
  });
  const problems = ts.getPreEmitDiagnostics(program).map(({ file, start, messageText }) => {
    const line = file && start !== undefined ? file.getLineAndCharacterOfPosition(start).line + 1 : 0;
    return `${file?.fileName}:${line}: ${ts.flattenDiagnosticMessageText(messageText, "\n")}`;
  });
  expect(problems).toEqual([]);
});
