/** A run's journal as it grows (server-sent events), resumed after the last entry whenever the connection breaks. */
import type { IncomingMessage } from "node:http";
import { Unreachable } from "./errors.js";
import type { Entry } from "./records.js";
import { type Remote, segment, sleep } from "./remote.js";

const PAUSE_MS = 500;
const FAILURES = 5;
/** The server says something every 15 s; silence means that the connection is dead. */
const SILENCE_MS = 45_000;

/** The entries of a run after a number, until it has ended. Throws Unreachable when it cannot be resumed. */
export async function* streamJournal(
  remote: Remote,
  id: string,
  after: number,
  signal: AbortSignal | undefined,
): AsyncGenerator<Entry, void, void> {
  let failures = 0;
  for (let last = after; ; await sleep(PAUSE_MS * 2 ** failures, signal)) {
    let response: IncomingMessage;
    try {
      const path = `/v1/runs/${segment(id)}/stream`;
      response = await remote.stream(path, { headers: { "Last-Event-ID": String(last) }, signal });
    } catch (error) {
      failures += 1;
      if (!(error instanceof Unreachable) || failures > FAILURES) throw error;
      continue;
    }
    try {
      for await (const { event, data } of eventsOf(response)) {
        failures = 0;
        if (event === "end") return;
        const entry = JSON.parse(data) as Entry;
        last = entry.seq;
        yield entry;
      }
    } catch (error) {
      signal?.throwIfAborted();
      if (!isBroken(error)) throw error;
    } finally {
      response.destroy();
    }
  }
}

/** The events of a stream; see "Server-sent events" in the HTML standard. Comments and fields not needed are skipped. */
async function* eventsOf(response: IncomingMessage): AsyncGenerator<{ event: string; data: string }, void, void> {
  response.setEncoding("utf8");
  response.socket.setTimeout(SILENCE_MS, () => response.destroy(new Error("silence")));
  let text = "";
  for await (const piece of response) {
    const blocks = (text + piece).split("\n\n");
    text = blocks.pop() ?? "";
    for (const block of blocks) {
      const fields = block.split("\n").map((line) => line.split(/: ?(.*)/s, 2) as [string, string?]);
      const value = (name: string): string => fields.findLast(([field]) => field === name)?.[1] ?? "";
      if (value("event")) yield { event: value("event"), data: value("data") };
    }
  }
}

/** Whether an error came from the connection, not from whoever reads. */
function isBroken(error: unknown): boolean {
  return error instanceof Error && ("code" in error || error.message === "silence");
}
