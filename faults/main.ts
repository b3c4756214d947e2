import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { type Sequence, sequences } from "./operations.ts";
import { inSandbox, ownSandbox, type Sandbox } from "./sandbox.ts";
import { perform } from "./perform.ts";
import type { Figures, Session } from "./session.ts";
import { finish } from "./settle.ts";
import { openPlace, openWorld, type Place, unbuilt } from "./world.ts";

// Starts, stops, streams, kills and fills disks at random with the built jobsd, and compares it with a model.

/** The defaults of FAULTS_OPERATIONS and FAULTS_KILLS. FAULTS_SEED and FAULTS_PATH repeat a failure. */
const OPERATIONS = 500;
const KILLS = 10;
/** The default of FAULTS_SHRINK_S: how long to look for a shorter sequence that fails as well. */
const SHRINK_S = 60;

const figures: Figures = {
  operations: 0,
  starts: 0,
  kills: 0,
  upgrades: 0,
  supervisorKills: 0,
  fills: 0,
  resumed: 0,
  compared: 0,
  gaps: 0,
  gapBytes: 0,
  compressed: 0,
  archived: 0,
};

let worlds = 0;

const own = ownSandbox();
if (own) process.exit(await suite(own));
process.exitCode = await begin();

async function begin(): Promise<number> {
  const missing = unbuilt();
  if (missing.length === 0) return inSandbox(fileURLToPath(import.meta.url));
  process.stderr.write(`faults: ${missing.join(" and ")} not built: run npm run build\n`);
  return 1;
}

/** Resolves to the exit code. */
async function suite(sandbox: Sandbox): Promise<number> {
  const path = process.env["FAULTS_PATH"];
  const first = number("FAULTS_SEED", Math.floor(Math.random() * 2 ** 31));
  const wanted = { operations: number("FAULTS_OPERATIONS", OPERATIONS), kills: number("FAULTS_KILLS", KILLS) };
  const kind = sequences(
    Math.ceil((wanted.kills / wanted.operations) * 1000),
    sandbox.mounts && process.env["FAULTS_DISK"] !== "0",
  );
  const began = performance.now();
  const place = await openPlace(sandbox);
  print(`seed ${first}${sandbox.mounts ? "" : "; the disk is not filled: that needs root and unshare(1)"}`);
  let count = 0;
  do {
    const seed = first + count;
    const attempt = shortening((sequence) => tried(place, sequence));
    const how = { seed, numRuns: 1, unbiased: true, ...(path && { path }) };
    const outcome = await fc.check(fc.asyncProperty(kind, attempt), how);
    count++;
    if (!outcome.failed) continue;
    const { counterexample, counterexamplePath, errorInstance } = outcome;
    print(`FAILED after ${count} sequences: ${String(errorInstance)}`);
    print(JSON.stringify(counterexample?.[0]));
    print(`to repeat: FAULTS_SEED=${seed} FAULTS_PATH=${counterexamplePath ?? "0"} npm run test:faults`);
    tell(count, began);
    return 1;
  } while (path === undefined && (figures.operations < wanted.operations || figures.kills < wanted.kills));
  tell(count, began);
  return 0;
}

/** Lets every sequence pass once it is late after the first failure, so that fast-check looks for no shorter one. */
function shortening(attempt: (sequence: Sequence) => Promise<void>): (sequence: Sequence) => Promise<void> {
  let endMs = Infinity;
  return async (sequence) => {
    if (performance.now() > endMs) return;
    try {
      await attempt(sequence);
    } catch (error) {
      endMs = Math.min(endMs, performance.now() + number("FAULTS_SHRINK_S", SHRINK_S) * 1000);
      throw error;
    }
  };
}

/** Runs a sequence in a world of its own. Throws Error where the daemon differs from the model. */
async function tried(place: Place, sequence: Sequence): Promise<void> {
  await using world = await openWorld(place, `world-${++worlds}`, sequence);
  const over = new AbortController();
  const session: Session = {
    world,
    sequence,
    figures,
    jobs: [],
    flying: new Map(),
    lasting: new Map(),
    failures: [],
    signal: over.signal,
    away: 0,
    full: undefined,
    fills: 0,
  };
  try {
    await world.boot();
    for (const operation of sequence.operations) await perform(session, operation);
    await finish(session);
  } catch (error) {
    throw new Error(`${String(error)}\n${world.log()}`, { cause: error });
  } finally {
    over.abort();
  }
}

function tell(sequences: number, began: number): void {
  const seconds = (performance.now() - began) / 1000;
  const { operations, starts, kills, upgrades, supervisorKills, fills } = figures;
  const { resumed, compared, gaps, gapBytes, compressed, archived } = figures;
  print(`${operations} operations in ${sequences} sequences, ${starts} of them starts, in ${seconds.toFixed(0)} s`);
  print(
    `${kills} kills of the daemon, ${upgrades} upgrades, ${supervisorKills} kills of supervisors, ${fills} times a full disk`,
  );
  print(`${compared} bytes compared, ${gapBytes} bytes told as ${gaps} gaps, ${resumed} streams resumed`);
  print(`${archived} logs archived, ${compressed} compressed, and read from there`);
}

function number(name: string, otherwise: number): number {
  const text = process.env[name];
  if (text === undefined || text === "") return otherwise;
  if (!/^\d+$/.test(text)) throw new Error(`${name}=${text} is no number`);
  return Number(text);
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
