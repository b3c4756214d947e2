import { mkdirSync, rmdirSync } from "node:fs";
import { join } from "node:path";
import { refusal } from "../model/failure.ts";
import { newId } from "../model/id.ts";
import type { Hierarchy } from "./hierarchy.ts";

/** Groups that wait for a job. */
export const AHEAD = 4;

/** Ids for jobs to come. The cgroups of some have been made ahead, because that takes 0.1 ms. */
export interface Ids extends Disposable {
  /** An id that sorts behind those before it, and whose group is made. Throws JobError when it cannot be made. */
  take(): string;
  /** Makes the groups that are missing: for when nobody waits. */
  refill(): void;
}

/** Disposing removes the groups that wait. */
export function openIds(name: string | undefined, hierarchy: Hierarchy): Ids {
  if (hierarchy.kind === "none") return { take: () => newId(name), refill() {}, [Symbol.dispose]() {} };
  const ready: string[] = [];
  const groupOf = (id: string): string => join(hierarchy.path, id);

  function make(): string {
    const id = newId(name);
    mkdirSync(groupOf(id));
    return id;
  }

  return {
    take() {
      try {
        return ready.shift() ?? make();
      } catch (error) {
        throw refusal(error);
      }
    },
    refill() {
      try {
        while (ready.length < AHEAD) ready.push(make());
      } catch {
        // The start that needs one says why there is none.
      }
    },
    [Symbol.dispose]() {
      for (const id of ready.splice(0)) {
        try {
          rmdirSync(groupOf(id));
        } catch {
          // It was removed under us; if it is there still, the next daemon removes it.
        }
      }
    },
  };
}
