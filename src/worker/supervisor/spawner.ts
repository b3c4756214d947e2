import { spawn } from "node:child_process";
import { accessSync, closeSync, constants, openSync } from "node:fs";
import { join } from "node:path";
import { Duplex } from "node:stream";
import { codeOf, reasonOf } from "../../os/errno.ts";
import { FIRST_PAUSE_MS, longer } from "../../os/pause.ts";
import { JobError } from "../model/errors.ts";
import { refusal } from "../model/failure.ts";
import type { Part } from "../model/isolation.ts";
import { devicesFailure, died, failureAt } from "./failure.ts";
import { adoptFrame, devicesFrame, eachReply, type Launch, type Reply, spareFrame } from "./frame.ts";
import { holding, type Isolation, isolationArguments, partsOf } from "./isolation.ts";
import { dismiss, give, SPARE, type Spare } from "./spare.ts";

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
  /** What of the isolation holds, and what this host does not give, with an errno's name. Known once `ready` is. */
  readonly parts: readonly Part[];
  readonly lacking: ReadonlyMap<Part, string>;
  /** Resolves when a first supervisor is ready, or cannot be had. */
  readonly ready: Promise<void>;
  /** Resolves when the spawner and its spares have ended; supervisors go on. */
  close(): Promise<void>;
}

/** Hears the signal that killed a supervisor, or 0, and why it wrote no exit record, or "0": as far as anybody knows. */
type Gone = (signal: number, errno: string) => void;

/** Supervisors that wait for a job. Each takes 0.1 MB. */
const SPARES = 4;
const ADOPT_AGAIN_MS = 1000;
/** One that has run for so long has stayed. */
const STAYED_MS = 1000;

interface Launching {
  readonly launch: Launch;
  readonly record: (supervisor: number) => void;
  readonly gone: Gone;
  readonly resolve: (pid: number) => void;
  readonly reject: (error: unknown) => void;
}

/** A supervisor, by the number that it was asked for with. */
type Supervisor =
  | { readonly state: "asked" }
  | ({ readonly state: "spare" } & Spare)
  | ({ readonly state: "launching" } & Launching)
  | { readonly state: "running"; readonly directory: string; readonly gone: Gone };

/**
 * Starts the spawner from the binary at `path`; it makes its spares in `parent`, on the file system of jobs' directories.
 * Should it die, or not be to be had, it is started again, and told of all jobs: with the next start, and while jobs run by
 * itself, after a pause that grows to 10 s. `log` is told so once.
 */
export function openSpawner(
  path: string,
  parent: string,
  isolation: Isolation,
  log: (message: string) => void,
): Spawner {
  const lacking = new Map<Part, string>();
  let parts: readonly Part[] | undefined;
  const supervisors = new Map<number, Supervisor>();
  /** Numbers of those in this state, the oldest first. */
  const spares = new Set<number>();
  const asked = new Set<number>();
  /** For a supervisor; one that was asked for with a number above `since` was asked for by it, or one behind it. */
  const waiting: (Launching & { readonly since: number })[] = [];
  /** Device rules that the spawner has not answered yet, by their number. */
  const changes = new Map<number, PromiseWithResolvers<void>>();
  const first = Promise.withResolvers<void>();
  let last = 0;
  let closed = false;
  let socket: Duplex | undefined;
  let ended: Promise<void> | undefined;
  let openedMs = 0;
  let told = false;
  let again: NodeJS.Timeout | undefined;
  let pauseMs = FIRST_PAUSE_MS;

  function ask(least: number): void {
    let missing = least + waiting.length - spares.size - asked.size;
    if (missing > 0 && !socket) open();
    for (; missing > 0; missing--) {
      asked.add(++last);
      supervisors.set(last, { state: "asked" });
      socket?.write(spareFrame(last));
    }
  }

  function begin(launching: Launching): void {
    const [number] = spares;
    const spare = number === undefined ? undefined : supervisors.get(number);
    if (number === undefined || spare?.state !== "spare") {
      waiting.push({ ...launching, since: last });
      ask(0);
      return;
    }
    spares.delete(number);
    supervisors.set(number, { state: "launching", ...launching });
    void hand(spare, number, launching);
    ask(SPARES / 2);
  }

  async function hand(spare: Spare, number: number, launching: Launching): Promise<void> {
    // A long start takes a while, and may be given up meanwhile.
    const given = (): boolean => supervisors.get(number)?.state === "launching";
    const record = (supervisor: number): void => {
      if (!given()) throw died("the start was given up");
      launching.record(supervisor);
    };
    try {
      if ((await give(spare, number, { launch: launching.launch, record })) || !given()) return;
      supervisors.delete(number);
      begin(launching);
    } catch (error) {
      supervisors.delete(number);
      launching.reject(error);
    }
  }

  function ready(number: number, pid: number): void {
    asked.delete(number);
    const directory = join(parent, `${SPARE}${pid}`);
    try {
      const flags = constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW;
      const control = openSync(join(directory, "control"), flags);
      supervisors.set(number, { state: "spare", pid, directory, control });
      spares.add(number);
    } catch (error) {
      supervisors.delete(number);
      const dead = codeOf(error) === "ENXIO"; // and there are others
      if (dead) ask(0);
      else dismiss(directory);
      const failed = dead ? undefined : waiting.shift();
      failed?.reject(failureAt("directory", codeOf(error), failed.launch));
    }
    const next = spares.has(number) ? waiting.shift() : undefined;
    if (next) begin(next);
  }

  /** Takes a supervisor that runs no job from the books. Returns the start that it was for. */
  function drop(number: number): Launching | undefined {
    const known = supervisors.get(number);
    supervisors.delete(number);
    spares.delete(number);
    if (known?.state === "spare") closeSync(known.control);
    if (known?.state === "launching") return known;
    if (!asked.delete(number)) return undefined;
    // Who came after it was asked for may find room where it found none.
    if (number > (waiting[0]?.since ?? 0)) return waiting.shift();
    ask(0);
    return undefined;
  }

  function hear({ supervisor: number, kind, pid, stage, errno }: Reply): void {
    if (kind === "lacks") {
      for (const part of partsOf(pid)) lacking.set(part, errno);
      parts = undefined;
    } else first.resolve();
    const known = supervisors.get(number);
    if (kind === "ready" && known?.state === "asked") {
      ready(number, pid);
    } else if (kind === "started" && known?.state === "launching") {
      supervisors.set(number, { state: "running", directory: known.launch.directory, gone: known.gone });
      known.resolve(pid);
    } else if (kind === "failed" && known?.state === "running") {
      // The spawner has no descriptor to watch it with: nothing says that it is gone.
      setTimeout(() => supervisors.get(number) === known && adopt(number, known.directory), ADOPT_AGAIN_MS).unref();
    } else if (kind === "failed") {
      const failed = drop(number);
      failed?.reject(failureAt(stage, errno, failed.launch));
      changes.get(number)?.reject(devicesFailure(stage, errno));
      changes.delete(number);
    } else if (kind === "gone" && known?.state === "running") {
      supervisors.delete(number);
      known.gone(pid, errno);
    } else if (kind === "gone") {
      drop(number)?.reject(died("the job's supervisor died before the job ran"));
    } else if (kind === "done") {
      changes.get(number)?.resolve();
      changes.delete(number);
    }
  }

  function adopt(number: number, directory: string): void {
    if (closed) return;
    if (socket) socket.write(adoptFrame(number, directory));
    else openAgain();
  }

  /** What was being launched is not to be known any more; jobs that run have their supervisors still. */
  function lose(lost: Duplex | undefined, why: JobError): void {
    if (socket !== lost) return; // another has been started since
    socket?.destroy(); // or spares would not hear of it
    socket = undefined;
    first.resolve();
    for (const change of changes.values()) change.reject(why);
    changes.clear();
    if (closed) return;
    if (performance.now() - openedMs > STAYED_MS) {
      told = false;
      pauseMs = FIRST_PAUSE_MS;
    }
    if (!told) log(why.message);
    told = true;
    for (const each of waiting.splice(0)) each.reject(why);
    for (const number of supervisors.keys())
      if (supervisors.get(number)?.state !== "running") drop(number)?.reject(why);
    openAgain();
  }

  /** For the jobs that run; a start does not wait for that. */
  function openAgain(): void {
    if (again || !supervisors.values().some(({ state }) => state === "running")) return;
    again = setTimeout(() => {
      again = undefined;
      ask(SPARES);
    }, pauseMs).unref();
    pauseMs = longer(pauseMs);
  }

  /** Has a spawner run, and hear of all jobs; or `lose` called when this has returned. */
  function open(): void {
    lacking.clear();
    parts = undefined;
    openedMs = performance.now();
    try {
      const child = spawn(path, [parent, ...isolationArguments(isolation)], {
        stdio: ["ignore", "ignore", "ignore", "pipe"],
        detached: true,
        env: {},
      });
      child.on("error", (error) => lose(undefined, cannotRun(error)));
      if (child.pid === undefined) return;
      const pipe = child.stdio[3];
      if (!(pipe instanceof Duplex)) throw died("the spawner has no socket");
      pipe.on("data", eachReply(hear));
      pipe.on("error", () => {}); // 'exit' follows
      ended = new Promise((resolve) => child.once("close", () => resolve()));
      child.on("exit", (code, signal) => lose(pipe, died(`the spawner ended (${signal ?? code})`)));
      socket = pipe;
    } catch (error) {
      process.nextTick(lose, undefined, cannotRun(error));
      return;
    }
    clearTimeout(again);
    again = undefined;
    for (const [number, known] of supervisors) if (known.state === "running") adopt(number, known.directory);
  }

  function close(): void {
    closed = true;
    clearTimeout(again);
    for (const number of spares) drop(number);
    socket?.destroy();
  }

  ask(SPARES);
  return {
    launch: (launch, record, gone) =>
      new Promise((resolve, reject) => begin({ launch, record, gone, resolve, reject })),
    adopt(directory, gone) {
      supervisors.set(++last, { state: "running", directory, gone });
      adopt(last, directory);
    },
    devices(cgroup, program) {
      const change = Promise.withResolvers<void>();
      changes.set(++last, change);
      if (!socket) open();
      socket?.write(devicesFrame(last, cgroup, program));
      return change.promise;
    },
    refill: () => ask(SPARES),
    get parts() {
      return (parts ??= holding(isolation, lacking));
    },
    lacking,
    ready: first.promise,
    async close() {
      close();
      await ended;
    },
    [Symbol.dispose]: close,
  };
}

/** Of a spawner that could not be started. */
function cannotRun(error: unknown): JobError {
  const { code, facts } = refusal(error);
  return new JobError(code, `the spawner cannot be run: ${reasonOf(error)}`, { facts, cause: error });
}

/** Throws JobError `unavailable` when `path` is not a program. */
export function checkSupervisor(path: string): void {
  try {
    accessSync(path, constants.X_OK);
  } catch (error) {
    throw new JobError("unavailable", `the supervisor cannot be run: ${path}; make -C src/supervisor builds it`, {
      cause: error,
    });
  }
}
