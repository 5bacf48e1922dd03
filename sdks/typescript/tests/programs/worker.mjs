// A worker whose handler tells on standard output how it fares: NAME. Its attempts after the first take `later` seconds.
import { Action, serve } from "@do-sdk/core";

new Action({
  name: process.argv[2],
  retry: { attempts: 3, delay: 0.01 },
  handler: async ({ seconds = 0, later = seconds }, { attempt, signal }) => {
    console.log(`began ${attempt}`);
    signal.addEventListener("abort", () => console.log(`aborted ${attempt}: ${signal.reason.message}`));
    await new Promise((resolve) => setTimeout(resolve, (attempt === 1 ? seconds : later) * 1000));
    return { attempt, worker: process.pid };
  },
});

await serve({ grace: 5, onReady: () => console.log("ready") });
console.log("stopped");
