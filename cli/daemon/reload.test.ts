import { copyFile, readFile, rename, writeFile } from "node:fs/promises";
import { once } from "node:events";
import { join } from "node:path";
import { connect } from "node:tls";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { issueAll } from "../../certs/issue.ts";
import { type Host, startHost } from "../testing/host.ts";

let host: Host;
/** The directory of certificates of another CA. */
let other: string;
beforeAll(async () => {
  host = await startHost();
  other = join(host.dir, "other");
  await issueAll({ out: other, bits: 2048 });
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

/** Returns the serial number that the daemon's certificate has for a new connection. */
async function serial(): Promise<string> {
  const [ca, cert, key] = await Promise.all(
    ["ca.crt", "writer.crt", "writer.key"].map((name) => readFile(host.file(name))),
  );
  const port = Number(host.server.split(":").at(-1));
  const socket = connect({ port, ca, cert, key, rejectUnauthorized: false, ALPNProtocols: ["h2"] });
  await once(socket, "secureConnect");
  const { serialNumber } = socket.getPeerCertificate();
  socket.destroy();
  return serialNumber;
}

async function replace(name: string, from: string): Promise<void> {
  await copyFile(from, host.file(`${name}.new`));
  await rename(host.file(`${name}.new`), host.file(name));
}

const PATIENCE = { timeout: 30_000 };

describe("certificates that are renewed", () => {
  it("are shown from then on, and no stream of a running job ends", async () => {
    const go = join(host.dir, "go");
    const stream = host.launch(["run", "--", "sh", "-c", `echo up; until [ -e ${go} ]; do sleep 0.1; done; echo on`]);
    await stream.shows("up");
    const before = await serial();
    await writeFile(
      host.file("ca.crt"),
      Buffer.concat([await readFile(host.file("ca.crt")), await readFile(join(other, "ca.crt"))]),
    );
    for (const name of ["worker.crt", "worker.key"]) await replace(name, join(other, name));
    await expect.poll(serial, PATIENCE).not.toBe(before);
    await writeFile(go, "");
    expect(await stream.ended).toEqual({ code: 0, stdout: "up\non\n", stderr: "" });
  });
});
