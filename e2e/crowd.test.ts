import { once } from "node:events";
import { connect } from "node:net";
import { afterAll, beforeAll, expect, it, vi } from "vitest";
import { type Daemon, startDaemon } from "./testing/daemon.ts";

/** More than the daemon shakes hands with at once. */
const HELLOS = 200;
const CALLS = 8;
const DEADLINE = { timeout: 60_000, interval: 200 };

const made = new AsyncDisposableStack();
let daemon: Daemon;
beforeAll(async () => {
  daemon = made.use(await startDaemon({ flags: ["--max-calls", String(CALLS)] }));
});
afterAll(() => made.disposeAsync());

it("strangers who begin a handshake and say no more keep nobody out", async () => {
  const [host = "", port] = daemon.server.split(":");
  await using opened = new AsyncDisposableStack();
  for (let i = 0; i < HELLOS; i++) {
    const socket = connect(Number(port), host).on("error", () => {});
    opened.defer(() => void socket.destroy());
    await once(socket.resume(), "connect");
    // A record of a handshake, and none of its bytes: RFC 8446, 5.1.
    socket.write(Uint8Array.of(22, 3, 1));
  }
  expect(await daemon.jobs("writer", "list", "-q")).toEqual({ code: 0, stdout: "", stderr: "" });
});

it("a reader with as many calls as one may have is told so, and others call", async () => {
  const id = await daemon.start("--", "sh", "-c", "echo there; exec sleep 1000");
  const following = Array.from({ length: CALLS / 2 }, () => daemon.launch("reader", "stream", "--follow", id));
  await vi.waitFor(() => {
    for (const each of following) expect(each.stdout()).toBe("there\n");
  }, DEADLINE);
  const more = Array.from({ length: CALLS / 2 }, () => daemon.jobs("reader", "query", id));
  for (const { code, stderr } of await Promise.all(more)) {
    expect(code).toBe(1);
    expect(stderr).toContain(`${CALLS / 2} calls open, which is as many as they may`);
  }
  expect(await daemon.jobs("writer", "list", "-q")).toEqual({ code: 0, stdout: `${id}\n`, stderr: "" });
  for (const { child } of following) child.kill("SIGINT");
  await Promise.all(following.map(({ ended }) => ended));
  expect(await daemon.jobs("reader", "list", "-q")).toMatchObject({ code: 0, stdout: `${id}\n` });
  await daemon.jobs("writer", "stop", "--grace", "0", id);
});
