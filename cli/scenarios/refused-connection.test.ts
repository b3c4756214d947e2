import { copyFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openAuthority, sign } from "../../certs/authority.ts";
import { readFrom } from "../../certs/files.ts";
import { issueAll } from "../../certs/issue.ts";
import { parseRequest } from "../../certs/request.ts";
import { type Host, startHost } from "../testing/host.ts";

let host: Host;
/** A file of another CA's certificates. */
let foreign: (name: string) => string;
beforeAll(async () => {
  host = await startHost();
  foreign = (name) => join(host.dir, "foreign", name);
  await issueAll({ out: foreign(""), bits: 2048 });
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

/** A certificate of the host's own CA with a life of one day from `now` on, and its key. */
async function pair(now: Date): Promise<NodeJS.ProcessEnv> {
  const [cert, csr] = [join(host.dir, "some.crt"), join(host.dir, "some", "some.csr")];
  await host.jobs(["certs", "request", "some", "--out", join(host.dir, "some"), "--bits", "2048", "--force"]);
  const request = await readFrom(csr, (contents) => parseRequest(contents, csr));
  const authority = await openAuthority(host.file("ca.crt"), host.file("ca.key"));
  await writeFile(cert, await sign(authority, request, { profile: "writer", now, days: 1, minBits: 2048 }));
  return { JOBS_CERT: cert, JOBS_KEY: join(host.dir, "some", "some.key") };
}

describe("a connection that fails says why, and what to do", () => {
  it("when nobody listens", async () => {
    const { code, stdout, stderr } = await host.jobs(["list"], { JOBS_SERVER: "127.0.0.1:1" });
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toMatch(
      /^jobsctl: no connection: nobody listens at 127\.0\.0\.1:1\n {2}check the address, and that jobsd runs/,
    );
    expect(stderr).toContain("with server 127.0.0.1:1, ca ");
    expect(await host.jobs(["run", "--", "true"], { JOBS_SERVER: "127.0.0.1:1" })).toMatchObject({ code: 125 });
  });

  it("when the worker is of another CA", async () => {
    const { stderr } = await host.jobs(["list"], { JOBS_CA: foreign("ca.crt") });
    expect(stderr).toMatch(
      /the certificate of 127\.0\.0\.1:\d+ \(CN=worker\) is signed by another CA of the same name, CN=jobs CA/,
    );
  });

  it("when the worker is of another CA, also where the environment tells Node to trust anybody", async () => {
    const anybody = { NODE_TLS_REJECT_UNAUTHORIZED: "0" };
    const { code, stdout, stderr } = await host.jobs(["list"], { ...anybody, JOBS_CA: foreign("ca.crt") });
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toContain("is signed by another CA of the same name");
    expect(await host.jobs(["list", "-q"], anybody)).toMatchObject({ code: 0 });
  });

  it("when the own certificate is of another CA", async () => {
    const other = { JOBS_CERT: foreign("writer.crt"), JOBS_KEY: foreign("writer.key") };
    const { code, stderr } = await host.jobs(["list"], other);
    expect(code).toBe(1);
    expect(stderr).toMatch(
      /your certificate \(CN=writer\) is signed by another CA of the same name, .*\n.*jobsctl certs sign/,
    );
  });

  it("when the own certificate is over", async () => {
    const { stderr } = await host.jobs(["list"], await pair(new Date(Date.now() - 3 * 86_400_000)));
    expect(stderr).toMatch(/your certificate \(CN=some\) expired at .*\n {2}sign a new certificate/);
  });

  it("when the own certificate is a worker's", async () => {
    const { stderr } = await host.jobs(["list"], {
      JOBS_CERT: host.file("worker.crt"),
      JOBS_KEY: host.file("worker.key"),
    });
    expect(stderr).toContain("your certificate (CN=worker) is not for clients");
  });

  it("when the key is of another certificate", async () => {
    const { code, stderr } = await host.jobs(["list"], { JOBS_KEY: host.file("reader.key") });
    expect(code).toBe(1);
    expect(stderr).toContain("the private key does not belong to the certificate of ");
  });

  it("when others can read the key, before anything is sent", async () => {
    const key = join(host.dir, "open.key");
    await copyFile(host.file("ca.crt"), key);
    const { code, stderr } = await host.jobs(["list"], { JOBS_KEY: key, JOBS_SERVER: "127.0.0.1:1" });
    expect({ code, stderr }).toEqual({
      code: 1,
      stderr: `jobsctl: ${key}: others can read this private key (mode 0644): chmod 600 ${key}\n`,
    });
  });

  it("when a file is missing", async () => {
    const { stderr } = await host.jobs(["list"], { JOBS_CA: "/nonexistent/ca.crt" });
    expect(stderr).toBe("jobsctl: /nonexistent/ca.crt: no such file or directory\n");
  });

  it("when the address is none", async () => {
    const { code, stderr } = await host.jobs(["list"], { JOBS_SERVER: "localhost" });
    expect({ code, stderr }).toEqual({
      code: 125,
      stderr: expect.stringMatching(/^jobsctl: server: "localhost" is not an address/),
    });
  });
});
