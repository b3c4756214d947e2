import { execFileSync } from "node:child_process";
import { chmodSync, cpSync, readdirSync, readFileSync, statSync, symlinkSync } from "node:fs";
import { join, resolve } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import manifest from "../package.json" with { type: "json" };
import {
  type Consumer,
  consumer,
  documented,
  fromRegistry,
  installCrossTools,
  nodeOf,
  type Ran,
  tarball,
  version,
} from "./testing/consumer.ts";

const NATIVE = `jobsd-linux-${process.arch}`;
const LOCKED = manifest.optionalDependencies[`node-linux-${process.arch === "arm64" ? "arm64" : "x64"}`];
/** The first of each line of Nodes that the packages claim, and the one that this checkout runs on. */
const CLIENTS = ["22.0.0", "23.0.0", "24.0.0", "25.0.0", "26.0.0", LOCKED];
const DAEMONS = ["24.15.0", "26.0.0", LOCKED];

/** A folder with all of the packages, on the Node of the lockfile. */
let daemon: Consumer;

beforeAll(() => {
  installCrossTools();
  execFileSync("npm", ["run", "--silent", "pack"], { stdio: ["ignore", "ignore", "inherit"] });
  daemon = consumer(nodeOf(LOCKED));
  const types = `@types/node@${manifest.devDependencies["@types/node"]}`;
  daemon.install(tarball("jobsd"), tarball(NATIVE), tarball("jobsctl"), types);
});

afterAll(() => daemon[Symbol.dispose]());

describe("a package", () => {
  const filesOf = (name: string): string[] =>
    execFileSync("tar", ["tzf", tarball(name)], { encoding: "utf8" })
      .split("\n")
      .filter(Boolean);

  it.each(["jobsctl", "jobsd"])("%s has what is built, and neither sources nor tests", (name) => {
    const files = filesOf(name);
    expect(files.filter((file) => /(?<!\.d)\.[cm]?tsx?$|test/.test(file))).toEqual([]);
    expect(files).toContain("package/LICENSE");
    expect(files).toContain("package/README.md");
    expect(files).toContain("package/THIRD-PARTY-LICENSES");
  });

  it.each(["jobsctl", "jobsd"])("%s needs no other, but for what jobsd has in C, and has this version", (name) => {
    const text = execFileSync("tar", ["xzOf", tarball(name), "package/package.json"], { encoding: "utf8" });
    const found = JSON.parse(text) as Record<string, unknown>;
    expect(found["version"]).toBe(version);
    expect(found["dependencies"]).toBeUndefined();
    const natives = { "jobsd-linux-x64": version, "jobsd-linux-arm64": version };
    expect(found["optionalDependencies"]).toEqual(name === "jobsd" ? natives : undefined);
  });

  it("tells whose code is in it, and under which licence", () => {
    const licences = execFileSync("tar", ["xzOf", tarball("jobsctl"), "package/THIRD-PARTY-LICENSES"], {
      encoding: "utf8",
    });
    expect(licences).toContain(`@grpc/grpc-js ${manifest.dependencies["@grpc/grpc-js"]}, Apache-2.0`);
    expect(licences).toContain("Apache License");
  });

  it("with C in it has static programs, for the processor that it names", () => {
    for (const [name, machine] of [
      ["x64", 62],
      ["arm64", 183],
    ] as const) {
      expect(filesOf(`jobsd-linux-${name}`).toSorted()).toEqual(
        ["LICENSE", "notify.node", "package.json", "supervisor", "verify.node"].map((file) => `package/${file}`),
      );
      const elf = execFileSync("tar", ["xzOf", tarball(`jobsd-linux-${name}`), "package/supervisor"], {
        maxBuffer: 2 ** 26,
      });
      // elf(5): e_machine, and no program header of type PT_INTERP, which a static program lacks.
      expect(elf.readUInt16LE(18)).toBe(machine);
      const [at, size, count] = [Number(elf.readBigUInt64LE(32)), elf.readUInt16LE(54), elf.readUInt16LE(56)];
      const types = Array.from({ length: count }, (_, i) => elf.readUInt32LE(at + i * size));
      expect(types).not.toContain(3);
    }
  });
});

/** Runs a page's code, and returns what it wrote. */
function session(it: Consumer, code: string, env: NodeJS.ProcessEnv = {}): string {
  it.write("session.mjs", code);
  const { status, stdout, stderr } = it.run("node", ["session.mjs"], env);
  expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  return stdout;
}

/** What npm has put into a consumer's folder: packages, and programs. */
function installed({ directory }: Consumer): { readonly packages: string[]; readonly programs: string[] } {
  const names = (path: string): string[] => readdirSync(join(directory, path)).filter((name) => !name.startsWith("."));
  return { packages: names("node_modules"), programs: names("node_modules/.bin") };
}

it.each(DAEMONS)("on Node %s jobsd installs into an empty folder, runs, and is a library without a network", (node) => {
  using it = consumer(nodeOf(node));
  it.install(tarball("jobsd"), tarball(NATIVE));
  expect(installed(it)).toEqual({ packages: ["jobsd", NATIVE], programs: ["jobsd"] });
  expect(it.run("jobsd", ["--version"])).toEqual({ status: 0, stdout: `jobsd, ${version}\n`, stderr: "" });
  const { stdout, stderr } = it.run("jobsd", ["--check"]);
  expect(stdout).toContain("cgroup");
  expect(stderr).toBe("");
  expect(session(it, documented("jobsd/worker"))).toBe("hello\nstopped\n");
  const withoutOwner = documented("jobsd/worker").replace('owner: "me", ', "");
  it.write("session.mjs", withoutOwner);
  expect(it.run("node", ["session.mjs"]).stderr).toMatch(/^invalid owner: /);
});

it.each(CLIENTS)("on Node %s jobsctl installs into an empty folder, runs, and calls over mutual TLS", async (node) => {
  using it = consumer(nodeOf(node));
  it.install(tarball("jobsctl"));
  expect(installed(it)).toEqual({ packages: ["jobsctl"], programs: ["jobsctl"] });
  expect(it.run("jobsctl", ["--version"])).toEqual({ status: 0, stdout: `jobsctl, ${version}\n`, stderr: "" });
  // What a command loads when it runs; 2048 bits, since the programs' own suites have 4096.
  const loadAll = `const dist = require("path").resolve("node_modules/jobsctl/dist");
    for (const each of require("fs").readdirSync(dist)) if (each !== "jobsctl.js") require(dist + "/" + each);`;
  const loaded = it.run("node", ["--input-type=commonjs", "--eval", loadAll]);
  expect(loaded).toEqual({ status: 0, stdout: "", stderr: "" });
  const made = it.run("jobsctl", ["certs", "init", "--bits", "2048", "--out", "certs"]);
  expect({ ...made, stdout: "" }).toEqual({ status: 0, stdout: "", stderr: "" });
  cpSync(join(it.directory, "certs"), join(daemon.directory, `certs-${node}`), { recursive: true });
  await using served = await daemon.serve(`certs-${node}`);
  const env = {
    JOBS_SERVER: served.server,
    JOBS_CA: "certs/ca.crt",
    JOBS_CERT: "certs/writer.crt",
    JOBS_KEY: "certs/writer.key",
  };
  const ran = it.run("jobsctl", ["run", "--", "sh", "-c", "echo out; echo err >&2; exit 3"], env);
  expect(ran).toEqual({ status: 3, stdout: "out\n", stderr: "err\n" });
  expect(session(it, documented("jobsctl/client"), env)).toBe("hello\nstopped\n");
  expect(it.run("jobsctl", ["list"], env).stdout).toContain("exited(3)");
});

it("on a Node that they do not claim npm refuses the packages, and the programs say what they need", () => {
  using old = consumer(nodeOf("22.0.0"));
  expect(() => old.install(tarball("jobsd"), tarball(NATIVE))).toThrow(/EBADENGINE/);
  const program = join(daemon.directory, "node_modules/jobsd/dist/jobsd.js");
  const { status, stderr } = old.run("node", [program, "--version"]);
  expect({ status, stderr }).toEqual({ status: 125, stderr: "jobsd: needs Node 24.15 or newer; this is v22.0.0\n" });
});

it("without its optional packages jobsd says which one it lacks", () => {
  using it = consumer(nodeOf(LOCKED));
  it.install("--omit=optional", tarball("jobsd"));
  it.write("session.mjs", documented("jobsd/worker"));
  expect(it.run("node", ["session.mjs"]).stderr).toContain(`npm's package ${NATIVE} has it`);
});

describe("what jobsd has in C for arm64, under qemu-user", () => {
  const QEMU = ["/usr/bin/qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"];
  const native = resolve("build/packages/jobsd-linux-arm64");

  it("has a supervisor that tells what the kernel gives it", () => {
    const { status, stdout } = daemon.run("sh", ["-c", `${QEMU.join(" ")} ${native}/supervisor probe`]);
    expect(status).toBe(0);
    // qemu-user has no namespaces, no clone3 and no bpf: the rest of a probe is the supervisor's own work.
    for (const line of ["pid errno 22", "clone3 errno 38", "slice ok"]) expect(stdout.split("\n")).toContain(line);
  });

  it("has a supervisor that waits for jobs, reads a start, and says where qemu-user gives no process", () => {
    daemon.write("supervisor", `#!/bin/sh\nexec ${QEMU.join(" ")} ${native}/supervisor "$@"\n`);
    chmodSync(join(daemon.directory, "supervisor"), 0o755);
    daemon.write(
      "session.mjs",
      `import { openWorker, SWITCHES } from "jobsd/worker";
       const options = { stateDir: "arm64", supervisor: process.cwd() + "/supervisor", isolationOff: [...SWITCHES], cgroup: "/tmp" };
       const worker = await openWorker(options);
       const error = await worker.start({ owner: "me", command: "true" }).catch((error) => error);
       console.log(error.name, error.facts.stage);
       await worker.close();`,
    );
    expect(daemon.run("node", ["session.mjs"])).toEqual({ status: 0, stdout: "JobError clone\n", stderr: "" });
  });

  it("has addons that a Node for arm64 loads, and makes a context of TLS with", () => {
    const load = `for (const each of ["verify", "notify"]) process.dlopen({ exports: {} }, "${native}/" + each + ".node");
      require("node:tls").createSecureContext({});
      console.log(process.arch);`;
    const [qemu = "", ...args] = QEMU;
    const node = join(nodeOf(LOCKED, "arm64"), "node");
    expect(daemon.run(qemu, [...args, node, "--eval", load])).toEqual({ status: 0, stdout: "arm64\n", stderr: "" });
  });
});

/** A consumer whose compiler looks into every declaration. */
const STRICT = {
  compilerOptions: {
    strict: true,
    skipLibCheck: false,
    exactOptionalPropertyTypes: true,
    noUncheckedIndexedAccess: true,
    noPropertyAccessFromIndexSignature: true,
    module: "nodenext",
    target: "es2022",
    types: [],
    noEmit: true,
  },
  include: ["*.mts"],
};

describe.each(["5.9.3", manifest.devDependencies.typescript])("with TypeScript %s a strict consumer", (typescript) => {
  const compile = (code: Readonly<Record<string, string>>): Ran => {
    using it = consumer(nodeOf(LOCKED));
    symlinkSync(join(daemon.directory, "node_modules"), join(it.directory, "node_modules"));
    it.write("tsconfig.json", JSON.stringify(STRICT));
    for (const [name, text] of Object.entries(code)) it.write(name, text);
    return it.run("node", [join(fromRegistry("typescript", typescript), "bin/tsc"), "--project", "."]);
  };

  it("compiles what the page has", () => {
    const files = { "client.mts": documented("jobsctl/client"), "worker.mts": documented("jobsd/worker") };
    expect(compile(files)).toEqual({ status: 0, stdout: "", stderr: "" });
  });

  it("is told of a field that is missing, and of one that is not there", () => {
    const code = documented("jobsd/worker").replace('owner: "me", ', "");
    const other = documented("jobsctl/client").replace("follow: true", "folow: true");
    expect(compile({ "client.mts": other, "worker.mts": code }).stdout).toMatch(/folow[\s\S]*owner/);
  });
});

it("what npm installs is small", () => {
  const sizes = ["jobsctl", "jobsd", "jobsd-linux-x64", "jobsd-linux-arm64"].map(
    (name) => statSync(tarball(name)).size,
  );
  for (const size of sizes) expect(size).toBeLessThan(1024 * 1024);
  expect(readFileSync("LICENSE", "utf8")).toContain("MIT License");
});
