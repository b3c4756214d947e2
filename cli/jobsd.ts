import { dirname, isAbsolute } from "node:path";
import manifest from "../package.json" with { type: "json" };
import { keepIgnored } from "./line/caller.ts";
import { exit, replaceNodes } from "./tell/output.ts";

/**
 * The checkout, or what is installed of it: cli/ stands in it, and so does dist/, which holds this file once it is built.
 */
const ROOT = dirname(import.meta.dirname);

replaceNodes();
// S3's client would look for its configuration, which may name a program to run, in the current directory.
if (!isAbsolute(process.env["HOME"] ?? "/")) delete process.env["HOME"];
keepIgnored();
// Loaded after replaceNodes(): the worker loads node:util, which makes Node's own process.stderr.
void import("./daemon/jobsd.ts").then(({ main }) => main(ROOT, manifest.version)).then(exit);
