import fs from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { StatementSync } from "node:sqlite";

/*
 * Imported ahead of a program, this has it killed at the call that DEATH names, as by somebody else at that moment:
 * "before renameSync \.spare", "after run INSERT", "before promises.rename removed"; the last word is a pattern for what the
 * call is given.
 */

const [when = "", name = "", pattern = ""] = (process.env["DEATH"] ?? "").split(" ");

/** Bytes as hexadecimal digits; of a statement its text. */
function text(value: unknown): string {
  if (value instanceof StatementSync) return value.sourceSQL;
  return value instanceof Uint8Array ? Buffer.from(value.subarray(0, 64)).toString("hex") : String(value);
}

function deadly<A extends unknown[], R>(call: (this: unknown, ...args: A) => R): (this: unknown, ...args: A) => R {
  return function (this: unknown, ...args) {
    const here = new RegExp(pattern, "s").test([this, ...args].map(text).join(" "));
    if (here && when === "before") process.kill(process.pid, "SIGKILL");
    const result = call.apply(this, args);
    if (here) process.kill(process.pid, "SIGKILL");
    return result;
  };
}

const [method = "", place = ""] = name.split(".").toReversed();
const owner: object = name === "run" ? StatementSync.prototype : place === "promises" ? fs.promises : fs;
if (name !== "") Object.assign(owner, { [method]: deadly(Reflect.get(owner, method)) });
syncBuiltinESMExports();
