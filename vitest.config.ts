import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["{src,cli,certs,bench,scripts}/**/*.test.ts", "*.test.ts"],
    testTimeout: 30_000,
    hookTimeout: 60_000,
  },
});
