import fc from "fast-check";

/** The size of the file of random bytes whose pieces jobs write. A job writes at most half of it. */
export const POOL_BYTES = 16 * 1024 * 1024;
/** The least limit of a log, and one that some jobs' output passes. */
export const LEAST_LOG_LIMIT_BYTES = 1024 * 1024;

export type Step =
  | { readonly kind: "stdout" | "stderr"; readonly at: number; readonly size: number }
  | { readonly kind: "pause"; readonly ms: number }
  | { readonly kind: "detach" | "ignore-term" };

export type Ending =
  | { readonly kind: "exit"; readonly code: number }
  | { readonly kind: "signal"; readonly signal: number }
  /** The job runs until somebody ends it. */
  | { readonly kind: "never" };

/** The steps of a job, which job.c takes, and its end. */
export interface Shape {
  readonly steps: readonly Step[];
  readonly ending: Ending;
  readonly timeLimitMs: number | undefined;
  /** The start's own policy for the log; undefined parts are the daemon's. */
  readonly log: { readonly limit: number | undefined; readonly compress: boolean | undefined; readonly stays: boolean };
}

export type Source = "stdout" | "stderr";

/** The bytes that a job writes on a source if nothing ends it before. */
export function bytesOf({ steps }: Shape, source: Source, pool: Buffer): Buffer {
  return Buffer.concat(
    steps.flatMap((step) => (step.kind === source ? [pool.subarray(step.at, step.at + step.size)] : [])),
  );
}

/** The arguments of job.c. */
export function wordsOf({ steps, ending }: Shape): string[] {
  return [...steps.map(wordOf), wordOfEnding(ending)];
}

function wordOf(step: Step): string {
  switch (step.kind) {
    case "stdout":
      return `o${step.at}:${step.size}`;
    case "stderr":
      return `e${step.at}:${step.size}`;
    case "pause":
      return `p${step.ms}`;
    case "detach":
      return "d";
    default:
      return "i";
  }
}

function wordOfEnding(ending: Ending): string {
  if (ending.kind === "never") return "s";
  return ending.kind === "exit" ? `x${ending.code}` : `k${ending.signal}`;
}

const size = fc.oneof(
  { weight: 5, arbitrary: fc.integer({ min: 1, max: 300 }) },
  { weight: 3, arbitrary: fc.integer({ min: 1, max: 70_000 }) },
  { weight: 1, arbitrary: fc.integer({ min: 1, max: 1_500_000 }) },
);

const output = fc
  .tuple(fc.constantFrom("stdout", "stderr"), size)
  .map(([kind, bytes]): Step => ({ kind, size: bytes, at: 0 }));

const pause = fc.integer({ min: 1, max: 200 }).map((ms): Step => ({ kind: "pause", ms }));

const step = fc.oneof(
  { weight: 6, arbitrary: output },
  { weight: 4, arbitrary: pause },
  { weight: 1, arbitrary: fc.constantFrom<Step>({ kind: "detach" }, { kind: "ignore-term" }) },
);

// 99 is job.c's own. Of signals, those that end a process.
const ending = fc.oneof(
  {
    weight: 5,
    arbitrary: fc
      .integer({ min: 0, max: 255 })
      .filter((code) => code !== 99)
      .map((code): Ending => ({ kind: "exit", code })),
  },
  {
    weight: 2,
    arbitrary: fc
      .constantFrom(1, 2, 6, 9, 10, 11, 13, 15, 34, 64)
      .map((signal): Ending => ({ kind: "signal", signal })),
  },
  { weight: 3, arbitrary: fc.constant<Ending>({ kind: "never" }) },
);

const log = fc.record({
  limit: fc.option(fc.constant(LEAST_LOG_LIMIT_BYTES), { freq: 5, nil: undefined }),
  compress: fc.option(fc.boolean(), { freq: 5, nil: undefined }),
  stays: fc.nat(4).map((number) => number === 0),
});

export const shape: fc.Arbitrary<Shape> = fc
  .record({
    steps: fc.array(step, { maxLength: 8, size: "max" }),
    ending,
    timeLimitMs: fc.option(fc.integer({ min: 20, max: 500 }), { freq: 6, nil: undefined }),
    begin: fc.nat(POOL_BYTES),
    log,
  })
  .map(({ steps, begin, ending: end, timeLimitMs, log: policy }) => ({
    steps: placed(steps, begin),
    ending: end,
    timeLimitMs,
    log: policy,
  }));

/** No piece overlaps another, so that what is read tells where in the job's output it is. */
function placed(steps: readonly Step[], begin: number): Step[] {
  let next = begin;
  return steps.map((each) => {
    if (!("size" in each)) return each;
    const at = next + each.size > POOL_BYTES ? 0 : next;
    next = at + each.size;
    return { ...each, at };
  });
}
