import type { TestOptions } from "vitest";

declare module "vitest" {
  interface TaskMeta {
    /** Why a test was left out here; vitest.config.ts tells each reason once, with how many tests it took. */
    lacking?: string;
  }
}

/** Whether the tests run as root. */
export const isRoot = process.getuid?.() === 0;

/** Options of a test or a suite that is left out where `lacking` says why, and runs where that is undefined. */
export function unless(lacking: string | undefined): TestOptions {
  return lacking === undefined ? {} : { skip: true, meta: { lacking } };
}

/** Options of a test or a suite that only root can run. */
export const needsRoot = unless(isRoot ? undefined : "it takes root");
