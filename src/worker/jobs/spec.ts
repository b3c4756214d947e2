import { byteLengthOf, isBytes } from "../../os/bytes.ts";
import { invalid, quoted } from "../model/errors.ts";
import type { JobSpec, LogPolicy, NamedRlimit } from "../model/job.ts";
import { checkResources } from "../model/resources.ts";
import { amount, integer, listOf, number, oneOf, shape, text, texts, truth, whole } from "../model/shape.ts";

const DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const ARGUMENT_BYTES = 128 * 1024; // MAX_ARG_STRLEN, execve(2)
const TOTAL_BYTES = 2 * 1024 * 1024; // a quarter of the usual 8 MiB stack, execve(2)
const LABELS = 64;
const LABEL_KEY = /^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$/;
const LABEL_VALUE_BYTES = 255;
const REQUEST_ID_LENGTH = 128;
const UMASK_MAX = 0o777;
const OOM_SCORE_ADJ_MAX = 1000; // proc_pid_oom_score_adj(5)
const TIME_LIMIT_MS = 10 * 365 * 24 * 3600 * 1000;

const checkTypes = shape<JobSpec>(
  {
    command: text,
    args: listOf(text),
    env: texts,
    cwd: text,
    user: text,
    group: text,
    labels: texts,
    timeLimitMs: number,
    resources: checkResources,
    network: oneOf("host", "none"),
    privateTmp: truth,
    mergeOutput: truth,
    userNamespaces: truth,
    rlimits: listOf(shape<NamedRlimit>({ name: text, soft: whole, hard: whole }, ["name"])),
    umask: integer,
    oomScoreAdj: integer,
    log: shape<LogPolicy>({
      limitBytes: amount,
      keep: oneOf("newest", "oldest"),
      compress: oneOf("off", "zstd"),
      archive: truth,
      keepForMs: number,
    }),
    requestId: text,
    owner: text,
  },
  ["owner", "command"],
);

/** Returns the bytes that a text takes of what execve(2) can pass: its own, a NUL, and a pointer. `field` is named in an error. */
function checkText(field: () => string, text: string): number {
  if (text.includes("\0")) throw invalid(field(), "contains a NUL character, which no argument or variable can hold");
  if (!isBytes(text)) throw invalid(field(), "contains half a surrogate pair, which stands for no bytes");
  const bytes = byteLengthOf(text);
  if (bytes >= ARGUMENT_BYTES) throw invalid(field(), `is longer than ${ARGUMENT_BYTES} bytes`);
  return bytes + 9;
}

function checkLabels(labels: ReadonlyMap<string, string>): void {
  if (labels.size > LABELS) throw invalid("labels", `${labels.size} labels are too many; ${LABELS} is the most`);
  for (const [key, value] of labels) {
    if (!LABEL_KEY.test(key))
      throw invalid("labels", `${quoted(key)} is not a label's key; give up to 63 of A-Z a-z 0-9 . _ / -`);
    if (!value.isWellFormed()) throw invalid("labels", `the value of ${key} is not UTF-8`);
    if (Buffer.byteLength(value) > LABEL_VALUE_BYTES)
      throw invalid("labels", `the value of ${key} is longer than ${LABEL_VALUE_BYTES} bytes`);
  }
}

/** Throws `invalid`, naming the field, for a start that no host could run. */
export function checkSpec(spec: JobSpec): void {
  checkTypes("", spec);
  if (spec.command === "") throw invalid("command", "is empty; give a path, or a name to look up in PATH");
  let bytes = checkText(() => "command", spec.command);
  for (const [i, arg] of (spec.args ?? []).entries()) bytes += checkText(() => `args[${i}]`, arg);
  for (const [name, value] of spec.env ?? []) {
    if (name === "" || name.includes("="))
      throw invalid("env", `${quoted(name)} is not the name of a variable: it is empty or contains "="`);
    bytes += checkText(() => `env ${quoted(name)}`, `${name}=${value}`);
  }
  if (bytes > TOTAL_BYTES)
    throw invalid("args", `arguments and environment take ${bytes} bytes; ${TOTAL_BYTES} is the most`);
  if (spec.cwd !== undefined) {
    checkText(() => "cwd", spec.cwd);
    if (!spec.cwd.startsWith("/")) throw invalid("cwd", `${quoted(spec.cwd)} is not an absolute path`);
  }
  if (spec.timeLimitMs !== undefined && !(spec.timeLimitMs >= 1 && spec.timeLimitMs <= TIME_LIMIT_MS))
    throw invalid("time_limit", "must be at least 1 ms and at most 10 years; leave it out for none");
  if (spec.requestId !== undefined && !/^[\x21-\x7e]+$/.test(spec.requestId))
    throw invalid("request_id", "must be printable ASCII without spaces");
  if ((spec.requestId?.length ?? 0) > REQUEST_ID_LENGTH)
    throw invalid("request_id", `is longer than ${REQUEST_ID_LENGTH} characters`);
  if (spec.labels) checkLabels(spec.labels);
  const { umask = 0, oomScoreAdj = 0 } = spec;
  if (!(umask >= 0 && umask <= UMASK_MAX)) throw invalid("umask", `0${umask.toString(8)} is not between 0 and 0777`);
  if (!(oomScoreAdj >= 0 && oomScoreAdj <= OOM_SCORE_ADJ_MAX))
    throw invalid(
      "oom_score_adj",
      `${oomScoreAdj} is not between 0 and ${OOM_SCORE_ADJ_MAX}: a job may become a likelier victim, but not a less likely one`,
    );
}

/** The job's whole environment: the defaults, overridden and extended by what the start asks for. */
export function environmentOf(
  spec: JobSpec,
  account: { readonly user: string; readonly home: string },
): Map<string, string> {
  return new Map([
    ["PATH", DEFAULT_PATH],
    ["HOME", account.home],
    ["USER", account.user],
    ["LOGNAME", account.user],
    ...(spec.env ?? []),
  ]);
}
