import fc from "fast-check";
import { type Shape, shape } from "./shape.ts";

/** One step of a sequence. `job` counts into the jobs that there are by then, from any number. */
export type Operation =
  /** `twice`: with one request id, at the same time. `retry`: by itself, when the answer is lost. */
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
  /** `from`: of what is there by then, in thousandths. */
  | { readonly kind: "stream" | "follow"; readonly job: number; readonly from: number }
  | { readonly kind: "wait" | "query"; readonly job: number }
  | { readonly kind: "list" }
  | { readonly kind: "pause"; readonly ms: number }
  /** After so long: calls are in flight by then. The daemon is away for as many operations as `away` says. */
  | { readonly kind: "kill" | "upgrade"; readonly afterMs: number; readonly away: number }
  | { readonly kind: "freeze"; readonly ms: number }
  | { readonly kind: "kill-supervisor"; readonly job: number }
  /** For as many operations. */
  | { readonly kind: "fill-disk"; readonly operations: number };

/** How a daemon is set up, and what is done to it. */
export interface Sequence {
  /** Of each job, in bytes; 0 for none. */
  readonly logLimit: number;
  readonly logKeep: "newest" | "oldest";
  readonly operations: readonly Operation[];
}

const LONGEST = 160;
const job = fc.nat(1000);
const afterMs = fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 40 }));
const away = fc.nat(4);

/** @param kills of a thousand operations */
export function sequences(kills: number, mounts: boolean): fc.Arbitrary<Sequence> {
  return fc.record({
    logLimit: fc.constantFrom(0, 1024 * 1024),
    logKeep: fc.constantFrom("newest", "oldest"),
    operations: fc.array(operation(kills, mounts), { minLength: 1, maxLength: LONGEST, size: "max" }),
  });
}

function operation(kills: number, mounts: boolean): fc.Arbitrary<Operation> {
  const weighted: { weight: number; arbitrary: fc.Arbitrary<Operation> }[] = [
    of(300, "start", { shape, twice: rarely(), retry: fc.boolean(), follow: rarely() }),
    of(20, "burst", { shapes: fc.array(shape, { minLength: 2, maxLength: 12, size: "max" }), retry: fc.boolean() }),
    of(20, "start-again", { job }),
    of(10, "start-missing", {}),
    of(90, "stop", {
      job,
      signal: fc.constantFrom(1, 2, 9, 10, 15),
      graceMs: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 500 })),
    }),
    of(130, "stream", { job, from: fc.nat(1000) }),
    of(60, "follow", { job, from: fc.oneof(fc.constant(0), fc.nat(1000)) }),
    of(60, "wait", { job }),
    of(130, "query", { job }),
    of(30, "list", {}),
    of(80, "pause", { ms: fc.nat(60) }),
    of(kills, "kill", { afterMs, away }),
    of(5, "upgrade", { afterMs, away }),
    of(10, "freeze", { ms: fc.nat(100) }),
    of(20, "kill-supervisor", { job }),
    ...(mounts ? [of(6, "fill-disk", { operations: fc.nat(12) })] : []),
  ];
  return fc.oneof(...weighted);
}

function rarely(): fc.Arbitrary<boolean> {
  return fc.nat(5).map((number) => number === 0);
}

function of<Kind extends Operation["kind"]>(
  weight: number,
  kind: Kind,
  rest: {
    [Name in keyof Omit<Extract<Operation, { kind: Kind }>, "kind">]: fc.Arbitrary<
      Extract<Operation, { kind: Kind }>[Name]
    >;
  },
): { weight: number; arbitrary: fc.Arbitrary<Operation> } {
  return { weight, arbitrary: fc.record({ kind: fc.constant(kind), ...rest }) as unknown as fc.Arbitrary<Operation> };
}
