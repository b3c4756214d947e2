import { createFileRegistry, type DescFile, type FileRegistry, fromBinary, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { DESCRIPTORS } from "../../proto/generated/descriptors.ts";

/** The files of the API. Each function returns undefined where there is nothing of that name. */
export interface ApiFiles {
  /** Returns a file and all that it imports, each a serialised FileDescriptorProto. */
  named(path: string): Uint8Array[] | undefined;
  /** Returns the file that declares what has this full name, likewise. */
  declaring(symbol: string): Uint8Array[] | undefined;
  hasMessage(name: string): boolean;
}

export function readApiFiles(): ApiFiles {
  const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, Buffer.from(DESCRIPTORS, "base64")));
  const bytes = new Map([...registry.files].map((file) => [file, toBinary(FileDescriptorProtoSchema, file.proto)]));
  const serialised = (file: DescFile | undefined): Uint8Array[] | undefined =>
    file && [...withImports(file, new Set())].flatMap((each) => bytes.get(each) ?? []);
  return {
    named: (path) => serialised(registry.getFile(path)),
    declaring: (symbol) => serialised(fileOf(registry, symbol)),
    hasMessage: (name) => registry.getMessage(name) !== undefined,
  };
}

function withImports(file: DescFile, seen: Set<DescFile>): Set<DescFile> {
  if (!seen.has(file)) {
    seen.add(file);
    for (const each of file.dependencies) withImports(each, seen);
  }
  return seen;
}

/** Returns the file of a type or a service, or of what has one of them around it: a method, a field, an enum's value. */
function fileOf(registry: FileRegistry, symbol: string): DescFile | undefined {
  const found = registry.get(symbol);
  if (found) return found.file;
  const [, around = "", name = ""] = /^(.+)\.(\w+)$/.exec(symbol) ?? [];
  const outer = registry.get(around);
  const members: readonly { readonly name: string }[] =
    outer?.kind === "service"
      ? outer.methods
      : outer?.kind === "message"
        ? [...outer.fields, ...outer.oneofs, ...outer.nestedEnums.flatMap(({ values }) => values)]
        : [];
  if (outer && members.some((member) => member.name === name)) return outer.file;
  // A value of an enum at the top of a file is named in the file's package.
  for (const file of registry.files) {
    const values = file.proto.package === around ? file.enums.flatMap((each) => each.values) : [];
    if (values.some((value) => value.name === name)) return file;
  }
  return undefined;
}
