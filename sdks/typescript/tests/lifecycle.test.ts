/** When a process works, what it leaves behind, and what becomes of its tasks when it freezes or is cut off. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Do } from "@do-platform/sdk";
import { expect, test } from "vitest";
import { Cutting } from "./cutting.js";
import { connect, platform, startServer, unique } from "./platform.js";
import { program } from "./processes.js";

interface Told {
  readonly attempt: number;
  readonly worker: number;
}

const client = connect();

test.concurrent.for(["signup.mjs", "signup.cjs"])("%s ends by itself after its calls", async (file, context) => {
  const name = unique("signup");
  const signup = program(context, file, [name]);
  await signup.line('[{"twice":2},{"twice":4}]');
  const began = performance.now();
  expect(await signup.ended).toBe(0);
  expect(performance.now() - began).toBeLessThan(3_000); // idle connections last for 4 s, a claim for 25
  // It has left in order, so the platform knows at once that nobody runs this.
  const handle = await client.action(name).start({ number: 1 });
  await expect.poll(async () => (await handle.get()).waitingFor?.text).toContain("none that is connected offers");
  await handle.cancel();
});

test.concurrent("the example runs", async (context) => {
  const example = program(context, "../examples/library.mjs", []);
  expect(await example.ended).toBe(0);
  expect(example.output()).toMatch(/^info \[lend-book run_\w+ attempt 2\] Moby Dick goes to Ada$/m);
  expect(example.output()).toMatch(/^Moby Dick: completed, 1 loan\(s\)\nb2: There is no book b2\.$/m);
});

test.concurrent("told to stop, a worker finishes what it has and takes nothing more", async (context) => {
  const name = unique("drain");
  const worker = program(context, "worker.mjs", [name]);
  await worker.line("ready");
  const begun = await client.action<Told>(name).start({ seconds: 0.7 });
  await worker.line("began 1");
  worker.child.kill("SIGTERM");
  const next = program(context, "worker.mjs", [name]);
  await next.line("ready");
  const later = await client.action<Told>(name).start();
  expect((await later.result()).worker).toBe(next.child.pid);
  expect(await begun.result()).toEqual({ attempt: 1, worker: worker.child.pid });
  expect(await worker.ended).toBe(0);
  expect(worker.output()).toBe("ready\nbegan 1\nstopped\n");
});

test.concurrent("a frozen worker's task goes to another; what it says late does not count", async (context) => {
  const name = unique("freeze");
  const frozen = program(context, "worker.mjs", [name]);
  await frozen.line("ready");
  const handle = await client.action<Told>(name).start({ seconds: 60, later: 0 });
  await frozen.line("began 1");
  frozen.child.kill("SIGSTOP");
  const other = program(context, "worker.mjs", [name]);
  await other.line("ready");
  expect(await handle.result()).toEqual({ attempt: 2, worker: other.child.pid });
  frozen.child.kill("SIGCONT");
  await frozen.line(/^aborted 1/);
  expect((await handle.get()).result).toEqual({ attempt: 2, worker: other.child.pid });
  // It goes on under a session of its own.
  other.child.kill("SIGTERM");
  await other.ended;
  expect((await (await client.action<Told>(name).start()).result()).worker).toBe(frozen.child.pid);
});

test.concurrent("answers that are lost cost nothing but time", async (context) => {
  const proxy = await Cutting.before(platform.url, 0);
  context.onTestFinished(() => proxy.close());
  const name = unique("cut");
  const worker = program(context, "worker.mjs", [name], { DOTDO_URL: proxy.url });
  await worker.line("ready");
  proxy.left = 3; // of a claim, of a completion, of whatever comes
  expect(await client.action<Told>(name).invoke()).toMatchObject({ attempt: 1 });
  expect(await client.action<Told>(name).invoke()).toMatchObject({ attempt: 1 });
  expect(proxy.cut).toBe(3);
});

test.concurrent("when the server is killed, its worker goes on with the next one", async (context) => {
  const folder = mkdtempSync(join(tmpdir(), "dotdo-"));
  context.onTestFinished(() => rmSync(folder, { recursive: true }));
  const server = await startServer(context, folder);
  const own = new Do({ url: server.url });
  const name = unique("restart");
  const worker = program(context, "worker.mjs", [name], { DOTDO_URL: server.url, DOTDO_API_KEY: "" });
  await worker.line("ready");
  const handle = await own.action<Told>(name).start({ seconds: 30 });
  await worker.line("began 1");
  await server.kill();
  await startServer(context, folder, server.port);
  await worker.line(/^aborted 1/);
  await worker.line(/^began [23]/);
  await handle.cancel();
});
