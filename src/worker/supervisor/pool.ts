import { closeSync, constants, openSync } from "node:fs";
import { join } from "node:path";
import { codeOf } from "../../os/errno.ts";
import type { JobError } from "../model/errors.ts";
import { died, failureAt } from "./failure.ts";
import { adoptFrame, type Launch, spareFrame } from "./frame.ts";
import { ensureStarted, restartLater, type SpawnerProcess } from "./spawner-process.ts";
import { dismiss, give, SPARE, type Spare } from "./spare.ts";

/** Supervisors that wait for a job. Each takes 0.1 MB. */
export const SPARES = 4;
const ADOPT_AGAIN_MS = 1000;

/** Hears the signal that killed a supervisor, or 0, and why it wrote no exit record, or "0": as far as anybody knows. */
export type Gone = (signal: number, errno: string) => void;

export interface Launching {
  readonly launch: Launch;
  readonly record: (supervisor: number) => void;
  readonly gone: Gone;
  readonly resolve: (pid: number) => void;
  readonly reject: (error: unknown) => void;
}

type Supervisor =
  | { readonly state: "asked" }
  | ({ readonly state: "spare" } & Spare)
  | ({ readonly state: "launching" } & Launching)
  | { readonly state: "running"; readonly directory: string; readonly gone: Gone };

/** The supervisors of a spawner, each by the number that it was asked for with, and the starts that wait for one. */
export interface Pool {
  /** The directory that spares are made in. */
  readonly parent: string;
  readonly spawner: SpawnerProcess;
  readonly supervisors: Map<number, Supervisor>;
  /** Numbers of the supervisors in this state, the oldest first. */
  readonly spares: Set<number>;
  readonly asked: Set<number>;
  /** A supervisor that was asked for with a number above `since` was asked for by the start, or after it. */
  readonly waiting: (Launching & { readonly since: number })[];
  /** The number that was given last. */
  last: number;
}

export function poolOf(parent: string, spawner: SpawnerProcess): Pool {
  return { parent, spawner, supervisors: new Map(), spares: new Set(), asked: new Set(), waiting: [], last: 0 };
}

/** Asks for the supervisors that are missing, so that each waiting start has one and `least` are spare. */
export function ask(pool: Pool, least: number): void {
  const { spawner, supervisors, spares, asked, waiting } = pool;
  const missing = least + waiting.length - spares.size - asked.size;
  if (missing > 0) ensureStarted(spawner);
  for (let i = 0; i < missing; i++) {
    const number = ++pool.last;
    asked.add(number);
    supervisors.set(number, { state: "asked" });
    spawner.socket?.write(spareFrame(number));
  }
}

/** Gives the start to the oldest spare, or has it wait for one. */
export function begin(pool: Pool, launching: Launching): void {
  const [number] = pool.spares;
  const spare = number === undefined ? undefined : pool.supervisors.get(number);
  if (number === undefined || spare?.state !== "spare") {
    pool.waiting.push({ ...launching, since: pool.last });
    ask(pool, 0);
    return;
  }
  pool.spares.delete(number);
  pool.supervisors.set(number, { state: "launching", ...launching });
  void hand(pool, spare, number, launching);
  ask(pool, SPARES / 2);
}

async function hand(pool: Pool, spare: Spare, number: number, launching: Launching): Promise<void> {
  // A long start takes a while, and may be given up meanwhile.
  const given = (): boolean => pool.supervisors.get(number)?.state === "launching";
  const record = (supervisor: number): void => {
    if (!given()) throw died("the start was given up");
    launching.record(supervisor);
  };
  try {
    if ((await give(spare, number, { launch: launching.launch, record })) || !given()) return;
    pool.supervisors.delete(number);
    begin(pool, launching);
  } catch (error) {
    pool.supervisors.delete(number);
    launching.reject(error);
  }
}

/** The spawner says that a supervisor waits for its job: the oldest waiting start has it. */
export function becomeSpare(pool: Pool, number: number, pid: number): void {
  const { parent, supervisors, spares, asked, waiting } = pool;
  if (supervisors.get(number)?.state !== "asked") return;
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
    if (dead) ask(pool, 0);
    else dismiss(directory);
    const failed = dead ? undefined : waiting.shift();
    failed?.reject(failureAt("directory", codeOf(error), failed.launch));
  }
  const next = spares.has(number) ? waiting.shift() : undefined;
  if (next) begin(pool, next);
}

/** The spawner says that a supervisor has executed its job. */
export function becomeRunning(pool: Pool, number: number, pid: number): void {
  const known = pool.supervisors.get(number);
  if (known?.state !== "launching") return;
  pool.supervisors.set(number, { state: "running", directory: known.launch.directory, gone: known.gone });
  known.resolve(pid);
}

/** The spawner says that a supervisor could not be had, could not start its job, or cannot be watched. */
export function fail(pool: Pool, number: number, stage: string, errno: string): void {
  const known = pool.supervisors.get(number);
  if (known?.state === "running") {
    // Without a descriptor the spawner would not hear of the supervisor's end.
    const again = (): void => {
      if (pool.supervisors.get(number) === known) watch(pool, number, known.directory);
    };
    setTimeout(again, ADOPT_AGAIN_MS).unref();
    return;
  }
  const failed = drop(pool, number);
  failed?.reject(failureAt(stage, errno, failed.launch));
}

/** The spawner says that a supervisor is no more. */
export function beGone(pool: Pool, number: number, signal: number, errno: string): void {
  const known = pool.supervisors.get(number);
  if (known?.state === "running") {
    pool.supervisors.delete(number);
    known.gone(signal, errno);
  } else drop(pool, number)?.reject(died("the job's supervisor died before the job ran"));
}

/** Forgets a supervisor that runs no job. Returns the start that it was for. */
function drop(pool: Pool, number: number): Launching | undefined {
  const { supervisors, spares, asked, waiting } = pool;
  const known = supervisors.get(number);
  supervisors.delete(number);
  spares.delete(number);
  if (known?.state === "spare") closeSync(known.control);
  if (known?.state === "launching") return known;
  if (!asked.delete(number)) return undefined;
  // The oldest waiting start fails only if it asked for this supervisor, or came before that was asked for.
  if (number > (waiting[0]?.since ?? 0)) return waiting.shift();
  ask(pool, 0);
  return undefined;
}

/** Takes up the supervisor that an earlier daemon made for `directory`. */
export function adopt(pool: Pool, directory: string, gone: Gone): void {
  pool.supervisors.set(++pool.last, { state: "running", directory, gone });
  watch(pool, pool.last, directory);
}

function watch({ spawner }: Pool, number: number, directory: string): void {
  if (spawner.isClosed) return;
  if (spawner.socket) spawner.socket.write(adoptFrame(number, directory));
  else restartLater(spawner);
}

/** Has a new spawner watch the supervisors of all running jobs. */
export function watchAll(pool: Pool): void {
  for (const [number, known] of pool.supervisors) if (known.state === "running") watch(pool, number, known.directory);
}

/** Fails the starts that the spawner took with it; jobs that run have their supervisors still. Returns whether any does. */
export function failStarts(pool: Pool, why: JobError): boolean {
  const { supervisors, waiting } = pool;
  for (const each of waiting.splice(0)) each.reject(why);
  for (const [number, { state }] of supervisors) if (state !== "running") drop(pool, number)?.reject(why);
  return supervisors.size > 0;
}

/** Lets the spares go. */
export function dropSpares(pool: Pool): void {
  for (const number of pool.spares) drop(pool, number);
}
