import { describe, expect, test } from "vitest";
import type { How, Job, Usage } from "../model/job.ts";
import { endedOf, type Exit } from "./exit.ts";

const JOB = { timeLimitMs: 5 } as Job;

function howOf(exit: Readonly<Record<string, number | string>>, usage: Partial<Usage>): How {
  const record: Exit = new Map(
    Object.entries({ code: -1, signal: 0, core: 0, killed: 0, ...exit }).map(([k, v]) => [k, String(v)]),
  );
  const used = { elapsedMs: 1, cpuUserUs: 0, cpuSystemUs: 0, fromCgroup: true, ...usage };
  return endedOf(record, used, { job: JOB, stoppedBy: "ada" }).how;
}

describe("a job whose main process was killed", () => {
  // What Linux 6.1 counts: the process that it chose again with its group.
  test.each<[string, Partial<Usage>, How]>([
    ["alone, with its group", { oomKills: 2, oomGroupKills: 1 }, { kind: "out-of-memory", kills: 1, wholeJob: true }],
    ["with two more", { oomKills: 4, oomGroupKills: 1 }, { kind: "out-of-memory", kills: 3, wholeJob: true }],
    ["alone, its group left", { oomKills: 1, oomGroupKills: 0 }, { kind: "out-of-memory", kills: 1, wholeJob: false }],
    ["by a kernel that counts no groups", { oomKills: 2 }, { kind: "out-of-memory", kills: 2, wholeJob: false }],
    [
      "before it was counted again",
      { oomKills: 1, oomGroupKills: 1 },
      { kind: "out-of-memory", kills: 1, wholeJob: true },
    ],
    ["by somebody else", { oomKills: 0, oomGroupKills: 0 }, { kind: "signalled", signal: 9, coreDumped: false }],
  ])("for memory, %s, is told as that", (_what, usage, how) => {
    expect(howOf({ signal: 9 }, usage)).toEqual(how);
  });
});

test("a job that outlives its child, which was killed for memory, is told by its own end", () => {
  expect(howOf({ code: 3 }, { oomKills: 1, oomGroupKills: 0 })).toEqual({ kind: "exited", code: 3 });
  expect(howOf({ signal: 15 }, { oomKills: 1 })).toMatchObject({ kind: "signalled", signal: 15 });
  expect(howOf({ signal: 9, cause: "stop", escalated: 1 }, { oomKills: 1 })).toMatchObject({ kind: "stopped" });
});
