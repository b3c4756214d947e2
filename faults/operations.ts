import fc from "fast-check";
import { LEAST_LOG_LIMIT_BYTES, type Shape, shape } from "./shape.ts";

/** One step of a sequence. `job` is any number; its remainder by the number of jobs so far chooses one. */
export type Operation =
  /** `twice` sends the same request id twice at once; `retry` sends it again when the answer is lost. */
  | {
      readonly kind: "start";
      readonly shape: Shape;
      readonly twice: boolean;
      readonly retry: boolean;
      readonly follow: boolean;
    }
  | { readonly kind: "burst"; readonly shapes: readonly Shape[]; readonly retry: boolean }
  | { readonly kind: "start-again"; readonly job: number }
  | { readonly kind: "start-missing" }
  | { readonly kind: "stop"; readonly job: number; readonly signal: number; readonly graceMs: number }
  /** `from` is where to begin, in thousandths of the output so far. */
  | { readonly kind: "stream"; readonly job: number; readonly from: number }
  | { readonly kind: "follow"; readonly job: number; readonly from: number }
  | { readonly kind: "wait"; readonly job: number }
  | { readonly kind: "query"; readonly job: number }
  | { readonly kind: "list" }
  | { readonly kind: "pause"; readonly ms: number }
  /** Kills the daemon `afterMs` after some starts began. The daemon stays away for `away` operations. */
  | { readonly kind: "kill"; readonly starts: readonly Shape[]; readonly afterMs: number; readonly away: number }
  | { readonly kind: "upgrade"; readonly afterMs: number; readonly away: number }
  | { readonly kind: "freeze"; readonly ms: number }
  | { readonly kind: "kill-supervisor"; readonly job: number }
  /** The disk stays full for so many operations. */
  | { readonly kind: "fill-disk"; readonly operations: number };

/** How a daemon is set up, and the operations on it. */
export interface Sequence {
  /** The limit of each job's log, in bytes; 0 for none. */
  readonly logLimit: number;
  readonly logKeep: "newest" | "oldest";
  /** Whether the logs of ended jobs are compressed, and archived. */
  readonly compress: boolean;
  readonly archive: boolean;
  readonly operations: readonly Operation[];
}

const LONGEST = 160;
const job = fc.nat(1000);
const afterMs = fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 40 }));
const away = fc.nat(4);
const graceMs = fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 500 }));
const from = fc.oneof(fc.constant(0), fc.nat(1000));
const shapes = fc.array(shape, { minLength: 2, maxLength: 12, size: "max" });

/** @param kills how many of a thousand operations kill the daemon */
export function sequences(kills: number, mounts: boolean): fc.Arbitrary<Sequence> {
  return fc.record({
    logLimit: fc.constantFrom(0, LEAST_LOG_LIMIT_BYTES),
    logKeep: fc.constantFrom("newest", "oldest"),
    compress: fc.boolean(),
    archive: fc.boolean(),
    operations: fc.array(operation(kills, mounts), { minLength: 1, maxLength: LONGEST, size: "max" }),
  });
}

function operation(kills: number, mounts: boolean): fc.Arbitrary<Operation> {
  return fc.oneof(
    of<"start">(300, { kind: fc.constant("start"), shape, twice: rarely(), retry: fc.boolean(), follow: rarely() }),
    of<"burst">(20, { kind: fc.constant("burst"), shapes, retry: fc.boolean() }),
    of<"start-again">(20, { kind: fc.constant("start-again"), job }),
    of<"start-missing">(10, { kind: fc.constant("start-missing") }),
    of<"stop">(90, { kind: fc.constant("stop"), job, signal: fc.constantFrom(1, 2, 9, 10, 15), graceMs }),
    of<"stream">(130, { kind: fc.constant("stream"), job, from }),
    of<"follow">(60, { kind: fc.constant("follow"), job, from }),
    of<"wait">(60, { kind: fc.constant("wait"), job }),
    of<"query">(130, { kind: fc.constant("query"), job }),
    of<"list">(30, { kind: fc.constant("list") }),
    of<"pause">(80, { kind: fc.constant("pause"), ms: fc.nat(60) }),
    of<"kill">(kills, {
      kind: fc.constant("kill"),
      starts: fc.array(shape, { maxLength: 10, size: "max" }),
      afterMs,
      away,
    }),
    of<"upgrade">(5, { kind: fc.constant("upgrade"), afterMs, away }),
    of<"freeze">(10, { kind: fc.constant("freeze"), ms: fc.nat(100) }),
    of<"kill-supervisor">(20, { kind: fc.constant("kill-supervisor"), job }),
    of<"fill-disk">(mounts ? 6 : 0, { kind: fc.constant("fill-disk"), operations: fc.nat(12) }),
  );
}

function rarely(): fc.Arbitrary<boolean> {
  return fc.nat(5).map((number) => number === 0);
}

function of<Kind extends Operation["kind"], Step extends Operation = Extract<Operation, { kind: Kind }>>(
  weight: number,
  parts: { [Name in keyof Step]: fc.Arbitrary<Step[Name]> },
): fc.WeightedArbitrary<Step> {
  return { weight, arbitrary: fc.record<Step>(parts) };
}
