import { connect } from "node:http2";

// The container's health check: grpc.health.v1.Health/Check on the daemon's own socket. It runs every few seconds, so
// it speaks gRPC by hand; with the library it takes three times as long.

/** A HealthCheckRequest for the server as a whole: no compression, no bytes. */
const REQUEST = Buffer.alloc(5);
/** A HealthCheckResponse with status SERVING: no compression, two bytes. */
const SERVING = Buffer.from([0, 0, 0, 0, 2, 8, 1]);
const TIMEOUT_MS = 5000;

const path = process.env["JOBSD_HEALTH_SOCKET"] ?? "";
const session = connect("http://localhost", { path });
AbortSignal.timeout(TIMEOUT_MS).addEventListener("abort", () => session.destroy(new Error("no answer")));
session.on("error", (error) => fail(error.message));
const call = session.request({
  ":method": "POST",
  ":path": "/grpc.health.v1.Health/Check",
  "content-type": "application/grpc",
  te: "trailers",
});
call.on("error", (error) => fail(error.message));
call.end(REQUEST);
const reply = Buffer.concat(await call.toArray());
if (!reply.equals(SERVING)) fail("not serving");
session.close();

function fail(reason: string): never {
  process.stderr.write(`${path}: ${reason}\n`);
  process.exit(1);
}
