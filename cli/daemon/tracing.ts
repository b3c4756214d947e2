import { stat } from "node:fs/promises";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { NO_TRACING, openTracing, type Tracing } from "../../src/server/tracing.ts";
import { reasonOf } from "../../src/os/errno.ts";
import { exposureOfWay, type Job, type WorkerMeter } from "../../src/worker/index.ts";
import type { Setting } from "./config.ts";

/** The daemon's flag for traces. */
export const tracingFlags: readonly Setting[] = [
  {
    name: "tracing",
    value: "FILE",
    about: "a JavaScript file that sets up OpenTelemetry's SDK: calls and jobs are spans then",
  },
];

/**
 * Opens tracing by the SDK that `file` sets up, or that is in this process already; without either there is none. Throws Error
 * when the file cannot be run, others may write it, or it sets up no SDK.
 */
export async function traceBy(file: string | undefined, version: string): Promise<Tracing> {
  if (file !== undefined)
    try {
      await checkWriters(file);
      await import(pathToFileURL(file).href);
    } catch (error) {
      throw new Error(`--tracing ${file}: ${reasonOf(error)}`, { cause: error });
    }
  const tracing = await openTracing(version);
  if (file !== undefined && tracing === NO_TRACING)
    throw new Error(
      `--tracing ${file} sets up no SDK: it has to register a provider of tracers with @opentelemetry/api 1.x`,
    );
  return tracing;
}

/** Whoever may write the file, or put another in its place, could have the daemon do anything. */
async function checkWriters(file: string): Promise<void> {
  const exposed = exposureOfWay(resolve(file));
  if (exposed) throw new Error(exposed.reason);
  const mode = (await stat(file)).mode & 0o777;
  if (mode & 0o022) throw new Error(`others can write this file (mode 0${mode.toString(8)}): chmod go-w`);
}

/** Returns what hears of starts and ends for both; undefined where neither has to. */
export function heardBy(meter: WorkerMeter | undefined, tracing: Tracing): WorkerMeter | undefined {
  if (tracing === NO_TRACING) return meter;
  const ended = (job: Job): void => {
    tracing.ended(job);
    meter?.ended(job);
  };
  return meter ? { ...meter, ended } : { ended, started() {}, repeated() {}, refused() {} };
}
