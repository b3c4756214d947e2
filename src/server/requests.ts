import { BinaryReader } from "@bufbuild/protobuf/wire";
import { JobError } from "../worker/errors.ts";

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

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
        const reader: unknown = new BinaryReader(bytes, (text) => utf8.decode(text));
        // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- its type says Buffer only
        return method.requestDeserialize(reader as Buffer);
      } catch (error) {
        const isText =
          error instanceof TypeError && "code" in error && error.code === "ERR_ENCODING_INVALID_ENCODED_DATA";
        const why = isText ? "a string in it is not UTF-8" : error instanceof Error ? error.message : String(error);
        return new JobError("invalid", `the request cannot be read: ${why}`);
      }
    };
    return [name, { ...method, requestDeserialize }];
  });
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the same methods
  return Object.fromEntries(methods) as Service;
}
