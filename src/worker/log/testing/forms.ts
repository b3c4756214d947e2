import { createHash } from "node:crypto";
import type { TestWorker } from "../../testing/worker.ts";
import { compressLog } from "../compress.ts";

export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** What becomes of an ended job's log, before it is read. */
export const forms: readonly (readonly [string, (worker: TestWorker, id: string) => Promise<unknown>])[] = [
  ["as it was written", async () => {}],
  ["that has been compressed", (worker, id) => compressLog(worker.directory(id), new AbortController().signal, -1)],
];
