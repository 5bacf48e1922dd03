import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["tests/**/*.test.ts"],
    globalSetup: "tests/setup.ts",
    testTimeout: 120_000,
    expect: { poll: { timeout: 60_000 } }, // only a hang takes that long, however busy the machine is
    teardownTimeout: 60_000,
    pool: "forks",
    maxWorkers: 3, // they mostly wait for servers and processes
    reporters: ["default"],
  },
});
