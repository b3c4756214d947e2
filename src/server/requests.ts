import { Duplex } from "node:stream";
import { BinaryReader } from "@bufbuild/protobuf/wire";
import { status } from "@grpc/grpc-js";
import { reasonOf } from "../os/errno.ts";
import { JobError } from "../worker/index.ts";
import type { Call } from "./guard.ts";
import { MAX_QUESTION_BYTES, MAX_REQUESTS_BYTES } from "./limits.ts";
import { takesLong } from "./roles.ts";
import type { Failure } from "./status.ts";

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The most arguments of a start: 2 MiB of them, each of which takes a pointer and a NUL at least (execve(2)). */
const MOST_TEXTS = 233_016;
/** An argument that is sent as bytes takes as long to decode as four that are sent as text. */
const TEXTS_OF_BYTES = 4;
/** The most variables, labels and limits of a start: each is a message, which takes as long to decode as eight texts. */
const MOST_MESSAGES = 20_000;

/** A longer request takes milliseconds to decode. */
const SHORT_BYTES = 4096;

type Methods = Readonly<Record<string, { readonly requestDeserialize: (value: Buffer) => unknown }>>;

/**
 * Makes a service whose requests have to be well-formed, with strings in UTF-8. Instead of another request its handler gets
 * an error, and throws it (guard.ts). grpc-js alone would answer INTERNAL, and put U+FFFD into a string that is not UTF-8. A
 * long request is a function that decodes it: see `decoded`.
 */
export function strictly<Service extends Methods>(service: Service): Service {
  const methods = Object.entries(service).map(([name, method]) => {
    const decode = (bytes: Buffer): unknown => {
      try {
        // The generated code reads from a reader as it does from bytes.
        const reader: unknown = counting(new BinaryReader(bytes, (text) => utf8.decode(text)));
        // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- its type says Buffer only
        return method.requestDeserialize(reader as Buffer);
      } catch (error) {
        const isText =
          error instanceof TypeError && "code" in error && error.code === "ERR_ENCODING_INVALID_ENCODED_DATA";
        return new JobError(
          "invalid",
          `the request cannot be read: ${isText ? "a string in it is not UTF-8" : reasonOf(error)}`,
        );
      }
    };
    const requestDeserialize = (bytes: Buffer): unknown =>
      bytes.length > SHORT_BYTES ? () => decode(bytes) : decode(bytes);
    return [name, { ...method, requestDeserialize }];
  });
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the same methods
  return Object.fromEntries(methods) as Service;
}

/** Passes a request on. A long request is decoded first, in a turn of its client's. */
export function decoded(request: unknown, later: (work: () => void) => void, pass: (request: unknown) => void): void {
  if (typeof request === "function") later(() => pass(request()));
  else pass(request);
}

/**
 * Makes the reader throw when a request has too many parts, before they have taken many milliseconds: an empty part is 2
 * bytes, and takes as long as a full one. A text has two numbers, its tag and its length; so has a message.
 */
function counting(reader: BinaryReader): BinaryReader {
  const number = reader.uint32.bind(reader);
  const text = reader.string.bind(reader);
  const bytes = reader.bytes.bind(reader);
  let texts = 0;
  let numbers = 0;
  const count = (more: number): void => {
    texts += more;
    numbers -= 2;
    if (texts > MOST_TEXTS)
      throw new RangeError(`it has more than ${MOST_TEXTS} arguments, or ${MOST_TEXTS / TEXTS_OF_BYTES} in bytes`);
  };
  reader.uint32 = () => {
    if (++numbers > 2 * MOST_MESSAGES)
      throw new RangeError(`it has more than ${MOST_MESSAGES} variables, labels and limits`);
    return number();
  };
  reader.string = () => {
    count(1);
    return text();
  };
  reader.bytes = () => {
    count(TEXTS_OF_BYTES);
    return bytes();
  };
  return reader;
}

export const COMPRESSED: Failure = {
  code: status.UNIMPLEMENTED,
  reason: "REQUEST_COMPRESSED",
  message: "the request is compressed, and this server takes none that is: send it with grpc-encoding identity",
};

/**
 * Tells whether a call's messages come compressed. grpc-js would make 4 MB of 4 KB, so that a request's length on the wire
 * would bound nothing.
 */
export function isCompressed(call: Call): boolean {
  // grpc-js has this field, and its types do not.
  return "incomingEncoding" in call && call.incomingEncoding !== "identity";
}

const TOO_LONG: Failure = {
  code: status.RESOURCE_EXHAUSTED,
  reason: "REQUEST_TOO_LONG",
  message: `the request is longer than ${MAX_QUESTION_BYTES} bytes, which none but Start and Update may be`,
  facts: { limit: "request-bytes", maximum: String(MAX_QUESTION_BYTES) },
};

const TOO_MANY: Failure = {
  code: status.RESOURCE_EXHAUSTED,
  reason: "TOO_MANY_REQUEST_BYTES",
  message: `requests of ${MAX_REQUESTS_BYTES} bytes by certificates of this subject and role are under way: wait for their answers`,
  facts: { limit: "request-bytes-of-one-client", maximum: String(MAX_REQUESTS_BYTES) },
};

/**
 * Refuses a call whose request is too long for its method, or makes the requests of its client's open calls too long
 * together. grpc-js keeps the bytes of a request until it is whole, and has one limit for all methods: that of a start.
 *
 * @param weigh adds to the bytes of the client's requests, and returns their sum
 */
export function boundRequest(
  call: Call,
  path: string,
  weigh: (bytes: number) => number,
  refuse: (why: Failure) => void,
): void {
  // grpc-js has this field, and its types do not.
  if (!("stream" in call) || !(call.stream instanceof Duplex)) return;
  let bytes = 0;
  let refused = false;
  call.stream.on("data", ({ length }: Buffer) => {
    if (refused) return;
    bytes += length;
    const all = weigh(length);
    const why =
      bytes > MAX_QUESTION_BYTES && !takesLong(path) ? TOO_LONG : all > MAX_REQUESTS_BYTES ? TOO_MANY : undefined;
    if (!why) return;
    refused = true;
    refuse(why);
  });
  call.stream.once("close", () => weigh(-bytes));
}
