import { spawn } from "node:child_process";
import { Duplex } from "node:stream";
import { reasonOf } from "../../os/errno.ts";
import { pauseAfter } from "../../os/pause.ts";
import { JobError } from "../model/errors.ts";
import { refusal } from "../model/failure.ts";
import { died } from "./failure.ts";
import { eachReply, type Reply } from "./frame.ts";

/** A spawner that has run for so long has stayed: the next one that ends is logged, and soon started again. */
const STAYED_MS = 1000;

/** The spawner's process, started when it is needed, and again once it has ended. */
export interface SpawnerProcess {
  readonly path: string;
  readonly args: readonly string[];
  readonly events: SpawnerEvents;
  /** Leads to the process that runs; undefined where none does. */
  socket: Duplex | undefined;
  /** Resolves when the process that was started last has ended. */
  ended: Promise<void> | undefined;
  startedMs: number;
  restart: NodeJS.Timeout | undefined;
  /** How often it was started again in a row. */
  restarts: number;
  isLogged: boolean;
  isClosed: boolean;
}

export interface SpawnerEvents {
  /** A process has been started, which knows of no job. */
  readonly started: () => void;
  readonly replied: (reply: Reply) => void;
  /** The process is no more, and nothing is known of what it was asked for. Returns whether another one is needed. */
  readonly lost: (why: JobError) => boolean;
  /** The pause before another process has passed. */
  readonly due: () => void;
  readonly log: (message: string) => void;
}

export function spawnerProcess(path: string, args: readonly string[], events: SpawnerEvents): SpawnerProcess {
  return {
    path,
    args,
    events,
    socket: undefined,
    ended: undefined,
    startedMs: 0,
    restart: undefined,
    restarts: 0,
    isLogged: false,
    isClosed: false,
  };
}

/** Has a process run. Where none can be had, `lost` is called after this has returned. */
export function ensureStarted(spawner: SpawnerProcess): void {
  if (spawner.socket) return;
  spawner.startedMs = performance.now();
  try {
    const child = spawn(spawner.path, spawner.args, {
      stdio: ["ignore", "ignore", "ignore", "pipe"],
      detached: true,
      env: {},
    });
    child.on("error", (error) => lose(spawner, undefined, cannotRun(error)));
    if (child.pid === undefined) return;
    const pipe = child.stdio[3];
    if (!(pipe instanceof Duplex)) throw died("the spawner has no socket");
    pipe.on("data", eachReply(spawner.events.replied));
    pipe.on("error", () => {}); // 'exit' follows
    spawner.ended = new Promise((resolve) => child.once("close", () => resolve()));
    child.on("exit", (code, signal) => lose(spawner, pipe, died(`the spawner ended (${signal ?? code})`)));
    spawner.socket = pipe;
  } catch (error) {
    process.nextTick(lose, spawner, undefined, cannotRun(error));
    return;
  }
  clearTimeout(spawner.restart);
  spawner.restart = undefined;
  spawner.events.started();
}

function lose(spawner: SpawnerProcess, lost: Duplex | undefined, why: JobError): void {
  if (spawner.socket !== lost) return; // another has been started since
  lost?.destroy(); // or spares would not hear of it
  spawner.socket = undefined;
  if (!spawner.isClosed) {
    if (performance.now() - spawner.startedMs > STAYED_MS) {
      spawner.isLogged = false;
      spawner.restarts = 0;
    }
    if (!spawner.isLogged) spawner.events.log(why.message);
    spawner.isLogged = true;
  }
  if (spawner.events.lost(why)) restartLater(spawner);
}

/** Has another process started after a pause, which grows to 10 s. */
export function restartLater(spawner: SpawnerProcess): void {
  if (spawner.isClosed || spawner.restart) return;
  spawner.restart = setTimeout(
    () => {
      spawner.restart = undefined;
      spawner.events.due();
    },
    pauseAfter(++spawner.restarts),
  ).unref();
}

/** Lets the process go, which ends then; resolves when it has. */
export async function closeProcess(spawner: SpawnerProcess): Promise<void> {
  spawner.isClosed = true;
  clearTimeout(spawner.restart);
  spawner.socket?.destroy();
  await spawner.ended;
}

function cannotRun(error: unknown): JobError {
  const { code, facts } = refusal(error);
  return new JobError(code, `the spawner cannot be run: ${reasonOf(error)}`, { facts, cause: error });
}
