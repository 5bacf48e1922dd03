// Builds both packages from src: ES modules and CommonJS, each with its types, into packages/*/dist.
import { cpSync, mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const packages = readdirSync(join(root, "packages"));
const license = join(root, "..", "..", "LICENSE");
const formats = {
  esm: { type: "module", module: ts.ModuleKind.NodeNext, moduleResolution: ts.ModuleResolutionKind.NodeNext },
  cjs: { type: "commonjs", module: ts.ModuleKind.CommonJS, moduleResolution: ts.ModuleResolutionKind.Node10 },
};
const host = { ...ts.sys, onUnRecoverableConfigFileDiagnostic: (problem) => stop([problem]) };
const { options } = ts.getParsedCommandLineOfConfigFile(join(root, "tsconfig.json"), {}, host);

for (const [format, { type, ...how }] of Object.entries(formats)) {
  const outDir = join(root, "build", format);
  rmSync(outDir, { recursive: true, force: true });
  const rootDir = join(root, "src");
  const program = ts.createProgram(
    packages.map((name) => join(rootDir, `${name}.ts`)),
    {
      ...options,
      ...how,
      stripInternal: true,
      rootDir,
      outDir,
    },
  );
  const { diagnostics } = program.emit();
  stop([...ts.getPreEmitDiagnostics(program), ...diagnostics]);
  for (const name of packages) {
    const target = join(root, "packages", name, "dist", format);
    rmSync(target, { recursive: true, force: true });
    mkdirSync(target, { recursive: true });
    writeFileSync(join(target, "package.json"), `${JSON.stringify({ type })}\n`);
    for (const file of reached(program, join(rootDir, `${name}.ts`))) {
      const stem = relative(rootDir, file).replace(/\.ts$/, "");
      for (const ending of [".js", ".d.ts"]) cpSync(join(outDir, stem + ending), join(target, stem + ending));
    }
  }
}
for (const name of packages) cpSync(license, join(root, "packages", name, "LICENSE"));

/** The source files that one imports, with those that they import; itself included. */
function reached(program, from, found = new Set()) {
  if (found.has(from)) return found;
  found.add(from);
  const source = program.getSourceFile(from);
  for (const { text } of source.imports) {
    const target = join(dirname(from), text);
    if (target.endsWith(".js")) reached(program, target.replace(/\.js$/, ".ts"), found);
  }
  return found;
}

function stop(problems) {
  if (problems.length === 0) return;
  process.stderr.write(
    ts.formatDiagnosticsWithColorAndContext(problems, {
      ...host,
      getCanonicalFileName: (name) => name,
      getNewLine: () => "\n",
    }),
  );
  process.exit(1);
}
