import { type Job, Source, StreamResponse } from "../../proto/generated/jobs/v1/worker.ts";
import type { Client, StreamInput } from "../../src/client/index.ts";
import { resuming } from "../../src/client/resume.ts";
import { ClientError } from "../../src/client/errors.ts";
import { withClient } from "./with-client.ts";
import { EXIT } from "../tell/exit.ts";
import { checkJob, riding } from "../tell/outage.ts";
import { exitBy, printBytes, printMessage, say, stdoutClosed } from "../tell/output.ts";
import { parseCount, parseEnum, UsageError } from "../line/parse.ts";
import type { Given } from "../line/program.ts";

/** `jobsctl stream [flags] ID`: the job's stdout to stdout, its stderr to stderr, byte for byte. */
export async function stream(given: Given): Promise<number> {
  const [jobId = ""] = given.operands;
  const source = given.text("source");
  const sources = source === undefined ? [] : [parseEnum("--source", source, "SOURCE", Source)];
  const times = given.on("timestamps");
  const request: StreamInput = { jobId, position: position(given), follow: given.on("follow"), sources, times };
  const write = given.text("output") === "json" ? writeJson : times ? timestamped() : writeBytes;
  // Detaching is all that a signal does here: the job goes on.
  process.once("SIGINT", () => void exitBy("SIGINT"));
  return withClient(given, async (client) => {
    await checkJob(client, jobId);
    const end = await copy(client, request, write);
    if (!end) say(`job ${jobId}: the worker ended the stream without telling how the job is`);
    return end ? EXIT.ok : EXIT.failed;
  });
}

type Write = (message: StreamResponse) => Promise<void>;

/**
 * Writes a job's output until the stream ends, across broken connections; gaps and connections are told on stderr.
 * Resolves to the job as the last message has it.
 */
export async function copy(client: Client, request: StreamInput, write: Write = writeBytes): Promise<Job | undefined> {
  let end: Job | undefined;
  let next: bigint | undefined;
  try {
    // A write may fail long after it was begun, and a job may be silent for days: the signal ends the loop then.
    for await (const message of resuming(client, request, { ...riding(client), signal: stdoutClosed })) {
      if (message.gap > 0n) say(`${message.gap} bytes of output from offset ${message.offset} on were not kept`);
      await write(message);
      next = message.offset + BigInt(message.output.length) + message.gap;
      end = message.end ?? end;
    }
  } catch (error) {
    stdoutClosed.throwIfAborted();
    if (error instanceof ClientError && error.code === "UNAVAILABLE" && next !== undefined) {
      say(`to go on later: jobsctl stream --follow --offset ${next} ${request.jobId}`);
    }
    throw error;
  }
  return end;
}

function position(given: Given): StreamInput["position"] {
  const kinds = { offset: "offset", tail: "tailLines", "tail-bytes": "tailBytes" } as const;
  const flags = (["offset", "tail", "tail-bytes"] as const).filter((flag) => given.text(flag) !== undefined);
  const [flag] = flags;
  if (flag === undefined) return undefined;
  if (flags.length > 1) throw new UsageError(`--${flags.join(" and --")} are different beginnings: give one of them`);
  return { $case: kinds[flag], value: parseCount(`--${flag}`, given.text(flag) ?? "") };
}

async function writeBytes({ source, output }: StreamResponse): Promise<void> {
  if (output.length === 0) return;
  await printBytes(output, source === Source.SOURCE_STDERR ? "stderr" : "stdout");
}

async function writeJson(message: StreamResponse): Promise<void> {
  await printMessage("StreamResponse", StreamResponse.encode(message), { compact: true });
}

/** Puts the time in front of each line, also of one that comes in pieces: its first piece's time. */
function timestamped(): Write {
  const inLine = new Map<Source, boolean>();
  return async (message) => {
    const { source, output, time } = message;
    if (output.length === 0) return;
    const stamp = Buffer.from(`${time?.toISOString() ?? "-"} `);
    const pieces: Buffer[] = [];
    for (let at = 0; at < output.length;) {
      if (!inLine.get(source)) pieces.push(stamp);
      const newline = output.indexOf(0x0a, at);
      const end = newline < 0 ? output.length : newline + 1;
      pieces.push(output.subarray(at, end));
      inLine.set(source, newline < 0);
      at = end;
    }
    await writeBytes({ ...message, output: Buffer.concat(pieces) });
  };
}
