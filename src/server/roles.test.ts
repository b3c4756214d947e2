import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { HealthService } from "../../proto/generated/grpc/health/v1/health.ts";
import { WorkerServiceService } from "../../proto/generated/jobs/v1/worker.ts";
import { REFLECTION } from "./reflection.ts";
import { METHODS, mutates, rolesOf } from "./roles.ts";

test("every method of each service has its roles, and nothing else has any", () => {
  const services = [WorkerServiceService, HealthService, ...REFLECTION];
  const served: string[] = services.flatMap((service) => Object.values(service).map(({ path }) => path));
  expect([...METHODS].toSorted()).toEqual(served.toSorted());
});

test("only Start, Stop, Update, Remove and Prune are not for readers, and an admin may call what a writer may", () => {
  const writersOnly = [...METHODS].filter(mutates).map((path) => path.replace("/jobs.v1.WorkerService/", ""));
  expect(writersOnly.toSorted()).toEqual(["Prune", "Remove", "Start", "Stop", "Update"]);
  for (const path of METHODS) for (const role of ["writer", "admin"]) expect(rolesOf(path)).toContain(role);
});

test("the API's description names the methods of each role", () => {
  const proto = new URL("../../proto/jobs/v1/worker.proto", import.meta.url);
  const text = readFileSync(proto, "utf8").replaceAll(/\n *\/\/ /g, " ");
  const [, readers = "", writers = ""] = /a reader may call ([^;]+); a writer may also call ([^.]+)\./.exec(text) ?? [];
  const listed = (names: string): string[] => names.split(/, | and /).toSorted();
  const methods = Object.values(WorkerServiceService).map(({ path }) => path);
  const named = (paths: string[]): string[] => paths.map((path) => path.slice(path.lastIndexOf("/") + 1)).toSorted();
  expect(listed(readers)).toEqual(named(methods.filter((path) => !mutates(path))));
  expect(listed(writers)).toEqual(named(methods.filter(mutates)));
});

test("nobody may call what is not in the map", () => {
  for (const path of ["", "/", "/jobs.v1.WorkerService/start", "/jobs.v1.WorkerService/Query/", "__proto__"]) {
    expect(rolesOf(path)).toEqual([]);
  }
});
