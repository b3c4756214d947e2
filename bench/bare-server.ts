/** A bare grpc-js server whose Stream sends the same message again and again. Arguments: CA CERT KEY COUNT BYTES. */
import { once } from "node:events";
import { readFileSync } from "node:fs";
import tls from "node:tls";
import { Server, ServerCredentials, type ServerWritableStream } from "@grpc/grpc-js";
import { Source, StreamResponse, WorkerServiceService, type StreamRequest } from "../proto/generated/jobs/v1/worker.ts";
import { grpcOptions, MAX_CALLS } from "../src/server/limits.ts";

const [ca, cert, key, count, bytes] = process.argv.slice(2);
if (!ca || !cert || !key || !count || !bytes) throw new Error("usage: bare-server.ts CA CERT KEY COUNT BYTES");

// As the daemon sets it: grpc-js has no option for the TLS version.
tls.DEFAULT_MIN_VERSION = "TLSv1.3";
const message = Buffer.from(
  StreamResponse.encode({
    output: Buffer.alloc(Number(bytes)),
    source: Source.SOURCE_STDOUT,
    time: new Date(),
    offset: 2n ** 29n,
    gap: 0n,
    end: undefined,
  }).finish(),
);

const server = new Server(grpcOptions(MAX_CALLS / 2));
server.addService(
  { stream: { ...WorkerServiceService.stream, responseSerialize: (sent: Buffer) => sent } },
  {
    async stream(call: ServerWritableStream<StreamRequest, Buffer>) {
      for (let left = Number(count); left > 0; left--) if (!call.write(message)) await once(call, "drain");
      call.end();
    },
  },
);
const credentials = ServerCredentials.createSsl(
  readFileSync(ca),
  [{ cert_chain: readFileSync(cert), private_key: readFileSync(key) }],
  true,
);
server.bindAsync("127.0.0.1:0", credentials, (error, port) => {
  if (error) throw error;
  process.stdout.write(`listening on 127.0.0.1:${port}\n`);
});
