import { globSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { expect, test } from "vitest";

/** Every room of the worker but the doctor, each of which may import those before it that its row names. */
const WORKER = ["model", "system", "limits", "log", "cgroup", "supervisor", "journal", "archive", "retention"];
const worker = (...names: readonly string[]): string[] => names.map((name) => `src/worker/${name}`);

/** A file's room and what it may import; docs/design.md has the table in words. */
const ROOMS: Readonly<Record<string, { readonly rooms: readonly string[]; readonly packages?: readonly string[] }>> = {
  "src/os": { rooms: [] },
  "src/worker": { rooms: ["src/os", ...worker(...WORKER, "jobs", "doctor")] },
  "src/worker/model": { rooms: ["src/os"] },
  "src/worker/system": { rooms: ["src/os", ...worker("model")] },
  "src/worker/limits": { rooms: ["src/os", ...worker("model")] },
  "src/worker/log": { rooms: ["src/os", ...worker("model", "system")] },
  "src/worker/cgroup": { rooms: ["src/os", ...worker("model", "system", "limits")] },
  "src/worker/supervisor": { rooms: ["src/os", ...worker("model", "system", "limits", "cgroup")] },
  "src/worker/journal": { rooms: ["src/os", ...worker("model", "system", "log", "supervisor")] },
  "src/worker/archive": {
    rooms: ["src/os", ...worker("model", "system", "log", "journal")],
    packages: ["@aws-sdk/client-s3"],
  },
  "src/worker/retention": { rooms: ["src/os", ...worker("model", "system", "log", "journal", "archive")] },
  "src/worker/jobs": { rooms: ["src/os", ...worker(...WORKER)] },
  "src/worker/doctor": { rooms: ["src/os", ...worker("model", "system", "limits", "cgroup", "supervisor")] },
  "src/x509": { rooms: ["src/os"] },
  "src/testing": { rooms: [] },
  "src/server": {
    rooms: ["src/os", "src/worker", "src/x509", "proto"],
    packages: ["@grpc/grpc-js", "pino", "@bufbuild/protobuf", "@opentelemetry/api"],
  },
  "src/metrics": { rooms: ["src/os", "src/server", "src/worker"], packages: ["prom-client"] },
  "src/client": { rooms: ["src/os", "src/x509", "proto"], packages: ["@grpc/grpc-js", "@bufbuild/protobuf"] },
  certs: { rooms: ["src/os", "src/x509"], packages: ["@peculiar/x509", "reflect-metadata"] },
  cli: { rooms: ["src/client", "cli/line", "cli/tell", "cli/commands", "cli/daemon"] },
  "cli/line": { rooms: ["src/os", "src/client", "src/x509", "proto"], packages: ["sade", "toml-eslint-parser"] },
  "cli/tell": { rooms: ["src/os", "src/client", "certs", "proto", "cli/line"], packages: ["@bufbuild/protobuf"] },
  "cli/commands": { rooms: ["src/os", "src/client", "src/x509", "certs", "proto", "cli/line", "cli/tell"] },
  "cli/daemon": {
    rooms: ["src/os", "src/client", "src/server", "src/worker", "src/metrics", "cli/line", "cli/tell"],
    packages: ["pino"],
  },
  debian: { rooms: ["cli", "cli/line", "cli/daemon"] },
  docker: { rooms: [] },
  // The suites know the daemon and the CLI as users do: built, and by what they answer.
  e2e: { rooms: ["src/os", "certs", "proto"], packages: ["testcontainers"] },
  // The model knows the daemon as clients do: built, and by what it answers.
  faults: { rooms: ["src/os", "src/client", "certs", "proto"], packages: ["fast-check"] },
  packages: { rooms: ["rolldown.config.ts"], packages: ["rolldown"] },
  bench: {
    rooms: ["src/os", "src/client", "src/server", "src/worker", "certs", "proto"],
    packages: ["@grpc/grpc-js"],
  },
};
/** Tests may make odd certificates and look at all that is theirs to prove. */
const TEST_PACKAGES = [
  "@opentelemetry/sdk-trace-base",
  "vitest",
  "fast-check",
  "@peculiar/x509",
  "reflect-metadata",
  "@grpc/grpc-js",
];

const sources = globSync("{src,cli,certs,debian,docker,e2e,faults,packages,bench}/**/*.ts", {
  exclude: ["**/*.config.ts"],
});
const roomOf = (path: string): string =>
  Object.keys(ROOMS).findLast((room) => path.startsWith(`${room}/`)) ?? path.split("/")[0] ?? "";
/** Whether a file may import from every room: tests may, but for those of e2e/, which prove what is built. */
const seesAll = (path: string): boolean => isTest(path) && roomOf(path) !== "e2e";
const isTest = (path: string): boolean => /\.test\.ts$|\/(?:testing|programs)\//.test(path);

function importsOf(path: string): string[] {
  const text = readFileSync(path, "utf8");
  const found = text.matchAll(/^(?:import|export)\b[^"']*?from "([^"]+)"|^import "([^"]+)"|\bimport\("([^"]+)"\)/gm);
  return [...found].map(([, from, bare, dynamic]) => from ?? bare ?? dynamic ?? "");
}

test("every source file is in a room", () => {
  expect(sources.filter((path) => !(roomOf(path) in ROOMS) && !path.startsWith("src/supervisor/"))).toEqual([]);
});

test("a room imports only what the table of rooms allows", () => {
  const strays = sources.flatMap((path) => {
    const rule = ROOMS[roomOf(path)];
    if (!rule) return [];
    return importsOf(path).flatMap((name) => {
      if (name.startsWith("node:")) return [];
      if (!name.startsWith(".")) {
        const root = name
          .split("/")
          .slice(0, name.startsWith("@") ? 2 : 1)
          .join("/");
        const allowed = [...(rule.packages ?? []), ...(isTest(path) ? TEST_PACKAGES : [])];
        return allowed.includes(root) ? [] : [`${path}: ${name}`];
      }
      const room = roomOf(normalize(join(dirname(path), name)));
      return room === roomOf(path) || name.endsWith("/package.json") || rule.rooms.includes(room) || seesAll(path)
        ? []
        : [`${path}: ${name}`];
    });
  });
  expect(strays).toEqual([]);
});

test("the worker has one public face", () => {
  const strays = sources
    .filter((path) => !path.startsWith("src/worker/") && !seesAll(path))
    .flatMap((path) =>
      importsOf(path)
        .filter((name) => name.startsWith(".") && normalize(join(dirname(path), name)).startsWith("src/worker/"))
        .filter((name) => !name.endsWith("/worker/index.ts"))
        .map((name) => `${path}: ${name}`),
    );
  expect(strays).toEqual([]);
});
