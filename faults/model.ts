import { inspect, isDeepStrictEqual } from "node:util";
import { type Job, State } from "../proto/generated/jobs/v1/worker.ts";
import type { Written } from "./reader.ts";
import type { Ending, Shape } from "./shape.ts";

/** A job as the model has it. */
export interface Modelled {
  /** The job's request id, its label, and the line by which it marks its start. */
  readonly key: string;
  readonly shape: Shape;
  readonly written: Written;
  /** Undefined until its start is answered, or the job is found after a start that was not. */
  id: string | undefined;
  /** How many stops were asked for; each may have come too late. */
  stops: number;
  supervisorKilled: boolean;
  /** Its log, or the disk, was full. */
  mayHaveGaps: boolean;
  /** The job as it was first told after its end, which may not change any more. */
  ended: Job | undefined;
}

/** Throws Error when the daemon tells of a job what cannot be true. A stop may have come after the job's end. */
export function check(modelled: Modelled, job: Job): void {
  const { key, id, shape, ended: before } = modelled;
  const fail = (what: string): never => {
    throw new Error(
      `job ${job.id} (${key}): ${what}: ${inspect({ shape: shape.ending, ended: job.ended }, { breakLength: Infinity, depth: 5 })}`,
    );
  };
  if (job.id !== id) fail(`has the id ${job.id}, and had ${id}`);
  if (job.labels.get("key") !== key) fail(`is another's: ${job.labels.get("key")}`);
  if (job.state !== State.STATE_ENDED) {
    if (job.state === State.STATE_UNSPECIFIED) fail("has no state");
    return;
  }
  const wrong = wrongEnd(modelled, job);
  if (wrong !== undefined) fail(wrong);
  if (before !== undefined && !isDeepStrictEqual(before.ended, job.ended)) fail("had ended otherwise");
  modelled.ended = job;
}

/** Whether nothing but the job itself can have ended it. */
export function undisturbed({ stops, supervisorKilled, shape }: Modelled): boolean {
  return stops === 0 && !supervisorKilled && shape.timeLimitMs === undefined;
}

function wrongEnd(modelled: Modelled, { ended, output }: Job): string | undefined {
  const { shape, stops, supervisorKilled, mayHaveGaps, written } = modelled;
  if (ended?.how === undefined) return "has ended, and not told how";
  const { how, exitCode, signal } = ended;
  const natural = naturally(shape.ending, exitCode, signal);
  switch (how.$case) {
    case "exited":
      if (!natural || how.value.code !== exitCode) return "exited otherwise";
      break;
    case "signalled":
      if (!natural || how.value.signal !== signal) return "was killed by another signal";
      break;
    case "stopped":
      if (stops === 0) return "nobody stopped it";
      if (how.value.by !== "writer") return "another one stopped it";
      if (!natural && (exitCode !== -1 || signal === 0)) return "was stopped, and exited";
      return undefined;
    case "timedOut":
      return shape.timeLimitMs === undefined ? "it has no time limit" : undefined;
    case "lost":
      return supervisorKilled ? undefined : "its supervisor was left alone";
    default:
      return "that cannot be";
  }
  const size = written.stdout.length + written.stderr.length;
  if (Number(output?.size) !== size) return `wrote ${size} bytes, and the log has ${output?.size}`;
  if (!mayHaveGaps && output?.dropped !== 0n) return `${output?.dropped} bytes were dropped`;
  return undefined;
}

function naturally(ending: Ending, exitCode: number, signal: number): boolean {
  switch (ending.kind) {
    case "exit":
      return exitCode === ending.code && signal === 0;
    case "signal":
      return exitCode === -1 && signal === ending.signal;
    default:
      return false;
  }
}
