import type { Owners } from "../../src/server/server.ts";
import { parseWord } from "../line/parse.ts";
import { type Given, optional } from "../line/program.ts";
import type { Setting } from "./config.ts";

/** The daemon's flags for whose jobs are whose. */
export const ownerFlags: readonly Setting[] = [
  {
    name: "owners",
    value: "shared|private",
    about: "whether clients see and change each other's jobs, by their roles; shared when not given",
  },
];

/** Returns whose jobs clients see. Throws UsageError. */
export function ownersOf(given: Given): Owners {
  return optional(given, "owners", (flag, word): Owners => parseWord(flag, word, ["shared", "private"])) ?? "shared";
}
