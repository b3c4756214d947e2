import type { Job } from "../model/job.ts";

/** The record of a job, for a journal; what is of no matter. */
export const JOB: Job = {
  id: "a",
  state: "starting",
  command: "true",
  args: [],
  envNames: [],
  cwd: "/",
  user: "nobody",
  group: "nobody",
  labels: new Map(),
  limits: new Map(),
  owner: "tester",
  pid: 0,
  createdAt: new Date(0),
  output: { size: 0, first: 0, dropped: 0 },
  warnings: [],
};
