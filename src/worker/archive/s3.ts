import { createHash } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import { Readable } from "node:stream";
import {
  AbortMultipartUploadCommand,
  type CompletedPart,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  HeadObjectCommand,
  ListMultipartUploadsCommand,
  PutObjectCommand,
  S3Client,
  S3ServiceException,
  UploadPartCommand,
} from "@aws-sdk/client-s3";
import { reasonOf } from "../../os/errno.ts";
import { invalid } from "../model/errors.ts";
import type { Place } from "../model/options.ts";
import { readFully } from "./directory.ts";
import { type Store, unavailable } from "./store.ts";

/** A file is sent in parts of this size, one at a time, so that this is what an upload takes of memory. 5 MiB is the least that S3 takes. */
export const PART_BYTES = 8 * 1024 * 1024;
/** https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html */
const MOST_PARTS = 10_000;
const SILENCE_MS = 30_000;
/** How long a failed upload may take to remove its parts; the next try for that key removes them otherwise. */
const ABORT_MS = 2000;

/** An object's name, as each request has it. */
interface Target {
  readonly Bucket: string;
  readonly Key: string;
}

/** A file, and how it is cut. */
interface Source {
  readonly file: FileHandle;
  readonly size: number;
  readonly partBytes: number;
}

/** An archive in a bucket. Throws JobError `invalid` when no region is known. */
// oxlint-disable-next-line max-lines-per-function -- one method for each operation of a store, over one client
export async function openS3(place: Place & { readonly kind: "s3" }): Promise<Store> {
  const { bucket, prefix, endpoint, silenceMs = SILENCE_MS } = place;
  const region = place.region ?? (endpoint === undefined ? undefined : "us-east-1");
  const client = new S3Client({
    ...(endpoint !== undefined && { endpoint, forcePathStyle: true }),
    ...(region !== undefined && { region }),
    requestHandler: { connectionTimeout: silenceMs, socketTimeout: silenceMs },
    // The checksums that there are to be are given; servers of before there were any take these requests, too.
    requestChecksumCalculation: "WHEN_REQUIRED",
    responseChecksumValidation: "WHEN_REQUIRED",
  });
  await client.config.region().catch((error: unknown) => {
    client.destroy();
    throw invalid("archive region", `none is known: ${reasonOf(error)}`);
  });
  const targetOf = (key: string): Target => ({ Bucket: bucket, Key: prefix === "" ? key : `${prefix}/${key}` });

  return {
    place: `s3://${bucket}/${prefix}`,
    async put(key, path, signal) {
      const target = targetOf(key);
      await using file = await open(path);
      const { size } = await file.stat();
      const source = { file, size, partBytes: Math.max(PART_BYTES, Math.ceil(size / MOST_PARTS)) };
      try {
        const digests = await (size > source.partBytes ? putParts : putWhole)(client, target, source, signal);
        await verify(client, target, source, digests, signal);
      } catch (error) {
        throw new Error(saidBy(error), { cause: error });
      }
    },
    async has(key, signal) {
      const target = targetOf(key);
      try {
        await client.send(new HeadObjectCommand(target), { abortSignal: signal }).catch((error: unknown) => {
          // A 403 has no reason: it may be that of wrong credentials.
          if (statusOf(error) !== 403) throw error;
          return readRange(client, target, Buffer.alloc(1), 0, signal);
        });
        return true;
      } catch (error) {
        // A client that may not list a bucket gets AccessDenied for objects that do not exist.
        if (statusOf(error) === 404 || (error instanceof Error && error.name === "AccessDenied")) return false;
        throw new Error(saidBy(error), { cause: error });
      }
    },
    async remove(directory, files, signal) {
      for (const file of files) {
        const target = targetOf(`${directory}/${file}`);
        try {
          await client.send(new DeleteObjectCommand(target), { abortSignal: signal });
        } catch (error) {
          // S3 itself does not tell of an object that does not exist.
          if (statusOf(error) !== 404) throw new Error(saidBy(error), { cause: error });
        }
        await abortLeftovers(client, target, signal);
      }
    },
    async open(key, signal) {
      const target = targetOf(key);
      const failed = (error: unknown): never => {
        throw unavailable(key, new Error(saidBy(error), { cause: error }));
      };
      const { ContentLength: size = 0 } = await client
        .send(new HeadObjectCommand(target), { abortSignal: signal })
        .catch(failed);
      return {
        size,
        async read(buffer, offset) {
          const wanted = buffer.subarray(0, Math.max(0, size - offset));
          await readRange(client, target, wanted, offset, signal).catch(failed);
          return wanted.length;
        },
        async [Symbol.asyncDispose]() {},
      };
    },
    [Symbol.dispose]: () => client.destroy(),
  };
}

function statusOf(error: unknown): number | undefined {
  return error instanceof S3ServiceException ? error.$metadata.httpStatusCode : undefined;
}

/** Returns what an error says; the answer to a HEAD has no body, so its status has to do. */
function saidBy(error: unknown): string {
  if (!(error instanceof S3ServiceException)) return reasonOf(error);
  const status = error.$metadata.httpStatusCode ?? 0;
  const name = error.name === "Unknown" || error.name === "NotFound" ? "" : `${error.name}: `;
  return `${name}${error.message === "UnknownError" ? "no reason given" : error.message} (${status})`;
}

function sha256(bytes: Buffer): Buffer {
  return createHash("sha256").update(bytes).digest();
}

/** Reads the file's parts, one after another into one buffer. */
async function* partsOf({ file, size, partBytes }: Source): AsyncGenerator<Buffer> {
  const buffer = Buffer.allocUnsafeSlow(Math.min(size, partBytes));
  for (let offset = 0; offset < size || offset === 0; offset += partBytes) {
    const part = buffer.subarray(0, size - offset);
    if ((await readFully(file, part, offset)) < part.length) throw new Error("the file is shorter than it was");
    yield part;
  }
}

/** Resolves to the digests of the parts that were sent, here of one. */
async function putWhole(client: S3Client, target: Target, source: Source, abortSignal: AbortSignal): Promise<Buffer[]> {
  const digests: Buffer[] = [];
  for await (const Body of partsOf(source)) {
    const digest = sha256(Body);
    digests.push(digest);
    const request = new PutObjectCommand({ ...target, Body, ChecksumSHA256: digest.toString("base64") });
    await client.send(request, { abortSignal });
  }
  return digests;
}

async function putParts(client: S3Client, target: Target, source: Source, abortSignal: AbortSignal): Promise<Buffer[]> {
  await abortLeftovers(client, target, abortSignal);
  const begin = new CreateMultipartUploadCommand({ ...target, ChecksumAlgorithm: "SHA256" });
  const { UploadId } = await client.send(begin, { abortSignal });
  const digests: Buffer[] = [];
  const Parts: CompletedPart[] = [];
  try {
    for await (const Body of partsOf(source)) {
      const digest = sha256(Body);
      digests.push(digest);
      const part = { PartNumber: digests.length, ChecksumSHA256: digest.toString("base64") };
      const sent = await client.send(new UploadPartCommand({ ...target, UploadId, Body, ...part }), { abortSignal });
      Parts.push({ ...part, ETag: sent.ETag });
    }
    const end = new CompleteMultipartUploadCommand({ ...target, UploadId, MultipartUpload: { Parts } });
    await client.send(end, { abortSignal });
  } catch (error) {
    const abort = new AbortMultipartUploadCommand({ ...target, UploadId });
    await client.send(abort, { abortSignal: AbortSignal.timeout(ABORT_MS) }).catch(() => {});
    throw error;
  }
  return digests;
}

/** Removes the parts of cut uploads, which cost as much as objects and are in no list of them. */
async function abortLeftovers(client: S3Client, { Bucket, Key }: Target, abortSignal: AbortSignal): Promise<void> {
  try {
    const { Uploads = [] } = await client.send(new ListMultipartUploadsCommand({ Bucket, Prefix: Key }), {
      abortSignal,
    });
    for (const { Key: each, UploadId } of Uploads)
      if (each === Key) await client.send(new AbortMultipartUploadCommand({ Bucket, Key, UploadId }), { abortSignal });
  } catch {
    // Not every server has a list of them, and not everybody may see it.
  }
}

/**
 * Compares the checksum that the server made, which for a file in parts is that of the parts' digests. Where the server makes
 * none, or another, all of the file is read back. https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
 */
async function verify(
  client: S3Client,
  target: Target,
  { size, partBytes }: Source,
  digests: readonly Buffer[],
  abortSignal: AbortSignal,
): Promise<void> {
  const head = new HeadObjectCommand({ ...target, ChecksumMode: "ENABLED" });
  const { ContentLength, ChecksumSHA256 } = await client.send(head, { abortSignal });
  if (ContentLength !== size) throw new Error(`${ContentLength} bytes of ${size} are stored`);
  const [first] = digests;
  const whole = digests.length === 1 ? first : sha256(Buffer.concat(digests));
  if (ChecksumSHA256?.replace(/-\d+$/, "") === whole?.toString("base64")) return;
  const buffer = Buffer.allocUnsafeSlow(Math.min(size, partBytes));
  for (const [index, digest] of digests.entries()) {
    const part = buffer.subarray(0, size - index * partBytes);
    await readRange(client, target, part, index * partBytes, abortSignal);
    if (!sha256(part).equals(digest)) throw new Error("what is stored is not what was sent");
  }
}

/** Fills `buffer` from `offset` on. */
async function readRange(
  client: S3Client,
  target: Target,
  buffer: Buffer,
  offset: number,
  abortSignal: AbortSignal,
): Promise<void> {
  if (buffer.length === 0) return;
  const request = new GetObjectCommand({ ...target, Range: `bytes=${offset}-${offset + buffer.length - 1}` });
  const { Body, ContentRange } = await client.send(request, { abortSignal });
  if (!(Body instanceof Readable)) throw new Error("no answer to read");
  let count = 0;
  if (ContentRange?.startsWith(`bytes ${offset}-`))
    for await (const piece of Body as AsyncIterable<Buffer>) count += piece.copy(buffer, count);
  else Body.destroy();
  if (count < buffer.length) throw new Error(`${count} bytes came of ${buffer.length}`);
}
