import { afterAll, beforeAll } from "vitest";
import { holdsOf } from "./testing/promises.ts";
import { LOOK_MS, openTarget, type Target } from "./testing/target.ts";

// The attacks once more, on a daemon that is nobody's.

let target: Target;
beforeAll(async () => {
  target = await openTarget({ withoutRoot: true });
}, LOOK_MS);
afterAll(() => target[Symbol.asyncDispose]());

holdsOf(() => target, { withoutRoot: true });
