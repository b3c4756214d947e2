import { afterAll, beforeAll } from "vitest";
import { holdsOf } from "./testing/promises.ts";
import { LOOK_MS, openTarget, type Target } from "./testing/target.ts";

// The attacks once more, on a daemon that is nobody's.

const made = new AsyncDisposableStack();
let target: Target;
beforeAll(async () => {
  target = made.use(await openTarget({ withoutRoot: true }));
}, LOOK_MS);
afterAll(() => made.disposeAsync());

holdsOf(() => target, { withoutRoot: true });
