import { BinaryReader } from "@bufbuild/protobuf/wire";
import { reasonOf } from "../os/errno.ts";
import { JobError } from "../worker/index.ts";

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/**
 * More tags and lengths than the 2 MiB of arguments and variables that a start may have (spec.ts) come to: an argument counts
 * as 9 bytes and has two of them, a variable counts as 19 and has six.
 */
const MOST_NUMBERS = 700_000;

type Methods = Readonly<Record<string, { readonly requestDeserialize: (value: Buffer) => unknown }>>;

/**
 * A service whose requests have to be well-formed, their strings as UTF-8. A handler gets one that is not as the error that
 * says so, and throws it (guard.ts): grpc-js would answer INTERNAL, and U+FFFD would stand for bytes of a string.
 */
export function strictly<Service extends Methods>(service: Service): Service {
  const methods = Object.entries(service).map(([name, method]) => {
    const requestDeserialize = (bytes: Buffer): unknown => {
      try {
        // The generated code reads from a reader as it does from bytes.
        const reader: unknown = counting(new BinaryReader(bytes, (text) => utf8.decode(text)));
        // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- its type says Buffer only
        return method.requestDeserialize(reader as Buffer);
      } catch (error) {
        const isText =
          error instanceof TypeError && "code" in error && error.code === "ERR_ENCODING_INVALID_ENCODED_DATA";
        const why = isText ? "a string in it is not UTF-8" : reasonOf(error);
        return new JobError("invalid", `the request cannot be read: ${why}`);
      }
    };
    return [name, { ...method, requestDeserialize }];
  });
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the same methods
  return Object.fromEntries(methods) as Service;
}

/** The reader, which throws once no request needs what it has read: an empty field is 2 bytes, and holds others up like a full one. */
function counting(reader: BinaryReader): BinaryReader {
  const read = reader.uint32.bind(reader);
  let numbers = 0;
  reader.uint32 = () => {
    if (++numbers > MOST_NUMBERS) throw new RangeError("it has more fields than 2 MiB of arguments and variables need");
    return read();
  };
  return reader;
}
