import { mkdirSync, rmdirSync } from "node:fs";
import { join } from "node:path";
import { refusal } from "../model/failure.ts";
import { newId } from "../model/id.ts";
import type { Hierarchy } from "./hierarchy.ts";

/** How many groups wait for a job. */
export const AHEAD = 4;

/** Cgroups for jobs to come, named by the jobs' ids. Some are made ahead, because making one takes 0.1 ms. Disposing removes these. */
export interface GroupsAhead extends Disposable {
  /** The id of a group that is made; it sorts behind those before it. Throws JobError when no group can be made. */
  take(): string;
  /** Makes the missing groups. To be called when nobody waits. */
  refill(): void;
}

/** Makes ids alone where there is no cgroup v2. */
export function openGroupsAhead(name: string | undefined, hierarchy: Hierarchy): GroupsAhead {
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
        // The start that needs a group reports why there is none.
      }
    },
    [Symbol.dispose]() {
      for (const id of ready.splice(0)) {
        try {
          rmdirSync(groupOf(id));
        } catch {
          // Somebody has removed the group; if not, the next daemon does.
        }
      }
    },
  };
}
