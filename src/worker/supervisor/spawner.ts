import { accessSync, constants } from "node:fs";
import { JobError } from "../model/errors.ts";
import type { Part } from "../model/isolation.ts";
import { awaitChange, type DeviceChanges, failChanges, settleChange } from "./device-changes.ts";
import { devicesFrame, type Launch, type Reply } from "./frame.ts";
import { holding, type Isolation, isolationArguments, partsOf } from "./isolation.ts";
import {
  adopt,
  ask,
  becomeRunning,
  becomeSpare,
  begin,
  beGone,
  dropSpares,
  fail,
  failStarts,
  type Gone,
  type Pool,
  poolOf,
  SPARES,
  watchAll,
} from "./pool.ts";
import { closeProcess, ensureStarted, spawnerProcess } from "./spawner-process.ts";

/** The spawner process, which makes one supervisor for each job, ahead of it. */
export interface Spawner extends Disposable {
  /**
   * Makes `launch.directory` and starts the job in it; resolves to the job's pid once it has been exec'ed. Where a spare
   * supervisor is ready, all but that has been done when this returns. `record` is called with the supervisor's pid while
   * that prepares; the job does not run before it has returned, nor if it throws. A start that outlives the daemon ends with its
   * directory, which the next daemon removes. `gone` is called once, when the supervisor is no more, with what ended it.
   */
  launch(launch: Launch, record: (supervisor: number) => void, gone: Gone): Promise<number>;
  /** `gone` is called when the supervisor that an earlier daemon made for `directory` is no more, which may be now. */
  adopt(directory: string, gone: Gone): void;
  /**
   * Puts `program` (limits/devices.ts) in the place of the device rules that a running job has, if any, at once and for
   * what it opens from then on. Throws JobError: `unsupported` where this host cannot, `internal` with errno ENOENT when
   * there is no such cgroup any more.
   */
  devices(cgroup: string, program: Uint8Array): Promise<void>;
  /** Has as many spares made as are missing: for when nobody waits. A start asks for no more than half of them. */
  refill(): void;
  /** How many starts wait for a supervisor. */
  waiting(): number;
  /** The parts of the isolation that hold, and those that this host lacks, with an errno's name. Known once `ready` is. */
  readonly parts: readonly Part[];
  readonly lacking: ReadonlyMap<Part, string>;
  /** Resolves when a first supervisor is ready, or cannot be had. */
  readonly ready: Promise<void>;
  /** Resolves when the spawner and its spares have ended; supervisors go on. */
  close(): Promise<void>;
}

/**
 * Starts the spawner from the binary at `path`; it makes its spares in `parent`, on the file system of jobs' directories.
 * A spawner that has died, or could not be had, is started again, and told of all jobs: with the next start, and while jobs
 * run also by itself, after a pause that grows to 10 s. `log` is told so once.
 */
export function openSpawner(
  path: string,
  parent: string,
  isolation: Isolation,
  log: (message: string) => void,
): Spawner {
  const lacking = new Map<Part, string>();
  let parts: readonly Part[] | undefined;
  const first = Promise.withResolvers<void>();
  const changes: DeviceChanges = new Map();
  const spawner = spawnerProcess(path, [parent, ...isolationArguments(isolation)], {
    started() {
      lacking.clear();
      parts = undefined;
      watchAll(pool);
    },
    replied(reply) {
      if (reply.kind === "lacks") {
        for (const part of partsOf(reply.pid)) lacking.set(part, reply.errno);
        parts = undefined;
      } else first.resolve();
      hear(pool, changes, reply);
    },
    lost(why) {
      first.resolve();
      failChanges(changes, why);
      return !spawner.isClosed && failStarts(pool, why);
    },
    due: () => ask(pool, SPARES),
    log,
  });
  const pool = poolOf(parent, spawner);
  const close = (): Promise<void> => {
    const closed = closeProcess(spawner);
    dropSpares(pool);
    return closed;
  };
  ask(pool, SPARES);
  return {
    launch: (launch, record, gone) =>
      new Promise((resolve, reject) => begin(pool, { launch, record, gone, resolve, reject })),
    adopt: (directory, gone) => adopt(pool, directory, gone),
    devices(cgroup, program) {
      const number = ++pool.last;
      const changed = awaitChange(changes, number);
      ensureStarted(spawner);
      spawner.socket?.write(devicesFrame(number, cgroup, program));
      return changed;
    },
    refill: () => ask(pool, SPARES),
    waiting: () => pool.waiting.length,
    get parts() {
      return (parts ??= holding(isolation, lacking));
    },
    lacking,
    ready: first.promise,
    close,
    [Symbol.dispose]: () => void close(),
  };
}

function hear(pool: Pool, changes: DeviceChanges, { supervisor: number, kind, pid, stage, errno }: Reply): void {
  if (kind === "ready") becomeSpare(pool, number, pid);
  else if (kind === "started") becomeRunning(pool, number, pid);
  else if (kind === "gone") beGone(pool, number, pid, errno);
  else if (kind === "done") settleChange(changes, number);
  else if (kind === "failed" && !settleChange(changes, number, { stage, errno })) fail(pool, number, stage, errno);
}

/** Throws JobError `unavailable` when `path` is not a program. */
export function checkSupervisor(path: string): void {
  try {
    accessSync(path, constants.X_OK);
  } catch (error) {
    throw new JobError(
      "unavailable",
      `the supervisor cannot be run: ${path}; npm run build builds it, and npm's package jobsd-linux-${process.arch} has it`,
      {
        cause: error,
      },
    );
  }
}
